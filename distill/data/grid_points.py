"""Pairs with points on a grid instead of annotated ones; their counterparts are unknown."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from distill.core.errors import ConfigError, DataError, nearest
from distill.core.geometry import cell_centres
from distill.core.protocols import Benchmark
from distill.core.types import PairBatch
from distill.data.pairs import Query
from distill.system.progress import track

WITHIN = ("image", "box", "mask")


class GridPoints(Dataset[PairBatch]):
    """Replaces a data set's annotated points by one at random in each cell of a grid over the source image.

    The points of an image are the same every time and in every pair, so their labels can be stored. Their counterparts
    are NaN, so that a loss or a score that uses them is NaN too.

    Args:
        pairs: a benchmark, of whose annotation at most the box is used.
        side: cells a side of the grid; 20 for several hundred points.
        seed: of the places within the cells.
        within: "image" for all points, "box" for those inside the box of the source's object, "mask" for those on the
            object itself. The masks of all sources are read at once, so that nothing is missing later.
        masks: a folder of masks, see :mod:`distill.data.masks`; None for the alpha channels of the photographs.

    Raises:
        ConfigError: for a side below 1, another word for ``within``, ``masks`` that are not asked for, and a data set
            without masks.
        DataError: when a source has no mask or one that does not belong to it, or no point lies on any object.
    """

    def __init__(
        self,
        pairs: Benchmark,
        side: int = 8,
        seed: int = 0,
        within: str = "image",
        masks: str | Path | None = None,
    ) -> None:
        if side < 1:
            raise ConfigError(f"Expected points.side of at least 1 but got {side}; 8 gives 64 points an image.")
        if within not in WITHIN:
            raise ConfigError(
                f"Expected points.within to be image, box or mask but got {within!r}; {nearest(within, WITHIN)}."
            )
        if masks is not None and within != "mask":
            raise ConfigError(f"Expected points.within=mask with points.masks={masks} but got {within!r}; set it.")
        self._benchmark, self.side, self.seed, self.within = pairs, side, seed, within
        self.name, self.split, self.threshold = pairs.name, pairs.split, pairs.threshold
        self.masks = None if masks is None else Path(masks).expanduser()
        self._on_object = self._read_masks() if within == "mask" else {}

    @property
    def pairs(self) -> Any:
        """The numbers of the images of each pair, (source, target), as far as the data set says."""
        return self._benchmark.pairs  # type: ignore[attr-defined]

    @property
    def views(self) -> Any:
        """What gives the images of a pair at another size, as far as the data set has it; see ``PhotographPairs.views``."""
        return getattr(self._benchmark, "views", None)

    @property
    def query(self) -> Any:
        """What says which labels a pair has without decoding its images, as far as the data set can; see ``PhotographPairs.query``."""
        has = getattr(self._benchmark, "query", None) and getattr(self._benchmark, "source_box", None)
        return self._query if has else None

    def __len__(self) -> int:
        return len(self._benchmark)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        pair = self._benchmark[index]
        x0, y0, x1, y1 = pair.src_content[0].tolist()  # of the photograph, without its padding
        fractions = self._points(pair.src_original[0].hash)
        points = fractions * fractions.new_tensor([x1 - x0, y1 - y0]) + fractions.new_tensor([x0, y0])
        box = (pair.src_bbox[0].view(2, 2) - torch.tensor([x0, y0])) / torch.tensor([x1 - x0, y1 - y0])
        points = points[self._chosen(pair.src_original[0].hash, fractions, box.flatten())][None]
        return pair._replace(
            src_kps=points,
            trg_kps=torch.full_like(points, torch.nan),
            kps_mask=torch.ones(points.shape[:2], dtype=torch.bool),
            kps_id=torch.full(points.shape[:2], -1),
        )

    def _query(self, index: int) -> Query:
        """Returns which labels a pair has; see ``query``."""
        query = self._benchmark.query(index)  # type: ignore[attr-defined]
        fractions = self._points(query.src)
        box = torch.from_numpy(self._benchmark.source_box(index))  # type: ignore[attr-defined]
        return query._replace(points=fractions[self._chosen(query.src, fractions, box)].double().numpy())

    def _read_masks(self) -> dict[str, NDArray[np.bool_]]:
        """Returns (side * side,) which points lie on the object, by the fingerprint of the source."""
        pairs, found = self._benchmark, dict[str, NDArray[np.bool_]]()
        if not all(hasattr(pairs, name) for name in ("pairs", "query", "source_box", "source_mask")):
            raise ConfigError(
                f"Expected a data set with masks for points.within=mask but {pairs.name} has none; choose box or image."
            )
        first = {source: index for index, (source, _) in reversed(list(enumerate(self.pairs)))}
        for index in track(sorted(first.values()), f"read masks of {pairs.name} {pairs.split}"):
            key = pairs.query(index).src  # type: ignore[attr-defined]
            points = self._points(key).double().numpy()
            found[key] = pairs.source_mask(index, points, self.masks)  # type: ignore[attr-defined]
        if not any(inside.any() for inside in found.values()):
            raise DataError(
                f"Expected points on the objects of {len(first)} masks but found none; raise points.side={self.side}."
            )
        return found

    def _points(self, key: str) -> Tensor:
        """Returns (side * side, 2), the points of the image of that fingerprint, in fractions of its sides."""
        digest = hashlib.blake2b(f"{key} {self.seed}".encode(), digest_size=7).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        centres = cell_centres((self.side, self.side), (1, 1), torch.empty(0)).flatten(0, 1)
        return centres + (torch.rand(centres.shape, generator=random) - 0.5) / self.side

    def _chosen(self, key: str, points: Tensor, box: Tensor) -> Tensor:
        """Returns (N,) bool, which points of the image of that fingerprint are wanted.

        Args:
            key: of the image.
            points: (N, 2) in fractions of its sides.
            box: (4,) x0, y0, x1, y1 of the object, in fractions of the sides.
        """
        if self.within == "mask":
            return torch.from_numpy(self._on_object[key])
        if self.within == "image":
            return torch.ones(len(points), dtype=torch.bool)
        low, high = box.to(points).view(2, 2)
        return ((points >= low) & (points <= high)).all(-1)
