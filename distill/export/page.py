"""An exported student as a web page: a folder for any static host, which asks nothing of other addresses."""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import nn

from distill.core.errors import ConfigError, DataError
from distill.core.files import replacing
from distill.core.protocols import Benchmark
from distill.data.images import read_rgb
from distill.export.alternatives import LEAST_SHARE
from distill.export.onnx import export_student
from distill.export.onnxruntime_web import copy_runtime
from distill.export.runtime import CORRELATE, ENCODE, Matcher, OnnxFile, SplitMatcher, read_image
from distill.export.split import can_split, export_split

WEB = Path(__file__).parent / "web"
MATCH = "match.onnx"
TOLERANCE_PX = 2.0  # by which a browser's answers on the examples may differ from Python's
CHECKED = 8  # points on the first example
RATIO = 10  # of the longer side of a picture to the shorter one, at most; that of web/image_header.js
WRITTEN = "model.json"  # the last file to be written; a folder with it is a page
UNFINISHED = "unfinished-page"  # lies in a folder whose page is being written, or was not written to its end


def write_page(
    student: nn.Module,
    folder: str | Path,
    size: int,
    examples: Sequence[Image.Image],
    config: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    about: Mapping[str, Any] | None = None,
    runtime: str | Path | None = None,
    pairs: Benchmark | None = None,
    insist: bool = False,
) -> Path:
    """Writes the page of ``student``; older files of the same names are replaced, others are left.

    Args:
        student: see :func:`distill.export.onnx.export_student`. One that can be split describes a picture once, another
            computes everything anew at each click.
        folder: where to.
        size: side of the square images, px.
        examples: two pictures, which are also what a browser's answers are compared on.
        config: the student's configuration.
        precision: of the encoder, "fp32" or "fp16".
        about: see :func:`distill.export.onnx.export_student`.
        runtime: npm package of onnxruntime-web, see :func:`distill.export.onnxruntime_web.copy_runtime`.
        pairs: see :func:`distill.export.onnx.export_student`.
        insist: see there.

    Returns:
        The folder.

    Raises:
        ConfigError: when ``folder`` holds files but no page, or for another precision.
        DataError: when ONNX Runtime for browsers cannot be had, or the folder cannot be written.
        ExportError: see :func:`distill.export.onnx.export_student`.
    """
    folder = Path(folder)
    _check_folder(folder)
    if precision not in ("fp32", "fp16"):
        raise ConfigError(f"Expected precision of a page to be fp32 or fp16 but got {precision!r}.")
    with tempfile.TemporaryDirectory(prefix="distill-page-") as temporary:
        made = Path(temporary)
        (made / "runtime").mkdir()
        names = copy_runtime(made / "runtime", runtime)
        for file in sorted(WEB.iterdir()):
            shutil.copyfile(file, made / file.name)
        files = _write_network(student, made, size, config, precision, about, pairs, insist)
        shown = []
        for name, picture in zip(("first", "second"), examples, strict=True):
            picture.save(made / f"example-{name}.png", optimize=True)
            shown.append({"file": f"example-{name}.png", "name": f"The {name} example"})
        described = {
            **_described(made, student, files, config or {}),
            "examples": shown,
            "runtime": {
                backend: {role: f"runtime/{n}" for role, n in known.items()} for backend, known in names.items()
            },
        }
        (made / WRITTEN).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        _move(made, folder)
    return folder


def examples_of(given: Sequence[str] | None, pairs: Benchmark | None) -> list[Image.Image]:
    """Returns two pictures: the files ``given``, or the images of the first pair.

    Raises:
        ConfigError: unless two files are given, or none and a pair.
        DataError: when a file cannot be read, or is one that the page refuses, see ``web/image_header.js``.
    """
    if given is None and pairs is not None and len(pairs):
        pair = pairs[0]
        images = (pair.src_img[0], pair.trg_img[0])
        return [Image.fromarray((i * 255).round().byte().permute(1, 2, 0).numpy()) for i in images]
    if given is None or isinstance(given, str) or len(given) != 2:
        raise ConfigError(f"Expected examples=[<file>,<file>], two pictures, but got {given!r:.100}.")
    pictures = [read_rgb(file) for file in given]
    for file, picture in zip(given, pictures, strict=True):
        if max(picture.size) > RATIO * min(picture.size):
            raise DataError(
                f"Expected examples whose longer side is at most {RATIO} times the shorter one but {file} has {picture.width} x "
                f"{picture.height} px; cut a part out of it, or name another."
            )
        picture.thumbnail((800, 800))  # what a page of examples needs
    return pictures


def _check_folder(folder: Path) -> None:
    is_page = any((folder / name).is_file() for name in (WRITTEN, UNFINISHED))
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not is_page):
        raise ConfigError(
            f"Expected an empty folder or an older page in page={folder} but it holds other files; name another."
        )


def _write_network(
    student: nn.Module,
    folder: Path,
    size: int,
    config: Mapping[str, Any] | None,
    precision: str,
    about: Mapping[str, Any] | None,
    pairs: Benchmark | None,
    insist: bool,
) -> dict[str, str]:
    """Writes the ONNX files; returns their names by what they are for."""
    if can_split(student):
        export_split(student, folder, size, config, precision, about, pairs, insist)
        return {"encode": ENCODE, "correlate": CORRELATE}
    export_student(student, folder / MATCH, size, config, precision, None, pairs, insist, about)
    return {"match": MATCH}


def _described(folder: Path, student: nn.Module, files: dict[str, str], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the page needs to know of its files, with answers on the examples to compare a browser's with."""
    pictures = [read_image(folder / f"example-{name}.png") for name in ("first", "second")]
    height, width = pictures[0].shape[:2]
    random = np.random.default_rng(0)
    points = np.round(random.uniform(0.15, 0.85, (CHECKED, 2)) * (width, height), 2)
    opened: OnnxFile | SplitMatcher
    if "match" in files:
        matcher = Matcher(folder / MATCH)
        answer, opened = matcher.match(pictures[0], pictures[1], points), matcher.file
    else:
        opened = split = SplitMatcher(folder / ENCODE, folder / CORRELATE)
        answer = split.match(split.describe(pictures[0]), split.describe(pictures[1]), points)
    metadata, size = opened.metadata, opened.size
    how = "fitted into {0} x {0} px with grey borders" if opened.resize == "letterbox" else "resized to {0} x {0} px"
    consensus = getattr(student, "consensus", None)
    return {
        "size": size,
        "resize": opened.resize,
        "files": files,
        "radius_cells": float(config.get("radius_cells", getattr(student, "radius_cells", 3.0))),
        "temperature": float(getattr(consensus, "confidence_temperature", 1.0)),
        "least_share": LEAST_SHARE,
        "check": {"points": points.tolist(), "answers": answer.points.tolist(), "tolerance_px": TOLERANCE_PX},
        "description": f"{metadata['architecture']}, pictures {how.format(size)}, {metadata['precision']}.",
        "metadata": metadata,
    }


def _move(made: Path, folder: Path) -> None:
    """Puts the files in place, the one that makes a folder a page last."""
    files = sorted(file.relative_to(made) for file in made.rglob("*") if file.is_file())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).touch()
        (folder / WRITTEN).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"Expected a folder to write at {folder} but got: {error}; choose another.") from error
    for name in sorted(files, key=lambda name: name == Path(WRITTEN)):
        with replacing(folder / name) as unfinished:
            shutil.copyfile(made / name, unfinished)
    (folder / UNFINISHED).unlink()
