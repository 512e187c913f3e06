"""Write a student as an ONNX file, verified against torch.

The number of pairs and of points is free; the side of the images is the one that the student was trained on. The file's
answers are compared with the student's, and its PCK on validation pairs of data=, resized as the student's images were; a
file that loses more than half a point is refused. Where nothing is annotated, PCK counts the file's answers near the
student's own. precision=fp16 halves the encoder, precision=int8 computes it on 8-bit whole numbers, calibrated on training
pairs; give the data that the student was trained on.

Examples:
  python -m distill export ckpt=runs/fit/student.safetensors file=student.onnx
  python -m distill export ckpt=runs/fit/student.safetensors file=student-int8.onnx precision=int8 data=cub data.root=CUB_200_2011
  python -m distill export ckpt=runs/fit/student.safetensors page=runs/page
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from distill.cli.datasets import as_trained, pairs_of
from distill.core.errors import ConfigError
from distill.core.protocols import Benchmark, Matcher
from distill.evaluation.label_truth import LabelTruth
from distill.export.bundle import write_bundle
from distill.export.gate import Gate
from distill.export.onnx import Deviation, export_student
from distill.export.page import examples_of, write_page
from distill.export.runtime import CORRELATE, ENCODE
from distill.export.split import export_split
from distill.export.student_file import load_student, read_about, read_student_file


def run(cfg: DictConfig) -> Deviation | float | Path:
    """Exports, verifies, and prints how far the file is from torch.

    Returns:
        The deviation; for two files that of the heatmap; for a bundle or a page its folder.

    Raises:
        ConfigError: when ``file`` is no name of an ONNX file, or that of the student's own.
    """
    if cfg.bundle is not None:
        write_bundle(cfg.ckpt, cfg.bundle)
        print(
            f"{cfg.bundle}: model.safetensors, config.json and README.md; distill.load_student({str(cfg.bundle)!r}) reads it"
        )
        return Path(cfg.bundle)
    if cfg.page is None:
        _check_file(Path(cfg.file), cfg.ckpt)
    config, _ = read_student_file(cfg.ckpt)
    student, size = load_student(cfg.ckpt, cfg.trust), config["size"]
    if cfg.page is not None:
        return _page(cfg, student, config, size)
    if cfg.split:
        folder = Path(cfg.file).parent
        print(f"{folder / ENCODE}, {folder / CORRELATE}: are written, which takes up to a minute", flush=True)
        about = read_about(cfg.ckpt)
        pairs = gate_pairs(_pairs(cfg, "val", cfg.gate_pairs, config), student, about)
        calibration = _calibration(cfg, config)
        differs, gate = export_split(
            student, folder, size, config, cfg.precision, about, pairs, cfg.insist, calibration
        )
        print(f"{folder / ENCODE}, {folder / CORRELATE}: heatmap within {differs:.2g} of its range of torch")
        _tell(gate)
        return differs
    calibration = _calibration(cfg, config)
    about = read_about(cfg.ckpt)
    pairs = gate_pairs(_pairs(cfg, "val", cfg.gate_pairs, config), student, about)
    print(f"{cfg.file}: is written and compared with torch, which takes up to a minute", flush=True)
    deviation = export_student(student, cfg.file, size, config, cfg.precision, calibration, pairs, cfg.insist, about)
    print(
        f"{cfg.file}: points within {deviation.points_px:.2g} px of torch ({deviation.ties:.1%} ties), confidence within "
        f"{deviation.confidence:.2g}, heatmap within {deviation.heatmap:.2g} of its range"
    )
    _tell(deviation.gate)
    return deviation


def _check_file(file: Path, ckpt: str) -> None:
    """Raises a ConfigError unless ``file``, which is replaced where it is there, can be meant to be an ONNX file."""
    if file.suffix != ".onnx":
        raise ConfigError(f"Expected file to end in .onnx but got {file}; rename it.")
    if file.resolve() == Path(ckpt).resolve():
        raise ConfigError(f"Expected file to be another than the student's, ckpt={ckpt}, but got {file}; rename it.")


def _calibration(cfg: DictConfig, config: Mapping[str, Any]) -> Benchmark | None:
    """Returns training pairs for 8 bits, or None for another precision."""
    return _pairs(cfg, "train", cfg.calibration_pairs, config) if cfg.precision == "int8" else None


def _tell(gate: Gate | None) -> None:
    if gate is not None:
        print(
            f"PCK@0.10 {gate.torch:.1f} of torch, {gate.file:.1f} of the file, on {gate.n_pairs} pairs ({gate.convention})"
        )


def gate_pairs(pairs: Benchmark | None, student: Matcher, about: Mapping[str, Any]) -> Benchmark | None:
    """Returns the pairs that file and student are compared on, and prints what they do not tell of the student.

    Where nothing is annotated the student's own answers are the truth: PCK then says how often the file agrees with it.

    Args:
        pairs: of ``data=``.
        student: that is exported.
        about: what its file says of itself.
    """
    if pairs is None:
        return None
    data = about.get("data")
    trained_on = data.get("name") if isinstance(data, Mapping) else None
    if isinstance(trained_on, str) and trained_on != pairs.name:
        print(
            f"note: compared on {pairs.name}, but the student was trained on {trained_on[:40]}; data={trained_on[:40]} and its "
            "data.root compare, and calibrate int8, on what it is made for"
        )
    if getattr(pairs, "has_truth", True):
        return pairs
    print("note: nothing is annotated; PCK says how often the file's answers are near the student's own")
    return LabelTruth(pairs, student)


def _page(cfg: DictConfig, student: nn.Module, config: dict[str, Any], size: int) -> Path:
    """Writes the web page, and prints how it is looked at."""
    given = None if cfg.examples is None else [str(file) for file in cfg.examples]
    examples = examples_of(given, _pairs(cfg, "val", 1, config) if given is None else None)
    print(f"{cfg.page}: is written, which takes up to a minute", flush=True)
    about, runtime = read_about(cfg.ckpt), cfg.onnxruntime_web
    pairs = gate_pairs(_pairs(cfg, "val", cfg.gate_pairs, config), student, about)
    folder = write_page(student, cfg.page, size, examples, config, cfg.precision, about, runtime, pairs, cfg.insist)
    print(f"{folder}: a web page for any static host; python -m distill demo page={folder} shows it here")
    return folder


def _pairs(cfg: DictConfig, split: str, n_pairs: int, config: Mapping[str, Any]) -> Benchmark | None:
    """Returns pairs of the data with images like those that the student of ``config`` was trained on, or None for 0 of them."""
    if not n_pairs:
        return None
    return pairs_of(as_trained(cfg.data, config), split, DictConfig({"n_pairs": n_pairs}))
