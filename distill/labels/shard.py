"""One file of labels: columns of records, written once and never changed.

A record is one point of one pair. Columns: ``src`` and ``trg`` (R,) int32, numbers of image fingerprints listed in the
metadata; ``point`` (R, 2) float32, x, y px of the source; ``trg_kps`` (R, 2) float32, px of the target; ``confidence``
(R,) float32; ``heatmap`` (R, h, w) float16. The metadata holds the format, the images, and the fingerprint of what made
the labels.
"""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.errors import LabelError

FORMAT = "distill-labels-1"
COLUMNS = ("src", "trg", "point", "trg_kps", "confidence", "heatmap")


@dataclass(frozen=True)
class Record:
    """The label of one point.

    Attributes:
        src: fingerprint of the source image's content.
        trg: of the target image's.
        point: x, y px of the source.
        trg_kps: (2,) x, y px of the target.
        confidence: in [0, 1].
        heatmap: (h, w), non-negative.
    """

    src: str
    trg: str
    point: tuple[float, float]
    trg_kps: Tensor
    confidence: float
    heatmap: Tensor


def write_shard(folder: Path, records: list[Record], fingerprint: Mapping[str, str]) -> Path:
    """Writes ``records`` to a new file in ``folder`` that appears whole or not at all; returns its path."""
    images = sorted({image for record in records for image in (record.src, record.trg)})
    number = {image: n for n, image in enumerate(images)}
    columns = {
        "src": torch.tensor([number[r.src] for r in records], dtype=torch.int32),
        "trg": torch.tensor([number[r.trg] for r in records], dtype=torch.int32),
        "point": torch.tensor([r.point for r in records], dtype=torch.float32),
        "trg_kps": torch.stack([r.trg_kps for r in records]).float(),
        "confidence": torch.tensor([r.confidence for r in records], dtype=torch.float32),
        "heatmap": torch.stack([r.heatmap for r in records]).half(),
    }
    metadata = {"format": FORMAT, "images": json.dumps(images), "fingerprint": json.dumps(dict(fingerprint))}
    name = uuid.uuid4().hex
    unfinished, path = folder / f".{name}.unfinished", folder / f"{name}.safetensors"
    try:
        save_file(columns, unfinished, metadata)
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class Shard:
    """A file's columns in memory."""

    images: list[str]
    fingerprint: dict[str, str]
    columns: dict[str, Tensor]


def read_shard(path: Path) -> Shard:
    """Reads a file of labels.

    Raises:
        LabelError: when it is truncated, damaged, or not a file of labels.
    """
    advice = "delete it, and the labels in it are made again"
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            if metadata.get("format") != FORMAT or not names >= set(COLUMNS):
                found = metadata.get("format")
                raise LabelError(f"Expected labels of format {FORMAT} in {path} but its format is {found!r}; {advice}.")
            columns = {name: file.get_tensor(name) for name in COLUMNS}
    except (SafetensorError, OSError) as error:
        raise LabelError(f"Expected whole labels in {path} but it cannot be read ({error}); {advice}.") from error
    return Shard(json.loads(metadata["images"]), json.loads(metadata["fingerprint"]), columns)
