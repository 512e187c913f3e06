"""Stored labels as keypoints by image, and as pairs, to be written in the formats of other tools."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distill.core.errors import DataError, LabelError
from distill.core.vote import vote
from distill.data.annotated_keypoints import (
    check_numbers,
    name_of,
    part_names,
    photograph_size,
    split_of,
    tree_image,
)
from distill.data.annotations import PairAnnotation
from distill.data.keypoints import ImageKeypoints
from distill.data.pairs import to_original
from distill.data.photograph_pairs import PhotographPairs
from distill.data.spair_tree import TreeImage, TreePair
from distill.labels.store import LabelStore
from distill.system.progress import track

SIGMA = 0.05  # of the image's longer side: how far labels may lie apart that mean the same place


class PairLabel(NamedTuple):
    """The labels of one pair, in px of the original images.

    Attributes:
        pair: what is annotated.
        ids: (N,) numbers of the parts that are labelled.
        src: (N, 2) x, y.
        trg: (N, 2) x, y.
        confidence: (N,).
    """

    pair: PairAnnotation
    ids: list[int]
    src: Tensor
    trg: Tensor
    confidence: Tensor


def label_keypoints(
    store: LabelStore, benchmarks: Iterable[PhotographPairs], unsure: float
) -> tuple[dict[str, ImageKeypoints], dict[str, str]]:
    """Returns the labels of each target photograph, by its path relative to the folder, and the split it is in.

    Where several sources have a label of one part, the answer is their robust vote, see :mod:`distill.core.vote`.

    Args:
        store: of the labels.
        benchmarks: data sets with named parts.
        unsure: confidence below which a point is unsure.

    Raises:
        DataError: when parts have neither names nor numbers of their own, so that points of different sources cannot be told to mean
            the same.
        LabelError: when there are no labels of these pairs.
    """
    answers: dict[str, dict[int, list[tuple[Tensor, Tensor]]]] = defaultdict(lambda: defaultdict(list))
    found, splits = {}, {}
    names: dict[str, Sequence[str] | None] = {}
    for benchmark in benchmarks:
        if not benchmark.has_truth:
            raise DataError(
                "Expected annotated parts for keypoints by image but the points of each source are its own; give "
                "data.points, or choose label.format=spair71k."
            )
        check_numbers(benchmark)
        for label in _labels(store, benchmark):
            trg = label.pair.trg
            name = name_of(benchmark, trg)
            for number, point, confidence in zip(label.ids, label.trg, label.confidence, strict=True):
                answers[name][number].append((point, confidence))
            if name not in found:
                size = photograph_size(benchmark, trg)
                found[name] = ImageKeypoints({}, trg.known_box, size, category=trg.category)
                splits[name], names[name] = split_of(benchmark), part_names(benchmark)
    for name, by_part in answers.items():
        _fill(found[name], by_part, names[name], unsure)
    if not found:
        raise LabelError(f"Expected labels of these pairs in {store.folder} but found none; set labels.dir and data.")
    return found, splits


def label_pairs(
    store: LabelStore, benchmarks: Iterable[PhotographPairs], unsure: float
) -> tuple[dict[str, TreeImage], list[TreePair]]:
    """Returns the photographs of the labelled pairs, by "category/file", and the pairs without what is unsure."""
    images: dict[str, TreeImage] = {}
    pairs = []
    for benchmark in benchmarks:
        for label in _labels(store, benchmark):
            src, trg = (
                tree_image(images, benchmark, side, annotated=False) for side in (label.pair.src, label.pair.trg)
            )
            sure = (label.confidence >= unsure).nonzero()[:, 0].tolist()
            ids = tuple(label.ids[row] for row in sure)
            points = [tuple((float(x), float(y)) for x, y in side[sure].tolist()) for side in (label.src, label.trg)]
            confidence = tuple(round(float(value), 4) for value in label.confidence[sure])
            pairs.append(TreePair(src, trg, split_of(benchmark), ids, points[0], points[1], confidence))
    return images, pairs


def _labels(store: LabelStore, benchmark: PhotographPairs) -> Iterator[PairLabel]:
    for index in track(range(len(benchmark)), f"read {benchmark.name} {benchmark.split}"):
        batch = benchmark[index]
        label, known = store.lookup(batch)
        rows = (known & batch.kps_mask)[0].nonzero()[:, 0]
        if not len(rows):
            continue
        pair = benchmark.pair_annotation(index)
        ids = batch.kps_id[0, rows].tolist()
        height, width = photograph_size(benchmark, pair.trg)
        trg = torch.minimum(to_original(label.trg_kps, batch)[0, rows].clamp_min(0), torch.tensor([width, height]))
        yield PairLabel(pair, ids, torch.from_numpy(pair.src.points[ids]).float(), trg, label.confidence[0, rows])


def _fill(
    image: ImageKeypoints, by_part: dict[int, list[tuple[Tensor, Tensor]]], names: Sequence[str] | None, unsure: float
) -> None:
    """Votes on the parts of an image."""
    assert image.size is not None, "sizes are set with the entry"
    for number, given in sorted(by_part.items()):
        part = names[number] if names else str(number)
        points, weights = (torch.stack(values)[None] for values in zip(*given, strict=True))
        voted = vote(points, weights, SIGMA * max(image.size))
        x, y = voted.points[0].tolist()
        image.points[part] = (x, y)
        image.confidence[part] = round(float(voted.confidence[0]), 4)
    image.unsure = frozenset(part for part, value in image.confidence.items() if value < unsure)
