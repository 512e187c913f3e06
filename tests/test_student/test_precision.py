"""Students under autocast and in half precision: networks compute in little precision, answers in single."""

import pytest
import torch
from torch.nn import functional as F

from distill.core.geometry import cell_centres
from student import FeatureTeacher, NearestNeighbour, StudentMatcher
from student.refinement import Refinement


@pytest.fixture
def maps():
    random = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(2, 24, 28, 28, generator=random), dim=1) for _ in range(2)]


@pytest.fixture
def points():
    return torch.rand(2, 6, 2, generator=torch.Generator().manual_seed(1)) * 448


def test_the_correlation_under_autocast_is_that_without_it(maps, points):
    student = StudentMatcher("test_resnet", [16], 8).eval()
    with torch.no_grad():
        plain = student.correlate(*maps, points, (448, 448), (448, 448))
        with torch.autocast("cpu", torch.bfloat16):
            found = student.correlate(*maps, points, (448, 448), (448, 448))
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_consensus_under_autocast_is_that_without_it(maps, points):
    student = StudentMatcher("test_resnet", [16], 8, consensus=3.0).eval()
    query = (*maps, points, (448, 448), (448, 448))
    with torch.no_grad():
        plain = student.match_encoded(*query)
        with torch.autocast("cpu", torch.bfloat16):
            found = student.match_encoded(*query)
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)


def test_the_feature_teacher_under_autocast_answers_as_without_it(maps, points):
    class Fixed(torch.nn.Module):
        def describe(self, images):
            return F.normalize(F.adaptive_avg_pool2d(images, 14) - 0.5, dim=1)

    teacher, images = FeatureTeacher(Fixed(), side=14), torch.rand(2, 2, 3, 448, 448)
    plain = teacher(images[0], images[1], points)
    with torch.autocast("cpu", torch.bfloat16):
        found = teacher(images[0], images[1], points)
    for one, two in zip(found, plain, strict=True):
        torch.testing.assert_close(one, two, atol=0, rtol=0)


@pytest.mark.parametrize("kind", [torch.float64, torch.int64, torch.int32])
def test_points_of_any_kind_of_number_get_the_answers_of_those_in_single_precision(kind):
    """Points of NumPy are of double precision, clicked ones whole numbers."""
    torch.manual_seed(0)
    images, asked = torch.rand(2, 1, 3, 64, 64), torch.tensor([[[10.0, 20.0], [33.0, 40.0]]])
    student = StudentMatcher("test_resnet", [8, 16], 16, consensus=3.0, refinement=8).eval()
    neighbour = NearestNeighbour("test_resnet", [8])
    for matcher in (student, neighbour, FeatureTeacher(neighbour), FeatureTeacher(student)):
        with torch.no_grad():
            plain, found = (matcher(*images, points) for points in (asked, asked.to(kind)))
        for one, two in zip(found, plain, strict=True):
            torch.testing.assert_close(one, two, check_dtype=False)


def test_refinement_under_autocast_moves_in_single_precision():
    """Without a displacement the answer is what came in: 427.3 px stay 427.3 px, which bfloat16 makes 428."""
    refinement, images = Refinement(8).eval(), torch.rand(1, 3, 448, 448)
    answer = torch.tensor([[[427.3, 63.2]]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(refinement(images, images, answer, answer), answer, atol=0, rtol=0)
        torch.nn.init.ones_(refinement.gain)
        moved = refinement(images, images, answer, answer)
    plain_queries = refinement(images, images, answer, answer)
    assert moved.dtype == torch.float32 and float((moved - plain_queries).norm().detach()) < 0.3


@pytest.mark.parametrize("settings", [{}, {"consensus": 3.0}, {"refinement": 8, "position": True, "upsample": 1}])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_student_of_half_precision_answers_near_itself_in_single(settings, dtype, make_pairs):
    """The networks round; the answers are in single precision, and equal queries have near answers."""
    torch.manual_seed(0)
    student = StudentMatcher("test_resnet", [8, 16], 8, **settings).eval()
    pair = make_pairs(5, size=64)
    query = (pair.src_img, pair.trg_img, pair.src_kps)
    with torch.no_grad():
        plain, found = student(*query), student.to(dtype)(*query)
    assert {field.dtype for field in found} == {torch.float32}
    assert float((found.heatmap - plain.heatmap).abs().mean()) < 0.5  # cosines divided by 0.05: of at most 20
    with torch.no_grad():
        again = student(pair.src_img.to(dtype), pair.trg_img.to(dtype), pair.src_kps)
    assert again.trg_kps.dtype == torch.float32


def test_the_nearest_neighbour_answers_with_the_exact_centre_of_a_cell_under_autocast(make_pairs):
    pair = make_pairs(5, size=448)
    centres = cell_centres((28, 28), (448, 448), pair.src_img).flatten(0, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = NearestNeighbour("test_resnet", [16])(pair.src_img, pair.trg_img, pair.src_kps)
    assert all((point == centres).all(-1).any() for point in found.trg_kps[0])
    assert {field.dtype for field in found} == {torch.float32}
