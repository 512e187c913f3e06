"""Measuring one matcher on one benchmark."""

from collections import defaultdict
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from distill.core.errors import DataError
from distill.core.geometry import image_size
from distill.core.protocols import Benchmark, Matcher, PairMatcher
from distill.core.types import Matches, PairBatch
from distill.data.pairs import to_original
from distill.evaluation.asking import Asked, ask
from distill.evaluation.scores import Scores, confidence_figures
from distill.matchers.kept_heatmaps import Heatmaps
from distill.matchers.stored_predictions import Predictions, StoredPredictions
from distill.metrics.given_candidates import best_candidate, same_group
from distill.metrics.interval import over_images
from distill.metrics.pck import ALPHAS, image_pck, pck_correct, with_slack
from distill.system.progress import PartsProgress

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """What a matcher scored, and all its answers.

    Attributes:
        report: the figures, in the form of ``metrics.json``; PCK in percent.
        pairs: numbers of the evaluated pairs in the data set.
        images: for each pair what its source and target are known by.
        predictions: for each pair (n, 2) x, y in original target pixels.
        truth: the same; NaN where nothing is annotated.
        thresholds: tolerance base of each pair, px.
        image_pck: (P, A) in [0, 1], the share of right points of each pair; NaN where nothing is annotated.
        confidence: for each pair (n,) in [0, 1].
        heatmaps: for each pair those of its n points.
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
    heatmaps: list[Heatmaps]
    answers: Predictions

    @property
    def scored(self) -> bool:
        """Whether the truth is known."""
        return "pck" in self.report

    def right(self, alpha: float) -> list[NDArray[np.bool_]]:
        """Returns for each pair (n,) which points are right within ``alpha``; none where nothing is annotated."""
        return self.near(self.truth, alpha)

    def near(self, points: list[Array], alpha: float) -> list[NDArray[np.bool_]]:
        """Returns for each pair (n,) which answers lie within ``alpha`` of ``points``, (n, 2) for each pair."""
        rows = zip(self.predictions, points, self.thresholds, strict=True)
        return [np.linalg.norm(p - t, axis=-1) <= with_slack(alpha * base) for p, t, base in rows]


def evaluate(
    matcher: Matcher | PairMatcher,
    benchmark: Benchmark,
    name: str,
    batch_size: int = 8,
    device: str = "cpu",
    progress: bool | PartsProgress = True,
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
        progress: whether to draw a bar; or a display of several parts, the next of which this is.
        metrics: further metrics by name, reported under "metrics". Each is updated with predictions (B, N, 2) and truth
            (B, N, 2), x, y in original target pixels, the mask (B, N) of the points that count, and the tolerance base (B,)
            in px, and computes a number or a dictionary of numbers. The given objects stay as they are.

    Raises:
        DataError: when nothing is annotated, no pair has a point, or the matcher answers with NaN or infinity.
    """
    check_annotated(benchmark)
    scores = Scores(getattr(benchmark, "symmetric_groups", {}), metrics or {})
    collected = Collected(matcher, name)
    for asked in ask(matcher, benchmark, name, with_truth, batch_size, device, progress):
        choice = choices(matcher, asked.pairs, asked.answer, scores.symmetric_groups)
        predicted, truth = collected.add(asked, choice)
        scores.add(asked.pairs, predicted, truth, asked.known, choice)
    if not collected.rows["pairs"]:
        raise DataError(
            f"Expected pairs with common points in {benchmark.name} but found none; choose another split, or give points."
        )
    shares = np.stack(collected.rows["image_pck"])
    figures = scores.report() | sureness(shares, collected.rows["images"])
    figures["confidence"] = confidence_figures(collected.rows)
    return collected.evaluation(benchmark, figures)


def check_annotated(benchmark: Benchmark) -> None:
    """Raises a :class:`DataError` when the benchmark says that no target point is known, before a matcher is asked."""
    if not getattr(benchmark, "has_truth", True):
        raise DataError(
            f"Expected annotated points in {benchmark.name}, without which nothing can be scored, but found none; annotate some, "
            "for data=folder in points.csv in data.root. python -m distill compare says how far matchers agree."
        )


def with_truth(pairs: PairBatch) -> Tensor:
    """Returns (B, N) bool: which points exist and have a known counterpart."""
    return pairs.kps_mask & torch.isfinite(pairs.trg_kps).all(-1)


