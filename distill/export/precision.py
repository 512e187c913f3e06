"""Exported graphs of reduced precision: the encoder's weights as half precision or 8-bit whole numbers.

Inputs, outputs, correlation, softmax and read-out stay in single precision: they decide where the answer lies, and cost
little. 8 bits are ONNX Runtime's, static, per channel, and calibrated on pairs; dynamic quantisation is not offered, because
it computes convolutions slower and no better.
"""

import ast
import copy
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

PRECISIONS = ("fp32", "fp16", "int8")
HEAD = "fusion"
ENCODER = ("backbone", HEAD)
"""Parts of a student that describe an image; of a student of another kind, all of its parts."""
QUANTISED = ("Conv", "MatMul", "Gemm")
SCOPES = "pkg.torch.onnx.name_scopes"

Feed = dict[str, NDArray[np.float32]]


def encoder_parts(student: nn.Module) -> list[str]:
    """Returns the names of the parts of ``student`` that describe images."""
    names = [name for name, _ in student.named_children()]
    return [name for name in names if name in ENCODER] or names


def nodes_of(model: onnx.ModelProto, parts: Iterable[str], root: str = "student") -> list[str]:
    """Returns the names of the nodes that belong to ``parts`` of the module ``root``, by the exporter's notes."""
    wanted, found = {f"{root}.{part}" for part in parts}, []
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get(SCOPES, "[]"))
        if wanted & set(scopes):
            found.append(node.name)
    return found


def in_half(student: nn.Module) -> nn.Module:
    """Returns a copy of ``student`` whose encoder computes in half precision, the rest in single precision.

    The casts stand at the encoder's borders, so that points and scores never pass through half precision.
    """
    student = copy.deepcopy(student)
    for name in encoder_parts(student):
        setattr(student, name, _InHalf(getattr(student, name)))
    return student


class _InHalf(nn.Module):
    """A module in half precision between inputs and outputs in single precision."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.half()
        self.name = getattr(module, "name", type(module).__name__)  # for messages

    def forward(self, *inputs: Any) -> Any:
        """Computes in half precision; takes and returns single precision."""
        return _cast(self.module(*_cast(inputs, torch.float32, torch.float16)), torch.float16, torch.float32)


def _cast(value: Any, from_type: torch.dtype, to_type: torch.dtype) -> Any:
    """Returns a tensor, or a list or tuple of them, with those of one type cast to another."""
    if isinstance(value, list | tuple):
        return type(value)(_cast(inner, from_type, to_type) for inner in value)
    return value.to(to_type) if isinstance(value, torch.Tensor) and value.dtype == from_type else value


def int8_candidates(traced: onnx.ModelProto, parts: Sequence[str], feeds: Sequence[Feed]) -> Iterator[onnx.ModelProto]:
    """Yields a graph on 8-bit whole numbers: all of ``parts``, and again without the head if it is one of them.

    Args:
        traced: in single precision, with the exporter's notes; left as it is.
        parts: of the encoder, see :func:`encoder_parts`.
        feeds: inputs by name, a batch each, which the range of activations is taken from.
    """
    for chosen in (parts, [part for part in parts if part != HEAD]):
        yield to_int8(traced, nodes_of(traced, chosen), feeds)
        if HEAD not in parts:
            return


def to_int8(model: onnx.ModelProto, encoder: Sequence[str], feeds: Iterable[Feed]) -> onnx.ModelProto:
    """Returns the graph with convolutions and products of the nodes ``encoder`` computed on 8-bit whole numbers.

    Weights are scaled per channel and keep 7 bits, so that sums do not overflow on processors without VNNI; activations are
    scaled per tensor by their range on ``feeds``.

    Args:
        model: in single precision.
        encoder: names of nodes.
        feeds: inputs by name, a batch each.
    """
    inside = set(encoder)
    chosen = [n.name for n in model.graph.node if n.name in inside and n.op_type in QUANTISED]
    if not chosen:
        return model
    with tempfile.TemporaryDirectory(prefix="distill-int8-") as folder:
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        level = logging.root.level
        logging.root.setLevel(logging.ERROR)  # it advises preprocessing that the exporter has done already
        try:
            # It works out a scale for tensors outside the encoder too, such as masked logits, which reach minus infinity.
            with np.errstate(invalid="ignore"):
                quantize_static(
                    source,
                    target,
                    _Feeds(feeds),
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    reduce_range=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    nodes_to_quantize=chosen,
                )
        finally:
            logging.root.setLevel(level)
        return onnx.load(target)


class _Feeds(CalibrationDataReader):
    """Hands over the inputs of a calibration, one batch after the other."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Any:
        """Returns the next inputs by name; None after the last."""
        return next(self._feeds, None)
