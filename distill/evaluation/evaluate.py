"""Measuring one matcher on one benchmark."""

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric

from distill.core.errors import DataError
from distill.core.protocols import Benchmark, Matcher, PairMatcher, match
from distill.core.types import PairBatch
from distill.data.pairs import collate_pairs, to_device, to_original
from distill.matchers.stored_predictions import Predictions, StoredPredictions
from distill.metrics.calibration import calibration
from distill.metrics.confidence import kept_pck
from distill.metrics.geometry_aware import GeometryAwarePCK, Groups
from distill.metrics.interval import over_images
from distill.metrics.pck import ALPHAS, PCK, category_mean, image_pck, pck_correct
from distill.metrics.pck_dagger import PCKDagger
from distill.system.progress import track

Array = NDArray[np.float64]

VARIATIONS = ("viewpoint", "scale", "truncation", "occlusion")
"""SPair-71k's flags, in the order of :class:`PairBatch`'s ``variation``."""


@dataclass(frozen=True)
class Evaluation:
    """What a matcher scored, and all its answers.

    Attributes:
        report: the figures, in the form of ``metrics.json``; PCK in percent.
        pairs: numbers of the evaluated pairs in the data set.
        images: for each pair what its source and target are known by.
        predictions: for each pair (n, 2) x, y in original target pixels.
        truth: the same.
        thresholds: tolerance base of each pair, px.
        image_pck: (P, A) in [0, 1], the share of right points of each pair.
        confidence: for each pair (n,) in [0, 1].
        answers: to all points, whether their truth is known or not, in the form in which they are kept in a file.
    """

    report: dict[str, Any]
    pairs: list[int]
    images: list[tuple[str, str]]
    predictions: list[Array]
    truth: list[Array]
    thresholds: list[float]
    image_pck: Array
    confidence: list[Array]
    answers: Predictions


def evaluate(
    matcher: Matcher | PairMatcher,
    benchmark: Benchmark,
    name: str,
    batch_size: int = 8,
    device: str = "cpu",
    progress: bool = True,
    metrics: Mapping[str, Metric] | None = None,
) -> Evaluation:
    """Runs ``matcher`` over all pairs and scores it by the benchmark's convention.

    That is in the original pixels of the target images, unless the benchmark says otherwise. Pairs without a common point
    are left out and counted, and so are points without a truth. The time is that of the matcher alone, by the wall clock;
    of stored predictions it is that of the matcher that gave them, and so is the name in the report.

    Args:
        matcher: on ``device`` already.
        benchmark: the pairs.
        name: of the matcher, for the report.
        batch_size: pairs at a time.
        device: where the pairs are sent.
        progress: whether to draw a bar.
        metrics: further metrics by name, reported under "metrics". Each is updated with predictions (B, N, 2) and truth
            (B, N, 2), x, y in original target pixels, the mask (B, N) of the points that count, and the tolerance base (B,)
            in px, and computes a number or a dictionary of numbers. The given objects stay as they are.

    Raises:
        DataError: when nothing is annotated, no pair has a point, or the matcher answers with NaN or infinity.
    """
    check_annotated(benchmark)
    loader = DataLoader(cast(Dataset, benchmark), batch_size, collate_fn=collate_pairs)
    scores = _Scores(getattr(benchmark, "symmetric_groups", {}), metrics or {})
    found: dict[str, list] = defaultdict(list)
    stored = matcher.predictions if isinstance(matcher, StoredPredictions) else None
    answers, seconds, first = Predictions(stored.matcher if stored else name), 0.0, 0
    for pairs in track(loader, f"evaluate {name}", enabled=progress):
        numbers, first = range(first, first + len(pairs.category)), first + len(pairs.category)
        known = pairs.kps_mask & torch.isfinite(pairs.trg_kps).all(-1)
        if not known.any():
            continue
        points, confidence, taken = _answer(matcher, pairs, name, device)
        seconds += taken
        answers.add(pairs, points, confidence)
        predicted, truth = to_original(points, pairs), to_original(pairs.trg_kps, pairs)
        scores.add(pairs, predicted, truth, known)
        _collect(found, numbers, pairs, predicted, truth, known, confidence)
    if not found["pairs"]:
        raise DataError(
            f"Expected pairs with common points in {benchmark.name} but found none; choose another split, or give points."
        )
    shares = np.stack(found.pop("image_pck"))
    answers.seconds = seconds = stored.seconds if stored else seconds
    report = {
        "matcher": answers.matcher,
        "data": benchmark.name,
        "split": benchmark.split,
        **_convention(benchmark),
        "n_pairs": len(shares),
        "n_pairs_without_points": len(cast(Sized, benchmark)) - len(shares),
        **scores.report(),
        **_sureness(shares, found["images"]),
        "confidence": _confidence(found),
        "seconds": round(seconds, 3),
        "latency_ms": round(1000 * seconds / len(shares), 3),
    }
    return Evaluation(report=report, image_pck=shares, answers=answers, **found)


