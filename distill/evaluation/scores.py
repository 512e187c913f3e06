"""All figures of one matcher on one benchmark."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from distill.core.types import PairBatch
from distill.data.pairs import to_original
from distill.metrics.calibration import calibration
from distill.metrics.confidence import kept_pck
from distill.metrics.geometry_aware import GeometryAwarePCK, Groups
from distill.metrics.given_candidates import GivenCandidates, same_group
from distill.metrics.pck import PCK, category_mean, with_slack
from distill.metrics.pck_dagger import PCKDagger

VARIATIONS = ("viewpoint", "scale", "truncation", "occlusion")
"""SPair-71k's flags, in the order of :class:`PairBatch`'s ``variation``."""


class Scores:
    """All figures of one matcher on one benchmark."""

    def __init__(self, symmetric_groups: Groups, further: Mapping[str, Metric]) -> None:
        self.symmetric_groups = symmetric_groups
        self.further = {name: metric.clone() for name, metric in further.items()}
        for metric in self.further.values():
            metric.reset()
        self.all, self.dagger, self.geometry_aware = PCK(), PCKDagger(), GeometryAwarePCK(symmetric_groups)
        self.categories: dict[str, PCK] = defaultdict(PCK)
        self.variations: dict[tuple[str, int], PCK] = defaultdict(PCK)
        self.given = {"any": GivenCandidates(), "group": GivenCandidates()}

    def add(self, pairs: PairBatch, predicted: Tensor, truth: Tensor, known: Tensor, choice: Tensor) -> None:
        """Adds a batch.

        Args:
            pairs: the batch.
            predicted: (B, N, 2) x, y in the pixels that scores are taken in.
            truth: (B, N, 2), the same.
            known: (B, N) bool, which points count.
            choice: (B, N, 2) the preferred part among all annotated ones of the target, and among the symmetric group.
        """
        scored = (predicted, truth, known, pairs.pck_threshold)
        self.all.update(*scored)
        for metric in self.further.values():
            metric.update(*scored)
        self.dagger.update(*scored, to_original(pairs.trg_all_kps, pairs), pairs.trg_all_id >= 0)
        if self.symmetric_groups:
            self.geometry_aware.update(*scored, pairs.kps_id, pairs.trg_all_id, pairs.category)
        exists = (pairs.trg_all_id >= 0)[:, None]
        group = exists & same_group(pairs.kps_id, pairs.trg_all_id, pairs.category, self.symmetric_groups)
        for metric, chosen, allowed in zip(self.given.values(), choice.unbind(-1), (exists, group), strict=True):
            metric.update(chosen, pairs.kps_id, known, allowed.expand(group.shape))
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
            "pck": rounded(self.all.compute()),
            "pck_category_mean": rounded(means),
            "pck_dagger": rounded(self.dagger.compute()),
            "given_candidates": {name: rounded(metric.compute()) for name, metric in self.given.items()},
            "per_category": {name: rounded(found["image"]) for name, found in by_category.items()},
            "per_category_point": {name: rounded(found["point"]) for name, found in by_category.items()},
            "category_pairs": {name: int(self.categories[name].n_pairs) for name in by_category},
        }
        if self.symmetric_groups:
            subset = self.geometry_aware
            counts = {"n_points": int(subset.n_points), "n_pairs": int(subset.n_pairs)}
            figures["geometry_aware"] = counts | rounded(subset.compute())
        if self.further:
            figures["metrics"] = {name: rounded(metric.compute()) for name, metric in self.further.items()}
        if any(level for _, level in self.variations):
            figures["per_variation"] = {
                flag: {
                    str(level): {"n_pairs": int(metric.n_pairs)} | rounded(metric.compute())
                    for (name, level), metric in sorted(self.variations.items())
                    if name == flag
                }
                for flag in VARIATIONS
            }
        return figures


def confidence_figures(found: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Returns how well the confidence tells points that are right within 0.10 of the tolerance base from wrong ones.

    And how far it can be taken at its word: see :func:`distill.metrics.calibration.calibration`.
    """
    distance = [np.linalg.norm(p - t, axis=-1) for p, t in zip(found["predictions"], found["truth"], strict=True)]
    right = np.concatenate(
        [d <= with_slack(0.10 * base) for d, base in zip(distance, found["thresholds"], strict=True)]
    )
    sure = np.concatenate(found["confidence"])
    measured = calibration(np.clip(sure, 0, 1), right)
    return {
        "auroc@0.10": rounded(measured["auroc"]),
        "pck@0.10_of_kept": rounded(kept_pck(sure, right)),
        "ece@0.10": round(measured["ece"], 3),
        "brier@0.10": round(measured["brier"], 3),
        "reliability@0.10": [{key: round(value, 3) for key, value in row.items()} for row in measured["bins"]],
    }


def rounded(figures: Any) -> Any:
    """Returns numbers, or dictionaries of numbers, to three digits; None, which is null in JSON, for NaN and infinity."""
    if isinstance(figures, dict):
        return {name: rounded(value) for name, value in figures.items()}
    if isinstance(figures, int):
        return figures
    return round(float(figures), 3) if math.isfinite(figures) else None
