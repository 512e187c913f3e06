"""Points are scored in the target as it is, whichever orientation the consensus is taken from."""

import math

import pytest
import torch
from torch.nn import functional as F

from distill.core.consensus import NeighbourhoodConsensus
from distill.core.geometry import flip_points, sample_at
from student import FeatureTeacher, NearestNeighbour, StudentMatcher


@pytest.fixture(params=[False, True])
def flipped(request, monkeypatch):
    answer = torch.tensor([request.param])
    monkeypatch.setattr(NeighbourhoodConsensus, "prefers_flipped", lambda self, src, *_: answer.expand(len(src)))
    return request.param


@pytest.fixture
def query(make_pairs):
    pair = make_pairs(3, size=64)
    return pair.src_img, pair.trg_img, pair.src_kps


def test_a_student_scores_points_in_the_target_as_it_is_whatever_the_consensus_prefers(query, flipped):
    torch.manual_seed(0)
    matcher = StudentMatcher("test_resnet", [8, 16], 8, consensus=1e-12).eval()
    with torch.no_grad():
        maps = [matcher.encode(image) for image in query[:2]]
        scores = matcher._scores(*maps, query[2], (64, 64))
        torch.testing.assert_close(matcher(*query).heatmap, scores, atol=1e-3, rtol=1e-3)


def test_a_feature_teacher_scores_points_in_the_target_as_it_is(query, flipped):
    model = NearestNeighbour("test_resnet", [8])
    found = FeatureTeacher(model, consensus=1e-12, cycle_tolerance=None, flip_tolerance=None)(*query).heatmap
    src, trg = (F.normalize(model.describe(image), dim=1) for image in query[:2])
    wanted = F.normalize(sample_at(src, query[2], (64, 64)), dim=-1) @ trg.flatten(2) / 0.05
    torch.testing.assert_close(found.flatten(2), wanted.softmax(-1), atol=1e-3, rtol=1e-3)


def test_a_feature_teacher_gives_the_flipped_answer_for_flipped_images(query, flipped):
    teacher = FeatureTeacher(
        NearestNeighbour("test_resnet", [8]), side=8, cycle_tolerance=None, flip_tolerance=math.inf
    )
    src, trg, points = query
    answer, again = teacher(*query), teacher(src.flip(-1), trg.flip(-1), flip_points(points, (64, 64)))
    torch.testing.assert_close(again.heatmap.flip(-1), answer.heatmap, atol=1e-3, rtol=1e-3)


def test_the_way_back_has_the_consensus_of_the_same_orientation(query, flipped):
    model = NearestNeighbour("test_resnet", [8])
    teacher = FeatureTeacher(model, side=8, flip_tolerance=None)
    (src, trg, _), seen, plain = query, [], NeighbourhoodConsensus.maps
    object.__setattr__(teacher.consensus, "maps", lambda *a: seen.append(a[:2]) or plain(teacher.consensus, *a))
    teacher(*query)
    there, back = seen
    maps = [teacher.describe(image).unbind(1) for image in (src, trg)]
    torch.testing.assert_close(there, (maps[0][0], maps[1][flipped]))
    torch.testing.assert_close(back, (maps[1][0], maps[0][flipped]))