def check_annotated(benchmark: Benchmark) -> None:
    """Raises a :class:`DataError` when the benchmark says that no target point is known, before a matcher is asked."""
    if not getattr(benchmark, "has_truth", True):
        raise DataError(
            f"Expected annotated points in {benchmark.name}, without which nothing can be scored, but found none; annotate some, "
            "for data=folder in points.csv in data.root."
        )


def _answer(matcher: Matcher | PairMatcher, pairs: PairBatch, name: str, device: str) -> tuple[Tensor, Tensor, float]:
    """Returns the points (B, N, 2) and confidences (B, N) of all answers, and the seconds that they took."""
    start = time.perf_counter()
    with torch.no_grad():
        answer = match(matcher, to_device(pairs, device))
        points, confidence = answer.trg_kps.cpu(), answer.confidence.cpu()
    seconds = time.perf_counter() - start
    if not torch.isfinite(points[pairs.kps_mask]).all():
        raise DataError(f"Expected finite points from {name} but got NaN or infinity; check its weights.")
    if not torch.isfinite(confidence[pairs.kps_mask]).all():
        raise DataError(f"Expected finite confidences from {name} but got NaN or infinity; check its weights.")
    return points, confidence, seconds


def _sureness(shares: Array, images: list[tuple[str, str]]) -> dict[str, Any]:
    """Returns how many images there were, and the 95 % interval that they leave to PCK@0.10 per image."""
    _, low, high = over_images(100 * shares[:, ALPHAS.index(0.10)], images)
    names = {name for pair in images for name in pair}
    return {"n_images": len(names), "interval@0.10": [round(low, 3), round(high, 3)]}


def _convention(benchmark: Benchmark) -> dict[str, Any]:
    """Returns what a figure has to be read with: how pairs are chosen and scored, and what was left out."""
    fingerprint = getattr(benchmark, "fingerprint", None)
    return {
        "convention": getattr(benchmark, "convention", "canonical"),
        "resize": getattr(benchmark, "resize", "squash"),
        "threshold": benchmark.threshold,
        "pairs_fingerprint": fingerprint() if callable(fingerprint) else None,
        "skipped": dict(getattr(benchmark, "skipped", {})),
    }


