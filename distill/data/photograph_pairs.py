"""What all benchmarks of photographs have in common: reading, conventions, and what to do about broken files."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from distill.core.errors import ConfigError, DataError, nearest
from distill.core.types import PairBatch
from distill.data.pairs import NO_VARIATION, AnnotatedImage, Scoring, Threshold, make_pair
from distill.data.photographs import PhotographReader

T = TypeVar("T")

CONVENTIONS = ("canonical", "paper")
PAPER_SIDE = 512  # px; the teacher's released code scores in images squashed to this side


@dataclass(frozen=True)
class ImageAnnotation:
    """What a benchmark says of one photograph, in its own pixels.

    Attributes:
        path: of the image file.
        points: (K, 2) x, y; NaN where a point is asked for but the truth is not known.
        visible: (K,), which of them are annotated.
        bbox: (4,) x0, y0, x1, y1 of the object.
        category: what the object is.
        name: of the photograph, for people.
        source: the file that says so, for error messages.
    """

    path: Path
    points: NDArray[np.float64]
    visible: NDArray[np.bool_]
    bbox: NDArray[np.float64]
    category: str
    name: str
    source: Path


@dataclass(frozen=True)
class PairAnnotation:
    """What a benchmark says of one pair: source, target, and SPair-71k's four flags."""

    src: ImageAnnotation
    trg: ImageAnnotation
    variation: tuple[int, int, int, int] = NO_VARIATION


@dataclass(frozen=True)
class ImageConfig:
    """How photographs are read and scored; the settings that all benchmarks share.

    Attributes:
        size: side that images are brought to, px.
        resize: "squash" or "letterbox".
        convention: "canonical" scores in the target's own pixels; "paper" does what the teacher's released code does.
        on_error: what a broken file does: "raise" an error, or "skip" its pairs, which is counted and named.
        cache_mib: how much memory the decoded photographs may take.
    """

    size: int = 128
    resize: str = "squash"
    convention: str = "canonical"
    on_error: str = "raise"
    cache_mib: int = 2048


