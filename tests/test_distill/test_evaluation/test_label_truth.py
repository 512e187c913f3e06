import copy
import pickle

import pytest
import torch

from distill.core.errors import DataError
from distill.core.types import Matches
from distill.data.datasets.shapes import ShapesPairs
from distill.evaluation import panels
from distill.evaluation.compare import compare
from distill.evaluation.evaluate import evaluate
from distill.evaluation.label_truth import LabelTruth
from distill.matchers.box_relative import BoxRelative
from distill.matchers.oracle import Oracle


def test_pck_against_labels_is_agreement_with_the_teacher(few):
    few.items = [pairs._replace(trg_kps=torch.full_like(pairs.trg_kps, torch.nan)) for pairs in few.items]
    few.convention = "canonical"
    pairs = LabelTruth(few, BoxRelative())
    assert len(pairs) == len(few) and pairs.convention == "canonical"
    assert evaluate(BoxRelative(), pairs, "itself", progress=False).report["pck"]["point"]["0.01"] == 100

    def nine_px_on(src, trg, kps):
        return Matches(kps + 9, torch.ones(kps.shape[:2]), torch.zeros(*kps.shape[:2], 4, 4))

    moved = LabelTruth(few, nine_px_on)
    report = evaluate(Oracle(), moved, "oracle", progress=False).report
    assert report["pck"]["point"]["0.01"] == pytest.approx(100), "the oracle reads the labels"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pairs: pickle.loads(pickle.dumps(pairs))])
def test_it_can_be_copied_and_sent_to_a_loading_process(copied):
    pairs = LabelTruth(ShapesPairs("val", 2, size=32), BoxRelative())
    again = copied(pairs)
    assert len(again) == 2 and again.fingerprint() == pairs.fingerprint()
    assert torch.equal(again[0].trg_kps, pairs[0].trg_kps)
    with pytest.raises(AttributeError, match="nothing"):
        _ = again.nothing


def test_pictures_call_a_label_a_label(few, monkeypatch):
    captions = []
    monkeypatch.setattr(panels, "match_panel", lambda *given: captions.append(list(given[3])))
    for pairs in (few, LabelTruth(few, BoxRelative())):
        panels.pair_panel(compare({"oracle": Oracle()}, pairs, "oracle", progress=False), pairs, 0)
    assert captions == [["oracle", "ground truth"], ["oracle", "teacher's label"]]


def test_what_is_not_annotated_is_refused_before_a_matcher_is_asked(few):
    few.has_truth = False

    def never(*given):
        raise AssertionError

    with pytest.raises(DataError, match="Expected annotated points in few"):
        evaluate(never, few, "never", progress=False)
    assert evaluate(BoxRelative(), LabelTruth(few, BoxRelative()), "itself", progress=False).report["n_pairs"] == 4
