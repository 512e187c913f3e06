"""Captioned images for pretraining, as an iterable data set without end."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from distill.core.errors import ConfigError
from distill.core.numbers import is_whole
from distill.data.datasets.shapes.render import render
from distill.data.datasets.shapes.scene import Scene, find_difficulty, sample_scene

SPLITS: dict[str, range] = {
    "train": range(0, 10**6),
    "val": range(10**6, 2 * 10**6),
    "test": range(2 * 10**6, 3 * 10**6),
    "pretrain": range(10**7, 10**9),
}
"""Scene numbers of each split; no scene is in two of them."""


class CaptionedShapes(IterableDataset[dict[str, Any]]):
    """Batches of pictures of the "pretrain" split, each picture once.

    Yields dictionaries of "image", (B, 3, size, size) in [0, 1], and "caption", B texts. In a loader with several processes
    each makes its share of the batches; the batches and their order do not depend on the number of processes.

    Args:
        size: side in pixels.
        seed: of the world.
        difficulty: a name in :data:`~distill.data.datasets.shapes.scene.DIFFICULTIES`, or several of them, of which each
            picture shows one.
        batch_size: B.
        start: how many pictures to pass over, those that an interrupted run has seen.
        device: where to render.
        shares: how often each of several difficulties is drawn, in any unit; without it, equally often.

    Raises:
        ConfigError: for an unknown difficulty, for shares that do not fit the difficulties, and for a batch size below 1.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        difficulty: str | Sequence[str],
        batch_size: int,
        start: int = 0,
        device: str = "cpu",
        shares: Sequence[float] | None = None,
    ) -> None:
        self.difficulties = [difficulty] if isinstance(difficulty, str) else list(difficulty)
        for name in self.difficulties:
            find_difficulty(name)
        weights = [1.0] * len(self.difficulties) if shares is None else [float(share) for share in shares]
        if not weights or len(weights) != len(self.difficulties) or min(weights) < 0 or sum(weights) <= 0:
            raise ConfigError(
                f"Expected data.shares to hold one number for each of {len(self.difficulties)} difficulties, none negative "
                f"and not all 0, but got {shares}; correct it."
            )
        if not is_whole(batch_size, 1):
            raise ConfigError(
                f"Expected batch_size, of pictures, as a whole number of at least 1 but got {batch_size!r}."
            )
        self.shares = np.array(weights) / sum(weights)
        self.size, self.seed = size, seed
        self.batch_size, self.start, self.device = batch_size, start, device

    def batch(self, first: int, number: int) -> dict[str, Any]:
        """Returns the pictures ``first`` to ``first + number - 1`` of the split, with their captions."""
        scenes = list(self._scenes(first, number))
        image = render(scenes, self.size, torch.device(self.device)).image
        return {"image": image, "caption": [scene.caption for scene in scenes]}

    def captions(self, first: int, number: int) -> Iterator[str]:
        """Yields the captions that :meth:`batch` returns; nothing is rendered."""
        return (scene.caption for scene in self._scenes(first, number))

    def _scenes(self, first: int, number: int) -> Iterator[Scene]:
        begin = SPLITS["pretrain"].start + first
        return (sample_scene(self.seed, i, self.difficulty_of(i)) for i in range(begin, begin + number))

    def difficulty_of(self, index: int) -> str:
        """Returns the difficulty of a scene; the scene's number and the seed decide it."""
        if len(self.difficulties) == 1:
            return self.difficulties[0]
        drawn = np.random.default_rng([self.seed, index, 2]).choice(len(self.difficulties), p=self.shares)
        return self.difficulties[int(drawn)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for number in count(offset, stride):
            yield self.batch(self.start + number * self.batch_size, self.batch_size)
