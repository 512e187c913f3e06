"""Measuring one matcher on one benchmark."""

import time
from collections import defaultdict
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data.pairs import collate_pairs, to_original
from distill.errors import DataError
from distill.metrics.pck import ALPHAS, PCK, image_pck, pck_correct
from distill.metrics.pck_dagger import PCKDagger
from distill.progress import track
from distill.protocols import Matcher, PairMatcher, match
from distill.types import PairBatch

Array = NDArray[np.float64]


class Benchmark(Protocol):
    """A data set of pairs as evaluation needs it: a map-style ``Dataset[PairBatch]`` that says its conventions."""

    name: str
    split: str
    threshold: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PairBatch: ...


@dataclass(frozen=True)
class Evaluation:
    """What a matcher scored, and all its answers.

    Attributes:
        report: the figures, in the form of ``metrics.json``; PCK in percent.
        pairs: numbers of the evaluated pairs in the data set.
        predictions: for each pair (n, 2) x, y in original target pixels.
        truth: the same.
        thresholds: tolerance base of each pair, px.
        image_pck: (P, A) in [0, 1], the share of right points of each pair.
        confidence: for each pair (n,) in [0, 1].
    """

    report: dict[str, Any]
    pairs: list[int]
    predictions: list[Array]
    truth: list[Array]
    thresholds: list[float]
    image_pck: Array
    confidence: list[Array]


def evaluate(
    matcher: Matcher | PairMatcher,
    benchmark: Benchmark,
    name: str,
    batch_size: int = 8,
    device: str = "cpu",
    progress: bool = True,
) -> Evaluation:
    """Runs ``matcher`` over all pairs and scores it in the original pixels of the target images.

    Pairs without a common point are left out and counted. The time is that of the matcher alone, by the wall clock.

    Args:
        matcher: on ``device`` already.
        benchmark: the pairs.
        name: of the matcher, for the report.
        batch_size: pairs at a time.
        device: where the pairs are sent.
        progress: whether to draw a bar.

    Raises:
        DataError: when no pair has a point, or the matcher answers with NaN or infinity.
    """
    loader = DataLoader(cast(Dataset, benchmark), batch_size, collate_fn=collate_pairs)
    pck, dagger = PCK(), PCKDagger()
    per_category: dict[str, PCK] = defaultdict(PCK)
    found: dict[str, list] = defaultdict(list)
    seconds, first = 0.0, 0
    for pairs in track(loader, f"evaluate {name}", enabled=progress):
        numbers, first = range(first, first + len(pairs.category)), first + len(pairs.category)
        if not pairs.kps_mask.any():
            continue
        start = time.perf_counter()
        with torch.no_grad():
            answer = match(matcher, to_device(pairs, device))
            points, confidence = answer.trg_kps.cpu(), answer.confidence.cpu()
        seconds += time.perf_counter() - start
        if not torch.isfinite(points[pairs.kps_mask]).all():
            raise DataError(f"Expected finite points from {name} but got NaN or infinity; check its weights.")
        predicted, truth = to_original(points, pairs), to_original(pairs.trg_kps, pairs)
        scored = (predicted, truth, pairs.kps_mask, pairs.pck_threshold)
        pck.update(*scored)
        dagger.update(*scored)
        for category in set(pairs.category):
            rows = torch.tensor([c == category for c in pairs.category])
            per_category[category].update(*(value[rows] for value in scored))
        _collect(found, numbers, *scored, confidence)
    if not found["pairs"]:
        raise DataError(f"Expected pairs with common points in {benchmark.name} but found none; choose another split.")
    skipped = len(cast(Sized, benchmark)) - len(found["pairs"])
    report = {
        "matcher": name,
        "data": benchmark.name,
        "split": benchmark.split,
        "n_pairs": len(found["pairs"]),
        "n_pairs_without_points": skipped,
        "n_points": int(pck.n_points),
        "threshold": benchmark.threshold,
        "pck": _rounded(pck.compute()),
        "pck_dagger": _rounded(dagger.compute()),
        "per_category": {c: _rounded(per_category[c].compute()["image"]) for c in sorted(per_category)},
        "seconds": round(seconds, 3),
        "latency_ms": round(1000 * seconds / len(found["pairs"]), 3),
    }
    return Evaluation(report=report, image_pck=np.stack(found.pop("image_pck")), **found)


def to_device(pairs: PairBatch, device: str | torch.device) -> PairBatch:
    """Returns ``pairs`` with all tensors on ``device``."""
    return PairBatch(*(value.to(device) if isinstance(value, Tensor) else value for value in pairs))  # type: ignore[arg-type]


def _collect(
    found: dict[str, list],
    numbers: range,
    predicted: Tensor,
    truth: Tensor,
    mask: Tensor,
    threshold: Tensor,
    confidence: Tensor,
) -> None:
    shares = image_pck(pck_correct(predicted, truth, threshold, ALPHAS), mask)
    for row, number in enumerate(numbers):
        if mask[row].any():
            found["pairs"].append(number)
            found["predictions"].append(predicted[row, mask[row]].double().numpy())
            found["truth"].append(truth[row, mask[row]].double().numpy())
            found["thresholds"].append(float(threshold[row]))
            found["image_pck"].append(shares[row].numpy())
            found["confidence"].append(confidence[row, mask[row]].double().numpy())


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: _rounded(v) if isinstance(v, dict) else round(v, 3) for k, v in figures.items()}