class _Scores:
    """All figures of one matcher on one benchmark."""

    def __init__(self, symmetric_groups: Groups, further: Mapping[str, Metric]) -> None:
        self.symmetric_groups = symmetric_groups
        self.further = {name: metric.clone() for name, metric in further.items()}
        for metric in self.further.values():
            metric.reset()
        self.all, self.dagger, self.geometry_aware = PCK(), PCKDagger(), GeometryAwarePCK(symmetric_groups)
        self.categories: dict[str, PCK] = defaultdict(PCK)
        self.variations: dict[tuple[str, int], PCK] = defaultdict(PCK)

    def add(self, pairs: PairBatch, predicted: Tensor, truth: Tensor, known: Tensor) -> None:
        """Adds a batch; ``known`` (B, N) bool says which points count."""
        scored = (predicted, truth, known, pairs.pck_threshold)
        self.all.update(*scored)
        for metric in self.further.values():
            metric.update(*scored)
        self.dagger.update(*scored, to_original(pairs.trg_all_kps, pairs), pairs.trg_all_id >= 0)
        if self.symmetric_groups:
            self.geometry_aware.update(*scored, pairs.kps_id, pairs.trg_all_id, pairs.category)
        for category in set(pairs.category):
            rows = torch.tensor([c == category for c in pairs.category])
            self.categories[category].update(*(value[rows] for value in scored))
        for flag, levels in zip(VARIATIONS, pairs.variation.unbind(1), strict=True):
            for level in levels.unique().tolist():
                self.variations[flag, level].update(*(value[levels == level] for value in scored))

    def report(self) -> dict[str, Any]:
        """Returns the figures by name."""
        by_category = {name: self.categories[name].compute() for name in sorted(self.categories)}
        averages = ("image", "point")
        means = {a: category_mean({name: found[a] for name, found in by_category.items()}) for a in averages}
        figures: dict[str, Any] = {
            "n_points": int(self.all.n_points),
            "pck": _rounded(self.all.compute()),
            "pck_category_mean": _rounded(means),
            "pck_dagger": _rounded(self.dagger.compute()),
            "per_category": {name: _rounded(found["image"]) for name, found in by_category.items()},
        }
        if self.symmetric_groups:
            subset = self.geometry_aware
            counts = {"n_points": int(subset.n_points), "n_pairs": int(subset.n_pairs)}
            figures["geometry_aware"] = counts | _rounded(subset.compute())
        if self.further:
            figures["metrics"] = {name: _rounded(metric.compute()) for name, metric in self.further.items()}
        if any(level for _, level in self.variations):
            figures["per_variation"] = {
                flag: {
                    str(level): {"n_pairs": int(metric.n_pairs)} | _rounded(metric.compute())
                    for (name, level), metric in sorted(self.variations.items())
                    if name == flag
                }
                for flag in VARIATIONS
            }
        return figures


def _confidence(found: dict[str, list]) -> dict[str, Any]:
    """Returns how well the confidence tells points that are right within 0.10 of the tolerance base from wrong ones.

    And how far it can be taken at its word: see :func:`distill.metrics.calibration.calibration`.
    """
    distance = [np.linalg.norm(p - t, axis=-1) for p, t in zip(found["predictions"], found["truth"], strict=True)]
    relative = np.concatenate([d / base for d, base in zip(distance, found["thresholds"], strict=True)])
    sure, right = np.concatenate(found["confidence"]), relative <= 0.10 * (1 + 1e-9)
    measured = calibration(np.clip(sure, 0, 1), right)
    return {
        "auroc@0.10": _rounded(measured["auroc"]),
        "pck@0.10_of_kept": _rounded(kept_pck(sure, right)),
        "ece@0.10": round(measured["ece"], 3),
        "brier@0.10": round(measured["brier"], 3),
        "reliability@0.10": [{key: round(value, 3) for key, value in row.items()} for row in measured["bins"]],
    }


def _collect(
    found: dict[str, list],
    numbers: range,
    pairs: PairBatch,
    predicted: Tensor,
    truth: Tensor,
    mask: Tensor,
    confidence: Tensor,
) -> None:
    shares = image_pck(pck_correct(predicted, truth, pairs.pck_threshold, ALPHAS), mask)
    for row, number in enumerate(numbers):
        if mask[row].any():
            found["pairs"].append(number)
            found["images"].append((pairs.src_hash[row], pairs.trg_hash[row]))
            found["predictions"].append(predicted[row, mask[row]].double().numpy())
            found["truth"].append(truth[row, mask[row]].double().numpy())
            found["thresholds"].append(float(pairs.pck_threshold[row]))
            found["image_pck"].append(shares[row].numpy())
            found["confidence"].append(confidence[row, mask[row]].double().numpy())


def _rounded(figures: Any) -> Any:
    """Returns numbers, or dictionaries of numbers, to three digits; None, which is null in JSON, for NaN and infinity."""
    if isinstance(figures, dict):
        return {name: _rounded(value) for name, value in figures.items()}
    return round(float(figures), 3) if math.isfinite(figures) else None
