"""A student as one ONNX file, checked against the student before it gets its name.

The graph has the contract's names: ``src_img, trg_img, src_kps`` in, the fields of :class:`Matches` out. The number of
pairs and of points is free, 0 points included; the side of the images is fixed, because a network is trained for one, and
stands in the file's metadata.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from torch import Tensor, nn

from distill.core.errors import ConfigError, ExportError, WeightsError, nearest
from distill.core.files import replacing
from distill.core.protocols import Benchmark, Matcher
from distill.core.types import Matches, PairBatch
from distill.export import gate
from distill.export.about import file_metadata
from distill.export.gate import Gate
from distill.export.graph import finish, trace
from distill.export.onnx_matcher import OnnxMatcher
from distill.export.precision import PRECISIONS, Feed, encoder_parts, in_half, int8_candidates
from distill.export.runtime import INPUTS, OUTPUTS

TRACED = (2, 3)  # pairs, points; neither 0 nor 1, which the exporter would take for constants
CHECKED = ((1, 1), (3, 7), (2, 16))


class Deviation(NamedTuple):
    """The largest differences between an ONNX file and the student that it was made from.

    Attributes:
        points_px: of ``trg_kps``, in px, leaving out ties.
        ties: share of the points that are farther apart than :func:`near_px`. Where two cells of a heatmap are equally high to
            within the precision, either answer is right.
        confidence: of ``confidence``.
        heatmap: of ``heatmap``, relative to the range of its scores.
        gate: PCK of both on pairs, where there were any.
    """

    points_px: float
    ties: float
    confidence: float
    heatmap: float
    gate: Gate | None = None

    @property
    def loss(self) -> tuple[float, ...]:
        """What is least of the best of several files: the loss of PCK, or, without pairs, ties and then ``points_px``."""
        return (self.gate.loss,) if self.gate is not None else (self.ties, self.points_px)


BOUNDS = {
    "fp32": Deviation(points_px=0.05, ties=0.02, confidence=1e-3, heatmap=1e-3),
    "fp16": Deviation(points_px=1.0, ties=0.1, confidence=0.05, heatmap=0.02),
    "int8": Deviation(points_px=1.0, ties=0.4, confidence=0.5, heatmap=1.0),
}
"""The largest deviations of a file that no PCK is measured of, by precision; those of "fp32" hold in any case.

Of 27 random and trained students with nine backbones the files reach, in "fp16", 0.02 (ties), 0.006 (confidence) and 0.001 (heatmap);
in "int8", the better of two each, 0.30, 0.14 and 0.64, the last where a flip is preferred in one of two. Files with 5-bit activations,
or calibrated on black images, have ties of 0.48 to 1.
"""

CELL_SHARE = 1 / 8
"""Of the side of a heatmap's cell: how far 8 bits move points even where the cell is the same, for cells of more than 8 px."""


