"""Prompts that a teacher optimised for source points, stored beside its labels; they serve every further target.

One file holds the prompts of several points in columns: ``image`` (int32, a number in the list of fingerprints),
``place`` (float64, x, y as the teacher names it), ``token`` (int64), ``embedding`` (as the teacher made it) and
``checksum`` (uint32). It is written as a file of labels is, and named after its content.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor, from_numpy

from distill.core.errors import DataError, LabelError
from distill.core.files import check_permission
from distill.labels.folder import mismatch
from distill.labels.index import label_files
from distill.labels.metadata import parse, texts
from distill.labels.shard import SUFFIX, digest, write_whole

FORMAT = "distill-embeddings-1"
FOLDER = "prompt_cache"
Name = tuple[str, float, float]


class PromptCacheStore(MutableMapping[Name, tuple[Tensor, int]]):
    """A dictionary from source points to (prompt embedding, number of the token that stands for the point).

    A point is named by its image's fingerprint and x, y, as the teacher rounds them. An embedding keeps its precision, so
    that an answer is the same whether its prompt was read or optimised.

    Args:
        folder: of the labels; the files lie in its folder ``prompt_cache``.
        fingerprint: of the teacher.

    Raises:
        LabelError: when a file is damaged or of another teacher, naming it and the fields.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, str]) -> None:
        self.folder, self.fingerprint = folder / FOLDER, dict(fingerprint)
        self._files: dict[Path, dict[str, NDArray]] = {}
        self._places: dict[Name, tuple[Path, int]] = {}
        self._unwritten: dict[Name, tuple[Tensor, int]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Reads which prompts other processes wrote."""
        for path in label_files(self.folder):
            if path not in self._files:
                self._open(path)

    def flush(self) -> None:
        """Writes what was added.

        Raises:
            LabelError: when the folder cannot be written to; what was added stays in memory.
        """
        if not self._unwritten:
            return
        names = list(self._unwritten)
        images = sorted({name[0] for name in names})
        columns: dict[str, NDArray] = {
            "image": np.array([images.index(name[0]) for name in names], np.int32),
            "place": np.array([name[1:] for name in names], np.float64),
            "token": np.array([token for _, token in self._unwritten.values()], np.int64),
            "embedding": np.stack([e.detach().cpu().numpy() for e, _ in self._unwritten.values()]),
        }
        about = {"format": FORMAT, "fingerprint": dict(sorted(self.fingerprint.items())), "images": images}
        sums = np.array([_checksum(columns, images, row) for row in range(len(names))], np.uint32)
        content = save(columns | {"checksum": sums}, {"distill": json.dumps(about, ensure_ascii=False)})
        path = self.folder / f"{digest(content)}{SUFFIX}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
        except (OSError, DataError) as error:
            raise LabelError(
                f"Expected to write to {self.folder} but got: {error}; make room or set labels.dir."
            ) from error
        self._unwritten.clear()
        self._open(path)

    def __getitem__(self, name: Name) -> tuple[Tensor, int]:
        if name in self._unwritten:
            return self._unwritten[name]
        path, row = self._places[name]
        columns = self._files[path]
        embedding = columns["embedding"][row].copy()
        if (
            _checksum(columns, [name[0]], row, image=0) != int(columns["checksum"][row])
            or not np.isfinite(embedding).all()
        ):
            raise LabelError(f"Expected prompts as they were written but {path} is damaged; delete it.")
        return from_numpy(embedding), int(columns["token"][row])

    def __setitem__(self, name: Name, value: tuple[Tensor, int]) -> None:
        if name not in self._places:
            self._unwritten[name] = value

    def __delitem__(self, name: Name) -> None:
        raise TypeError("the prompts in a store cannot be deleted one by one")

    def __contains__(self, name: object) -> bool:
        return name in self._unwritten or name in self._places

    def __iter__(self) -> Iterator[Name]:
        yield from self._places
        yield from self._unwritten

    def __len__(self) -> int:
        return len(self._places) + len(self._unwritten)

    def _open(self, path: Path) -> None:
        advice = "delete it, and its prompts are optimised again"
        check_permission(path)
        try:
            with safe_open(path, "pt") as file:  # as torch maps files into memory, where numpy would read them
                about = parse((file.metadata() or {}).get("distill"), [FORMAT])
                images = texts(about.get("images"), "images")
                columns = {key: file.get_tensor(key).numpy() for key in file.keys()}  # noqa: SIM118 - no dictionary
            _check(columns, len(images))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise LabelError(f"Expected whole prompts in {path} but it cannot be read ({error}); {advice}.") from error
        differing = mismatch(about["fingerprint"], self.fingerprint)
        if differing:
            raise LabelError(
                f"Expected prompts made by the present teacher in {self.folder} but {path.name} differs: {differing}; "
                "set these back, or choose another folder with labels.dir."
            )
        self._files[path] = columns
        rows = zip(columns["image"].tolist(), columns["place"].tolist(), strict=True)
        for row, (image, (x, y)) in enumerate(rows):
            self._places.setdefault((images[image], x, y), (path, row))


def _check(columns: Mapping[str, NDArray], n_images: int) -> None:
    """Raises a ValueError unless the columns are those of a file of prompts."""
    count = len(columns["checksum"])
    shapes = {"image": (count,), "place": (count, 2), "token": (count,), "checksum": (count,)}
    if any(columns[name].shape != shape for name, shape in shapes.items()) or len(columns["embedding"]) != count:
        raise ValueError("its columns differ in length")
    kinds = {"image": np.int32, "place": np.float64, "token": np.int64, "checksum": np.uint32, "embedding": np.floating}
    if not all(np.issubdtype(columns[name].dtype, kind) for name, kind in kinds.items()):
        raise ValueError("its columns are of other types")
    numbers = columns["image"]
    if count and not 0 <= numbers.min() <= numbers.max() < n_images:
        raise ValueError("its points are of images that it does not name")


def _checksum(columns: Mapping[str, NDArray], images: list[str], row: int, image: int | None = None) -> int:
    total = zlib.crc32(images[int(columns["image"][row]) if image is None else image].encode())
    for name in ("place", "token", "embedding"):
        total = zlib.crc32(np.ascontiguousarray(columns[name][row]).tobytes(), total)
    return total
