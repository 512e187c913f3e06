"""Pairs with points on a grid instead of annotated ones; their counterparts are unknown."""

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from distill.core.errors import ConfigError, DataError, nearest
from distill.core.geometry import cell_centres, relative_points
from distill.core.protocols import Benchmark
from distill.core.types import PairBatch
from distill.data.pairs import Query
from distill.system.progress import track

WITHIN = ("image", "box", "mask")
NAMED = 5
"""Photographs that a warning names, at most."""
FINEST = 1024
"""Cells a side of the finest grid that is laid over an object."""

log = logging.getLogger(__name__)


class GridPoints(Dataset[PairBatch]):
    """Replaces a data set's annotated points by one at random in each cell of a grid over the source image.

    The points of an image are the same every time and in every pair, so their labels can be stored. Their counterparts
    are NaN, so that a loss or a score that uses them is NaN too. An object between the points of the grid gets those of a
    finer grid: the coarsest of twice, four times, ... as many cells a side that has one on it, up to :data:`FINEST`. A
    mask without a point there either is named in a warning, and its pairs have no points; a box without one has its centre.

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
        box = relative_points(pair.src_bbox[0].view(2, 2), pair.src_content[0]).flatten()
        fractions = self._wanted(pair.src_original[0].hash, box)
        points = (fractions * fractions.new_tensor([x1 - x0, y1 - y0]) + fractions.new_tensor([x0, y0]))[None]
        return pair._replace(
            src_kps=points,
            trg_kps=torch.full_like(points, torch.nan),
            kps_mask=torch.ones(points.shape[:2], dtype=torch.bool),
            kps_id=torch.full(points.shape[:2], -1),
        )

    def _query(self, index: int) -> Query:
        """Returns which labels a pair has; see ``query``."""
        query = self._benchmark.query(index)  # type: ignore[attr-defined]
        box = torch.from_numpy(self._benchmark.source_box(index))  # type: ignore[attr-defined]
        return query._replace(points=self._wanted(query.src, box).double().numpy())

    def _read_masks(self) -> dict[str, Tensor]:
        """Returns (N, 2), the points on the object, by the fingerprint of the source.

        Raises:
            ConfigError: for a data set without masks.
            DataError: when no source has a point on its object.
        """
        pairs, found, without = self._benchmark, dict[str, Tensor](), list[int]()
        if not all(hasattr(pairs, name) for name in ("pairs", "query", "source_box", "source_mask")):
            raise ConfigError(
                f"Expected a data set with masks for points.within=mask but {pairs.name} has none; choose box or image."
            )
        first = {source: index for index, (source, _) in reversed(list(enumerate(self.pairs)))}
        for index in track(sorted(first.values()), f"read masks of {pairs.name} {pairs.split}"):
            key = pairs.query(index).src  # type: ignore[attr-defined]
            found[key] = self._on(key, partial(pairs.source_mask, index, folder=self.masks))  # type: ignore[attr-defined]
            if not len(found[key]):
                without.append(index)
        if len(without) == len(first):
            raise DataError(
                f"Expected points on the objects of {len(first)} masks but all are too small; correct them."
            )
        if without:
            named = ", ".join(pairs[index].src_id[0] for index in without[:NAMED])
            log.warning(
                "%d of %d photographs have masks too small for a point of a grid of %d cells a side, and no points: %s",
                len(without),
                len(first),
                FINEST,
                named + (", ..." if len(without) > NAMED else ""),
            )
        return found

    def _on(self, key: str, lies_on: Callable[[NDArray[np.float64]], NDArray[np.bool_]]) -> Tensor:
        """Returns (N, 2), the points of the coarsest grid of the image of that fingerprint that has some on an object.

        Args:
            key: of the image.
            lies_on: returns (N,) which of points (N, 2), in fractions of the sides, lie on the object.
        """
        side = self.side
        while True:
            points = self._points(key, side)
            chosen = points[torch.from_numpy(lies_on(points.double().numpy()))]
            if len(chosen) or side >= FINEST:
                return chosen
            side = min(2 * side, FINEST)

    def _points(self, key: str, side: int) -> Tensor:
        """Returns (side * side, 2), the points of the image of that fingerprint, in fractions of its sides."""
        finer = "" if side == self.side else f" {side}"
        digest = hashlib.blake2b(f"{key} {self.seed}{finer}".encode(), digest_size=7).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        centres = cell_centres((side, side), (1, 1), torch.empty(0)).flatten(0, 1)
        return centres + (torch.rand(centres.shape, generator=random) - 0.5) / side

    def _wanted(self, key: str, box: Tensor) -> Tensor:
        """Returns (N, 2), the points of the image of that fingerprint that are wanted, in fractions of its sides.

        Args:
            key: of the image.
            box: (4,) x0, y0, x1, y1 of the object, in fractions of the sides.
        """
        if self.within == "mask":
            return self._on_object[key]
        points = self._points(key, self.side)
        if self.within == "image":
            return points
        low, high = box.to(points).view(2, 2)
        inside = points[((points >= low) & (points <= high)).all(-1)]
        return inside if len(inside) else ((low + high) / 2).clamp(0, 1)[None]
