"""What all data sets of photographs share: settings, checks and scoring conventions."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from distill.core.errors import ConfigError, DataError, nearest
from distill.core.numbers import is_whole
from distill.core.types import Original, PairBatch
from distill.data.annotations import ImageAnnotation, PairAnnotation, check_annotation
from distill.data.broken_files import BrokenFiles, record
from distill.data.image_config import ImageConfig
from distill.data.images import read_size
from distill.data.masks import lookup, read_mask
from distill.data.pair_list import pairs_fingerprint
from distill.data.pair_sampling import MAX_PAIRS, count_pairs, sample_pairs
from distill.data.pairs import AnnotatedImage, ImageView, Query, Scoring, Threshold, make_pair
from distill.data.photographs import PhotographReader, original_hash, view_of

T = TypeVar("T")

PAPER_SIDE = 512  # px; the teacher's released code scores in images squashed to this side


class EmptySplit(DataError):
    """A split that the data set has no photographs for."""


class NoPairs(DataError):
    """Photographs of which no two can be paired.

    Attributes:
        photographs: the data set, without pairs; what is known of each photograph can be had from it.
    """

    def __init__(self, message: str, photographs: "PhotographPairs") -> None:
        super().__init__(message)
        self.photographs = photographs


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
        symmetric_groups: by category, groups of parts that mirror or repeat each other, each part by its number from 0 on among
            the points; "" stands for all other categories.
        exif_orientation: whether the EXIF orientation of a photograph is applied. Benchmarks were annotated on the
            pixels as they are stored (27 of 178 photographs of CUB-200-2011 at hand have an orientation, and all their
            boxes and points suit the stored pixels), so it is false for all of them.
        pairs: for each pair, what identifies source and target.
        names: of all photographs of the split, in pairs or not, where a photograph is annotated once for all pairs.
        on_error: what is done about broken files, "raise" or "skip".
        skipped: broken pairs, and photographs where these count, that were left out, and why, by their name.
        ignored: files and rows that are no part of the data set, and why, by their name.
        notes: in which way the pairs differ from what was asked for.
        strict: whether boxes and points have to suit to the pixel, see :func:`check_annotation`.
        has_truth: whether the target's points are known, so that answers can be scored.
        numbered_by_pair: whether points are numbered anew in each pair, so that a number means another part in the next.
        mask_folder: sub-folder of a folder of masks that they are in; None for that of each photograph's own folder's name.
    """

    name: ClassVar[str]
    threshold: Threshold
    has_paper_convention: ClassVar[bool] = True
    exif_orientation: ClassVar[bool] = False
    strict: bool = False
    has_truth: bool = True
    numbered_by_pair: bool = False
    mask_folder: str | None = None
    symmetric_groups: Mapping[str, Sequence[Sequence[int]]] = MappingProxyType({})
    split: str
    pairs: Sequence[tuple]
    names: Sequence[str] | None = None

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

    def image_annotation(self, name: str) -> ImageAnnotation:
        """Returns what is known of the photograph ``name``, one of ``names``.

        Raises:
            DataError: when its annotation is missing or malformed.
        """
        raise NotImplementedError

    def image_annotations(self, broken: dict[str, str] | None = None) -> Iterator[ImageAnnotation]:
        """Yields what is known of each photograph, once.

        Args:
            broken: gets the errors of broken annotations, which are passed over, by the name of the photograph or pair.
        """
        broken = {} if broken is None else broken
        if self.names is not None:
            each = (record(broken, name, self.image_annotation, name) for name in self.names)
            yield from (annotation for annotation in each if annotation is not None)
            return
        seen: set[Path] = set()
        for annotation in self.sides(broken):
            if annotation.path not in seen:
                seen.add(annotation.path)
                yield annotation

    def sides(self, broken: dict[str, str]) -> Iterator[ImageAnnotation]:
        """Yields what each pair says of its source and its target; errors of broken pairs go to ``broken``."""
        for index in range(len(self.pairs)):
            pair = record(broken, self.pair_name(index), self.pair_annotation, index)
            if pair is not None:
                yield from (pair.src, pair.trg)

    def checked(self, annotation: ImageAnnotation) -> ImageAnnotation:
        """Returns ``annotation`` after comparing it with its photograph, of which only the header is read.

        Raises:
            DataError: when the photograph cannot be read, or they do not belong together.
        """
        check_annotation(annotation, read_size(annotation.path, self.exif_orientation), self.strict)
        return annotation

    def leave_out(self, broken: Mapping[str, str]) -> None:
        """Adds errors by the name of the photograph or pair to ``skipped``, if ``on_error`` is "skip".

        Raises:
            DataError: the first of them otherwise.
        """
        if broken and self.on_error == "raise":
            raise DataError(next(iter(broken.values())))
        self.skipped |= broken

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

    def n_common_points(self, index: int) -> int:
        """Returns how many parts are annotated in both images of a pair; no image is read.

        Raises:
            DataError: when the annotation is missing or malformed.
        """
        pair = self.pair_annotation(index)
        return int((pair.src.visible & pair.trg.visible).sum())

    def query(self, index: int) -> Query:
        """Returns which labels a pair has, from annotations, headers and the files' bytes; nothing is decoded.

        Raises:
            DataError: when a file cannot be read.
        """
        pair = self.pair_annotation(index)
        src, trg = (self._original(side.path) for side in (pair.src, pair.trg))
        points = pair.src.points[pair.src.visible & pair.trg.visible] / src.size[::-1]
        return Query(src.hash, trg.hash, points)

    def source_box(self, index: int) -> NDArray[np.float64]:
        """Returns (4,) x0, y0, x1, y1 of the object in a pair's source, in fractions of the sides; nothing is decoded.

        Raises:
            DataError: when a file cannot be read.
        """
        src = self.pair_annotation(index).src
        height, width = self._original(src.path).size
        return src.bbox / np.array([width, height, width, height])

    def source_mask(self, index: int, points: NDArray[np.float64], folder: Path | None = None) -> NDArray[np.bool_]:
        """Returns (N,) which of ``points`` (N, 2), in fractions of the sides of a pair's source, show the object.

        Args:
            index: of the pair.
            points: x / W, y / H.
            folder: of masks, see :mod:`distill.data.masks`; None for the alpha channel.

        Raises:
            DataError: when there is no mask, or it does not belong to the photograph.
        """
        path = self.pair_annotation(index).src.path
        mask = read_mask(path, self._original(path).size, folder, self.exif_orientation, self.mask_folder)
        return lookup(mask, points)

    def _original(self, path: Path) -> Original:
        """Returns what labels of a photograph are keyed by; its file is looked at once."""
        if path not in self._originals:
            upright = self.exif_orientation
            self._originals[path] = Original(original_hash(path, upright), read_size(path, upright))
        return self._originals[path]

    def views(self, index: int, size: int, resize: str = "squash") -> tuple[ImageView, ImageView]:
        """Returns source and target of a pair in squares of ``size`` px a side, decoded from the originals.

        Args:
            index: of the pair.
            size: px.
            resize: "squash" or "letterbox".

        Raises:
            DataError: when a file cannot be read.
        """
        pair = self.pair_annotation(index)
        src, trg = (view_of(side.path, size, resize, self.exif_orientation) for side in (pair.src, pair.trg))
        return src, trg

    def image(self, annotation: ImageAnnotation) -> AnnotatedImage:
        """Reads a photograph.

        Raises:
            DataError: when it cannot be read, or it and its annotation do not belong together.
        """
        photograph = self.read(annotation.path)
        check_annotation(annotation, photograph.original_size, self.strict)
        return photograph.annotated(
            annotation.points, annotation.visible, annotation.bbox, annotation.category, annotation.name
        )

    def problems(self) -> dict[str, str]:
        """Reads everything and returns what is wrong, by the name of the pair or the photograph."""
        return self._broken.everywhere()

    def pair_name(self, index: int) -> str:
        """Returns the name of a pair, for people and for lists of pairs: "source -> target"."""
        src, trg = self.pairs[index]
        return f"{src} -> {trg}"

    def image_pairs(self) -> list[tuple[str, str]]:
        """Returns the names of the source and of the target image of each pair."""
        return list(self.pairs)

    def fingerprint(self) -> str:
        """Returns a digest of which pairs these are, in which order; the same list gives the same figures."""
        return pairs_fingerprint(self.pair_name(index) for index in range(len(self.pairs)))

    def _configure(self, image_config: ImageConfig) -> None:
        """Checks the settings that need no file."""
        if image_config.convention == "paper" and not self.has_paper_convention:
            raise ConfigError(
                f"Expected data.convention=canonical but got 'paper'; the teacher's released code does not read {self.name}."
            )
        self._check_symmetric_groups()
        PhotographReader([], image_config.size, image_config.resize, image_config.cache_mib)  # checks them
        self.convention, self.resize, self.size = image_config.convention, image_config.resize, image_config.size
        self.on_error = image_config.on_error
        self.skipped: dict[str, str] = {}
        self.ignored: dict[str, str] = {}
        self.notes: list[str] = []
        self._originals: dict[Path, Original] = {}
        self._broken = BrokenFiles(self)

    def _check_symmetric_groups(self) -> None:
        """Raises for parts that are not named by their number, which otherwise only the final comparison would notice."""
        for category, groups in self.symmetric_groups.items():
            for group in groups:
                if isinstance(group, str | int) or not all(isinstance(part, int) for part in group):
                    raise ConfigError(
                        f"Expected each group of {type(self).__name__}.symmetric_groups to list parts by their number among the "
                        f"points, from 0 on, but got {group!r} for {category!r}; write for example [[0, 1], [2, 3]]."
                    )

    def _start(self, pairs: Sequence[tuple], paths: Iterable[Path], image_config: ImageConfig) -> None:
        """Takes the pairs, and leaves out the broken ones if that was asked for.

        Raises:
            NoPairs: when there are none.
        """
        self.pairs = pairs
        config = image_config
        self.read = PhotographReader(paths, config.size, config.resize, config.cache_mib, self.exif_orientation)
        if not pairs:
            raise NoPairs(self._why_no_pairs(), self)
        if image_config.on_error == "skip":
            self._skip_broken()

    def _why_no_pairs(self) -> str:
        """Returns the message of :class:`NoPairs`."""
        return (
            f"Expected two images of one category but none of the {len(self.names or ())} images of split {self.split} in "
            "data.root has another of its category; check data.root and data.split."
        )

    def _drawn(
        self, categories: Sequence[str], n_pairs: int | None, seed: int, pairs_per_image: int
    ) -> list[tuple[str, str]]:
        """Returns pairs of ``names``, whose categories these are: as many as asked for or there are, none where there are none."""
        count = self._limited(n_pairs, count_pairs(categories))
        drawn = sample_pairs(categories, count, seed, pairs_per_image) if count else []
        return [(self.names[s], self.names[t]) for s, t in drawn]  # type: ignore[index]

    def _skip_broken(self) -> None:
        kept = []
        for index, pair in enumerate(self.pairs):
            problem = self._broken.of_pair(index)
            if problem is None:
                kept.append(pair)
            else:
                self.skipped.setdefault(self.pair_name(index), problem)
        if not kept:
            first = next(iter(self.skipped.values()), "there are none")
            raise DataError(f"Expected pairs that can be read but all {len(self.pairs)} are broken; the first: {first}")
        self.pairs = kept

    def _limited(self, n_pairs: int | None, possible: int) -> int:
        """Returns how many of ``possible`` pairs are taken where ``n_pairs`` are asked for, all of them without a number.

        What differs from the request is added to ``notes``.

        Raises:
            DataError: when none are asked for, or no whole number.
        """
        if n_pairs is not None and not is_whole(n_pairs):
            raise DataError(f"Expected data.n_pairs as a whole number, or null for all pairs, but got {n_pairs!r}.")
        if n_pairs is not None and n_pairs < 1:
            raise DataError(f"Expected data.n_pairs of at least 1, or null for all pairs, but got {n_pairs}.")
        if n_pairs is None and possible > MAX_PAIRS:
            self.notes.append(
                f"{MAX_PAIRS} of the {possible} pairs of split {self.split} are drawn; data.n_pairs says how many"
            )
        if n_pairs is not None and n_pairs > possible:
            self.notes.append(f"split {self.split} has {possible} pairs, {n_pairs} were asked for")
        return min(possible, n_pairs or MAX_PAIRS)

    def _subsample(self, items: Sequence[T], n_pairs: int | None, seed: int) -> list[T]:
        """Returns ``n_pairs`` of listed ``items``, drawn by the seed; all of them, in order, without a number."""
        if not items:
            raise DataError(f"Expected pairs in split {self.split} of {self.name} but there are none; check data.root.")
        if n_pairs is None:
            return list(items)
        count = self._limited(n_pairs, len(items))
        if count == len(items):
            return list(items)
        rows = np.random.default_rng([seed, len(items)]).permutation(len(items))[:count]
        return [items[row] for row in rows]


def choose_categories(asked: str | Iterable[str] | None, split: str, known: Sequence[str]) -> list[str]:
    """Returns those categories of ``known``, in its order, that are asked for, one or several; all for None.

    Raises:
        ConfigError: when ``split`` has no such category, or none is asked for.
    """
    if asked is None:
        return list(known)
    asked = [asked] if isinstance(asked, str) else list(asked)
    if not asked:
        raise ConfigError(f"Expected data.categories to name some of {', '.join(known)} but got none; null takes all.")
    for category in asked:
        if category not in known:
            raise ConfigError(
                f"Expected data.categories of split {split} but got {category!r}; {nearest(category, known)}."
            )
    return [category for category in known if category in asked]


def check_split(split: str, splits: Iterable[str]) -> None:
    """Raises a :class:`ConfigError` unless ``split`` is one of ``splits``."""
    choices = list(splits)
    if split not in choices:
        raise ConfigError(f"Expected data.split to name a split but got {split!r}; {nearest(split, choices)}.")
