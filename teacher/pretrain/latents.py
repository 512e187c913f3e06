"""Latents of captioned pictures, made by processes of their own and kept in files that are mapped into memory.

Drawing and encoding a picture costs more than a training step on its latents, so each serves many steps. Which latents a
step sees depends on the seed and the step's number only: a training that was interrupted goes on exactly.
"""

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from transformers import CLIPTokenizer

from distill.core.errors import ConfigError
from distill.core.files import replacing
from distill.core.workers import quiet_worker
from teacher.crops import crop

BLOCK = 32
"""Pictures that are drawn and encoded together."""


class Pictures(Protocol):
    """Captioned pictures by number."""

    def batch(self, first: int, number: int) -> dict[str, Any]:
        """Returns "image" (number, 3, S, S) in [0, 1] and "caption", as many texts, from picture ``first`` on."""


class LatentBlocks(Dataset[tuple[int, Tensor, Tensor]]):
    """Latents and tokens of consecutive pictures, a block at a time.

    Args:
        pictures: to encode.
        autoencoder: frozen, with its ``scaling_factor`` set; a copy is used, on the pictures' device.
        tokenizer: turns captions into tokens.
        zoom: the smallest share of a picture's side that is shown; most pictures are shown whole or nearly so. The teacher
            looks at crops, which must not be strange to the model.
        seed: of the crops.

    Attributes:
        blocks: numbers of the blocks, in the order in which they are made.
    """

    def __init__(
        self,
        pictures: Pictures,
        autoencoder: AutoencoderTiny,
        tokenizer: CLIPTokenizer,
        zoom: float,
        seed: int,
    ) -> None:
        self.pictures, self.tokenizer, self.zoom, self.seed = pictures, tokenizer, zoom, seed
        self.blocks = [0]
        self.autoencoder = copy.deepcopy(autoencoder).cpu().eval().requires_grad_(False)

    def __len__(self) -> int:
        return len(self.blocks)

    @torch.no_grad()
    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        """Returns the number of a block, its latents (BLOCK, C, s, s) in half precision, and its tokens (BLOCK, L)."""
        first = self.blocks[index] * BLOCK
        batch = self.pictures.batch(first, BLOCK)
        images = random_crops(batch["image"], self.zoom, np.random.default_rng([self.seed, first, 3]))
        latents = encode(self.autoencoder.to(images.device), images)
        return self.blocks[index], latents.half().cpu(), tokenize(self.tokenizer, batch["caption"])


