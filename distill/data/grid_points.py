"""Pairs with points on a grid instead of annotated ones; their counterparts are unknown."""

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres
from distill.core.protocols import Benchmark
from distill.core.types import PairBatch
from distill.data.pairs import Query


class GridPoints(Dataset[PairBatch]):
    """Replaces a data set's annotated points by one at random in each cell of a grid over the source image.

    The points of an image are the same every time and in every pair, so their labels can be stored. Their counterparts
    are NaN, so that a loss or a score that uses them is NaN too.

    Args:
        pairs: a benchmark, of whose annotation at most the box is used.
        side: cells a side of the grid; 20 for several hundred points.
        seed: of the places within the cells.
        within: "image" for all points, or "box" for those inside the box of the source's object.

    Raises:
        ConfigError: for a side below 1, or another word for ``within``.
    """

    def __init__(self, pairs: Benchmark, side: int = 8, seed: int = 0, within: str = "image") -> None:
        if side < 1:
            raise ConfigError(f"Expected points.side of at least 1 but got {side}; 8 gives 64 points an image.")
        if within not in ("image", "box"):
            raise ConfigError(f"Expected points.within to be image or box but got {within!r}; correct it.")
        self._benchmark, self.side, self.seed, self.within = pairs, side, seed, within
        self.name, self.split, self.threshold = pairs.name, pairs.split, pairs.threshold

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
        known = getattr(self._benchmark, "query", None) and getattr(self._benchmark, "original_size", None)
        return self._query if known else None

    def __len__(self) -> int:
        return len(self._benchmark)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        pair = self._benchmark[index]
        x0, y0, x1, y1 = pair.src_content[0].tolist()  # of the photograph, without its padding
        fractions = self._points(pair.src_original[0].hash)
        points = fractions * fractions.new_tensor([x1 - x0, y1 - y0]) + fractions.new_tensor([x0, y0])
        box = (pair.src_bbox[0].view(2, 2) - torch.tensor([x0, y0])) / torch.tensor([x1 - x0, y1 - y0])
        points = points[self._inside(fractions, box)][None]
        return pair._replace(
            src_kps=points,
            trg_kps=torch.full_like(points, torch.nan),
            kps_mask=torch.ones(points.shape[:2], dtype=torch.bool),
            kps_id=torch.full(points.shape[:2], -1),
        )

    def _query(self, index: int) -> Query:
        """Returns which labels a pair has; see ``query``."""
        query, src = self._benchmark.query(index), self._benchmark.pair_annotation(index).src  # type: ignore[attr-defined]
        fractions = self._points(query.src)
        height, width = self._benchmark.original_size(src.path)  # type: ignore[attr-defined]
        box = torch.from_numpy(src.bbox).view(2, 2) / torch.tensor([width, height])
        return query._replace(points=fractions[self._inside(fractions, box)].double().numpy())

    def _points(self, key: str) -> Tensor:
        """Returns (side * side, 2), the points of the image of that fingerprint, in fractions of its sides."""
        digest = hashlib.blake2b(f"{key} {self.seed}".encode(), digest_size=7).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        centres = cell_centres((self.side, self.side), (1, 1), torch.empty(0)).flatten(0, 1)
        return centres + (torch.rand(centres.shape, generator=random) - 0.5) / self.side

    def _inside(self, points: Tensor, box: Tensor) -> Tensor:
        """Returns (N,) bool, which points are wanted, by the box (2, 2) of low and high x, y in fractions."""
        if self.within == "image":
            return torch.ones(len(points), dtype=torch.bool)
        low, high = box.to(points)
        return ((points >= low) & (points <= high)).all(-1)
