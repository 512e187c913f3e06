import pytest
import torch

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
    moved = LabelTruth(few, lambda src, trg, kps: BoxRelative().match_pairs(few[0])._replace(trg_kps=kps + 9))
    report = evaluate(Oracle(), moved, "oracle", progress=False).report
    assert report["pck"]["point"]["0.01"] == pytest.approx(100), "the oracle reads the labels"