class PhotographPairs(Dataset[PairBatch], ABC):
    """Pairs of photographs with their points.

    A benchmark says in :meth:`pair_annotation` what it knows of a pair, and in ``__init__`` which pairs there are, which it then
    passes to :meth:`_start`.

    Attributes:
        name: of the benchmark.
        split: of the benchmark.
        threshold: what PCK's tolerance is a fraction of.
        convention: how it is scored.
        resize: how images are brought to one size.
        symmetric_groups: by category, groups of parts that mirror or repeat each other; "" stands for all other categories.
        exif_orientation: whether the EXIF orientation of a photograph is applied. Benchmarks were annotated on the
            pixels as they are stored (27 of 178 photographs of CUB-200-2011 at hand have an orientation, and all their
            boxes and points suit the stored pixels), so it is false for all of them.
        pairs: for each pair, what identifies source and target.
        skipped: what was left out, and why, by the name of the pair or photograph.
    """

    name: ClassVar[str]
    threshold: Threshold
    has_paper_convention: ClassVar[bool] = True
    exif_orientation: ClassVar[bool] = False
    symmetric_groups: ClassVar[Mapping[str, Sequence[Sequence[int]]]] = {}
    split: str
    pairs: Sequence[tuple]

    @abstractmethod
    def pair_annotation(self, index: int) -> PairAnnotation:
        """Returns what is known of pair number ``index``.

        Raises:
            DataError: when its annotation is missing or malformed.
        """

    def paper_threshold(self, pair: PairAnnotation, sizes: tuple[tuple[int, int], tuple[int, int]]) -> float:
        """Returns the tolerance base of the teacher's released code, in px of images squashed to ``PAPER_SIDE``.

        Args:
            pair: what is known of the pair.
            sizes: height, width of source and target before resizing.
        """
        raise NotImplementedError

    def image_annotations(self) -> Iterator[ImageAnnotation]:
        """Yields what is known of each photograph, once; broken annotations are passed over."""
        seen: set[Path] = set()
        for index in range(len(self.pairs)):
            try:
                pair = self.pair_annotation(index)
            except DataError:
                continue
            for annotation in (pair.src, pair.trg):
                if annotation.path not in seen:
                    seen.add(annotation.path)
                    yield annotation

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> PairBatch:
        """Returns a batch of one pair."""
        pair = self.pair_annotation(index)
        src, trg = self.image(pair.src), self.image(pair.trg)
        scoring = None
        if self.convention == "paper":
            base = self.paper_threshold(pair, (src.original_size, trg.original_size))
            scoring = Scoring((PAPER_SIDE, PAPER_SIDE), base)
        return make_pair(src, trg, self.threshold, pair.variation, scoring)

    def image(self, annotation: ImageAnnotation) -> AnnotatedImage:
        """Reads a photograph.

        Raises:
            DataError: when it cannot be read, or a point of it lies outside it.
        """
        photograph = self.read(annotation.path)
        height, width = photograph.original_size
        points = annotation.points[annotation.visible]
        outside = ((points < 0) | (points > (width, height))).any(1)
        if outside.any():
            x, y = points[outside][0]
            raise DataError(
                f"Expected all points of {annotation.path} inside its {width} x {height} px but {annotation.source} says "
                f"({x:g}, {y:g}); correct it, or leave such pairs out with data.on_error=skip."
            )
        return photograph.annotated(
            annotation.points, annotation.visible, annotation.bbox, annotation.category, annotation.name
        )

    def problems(self) -> dict[str, str]:
        """Reads everything and returns what is wrong, by the name of the pair or the photograph."""
        found: dict[str, str] = {}
        for index in range(len(self.pairs)):
            _record(found, self.pair_name(index), self.pair_annotation, index)
        for annotation in self.image_annotations():
            _record(found, annotation.name, self.image, annotation)
        return found

    def pair_name(self, index: int) -> str:
        """Returns the name of a pair, for people and for lists of pairs: "source -> target"."""
        src, trg = self.pairs[index]
        return f"{src} -> {trg}"

    def fingerprint(self) -> str:
        """Returns a digest of which pairs these are, in which order; the same list gives the same figures."""
        names = [self.pair_name(index) for index in range(len(self.pairs))]
        return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]

    def _configure(self, image_config: ImageConfig) -> None:
        """Checks the settings that need no file."""
        for key, value, choices in (
            ("convention", image_config.convention, CONVENTIONS),
            ("on_error", image_config.on_error, ("raise", "skip")),
        ):
            if value not in choices:
                raise ConfigError(
                    f"Expected data.{key} to be one of these but got {value!r}; {nearest(value, choices)}."
                )
        if image_config.convention == "paper" and not self.has_paper_convention:
            raise ConfigError(
                f"Expected data.convention=canonical but got 'paper'; the teacher's released code does not read {self.name}."
            )
        PhotographReader([], image_config.size, image_config.resize, image_config.cache_mib)  # checks them
        self.convention, self.resize, self.size = image_config.convention, image_config.resize, image_config.size
        self.skipped: dict[str, str] = {}

    def _start(self, pairs: Sequence[tuple], paths: Iterable[Path], image_config: ImageConfig) -> None:
        """Takes the pairs, and leaves out the broken ones if that was asked for."""
        self.pairs = pairs
        config = image_config
        self.read = PhotographReader(paths, config.size, config.resize, config.cache_mib, self.exif_orientation)
        if image_config.on_error == "skip":
            self._skip_broken()

    def _skip_broken(self) -> None:
        kept = []
        for index, pair in enumerate(self.pairs):
            name = self.pair_name(index)
            known = _record(self.skipped, name, self.pair_annotation, index)
            if known is not None and all(_record(self.skipped, name, self.image, n) for n in (known.src, known.trg)):
                kept.append(pair)
        if not kept:
            first = next(iter(self.skipped.values()), "there are none")
            raise DataError(f"Expected pairs that can be read but all {len(self.pairs)} are broken; the first: {first}")
        self.pairs = kept


def _record(found: dict[str, str], name: str, read: Callable[..., T], *arguments: object) -> T | None:
    """Returns what ``read`` returns, or None after writing down its error."""
    try:
        return read(*arguments)
    except DataError as error:
        found.setdefault(name, str(error))
        return None


def subsample(items: Sequence[T], n_pairs: int | None, seed: int) -> list[T]:
    """Returns ``n_pairs`` of ``items``, drawn by the seed; all of them, in order, without a number.

    Raises:
        DataError: when there are fewer than asked for.
    """
    if n_pairs is None:
        return list(items)
    if not 1 <= n_pairs <= len(items):
        raise DataError(f"Expected data.n_pairs between 1 and {len(items)}, the pairs of the split, but got {n_pairs}.")
    rows = np.random.default_rng([seed, len(items)]).permutation(len(items))[:n_pairs]
    return [items[row] for row in rows]


def check_split(split: str, splits: Iterable[str]) -> None:
    """Raises a :class:`ConfigError` unless ``split`` is one of ``splits``."""
    choices = list(splits)
    if split not in choices:
        raise ConfigError(f"Expected data.split to name a split but got {split!r}; {nearest(split, choices)}.")