def choices(matcher: object, pairs: PairBatch, answer: Matches, symmetric_groups: Mapping[str, Any]) -> Tensor:
    """Returns (B, N, 2) which annotated part of the target is preferred, of all and of the point's symmetric group.

    Stored predictions have no heatmap to read it from; they have kept it.
    """
    if isinstance(matcher, StoredPredictions):
        return matcher.choice(pairs)
    exists = ((pairs.trg_all_id >= 0) & torch.isfinite(pairs.trg_all_kps).all(-1))[:, None]
    group = exists & same_group(pairs.kps_id, pairs.trg_all_id, pairs.category, symmetric_groups)
    points, size = pairs.trg_all_kps.nan_to_num(), image_size(pairs.trg_img)
    every = exists.expand(group.shape)
    return torch.stack([best_candidate(answer.heatmap, points, pairs.trg_all_id, c, size) for c in (every, group)], -1)


def sureness(shares: Array, images: list[tuple[str, str]]) -> dict[str, Any]:
    """Returns the 95 % interval that the images leave to PCK@0.10 per image."""
    _, low, high = over_images(100 * shares[:, ALPHAS.index(0.10)], images, (0.0, 100.0))
    return {"interval@0.10": [round(low, 3), round(high, 3)]}


class Collected:
    """The answers of a matcher, pair by pair, as they come in.

    Args:
        matcher: that gives them.
        name: of it, for the report; stored predictions keep the name of who gave them.
    """

    def __init__(self, matcher: object, name: str) -> None:
        self.matcher = matcher
        self.stored = matcher.predictions if isinstance(matcher, StoredPredictions) else None
        self.answers, self.seconds = Predictions(self.stored.matcher if self.stored else name), 0.0
        self.rows: dict[str, list] = defaultdict(list)

    def add(self, asked: Asked, choice: Tensor) -> tuple[Tensor, Tensor]:
        """Adds a batch; returns answers and truth (B, N, 2), x, y in the pixels that scores are taken in."""
        numbers, pairs, known, answer, seconds = asked
        self.seconds += seconds
        if isinstance(self.matcher, StoredPredictions):
            heatmaps = self.matcher.heatmaps(pairs)
        else:
            heatmaps = Heatmaps.of(answer.heatmap, pairs)
        self.answers.add(pairs, answer.trg_kps, answer.confidence, choice, heatmaps)
        predicted, truth = to_original(answer.trg_kps, pairs), to_original(pairs.trg_kps, pairs)
        shares = image_pck(pck_correct(predicted, truth, pairs.pck_threshold, ALPHAS), known)
        for row, number in enumerate(numbers):
            mask = known[row]
            if mask.any():
                found = {
                    "pairs": number,
                    "images": (pairs.src_hash[row], pairs.trg_hash[row]),
                    "predictions": predicted[row, mask].double().numpy(),
                    "truth": truth[row, mask].double().numpy(),
                    "thresholds": float(pairs.pck_threshold[row]),
                    "image_pck": shares[row].numpy(),
                    "confidence": answer.confidence[row, mask].double().numpy(),
                    "heatmaps": heatmaps[row].of_points(mask.numpy()),
                }
                for key, value in found.items():
                    self.rows[key].append(value)
        return predicted, truth

    def evaluation(self, benchmark: Benchmark, figures: Mapping[str, Any]) -> Evaluation:
        """Returns all that came in, with ``figures`` and what they have to be read with."""
        asked = len(self.answers.src)  # of stored predictions, maybe not all
        seconds = self.stored.seconds * asked / len(self.stored.src) if self.stored else self.seconds
        self.answers.seconds = seconds
        n_pairs = len(self.rows["pairs"])
        report = {
            "matcher": self.answers.matcher,
            "data": benchmark.name,
            "split": benchmark.split,
            **_convention(benchmark),
            "n_pairs": n_pairs,
            "n_pairs_without_points": len(cast(Sized, benchmark)) - n_pairs,
            "n_images": len({name for pair in self.rows["images"] for name in pair}),
            **figures,
            "seconds": round(seconds, 3),
            "latency_ms": round(1000 * seconds / asked, 3),
        }
        shares = np.stack(self.rows.pop("image_pck"))
        if "pck" not in figures:
            shares = np.full_like(shares, np.nan)
        return Evaluation(report=report, image_pck=shares, answers=self.answers, **self.rows)


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
