import json

import numpy as np
import pytest
import torch
from torchmetrics import Metric

from distill.core.errors import ConfigError, DataError
from distill.core.types import Matches
from distill.evaluation.compare import compare
from distill.evaluation.evaluate import evaluate
from distill.evaluation.panels import pair_panel
from distill.evaluation.report import markdown
from distill.evaluation.scores import confidence_figures
from distill.matchers.box_relative import BoxRelative
from distill.matchers.oracle import Oracle
from distill.metrics.pck import PCK


class Off:
    """Misses every point by as much."""

    def __init__(self, by: float) -> None:
        self.by = by

    def match_pairs(self, pairs):
        return Oracle().match_pairs(pairs)._replace(trg_kps=pairs.trg_kps + self.by)


def test_an_exact_answer_is_right_by_the_confidence_figures_whatever_the_tolerance():
    found = {name: [np.zeros((1, 2))] for name in ("predictions", "truth")} | {
        "confidence": [np.ones(1)],
        "thresholds": [0.0],
    }
    figures = confidence_figures(found)
    assert figures["pck@0.10_of_kept"]["1.00"] == 100 and figures["brier@0.10"] == figures["ece@0.10"] == 0


def test_the_oracle_is_always_right(few):
    result = evaluate(Oracle(), few, "oracle", batch_size=3, progress=False)
    assert set(result.report["pck"]["image"].values()) == {100.0}
    assert (result.report["n_pairs"], result.report["n_points"]) == (4, 10)


def test_errors_are_measured_in_original_pixels(few):
    few.items = [pair._replace(trg_size=torch.tensor([[64, 64]])) for pair in few.items]
    result = evaluate(Off(1.0), few, "off", progress=False)
    np.testing.assert_allclose(result.predictions[0] - result.truth[0], 2.0, atol=1e-5)


def test_a_confidence_that_knows_which_points_are_right_scores_one(few):
    class Knowing:
        def match_pairs(self, pairs):
            right = torch.arange(pairs.src_kps.shape[1]) % 2 == 0
            points = pairs.trg_kps + torch.where(right, 0.0, 100.0)[:, None]
            return (
                Oracle()
                .match_pairs(pairs)
                ._replace(trg_kps=points, confidence=0.2 + 0.5 * right.expand(points.shape[:2]))
            )

    report = evaluate(Knowing(), few, "knowing", batch_size=1, progress=False).report
    assert report["confidence"]["auroc@0.10"] == 1.0
    right = report["pck"]["point"]["0.10"] / 100  # of which it says 0.7, and 0.2 of the others
    assert report["confidence"]["ece@0.10"] == pytest.approx(0.3 * right + 0.2 * (1 - right), abs=1e-3)
    assert [row["accuracy"] for row in report["confidence"]["reliability@0.10"]] == [0.0, 1.0]
    assert report["confidence"]["pck@0.10_of_kept"]["0.50"] == 100.0
    assert report["confidence"]["pck@0.10_of_kept"]["1.00"] == report["pck"]["point"]["0.10"]