def export_student(
    student: nn.Module,
    path: str | Path,
    size: int,
    config: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    calibration: Benchmark | None = None,
    pairs: Benchmark | None = None,
    insist: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Deviation:
    """Writes ``student`` to an ONNX file and checks that the file gives the student's answers.

    The file appears under its name only after the check; a failure leaves nothing behind. In single precision its answers
    must be the student's to within rounding; in every precision its PCK on ``pairs`` may be at most half a point lower. A file of
    reduced precision without ``pairs`` must keep to :data:`BOUNDS`.

    Args:
        student: a module with the contract's ``forward(src_img, trg_img, src_kps) -> Matches``; left as it is.
        path: the file to write; an older one is replaced.
        size: side of the square images, px.
        config: the student's configuration, kept in the metadata as JSON.
        precision: "fp32", "fp16" or "int8" of the encoder, see :mod:`distill.export.precision`.
        calibration: training pairs of ``size`` px, which "int8" takes the range of activations from.
        pairs: validation pairs of ``size`` px that student and file are compared on by PCK; None leaves that out.
        insist: whether to write a file that loses more than half a point of PCK, or, without ``pairs``, one of reduced precision
            that is beyond :data:`BOUNDS`.
        about: what else the metadata says of the student, see :mod:`distill.export.about`.

    Raises:
        ConfigError: when ``precision`` or ``size`` is none that can be exported, or "int8" lacks pairs.
        DataError: when ``path`` cannot be written.
        ExportError: when torch cannot export the student, or the file's answers differ too much from its own.
        WeightsError: when the student holds NaN or infinity.
    """
    check_settings(precision, size, calibration)
    student = prepared(student, size)
    measured = gate.measured_against(student, pairs) if pairs is not None else None
    metadata = file_metadata(student, size, precision, config or {}, about or {})
    with replacing(path) as unfinished:

        def deviation_of(model: onnx.ModelProto) -> Deviation:
            """Returns how far the file of a graph is off."""
            onnx.helper.set_model_props(model, metadata)
            onnx.save(model, unfinished)
            matcher = OnnxMatcher(unfinished)
            found = verify(matcher, student, size, precision)
            return found if measured is None else found._replace(gate=measured(matcher))

        graphs = candidates(partial(_traced, size=size), student, size, precision, calibration, _feed)
        deviation, model = best_of(graphs, deviation_of)
        if not insist:
            check(deviation, precision)
        if deviation.gate is not None:
            onnx.helper.set_model_props(model, gate.with_figures(metadata, deviation.gate))
        onnx.save(model, unfinished)
    return deviation


def check_settings(precision: str, size: int, calibration: Benchmark | None) -> None:
    """Raises a :class:`ConfigError` unless a file of these settings can be written."""
    if precision not in PRECISIONS:
        raise ConfigError(
            f"Expected a precision that can be exported but got {precision!r}; " + nearest(precision, PRECISIONS) + "."
        )
    if size < 1:
        raise ConfigError(f"Expected size, the side of the images in px, to be positive but got {size}.")
    if precision == "int8" and (calibration is None or not len(calibration)):
        raise ConfigError("Expected training pairs to calibrate int8 on but got none; set calibration_pairs above 0.")


def prepared(student: nn.Module, size: int) -> nn.Module:
    """Returns a copy of ``student`` to trace at images of ``size`` px: on the CPU, in single precision, in evaluation mode.

    Raises:
        WeightsError: when it holds NaN or infinity.
    """
    for name, value in student.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise WeightsError(
                f"Expected a student with finite answers but its {name} holds NaN or infinity; train it again."
            )
    student = copy.deepcopy(student).cpu().float().eval()
    prepare = getattr(student, "freeze_for_export", None)
    if callable(prepare):
        prepare(size)
    return student


def candidates(
    trace_it: Callable[[nn.Module], onnx.ModelProto],
    student: nn.Module,
    size: int,
    precision: str,
    calibration: Benchmark | None,
    feed: Callable[[PairBatch], Feed],
) -> Iterator[onnx.ModelProto]:
    """Yields the graphs of which the best is kept: one, or for 8 bits one with and one without the head.

    Args:
        trace_it: traces a student, or one in half precision.
        student: as :func:`prepared` returns it.
        size: side of the square images, px.
        precision: see :mod:`distill.export.precision`.
        calibration: training pairs for "int8".
        feed: makes inputs of the graph of such pairs.

    Raises:
        ConfigError: when the images of ``calibration`` are of another size.
    """
    traced = trace_it(in_half(student) if precision == "fp16" else student)
    if precision != "int8":
        yield finish(traced)
        return
    assert calibration is not None
    every = [calibration[number] for number in range(len(calibration))]
    for pairs in every:
        if pairs.src_img.shape[-2:] != (size, size):
            raise ConfigError(
                f"Expected pairs of {size} px to calibrate on but got {pairs.src_img.shape[-1]}; set data.size."
            )
    yield from map(finish, int8_candidates(traced, encoder_parts(student), [feed(pairs) for pairs in every]))


def best_of(
    graphs: Iterable[onnx.ModelProto], measure: Callable[[onnx.ModelProto], Deviation]
) -> tuple[Deviation, onnx.ModelProto]:
    """Returns the deviation of the graph that loses least, and that graph; the first of equal ones. At most two are held."""
    return min(((measure(graph), graph) for graph in graphs), key=lambda found: found[0].loss)


def _feed(pairs: PairBatch) -> Feed:
    query = (pairs.src_img, pairs.trg_img, pairs.src_kps)
    return {name: value.float().numpy() for name, value in zip(INPUTS, query, strict=True)}


def _traced(student: nn.Module, size: int) -> onnx.ModelProto:
    """Traces ``student`` at images of ``size`` px; pairs and points stay free."""
    inputs = dict(zip(INPUTS, example(*TRACED, size, seed=0), strict=True))
    free = {name: {0: "pairs"} for name in INPUTS} | {INPUTS[2]: {0: "pairs", 1: "points"}}
    return trace(_AnyNumberOfPoints(student), network_name(student), inputs, OUTPUTS, free)


def network_name(student: nn.Module) -> str:
    """Returns the name of a student's backbone, or of its class."""
    return str(getattr(getattr(student, "backbone", None), "name", type(student).__name__))


class _AnyNumberOfPoints(nn.Module):
    """Calls a student with one further point, and drops the answer to it.

    No tensor of the graph is empty then: ONNX Runtime 1.17 to 1.32 ends the process on an empty Resize.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches as the student does; N may be 0."""
        points = torch.cat([src_kps, src_kps.new_zeros(src_kps.shape[0], 1, 2)], dim=1)
        return Matches(*(field[:, :-1] for field in self.student(src_img, trg_img, points)))


def verify(matcher: Matcher, student: nn.Module, size: int, precision: str = "fp32") -> Deviation:
    """Compares an exported student with the student, at other numbers of pairs and points than the traced ones.

    The images are sharp random blocks and noise: smooth ones hide differences in resizing and padding.

    Args:
        matcher: asks the file.
        student: that it was made of, as :func:`prepared` returns it.
        size: side of the square images, px.
        precision: of the file.

    Raises:
        WeightsError: when the student gives NaN or infinity.
        ExportError: when the file does, or, in single precision, is beyond :data:`BOUNDS`.
    """
    apart, confidence, heatmap = [], 0.0, 0.0
    for seed, (pairs, points) in enumerate(CHECKED, start=1):
        query = example(pairs, points, size, seed)
        with torch.inference_mode():
            expected, answer = Matches(*student(*query)), matcher(*query)
        if not _is_finite(expected):
            raise WeightsError("Expected a student with finite answers but it gives NaN or infinity; train it again.")
        if not _is_finite(answer):
            advice = "use the student itself" if precision == "fp32" else "export precision=fp32"
            raise ExportError(f"Expected the ONNX file to give finite answers but it gives NaN or infinity; {advice}.")
        apart.append((answer.trg_kps - expected.trg_kps).norm(dim=-1).flatten())
        confidence = max(confidence, _largest(answer.confidence, expected.confidence))
        spread = float(expected.heatmap.max() - expected.heatmap.min()) or 1.0
        heatmap = max(heatmap, _largest(answer.heatmap, expected.heatmap) / spread)
    distance = torch.cat(apart)
    near = distance <= near_px(precision, size / expected.heatmap.shape[-1])
    points_px = float((distance * near).max())
    deviation = Deviation(points_px, float((~near).float().mean()), confidence, heatmap)
    if precision == "fp32":
        check(deviation, precision)
    return deviation


def near_px(precision: str, cell: float) -> float:
    """Returns up to how many px two answers are near each other, by the side of a heatmap's cell in px."""
    bound = BOUNDS[precision].points_px
    return bound if precision == "fp32" else max(bound, CELL_SHARE * cell)


def check(deviation: Deviation, precision: str) -> None:
    """Raises an :class:`ExportError` when a file loses more than half a point of PCK or, without pairs, is beyond :data:`BOUNDS`."""
    if deviation.gate is not None:
        gate.check(deviation.gate, precision)
        return
    bounds = BOUNDS[precision]
    near = deviation.ties <= bounds.ties
    if not (near and deviation.confidence <= bounds.confidence and deviation.heatmap <= bounds.heatmap):
        if precision == "fp32":
            cells, advice = (
                "",
                "use the student itself, or another backbone, whose operations ONNX computes as torch does",
            )
        else:
            cells = f" or {CELL_SHARE:g} cells"
            advice = "export precision=fp32, set gate_pairs above 0 so that PCK decides, or add insist=true"
        raise ExportError(
            f"Expected the ONNX file to give the student's answers but {deviation.ties:.0%} of the points differ by more "
            f"than {bounds.points_px:g} px{cells}, the confidence by up to {deviation.confidence:.2g} and the heatmap by "
            f"{deviation.heatmap:.2g} of its range, where {precision} may reach {bounds.ties:.0%}, {bounds.confidence:g} and "
            f"{bounds.heatmap:g}; {advice}."
        )


def example(pairs: int, points: int, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns a random query: two (pairs, 3, size, size) stacks of sharp images and (pairs, points, 2) points, px."""
    generator = torch.Generator().manual_seed(seed)
    block = max(1, size // 16)
    cells = math.ceil(size / block)
    blocks = torch.rand(2, pairs, 3, cells, cells, generator=generator)
    images = blocks.repeat_interleave(block, -1).repeat_interleave(block, -2)[..., :size, :size]
    noise = torch.rand(2, pairs, 3, size, size, generator=generator)
    images = torch.where(torch.rand(2, pairs, 1, size, size, generator=generator) < 0.3, noise, images)
    return images[0].contiguous(), images[1].contiguous(), torch.rand(pairs, points, 2, generator=generator) * size


def _largest(answer: Tensor, expected: Tensor) -> float:
    return float((answer - expected).abs().max())


def _is_finite(answer: Matches) -> bool:
    return all(bool(field.isfinite().all()) for field in answer)
