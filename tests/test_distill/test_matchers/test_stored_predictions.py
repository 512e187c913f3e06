"""Answers are kept in a file and scored again without the matcher."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.__main__ import main
from distill.core.errors import ConfigError, DataError
from distill.core.geometry import gaussian_heatmap
from distill.core.types import Matches
from distill.data.datasets.shapes.pairs import ShapesPairs
from distill.data.pairs import collate_pairs
from distill.evaluation.browser import browsed_pairs
from distill.evaluation.compare import compare
from distill.evaluation.evaluate import evaluate
from distill.matchers.box_relative import BoxRelative
from distill.matchers.kept_heatmaps import Heatmaps
from distill.matchers.oracle import Oracle
from distill.matchers.stored_predictions import StoredPredictions


class Rough:
    """Answers near the truth, with a confidence that differs between points."""

    def match_pairs(self, pairs):
        noise = torch.sin(pairs.src_kps * 12.9) * pairs.trg_img.shape[-1] / 12
        confidence = (0.5 + 0.5 * torch.cos(pairs.src_kps.sum(-1))).clamp(0, 1)
        heatmap = gaussian_heatmap(pairs.trg_kps + noise, (16, 16), pairs.trg_img.shape[-2:], 8.0)
        return Matches(pairs.trg_kps + noise, confidence, heatmap)


@pytest.fixture
def stored(tmp_path):
    result = evaluate(Rough(), ShapesPairs("val", 6), "rough", batch_size=4, progress=False)
    result.answers.write(tmp_path / "predictions.npz")
    return result, tmp_path / "predictions.npz"


def test_the_figures_are_the_same_without_the_matcher(stored):
    first, path = stored
    again = evaluate(StoredPredictions(path), ShapesPairs("val", 6), "again", batch_size=3, progress=False)
    assert again.report == first.report and again.report["matcher"] == "rough"
    given = again.report["given_candidates"]["any"]
    assert given["chance"] < given["right"] < 100 and given["n_points"] == again.report["n_points"]
    for name in ("predictions", "confidence", "truth"):
        for one, other in zip(getattr(first, name), getattr(again, name), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_browser_of_a_report_shows_kept_answers_as_it_showed_the_matcher(stored):
    pairs, matchers = ShapesPairs("val", 6), {"rough": Rough()}
    shown = browsed_pairs(compare(matchers, pairs, "rough", progress=False), pairs, 6)
    again = browsed_pairs(compare({"rough": StoredPredictions(stored[1])}, pairs, "rough", progress=False), pairs, 6)
    assert again == shown and len(shown["pairs"][0]["answers"][0]["heat"][0]) == 256
    stored[0].answers.write(stored[1], heatmaps=False)
    without = browsed_pairs(compare({"rough": StoredPredictions(stored[1])}, pairs, "rough", progress=False), pairs, 6)
    assert without["pairs"][0]["answers"][0]["heat"] == []


def test_kept_heatmaps_have_the_highest_score_of_what_falls_together_and_lie_where_the_matcher_saw_them(few):
    pair = few[0]._replace(trg_content=torch.tensor([[0.0, 8.0, 32.0, 24.0]]))  # padded above and below
    scores = torch.rand(1, 3, 32, 20, generator=torch.Generator().manual_seed(0))
    (kept,) = Heatmaps.of(scores, pair)
    assert kept.cells.shape == (3, 16, 16) and kept.frame.tolist() == [0.0, -0.5, 1.0, 2.0]
    for point in range(3):
        columns = [(math.floor(c * 20 / 16), math.ceil((c + 1) * 20 / 16)) for c in range(16)]
        cells = np.array([[scores[0, point, 2 * r : 2 * r + 2, a:b].max() for a, b in columns] for r in range(16)])
        np.testing.assert_array_equal(kept.cells[point], np.round(63 * (cells - cells.min()) / np.ptp(cells)))
    assert not Heatmaps.of(torch.full((1, 3, 4, 4), 0.5), pair)[0].cells.any()


def test_a_file_of_an_earlier_version_has_no_heatmaps(stored):
    kept = arrays_of(stored[1])
    np.savez(stored[1], **{name: kept[name] for name in kept if name not in ("cells", "heatmap", "frame")})
    again = evaluate(StoredPredictions(stored[1]), ShapesPairs("val", 6), "again", progress=False)
    assert again.report == stored[0].report and {maps.cells.shape[1:] for maps in again.heatmaps} == {(0, 0)}


def test_a_file_of_an_earlier_version_does_not_say_which_candidates_were_preferred(stored):
    first, path = stored
    np.savez(path, **{name: value for name, value in arrays_of(path).items() if name != "choice"})
    report = evaluate(StoredPredictions(path), ShapesPairs("val", 6), "again", progress=False).report
    assert report["given_candidates"]["any"] == {"right": None, "chance": None, "n_points": 0}
    assert {**report, "given_candidates": 0} == {**first.report, "given_candidates": 0}


def test_the_time_of_some_of_the_pairs_is_their_share(stored):
    first, path = stored
    some = evaluate(StoredPredictions(path), ShapesPairs("val", 2), "again", progress=False).report
    assert some["n_pairs"] == 2 and some["seconds"] == pytest.approx(first.answers.seconds / 3, abs=1e-3)


def test_answers_hold_at_another_size_and_for_some_of_the_pairs(stored):
    first, path = stored
    pairs = ShapesPairs("val", 6, size=64)
    few = collate_pairs([pairs[n] for n in (4, 1)])
    answer = StoredPredictions(path).match_pairs(few)
    for row, number in enumerate((4, 1)):
        points = answer.trg_kps[row, few.kps_mask[row]].numpy() * 2
        np.testing.assert_allclose(points, first.predictions[number], atol=1e-3)


def test_stored_answers_are_compared_like_matchers(stored):
    matchers = {"teacher": Oracle(), "student": StoredPredictions(stored[1])}
    comparison = compare(matchers, ShapesPairs("val", 6), progress=False)
    assert comparison.evaluations["student"].report["pck"] == stored[0].report["pck"]


def test_each_of_two_parts_at_one_place_of_the_source_keeps_its_own_answer(few, tmp_path):
    """The parts 0 and 2 lie at one place, 1 and 3 at another; answers, confidences and preferred parts are all different."""
    pair = few.items[2]  # four points
    source = pair.src_kps[:, [0, 1, 0, 1]]
    few.items = [pair._replace(src_kps=source)]
    few.symmetric_groups = {"thing": [[0, 3], [1, 2]]}

    class Fixed:
        def __call__(self, src_img, trg_img, src_kps):
            answers = torch.arange(8.0).reshape(1, 4, 2)
            heatmap = gaussian_heatmap(pair.trg_kps[:, [3, 2, 1, 0]], (32, 32), (32, 32), 2.0)
            return Matches(answers, torch.tensor([[0.1, 0.2, 0.3, 0.4]]), heatmap)

    first = evaluate(Fixed(), few, "fixed", progress=False)
    first.answers.write(tmp_path / "twice.npz")
    matcher = StoredPredictions(tmp_path / "twice.npz")
    answer = matcher.match_pairs(few[0])
    np.testing.assert_allclose(answer.trg_kps[0].numpy(), np.arange(8.0).reshape(4, 2), atol=1e-6)
    np.testing.assert_allclose(answer.confidence[0].numpy(), [0.1, 0.2, 0.3, 0.4])
    assert matcher.choice(few[0])[0, :, 0].tolist() == [3, 2, 1, 0]
    assert evaluate(matcher, few, "again", progress=False).report == first.report


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_what_is_kept_does_not_depend_on_the_pairs_that_are_asked_together(few, batch_size, tmp_path):
    """A pair whose truth is not known is asked too, alone and among others, and scored nowhere."""
    few.items[1] = few.items[1]._replace(trg_kps=few.items[1].trg_kps * torch.nan)
    result = evaluate(BoxRelative(), few, "box", batch_size, progress=False)
    assert [len(points) for points in result.answers.src_point] == [3, 1, 4, 2]
    assert (result.report["n_pairs"], result.report["n_points"], result.pairs) == (3, 9, [0, 2, 3])
    result.answers.write(tmp_path / "kept.npz")
    again = evaluate(StoredPredictions(tmp_path / "kept.npz"), few, "again", 5 - batch_size, progress=False)
    assert again.report == result.report


def test_answers_to_other_pairs_or_points_are_refused(stored, few):
    matcher = StoredPredictions(stored[1])
    with pytest.raises(DataError, match=r"it has none for points of source; it is of other pairs"):
        matcher.match_pairs(few[0])
    pair = ShapesPairs("val", 6)[0]
    with pytest.raises(DataError, match="it has none for points of medium/val"):
        matcher.match_pairs(pair._replace(src_kps=pair.src_kps + 0.5))


def test_bare_images_and_a_missing_name_are_refused_in_words(stored):
    with pytest.raises(ConfigError, match="evaluate matcher=predictions"):
        StoredPredictions(stored[1])(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8), torch.ones(1, 1, 2))
    with pytest.raises(ConfigError, match="add file="):
        StoredPredictions(None)


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "harmed")


def arrays_of(path: Path) -> dict:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    "change",
    [
        lambda a, tmp: a | {"src": np.array([Harm(tmp / "harmed")] * len(a["src"]), object)},
        lambda a, tmp: a | {"format": np.array([Harm(tmp / "harmed")], object)},
        lambda a, tmp: a | {"format": np.array("something else")},
        lambda a, tmp: a | {"count": a["count"] + 1},
        lambda a, tmp: a | {"count": -a["count"]},
        lambda a, tmp: a | {"src_point": a["src_point"][:, :1]},
        lambda a, tmp: a | {"confidence": a["confidence"].astype(np.int64)},
        lambda a, tmp: a | {"trg": a["trg"][:-1]},
        lambda a, tmp: a | {"choice": a["choice"][:-1]},
        lambda a, tmp: a | {"choice": a["choice"].astype(np.float64)},
        lambda a, tmp: a | {"cells": a["cells"] + 1},
        lambda a, tmp: a | {"cells": a["cells"] * 10**6},
        lambda a, tmp: a | {"heatmap": a["heatmap"] + np.uint8(64)},
        lambda a, tmp: a | {"frame": a["frame"] * np.nan},
        lambda a, tmp: a | {"confidence": a["confidence"] * np.inf},
        lambda a, tmp: {name: value for name, value in a.items() if name != "trg_point"},
    ],
)
def test_a_hostile_or_foreign_file_runs_nothing_and_is_named(stored, tmp_path, change):
    np.savez(tmp_path / "hostile.npz", **change(arrays_of(stored[1]), tmp_path))
    with pytest.raises(DataError, match=r"Expected predictions in .*hostile\.npz but it cannot be read"):
        StoredPredictions(tmp_path / "hostile.npz")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda a: {"seconds": np.array(-5.0)}, r"its array seconds holds numbers outside \[0, 1e\+09\]"),
        (lambda a: {"seconds": np.array(1e200)}, "its array seconds holds numbers outside"),
        (
            lambda a: {"trg_point": a["trg_point"] * 1e30},
            r"its array trg_point holds numbers outside \[-1e\+06, 1e\+06\]",
        ),
        (lambda a: {"src_point": a["src_point"] - 1e9}, "its array src_point holds numbers outside"),
        (lambda a: {"frame": a["frame"] + 1e300}, "its array frame holds numbers outside"),
        (
            lambda a: {"confidence": a["confidence"] + 7},
            r"its array confidence holds numbers outside \[-0.001, 1.001\]",
        ),
        (lambda a: {"confidence": a["confidence"] - 1}, "its array confidence holds numbers outside"),
        (lambda a: {name: value[:0] for name, value in a.items() if value.ndim}, "it has no pairs"),
    ],
)
def test_values_that_no_matcher_answers_are_named_before_a_matcher_is_asked(stored, tmp_path, change, reason):
    """They ended in tracebacks when all figures were there, or in figures such as -833.3 ms per pair."""
    arrays = arrays_of(stored[1])
    np.savez(tmp_path / "odd.npz", **arrays | change(arrays))
    with pytest.raises(DataError, match=rf"Expected predictions in .*odd\.npz but it cannot be read \({reason}"):
        StoredPredictions(tmp_path / "odd.npz")


def test_answers_outside_the_target_and_confidences_as_rounding_leaves_them_are_read(stored):
    arrays = arrays_of(stored[1])
    changed = {"trg_point": arrays["trg_point"] * 100 - 50, "confidence": arrays["confidence"] * 0 + np.float32(1.0005)}
    np.savez(stored[1], **arrays | changed)
    np.testing.assert_array_equal(
        np.concatenate(StoredPredictions(stored[1]).predictions.trg_point), changed["trg_point"]
    )


def test_a_missing_a_cut_and_another_file_are_named(stored, tmp_path):
    cut = tmp_path / "cut.npz"
    cut.write_bytes(stored[1].read_bytes()[:-100])
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("missing", "cut", "text", "empty"):
        with pytest.raises(DataError, match=rf"Expected predictions in .*{name}\.npz but it cannot be read"):
            StoredPredictions(tmp_path / f"{name}.npz")


def test_evaluate_writes_its_answers_and_scores_them_again(tmp_path):
    shared = ["evaluate", "data.split=val", "data.n_pairs=6", "data.size=64", "device=cpu"]
    assert main([*shared, "matcher=box_relative", f"run.dir={tmp_path}/a"]) == 0
    again = [*shared, "matcher=predictions", f"file={tmp_path}/a/predictions.npz", f"run.dir={tmp_path}/b"]
    assert main(again) == 0
    first, second = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in "ab")
    first.pop("environment"), second.pop("environment")
    assert first == second and first["matcher"] == "BoxRelative"