def test_further_metrics_see_what_is_scored_and_are_reported_by_name(few):
    class MeanError(Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
            self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

        def update(self, predicted, truth, kps_mask, pck_threshold):
            self.total += (predicted - truth).norm(dim=-1)[kps_mask].sum()
            self.count += kps_mask.sum()

        def compute(self):
            return {"px": self.total / self.count, "points": self.count}

    metric = MeanError()
    report = evaluate(Off(3.0), few, "off", batch_size=3, progress=False, metrics={"error": metric}).report
    assert report["metrics"] == {"error": {"px": pytest.approx(3 * 2**0.5, abs=1e-3), "points": 10}}
    assert metric.count == 0  # the caller's object is as it was
    compared = compare({"off": Off(3.0), "oracle": Oracle()}, few, "oracle", progress=False, metrics={"error": metric})
    errors = [found["metrics"]["error"]["px"] for found in compared.report()["matchers"]]
    assert errors == [pytest.approx(3 * 2**0.5, abs=1e-3), 0.0]
    assert "metrics" not in evaluate(Oracle(), few, "oracle", progress=False).report


def test_pairs_without_points_are_left_out_and_counted(few):
    empty = few.items[0]._replace(kps_mask=torch.zeros(1, 3, dtype=torch.bool))
    few.items = [empty, *few.items]
    report = evaluate(Oracle(), few, "oracle", progress=False)
    assert report.pairs == [1, 2, 3, 4] and report.report["n_pairs_without_points"] == 1


def test_an_answer_that_is_not_a_number_is_an_error(few):
    with pytest.raises(DataError, match="finite points from off"):
        evaluate(Off(float("nan")), few, "off", progress=False)


def test_a_benchmark_without_points_is_an_error(few):
    few.items = [few.items[0]._replace(kps_mask=torch.zeros(1, 3, dtype=torch.bool))]
    with pytest.raises(DataError, match="common points"):
        evaluate(Oracle(), few, "oracle", progress=False)


def test_the_box_baseline_keeps_the_relative_position(make_pairs):
    pair = make_pairs(1)._replace(
        src_kps=torch.tensor([[[5.0, 6.0]]]),
        src_bbox=torch.tensor([[0.0, 4.0, 20.0, 8.0]]),
        trg_bbox=torch.tensor([[10.0, 10.0, 30.0, 20.0]]),
    )
    assert BoxRelative().match_pairs(pair).trg_kps[0, 0].tolist() == [15.0, 15.0]


def test_a_comparison_holds_all_against_the_reference(few):
    comparison = compare({"teacher": Off(0.5), "student": Oracle()}, few, progress=False)
    assert comparison.agreement["student"]["median_px"] == pytest.approx(np.hypot(0.5, 0.5), abs=1e-3)
    assert list(comparison.differences) == ["student"] and list(comparison.differences["student"]) == [
        *("0.01", "0.05", "0.10", "0.15")
    ]
    assert set(comparison.differences["student"]["0.10"]) == {"mean", "low", "high", "low_images", "high_images"}
    assert "| student | 100.0" in markdown(comparison)
    assert pair_panel(comparison, few, 1).width == 4 * 256


def test_an_unknown_reference_is_an_error(few):
    with pytest.raises(ConfigError, match="did you mean 'teacher'"):
        compare({"teacher": Oracle()}, few, reference="techer", progress=False)


def test_matches_are_a_plain_tuple():
    assert Matches._fields == ("trg_kps", "confidence", "heatmap")


def test_figures_of_nothing_are_null_in_json_and_not_nan(few):
    nowhere = few.items[0]._replace(
        trg_kps=torch.full((1, 3, 2), float("nan")), category=["cow"], variation=torch.tensor([[2, 0, 0, 0]])
    )
    few.items = [nowhere, *few.items]
    few.symmetric_groups = {"": [(98, 99)]}

    class Known(Oracle):
        def match_pairs(self, pairs):
            return super().match_pairs(pairs._replace(trg_kps=pairs.trg_kps.nan_to_num()))

    report = evaluate(Known(), few, "known", progress=False).report
    text = json.dumps(report, allow_nan=False)
    assert json.loads(text)["per_category"]["cow"] == dict.fromkeys(("0.01", "0.05", "0.10", "0.15"))
    assert (
        report["geometry_aware"]["image"]["0.10"] is None and report["per_variation"]["viewpoint"]["2"]["n_pairs"] == 0
    )
    assert report["pck_dagger"]["right"] == 100.0 and report["n_points"] == 10


def test_a_metric_of_the_users_own_that_says_nothing_is_null(few):
    class Mine(PCK):
        def compute(self):
            return {"a": float("nan"), "b": torch.tensor(float("inf")), "c": 1.0}

    report = evaluate(Oracle(), few, "oracle", progress=False, metrics={"mine": Mine()}).report
    assert report["metrics"]["mine"] == {"a": None, "b": None, "c": 1.0}


def test_a_report_by_the_papers_convention_does_not_name_the_base_of_the_usual_one(few):
    """It is the source's box in SPair-71k, the source's points in PF-WILLOW, and a side of 512 px in PF-PASCAL."""
    few.convention = "paper"
    text = markdown(compare({"a": Oracle(), "b": Off(1.0)}, few, "a", progress=False))
    assert "the tolerance base (that of the paper's convention, in images of 512 x 512 px)" in text
    few.convention = "canonical"
    assert "the longer side of the target's box" in markdown(
        compare({"a": Oracle(), "b": Off(1.0)}, few, "a", progress=False)
    )


@pytest.mark.parametrize(
    ("sure", "message"),
    [
        (float("nan"), "Expected finite confidences from unsure but got NaN"),
        (7.0, r"Expected confidences in \[0, 1\] of unsure but got 7 to 7; scale"),
        (-0.2, r"Expected confidences in \[0, 1\] of unsure but got -0.2 to -0.2; scale"),
    ],
)
def test_a_confidence_that_is_none_is_refused(few, sure, message):
    """Answers with confidences of 7 were kept, and refused where they were read again."""

    class Unsure(Oracle):
        def match_pairs(self, pairs):
            answer = super().match_pairs(pairs)
            return answer._replace(confidence=torch.full_like(answer.confidence, sure))

    with pytest.raises(DataError, match=message):
        evaluate(Unsure(), few, "unsure", progress=False)
