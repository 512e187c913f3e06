"""Metadata of exported ONNX files: text by key, JSON where a value has parts.

| key | value |
|---|---|
| format | ``distill-onnx-1`` |
| version | of distill |
| precision | fp32, fp16 or int8 |
| size | side of the square images, px |
| architecture | the class, its backbone and the number of parameters |
| input | JSON: range, channels, layout and size of the images, and the convention of points |
| student | JSON: the configuration that builds the student |
| fingerprint | digest of the student's weights, the same for every precision |
| teacher, data | JSON: the teacher of its labels, and the training pairs; empty where the student's file does not say |
| figures | JSON: PCK in percent, each naming its convention |
| licences | JSON: of the backbone's weights as timm names it, and of the data |
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from distill.core.digest import state_digest
from distill.core.files import replacing
from distill.core.version import __version__
from distill.export.licences import weights_licence
from distill.export.student_file import ABOUT_FIELDS

FORMAT = "distill-onnx-1"


def file_metadata(
    student: nn.Module, size: int, precision: str, config: Mapping[str, Any], about: Mapping[str, Any]
) -> dict[str, str]:
    """Returns the metadata of an exported student.

    Args:
        student: with the weights that are exported.
        size: side of the square images, px.
        precision: of the file.
        config: what builds the student.
        about: what is known of :data:`distill.export.student_file.ABOUT_FIELDS`.
    """
    count = sum(parameter.numel() for parameter in student.parameters())
    backbone = config.get("backbone") or getattr(getattr(student, "backbone", None), "name", None)
    described = {
        "range": [0, 1],
        "channels": "RGB",
        "layout": "NCHW",
        "size": [size, size],
        "resize": config.get("resize", "squash"),
        "points": "x, y in px of the source image; the centre of the top-left pixel is (0.5, 0.5)",
    }
    fields = {key: about.get(key, {}) for key in ABOUT_FIELDS}
    licence = backbone_licence(student, config)
    if licence is not None:
        fields["licences"] = {"backbone": licence, **fields["licences"]}
    return {
        "format": FORMAT,
        "version": __version__,
        "precision": precision,
        "size": str(size),
        "resize": str(config.get("resize", "squash")),
        "architecture": f"{type(student).__name__}{f' on {backbone}' if backbone else ''}, {count} parameters",
        "input": json.dumps(described),
        "student": json.dumps(dict(config)),
        "fingerprint": state_digest(student),
        **{key: json.dumps(value) for key, value in fields.items()},
    }


def add_figures(path: str | Path, figures: Mapping[str, Any]) -> None:
    """Adds figures, each naming its convention, to the metadata of an exported file; the graph stays as it is."""
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    metadata["figures"] = json.dumps({**json.loads(metadata.get("figures", "{}")), **figures})
    onnx.helper.set_model_props(model, metadata)
    with replacing(path) as unfinished:
        onnx.save(model, unfinished)


def backbone_licence(student: nn.Module, config: Mapping[str, Any]) -> str | None:
    """Returns the licence of the weights that a student's backbone started from, timm's own or a file; None for random ones."""
    weights = config.get("weights")
    if weights is None:
        return None
    if weights != "pretrained":
        return f"{Path(str(weights)).name}: {weights_licence(str(weights))}"
    known = getattr(getattr(getattr(student, "backbone", None), "network", None), "pretrained_cfg", None) or {}
    return str(known.get("license") or "not named by timm")
