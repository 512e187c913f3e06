"""A student as two ONNX files: descriptors once an image, then any number of matches.

``encode.onnx``: ``images`` (images, 3, size, size) in [0, 1] in, ``descriptors`` (images, C, h, w) of length 1 out.

``correlate.onnx``: ``src_map`` and ``trg_map``, each (pairs, C, h, w), and ``src_kps`` (pairs, points, 2) in; the fields of
:class:`distill.core.types.Matches` out.
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from distill.core.errors import ConfigError
from distill.core.files import replacing
from distill.core.protocols import Benchmark
from distill.core.types import Matches, PairBatch
from distill.export import gate
from distill.export.about import file_metadata
from distill.export.gate import Gate
from distill.export.graph import finish, trace
from distill.export.onnx import (
    TRACED,
    Deviation,
    best_of,
    candidates,
    check,
    check_settings,
    example,
    network_name,
    prepared,
    verify,
)
from distill.export.onnx_matcher import OnnxMatcher
from distill.export.precision import Feed
from distill.export.runtime import CORRELATE, ENCODE, OUTPUTS, SplitMatcher


def export_split(
    student: nn.Module,
    folder: str | Path,
    size: int,
    config: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    about: Mapping[str, Any] | None = None,
    pairs: Benchmark | None = None,
    insist: bool = False,
    calibration: Benchmark | None = None,
) -> tuple[float, Gate | None]:
    """Writes ``encode.onnx`` and ``correlate.onnx`` to ``folder`` and checks that they give the student's answers.

    Args:
        student: has ``encode`` and ``match_encoded`` as :class:`student.StudentMatcher`; left as it is.
        folder: where to; older files are replaced.
        size: side of the square images, px.
        config: the student's configuration, kept in the metadata as JSON.
        precision: of the encoder, "fp32", "fp16" or "int8".
        about: see :func:`distill.export.onnx.export_student`.
        pairs: see there.
        insist: see there.
        calibration: see there.

    Returns:
        The largest difference of a heatmap, relative to its range, and PCK of both on ``pairs``, if there are any.

    Raises:
        ConfigError: for a precision or size that cannot be exported, "int8" without pairs, or a student that compares pixels
            after its descriptors, or has none.
        ExportError: when torch cannot export the student, or the files' answers or PCK differ from its own.
        WeightsError: when the student holds NaN or infinity.
    """
    check_settings(precision, size, calibration)
    if not can_split(student):
        raise ConfigError(
            "Expected a student whose answer depends on descriptors alone but this one also compares pixels, or has no encode and "
            "match_encoded; set split=false, or train with student.refinement=0."
        )
    student = prepared(student, size)
    measured = gate.measured_against(student, pairs) if pairs is not None else None
    metadata = file_metadata(student, size, precision, config or {}, about or {})
    correlation = _correlation(student, size)
    with tempfile.TemporaryDirectory(prefix="distill-split-") as made:

        def deviation_of(encoder: onnx.ModelProto) -> Deviation:
            """Returns how far the files with this encoder are off."""
            _save({ENCODE: encoder, CORRELATE: correlation}, metadata, made)
            found = verify(_ImageByImage(made), student, size, precision)
            return found if measured is None else found._replace(gate=measured(OnnxMatcher(made)))

        encoders = candidates(partial(_encoder, size=size), student, size, precision, calibration, _feed)
        deviation, encoder = best_of(encoders, deviation_of)
    if not insist:
        check(deviation, precision)
    if deviation.gate is not None:
        metadata = gate.with_figures(metadata, deviation.gate)
    _save({ENCODE: encoder, CORRELATE: correlation}, metadata, folder)
    return deviation.heatmap, deviation.gate


def _save(graphs: Mapping[str, onnx.ModelProto], metadata: Mapping[str, str], folder: str | Path) -> None:
    for name, model in graphs.items():
        onnx.helper.set_model_props(model, dict(metadata))
        with replacing(Path(folder, name)) as unfinished:
            onnx.save(model, unfinished)


def can_split(student: nn.Module) -> bool:
    """Returns whether a student's answer depends on descriptors of the single images alone."""
    has_both = hasattr(student, "encode") and hasattr(student, "match_encoded")
    return has_both and getattr(student, "refinement", None) is None


class _Encode(nn.Module):
    """Descriptors of images."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        return self.student.encode(images)  # type: ignore[operator]


class _Correlate(nn.Module):
    """Matches by descriptors, at one point more, whose answer is dropped; see :mod:`distill.export.onnx`."""

    def __init__(self, student: nn.Module, size: int) -> None:
        super().__init__()
        self.student, self.size = student, (size, size)

    def forward(self, src_map: Tensor, trg_map: Tensor, src_kps: Tensor) -> Matches:
        points = torch.cat([src_kps, src_kps.new_zeros(src_kps.shape[0], 1, 2)], dim=1)
        answer = self.student.match_encoded(src_map, trg_map, points, self.size, self.size)  # type: ignore[operator]
        return Matches(*(field[:, :-1] for field in answer))


def _encoder(student: nn.Module, size: int) -> onnx.ModelProto:
    inputs = {"images": example(TRACED[0], 1, size, seed=0)[0]}
    return trace(_Encode(student), network_name(student), inputs, ["descriptors"], {"images": {0: "images"}})


def _feed(pairs: PairBatch) -> Feed:
    return {"images": torch.cat([pairs.src_img, pairs.trg_img]).float().numpy()}


def _correlation(student: nn.Module, size: int) -> onnx.ModelProto:
    src_img, trg_img, points = example(*TRACED, size, seed=0)
    with torch.inference_mode(False), torch.no_grad():
        src_map, trg_map = (student.encode(image) for image in (src_img, trg_img))  # type: ignore[operator]
    inputs = {"src_map": src_map, "trg_map": trg_map, "src_kps": points}
    free = {name: {0: "pairs"} for name in inputs} | {"src_kps": {0: "pairs", 1: "points"}}
    return finish(trace(_Correlate(student, size), network_name(student), inputs, OUTPUTS, free))


class _ImageByImage:
    """Describes each image by itself, as :class:`SplitMatcher` is used; :class:`OnnxMatcher` describes those of a batch together."""

    def __init__(self, folder: str | Path) -> None:
        self.files = SplitMatcher(Path(folder, ENCODE), Path(folder, CORRELATE))

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        answers = []
        for images, points in zip(zip(src_img, trg_img, strict=True), src_kps, strict=True):
            src, trg = (self.files.describe(image.permute(1, 2, 0).numpy()) for image in images)
            answers.append(self.files.match(src, trg, points.numpy()))
        return Matches(*(torch.stack([torch.from_numpy(f) for f in field]) for field in zip(*answers, strict=True)))
