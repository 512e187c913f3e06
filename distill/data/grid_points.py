"""Pairs with points on a grid instead of annotated ones; their counterparts are unknown."""

import hashlib
from typing import Any

import torch
from torch.utils.data import Dataset

from distill.core.errors import ConfigError
from distill.core.geometry import cell_centres
from distill.core.protocols import Benchmark
from distill.core.types import PairBatch


class GridPoints(Dataset[PairBatch]):
    """Replaces a data set's annotated points by one at random in each cell of a grid over the source image.

    The points of an image are the same every time and in every pair, so their labels can be stored. Their counterparts
    are NaN, so that a loss or a score that uses them is NaN too.

    Args:
        pairs: a benchmark, whose annotation is not used.
        side: cells a side of the grid.
        seed: of the places within the cells.

    Raises:
        ConfigError: for a side below 1.
    """

    def __init__(self, pairs: Benchmark, side: int = 8, seed: int = 0) -> None:
        if side < 1:
            raise ConfigError(f"Expected points.side of at least 1 but got {side}; 8 gives 64 points an image.")
        self._benchmark, self.side, self.seed = pairs, side, seed
        self.name, self.split, self.threshold = pairs.name, pairs.split, pairs.threshold

    @property
    def pairs(self) -> Any:
        """The numbers of the images of each pair, (source, target), as far as the data set says."""
        return self._benchmark.pairs  # type: ignore[attr-defined]

    @property
    def views(self) -> Any:
        """What gives the images of a pair at another size, as far as the data set has it; see ``PhotographPairs.views``."""
        return getattr(self._benchmark, "views", None)

    def __len__(self) -> int:
        return len(self._benchmark)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        pair = self._benchmark[index]
        digest = hashlib.blake2b(f"{pair.src_original[0].hash} {self.seed}".encode(), digest_size=7).digest()
        random = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        x0, y0, x1, y1 = pair.src_content[0].tolist()
        height, width = y1 - y0, x1 - x0  # of the photograph, without its padding
        centres = cell_centres((self.side, self.side), (height, width), pair.src_img).flatten(0, 1)
        jitter = torch.rand(centres.shape, generator=random) - 0.5
        points = (centres + jitter * centres.new_tensor([width / self.side, height / self.side]))[None]
        points = points + points.new_tensor([x0, y0])
        return pair._replace(
            src_kps=points,
            trg_kps=torch.full_like(points, torch.nan),
            kps_mask=torch.ones(points.shape[:2], dtype=torch.bool),
            kps_id=torch.full(points.shape[:2], -1),
        )
