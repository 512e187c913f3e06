"""Endless captioned pictures, to pretrain on."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from distill.data.datasets.shapes.render import render
from distill.data.datasets.shapes.scene import find_difficulty, sample_scene

SPLITS: dict[str, range] = {
    "train": range(0, 10**6),
    "val": range(10**6, 2 * 10**6),
    "test": range(2 * 10**6, 3 * 10**6),
    "pretrain": range(10**7, 10**9),
}
"""Scene numbers of each split; no scene is in two of them."""


class CaptionedShapes(IterableDataset[dict[str, Any]]):
    """Batches of pictures of the "pretrain" split, each picture once.

    Yields dictionaries of "image", (B, 3, size, size) in [0, 1], "caption", B texts, and "decoys", B lists of as many
    texts that are wrong in a detail.

    Args:
        size: side in pixels.
        seed: of the world.
        difficulty: "easy", "medium", "colourful" or "hard".
        batch_size: B.
        start: how many pictures to pass over, those that an interrupted run has seen.
        device: where to render.
    """

    def __init__(
        self, size: int, seed: int, difficulty: str, batch_size: int, start: int = 0, device: str = "cpu"
    ) -> None:
        find_difficulty(difficulty)
        self.size, self.seed, self.difficulty = size, seed, difficulty
        self.batch_size, self.start, self.device = batch_size, start, device

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for first in count(SPLITS["pretrain"].start + self.start, self.batch_size):
            scenes = [sample_scene(self.seed, first + i, self.difficulty) for i in range(self.batch_size)]
            image = render(scenes, self.size, torch.device(self.device)).image
            decoys = [
                scene.description.decoys(np.random.default_rng([self.seed, first + i, 1]))
                for i, scene in enumerate(scenes)
            ]
            yield {"image": image, "caption": [scene.caption for scene in scenes], "decoys": decoys}
