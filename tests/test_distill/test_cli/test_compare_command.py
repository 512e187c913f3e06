"""Parts of compare: what is known before a matcher is asked, what an error leaves, and which pairs a teacher is timed on."""

import json

import pytest
from torch import nn

from distill.__main__ import main
from distill.cli.commands import compare
from distill.core.errors import DataError
from distill.data.datasets.shapes.pairs import ShapesPairs
from distill.evaluation.compare import check_stored
from distill.evaluation.evaluate import evaluate
from distill.labels.cached import Cached
from distill.matchers.box_relative import BoxRelative
from distill.matchers.oracle import Oracle
from distill.matchers.stored_predictions import StoredPredictions

SIX = ["data.n_pairs=6", "data.size=32", "device=cpu"]


def ask_none(monkeypatch):
    """Has the test fail where a matcher is asked."""
    for kind in (Oracle, BoxRelative):
        monkeypatch.setattr(kind, "match_pairs", lambda self, pairs: pytest.fail("it was asked"))


@pytest.mark.parametrize("first", ["oracle", "teacher"])
def test_predictions_that_lack_a_pair_are_named_before_any_matcher_or_teacher_is_asked(
    tmp_path, capsys, monkeypatch, first
):
    """The others had been asked for all pairs by then, and nothing of it was kept."""
    part = evaluate(BoxRelative(), ShapesPairs("test", 3, size=32), "part", progress=False)
    part.answers.write(tmp_path / "part.npz")
    ask_none(monkeypatch)
    extra = ["teacher=oracle", f"labels.dir={tmp_path}/labels", "labels.fallbacks=[]", f"run.dir={tmp_path}/run"]
    assert main(["compare", f"matchers=[{first},{tmp_path}/part.npz]", *SIX, *extra]) == 2
    assert f"Expected predictions for all points in {tmp_path}/part.npz but it has none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists() and not (tmp_path / "labels").exists()


def test_labels_that_lack_a_pair_are_named_before_any_matcher_is_asked(tmp_path, capsys, monkeypatch):
    pairs, labels = ShapesPairs("test", 3, size=32), Cached(tmp_path / "old", Oracle())
    for number in range(3):
        labels.match_pairs(pairs[number])
    labels.flush()
    ask_none(monkeypatch)
    rows = f"matchers=[box_relative,{{old: {tmp_path}/old}}]"
    assert main(["compare", rows, *SIX, f"run.dir={tmp_path}/run"]) == 2
    assert f"Expected a label for every point in {tmp_path}/old" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_stored_answers_are_read_ahead_only_where_others_are_asked_too(tmp_path):
    pairs = ShapesPairs("test", 3, size=32)
    evaluate(BoxRelative(), pairs, "box", progress=False).answers.write(tmp_path / "box.npz")
    stored, more = StoredPredictions(tmp_path / "box.npz"), ShapesPairs("test", 6, size=32)
    check_stored({"oracle": Oracle(), "box": stored}, pairs, progress=False)
    check_stored({"box": stored}, more, progress=False)  # to be read takes no time
    with pytest.raises(DataError, match="Expected predictions for all points"):
        check_stored({"oracle": Oracle(), "box": stored}, more, progress=False)


def test_a_reference_that_reads_as_a_number_is_a_name(tmp_path, capsys):
    named = ["compare", "matchers=[{1: box_relative},{2: oracle}]", "data.n_pairs=3", "data.size=32", "device=cpu"]
    assert main([*named, "reference=3", f"run.dir={tmp_path}/none"]) == 2
    assert "reference to be one of the matchers but got '3'; valid names: 1, 2" in capsys.readouterr().err
    assert main([*named, "reference=2", f"run.dir={tmp_path}/run"]) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["reference"] == "2"


def test_a_training_curve_that_cannot_be_read_is_named_before_any_matcher_is_asked(tmp_path, capsys, monkeypatch):
    """The report, which comes last, was left out."""
    ask_none(monkeypatch)
    settings = ["matchers=[oracle]", *SIX, f"run.dir={tmp_path}/run"]
    assert main(["compare", *settings, f"curve={tmp_path}/none.jsonl"]) == 2
    assert f"Expected the metrics.jsonl of a fit at {tmp_path}/none.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_answers_of_the_matchers_before_one_that_fails_are_kept(tmp_path, capsys, monkeypatch):
    def fail(self, pairs):
        raise DataError("Expected a matcher that works but it does not.")

    monkeypatch.setattr(Oracle, "match_pairs", fail)
    settings = ["data.n_pairs=3", "data.size=32", "device=cpu"]
    assert main(["compare", "matchers=[box_relative,oracle]", *settings, f"run.dir={tmp_path}/run"]) == 2
    assert "a matcher that works" in capsys.readouterr().err and not (tmp_path / "run/metrics.json").exists()
    kept = f"matchers=[{tmp_path}/run/predictions/box_relative.npz]"
    assert main(["compare", kept, *settings, f"run.dir={tmp_path}/again"]) == 0
    again = json.loads((tmp_path / "again/metrics.json").read_text())["matchers"][0]
    pairs = ShapesPairs("test", 3, size=32)
    assert again["pck"] == evaluate(BoxRelative(), pairs, "box", progress=False).report["pck"]


@pytest.mark.parametrize(("n_pairs", "wanted", "timed"), [(4, 2, 1), (12, 4, 3), (40, 2, 2), (40, 20, 10)])
def test_a_teacher_is_timed_on_pairs_of_which_no_two_share_a_source(n_pairs, wanted, timed):
    """Each image of the world is the source of four pairs, whose prompts would serve one another."""
    sources = []

    class Noting(Oracle):
        def match_pairs(self, pairs):
            sources.append(pairs.src_original[0].hash)
            return super().match_pairs(pairs)

    pairs = ShapesPairs("test", n_pairs, size=32)
    cost = compare.teacher_cost(Noting(), pairs, compare.of_several_sources(pairs, wanted))
    assert cost["parameters"] is None and cost["latency_ms"] >= 0
    assert len(sources) == len(set(sources)) == timed


def test_a_teacher_is_timed_where_the_other_matchers_are(monkeypatch):
    asked = []

    class Network(nn.Module):
        def to(self, device):
            asked.append(device)
            return self

    monkeypatch.setattr(
        compare, "timed_answer", lambda teacher, pairs, name, device: (None, asked.append(device) or 2.0)
    )
    cost = compare.teacher_cost(Network(), ShapesPairs("test", 4, size=32), [0, 1], "cuda")
    assert asked == ["cuda"] * 3 and cost["latency_ms"] == 2000


def test_a_comparison_says_how_many_pairs_its_teacher_was_timed_on(tmp_path):
    settings = ["teacher=nearest_neighbour", "matchers=[teacher,box_relative]", "data.n_pairs=8", "data.size=32"]
    folders = [f"run.dir={tmp_path}/run", f"labels.dir={tmp_path}/labels"]
    assert main(["compare", *settings, *folders, "teacher_pairs=50", "device=cpu"]) == 0
    report = json.loads((tmp_path / "run/metrics.json").read_text())
    assert any("timed on 2 of the pairs, no two of one source image" in note for note in report["notes"])