class LatentStore:
    """Latents and tokens of the pictures 0 to ``capacity`` - 1, in two memory-mapped files that are filled on demand.

    Args:
        folder: of the files; blocks that it holds already are not made again.
        blocks: makes them.
        capacity: number of pictures, rounded up to whole blocks.
        num_workers: processes that make blocks ahead; 0 makes them in this process, on demand.
        about: what the latents depend on, by name.

    Raises:
        ConfigError: when ``folder`` holds latents that depend on something else or are damaged, and when the disk is too small.
    """

    def __init__(
        self, folder: Path, blocks: LatentBlocks, capacity: int, num_workers: int, about: Mapping[str, Any]
    ) -> None:
        self.capacity = -(-capacity // BLOCK) * BLOCK
        told = json.dumps({**about, "capacity": self.capacity}, sort_keys=True, default=str)
        note = folder / "about.json"
        if note.is_file() and note.read_text(encoding="utf-8") != told:
            raise ConfigError(
                f"Expected the latents in {folder} to be those of this run but they were made with other settings or "
                "another autoencoder; remove that folder, or choose another run.dir."
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not note.is_file():
            _, latents, tokens = blocks[0]
            _check_room(folder, self.capacity * (latents[0].nbytes + 4 * tokens.shape[1]))
            _create(folder / "latents.npy", np.float16, (self.capacity, *latents.shape[1:]))
            _create(folder / "tokens.npy", np.int32, (self.capacity, *tokens.shape[1:]))
            _create(folder / "made.npy", np.bool_, (self.capacity // BLOCK,))
            with replacing(note) as whole:
                whole.write_text(told, encoding="utf-8")
        self._latents, self._tokens, self._made = (
            _open(folder / f"{name}.npy") for name in ("latents", "tokens", "made")
        )
        blocks.blocks = np.flatnonzero(~self._made).tolist()
        device = str(getattr(blocks.pictures, "device", "cpu"))
        self._loader = DataLoader(
            blocks,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4 if num_workers else None,
            multiprocessing_context="spawn" if num_workers and device != "cpu" else None,
            worker_init_fn=quiet_worker,
        )
        self._coming: Iterator[tuple[int, Tensor, Tensor]] | None = None

    def ensure(self, number: int) -> None:
        """Makes the latents of the first ``number`` pictures as far as they are missing; returns when all are stored."""
        needed = -(-number // BLOCK)
        while not self._made[:needed].all():
            if self._coming is None:
                self._coming = iter(self._loader)
            block, latents, tokens = next(self._coming)
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            self._latents[rows], self._tokens[rows] = latents.numpy(), tokens.numpy()
            self._made[block] = True  # last: a block that is said to be made is whole

    def rows(self, numbers: np.ndarray) -> dict[str, Tensor]:
        """Returns "latents" (B, C, s, s) in half precision and "tokens" (B, L) int64 of B stored pictures."""
        return {
            "latents": torch.from_numpy(self._latents[numbers]),
            "tokens": torch.from_numpy(self._tokens[numbers].astype(np.int64)),
        }

    def close(self) -> None:
        """Ends the processes that make blocks."""
        self._coming = None


class LatentBatches(IterableDataset[dict[str, Tensor]]):
    """Batches of latents and tokens, one a step, drawn from a stock that grows as the training goes on.

    Args:
        store: of the latents.
        batch_size: latents of a step.
        at_start: pictures that the first step draws from.
        fresh: pictures that are added with each step, until the store is full.
        seed: of the draws.
        first_step: number of the first step, after those that an interrupted run has made.

    Raises:
        ConfigError: for a batch or a stock at the start below 1, or a negative ``fresh``.
    """

    def __init__(
        self, store: LatentStore, batch_size: int, at_start: int, fresh: int, seed: int, first_step: int = 0
    ) -> None:
        if min(batch_size, at_start) < 1 or fresh < 0:
            raise ConfigError(
                "Expected diffusion.batch_size and diffusion.latents.batches.at_start of at least 1, and fresh "
                f"of at least 0, but got {batch_size}, {at_start} and {fresh}; correct them."
            )
        self.store, self.batch_size, self.seed, self.first_step = store, batch_size, seed, first_step
        self.at_start, self.fresh = at_start, fresh

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in count(self.first_step):
            stock = min(self.store.capacity, self.at_start + step * self.fresh)
            self.store.ensure(stock)
            yield self.store.rows(np.random.default_rng([self.seed, step, 4]).integers(stock, size=self.batch_size))


def _check_room(folder: Path, size: int) -> None:
    """Refuses a disk that would become full, which ends a process that writes to mapped memory without an error."""
    free = shutil.disk_usage(folder)[2]
    if free < size:
        raise ConfigError(
            f"Expected {size / 2**20:.0f} MiB for latents in {folder} but {free / 2**20:.0f} are free; lower "
            "diffusion.latents.store.capacity, or choose another run.dir."
        )


def _open(file: Path) -> np.ndarray:
    try:
        return np.lib.format.open_memmap(file, mode="r+")
    except (OSError, ValueError) as error:
        raise ConfigError(f"Expected an array in {file} but it is damaged ({error}); remove that folder.") from error


def _create(file: Path, kind: type, shape: tuple[int, ...]) -> None:
    """Makes an array file of zeros, which takes room on the disk only as it is filled."""
    np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=shape).flush()


def random_crops(images: Tensor, zoom: float, rng: np.random.Generator) -> Tensor:
    """Returns a random crop of each of ``images`` (F, 3, S, S), resized to the whole side; see :class:`LatentBlocks`."""
    side = 1 - (1 - zoom) * rng.random((len(images), 1)) ** 2
    boxes = torch.from_numpy(np.concatenate([rng.random((len(images), 2)) * (1 - side), side], 1)).to(images)
    return torch.cat([crop(image, box[None]) for image, box in zip(images, boxes, strict=True)])


@torch.no_grad()
def encode(autoencoder: AutoencoderTiny, images: Tensor) -> Tensor:
    """Returns scaled latents (F, C, s, s) of ``images`` (F, 3, S, S) in [0, 1]."""
    return (autoencoder.encode(images * 2 - 1).latents * autoencoder.config.scaling_factor).float()


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Returns (F, L) token numbers, padded."""
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
