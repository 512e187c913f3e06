"""Parts of compare: which pairs a teacher is timed on."""

import json

import pytest

from distill.__main__ import main
from distill.cli.commands import compare
from distill.data.datasets.shapes.pairs import ShapesPairs


@pytest.mark.parametrize(("n_pairs", "wanted", "timed"), [(4, 2, 1), (12, 4, 3), (40, 2, 2), (40, 20, 10)])
def test_a_teacher_is_timed_on_pairs_of_which_no_two_share_a_source(n_pairs, wanted, timed, monkeypatch):
    """Each image of the world is the source of four pairs, whose prompts would serve one another."""
    sources = []
    monkeypatch.setattr(compare, "match", lambda teacher, pairs: sources.append(pairs.src_original[0].hash))
    pairs = ShapesPairs("test", n_pairs, size=32)
    chosen = compare.of_several_sources(pairs, wanted)
    assert compare.teacher_cost(object(), pairs, chosen)["parameters"] is None
    assert len(sources) == len(set(sources)) == timed


def test_a_comparison_says_how_many_pairs_its_teacher_was_timed_on(tmp_path):
    settings = ["teacher=nearest_neighbour", "matchers=[teacher,box_relative]", "data.n_pairs=8", "data.size=32"]
    folders = [f"run.dir={tmp_path}/run", f"labels.dir={tmp_path}/labels"]
    assert main(["compare", *settings, *folders, "teacher_pairs=50", "device=cpu"]) == 0
    report = json.loads((tmp_path / "run/metrics.json").read_text())
    assert any("timed on 2 of the pairs, no two of one source image" in note for note in report["notes"])
