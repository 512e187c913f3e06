"""A student as two ONNX files: descriptors once an image, then any number of matches.

``encode.onnx``: ``images`` (images, 3, size, size) in [0, 1] in, ``descriptors`` (images, C, h, w) of length 1 out.

``correlate.onnx``: ``src_map`` and ``trg_map``, each (pairs, C, h, w), and ``src_kps`` (pairs, points, 2) in; the fields of
:class:`distill.core.types.Matches` out.
"""

import math
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from distill.core.errors import ConfigError, ExportError
from distill.core.files import replacing
from distill.core.protocols import Benchmark
from distill.core.types import Matches, PairBatch
from distill.export import gate
from distill.export.about import file_metadata
from distill.export.gate import Gate
from distill.export.graph import finish, trace
from distill.export.onnx import TRACED, best_of, candidates, check_settings, example, network_name, prepared
from distill.export.onnx_matcher import OnnxMatcher
from distill.export.precision import Feed
from distill.export.runtime import CORRELATE, ENCODE, OUTPUTS, Descriptors, SplitMatcher

TOLERANCE = {"fp32": 1e-3, "fp16": 0.02, "int8": math.inf}
"""Of the heatmap, relative to its range; 8 bits are judged by PCK alone."""


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

        def deviation_of(encoder: onnx.ModelProto) -> tuple[float, Gate | None]:
            """Returns how far the files with this encoder are off: scores and PCK."""
            _save({ENCODE: encoder, CORRELATE: correlation}, metadata, made)
            matcher = SplitMatcher(Path(made, ENCODE), Path(made, CORRELATE))
            differs = _verified(matcher, student, size, TOLERANCE[precision])
            return differs, None if measured is None else measured(OnnxMatcher(made))

        encoders = candidates(partial(_encoder, size=size), student, size, precision, calibration, _feed)
        (differs, found), encoder = best_of(encoders, deviation_of, _loss)
    if found is not None:
        if not insist:
            gate.check(found, precision)
        metadata = gate.with_figures(metadata, found)
    _save({ENCODE: encoder, CORRELATE: correlation}, metadata, folder)
    return differs, found


def _loss(measured: tuple[float, Gate | None]) -> float:
    differs, found = measured
    return found.loss if found is not None else differs


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


def _verified(matcher: SplitMatcher, student: nn.Module, size: int, tolerance: float) -> float:
    """Returns the largest difference of a heatmap, relative to its range, over pairs and numbers of points."""
    largest = 0.0
    for seed, points in enumerate((1, 7, 16), start=1):
        src_img, trg_img, kps = example(1, points, size, seed)
        with torch.inference_mode():
            expected = student(src_img, trg_img, kps).heatmap[0].numpy()
        src, trg = (matcher.describe(image[0].permute(1, 2, 0).numpy()) for image in (src_img, trg_img))
        assert isinstance(src, Descriptors)
        found = matcher.match(src, trg, kps[0].numpy()).heatmap
        largest = max(largest, float(np.abs(found - expected).max()) / (float(np.ptp(expected)) or 1.0))
    if not largest <= tolerance:
        raise ExportError(
            f"Expected the two files to give the student's scores but they differ by {largest:.2g} of their range; export "
            "one file with split=false."
        )
    return largest
