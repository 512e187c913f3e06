import math
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from distill.core.checks import check_query
from distill.core.errors import ConfigError, LabelError
from distill.core.geometry import gaussian_heatmap, gaussian_weight
from distill.core.types import Matches
from distill.data.datasets.shapes import ShapesPairs
from distill.data.grid_points import GridPoints
from distill.data.pairs import collate_pairs, to_device
from distill.labels import filtered
from distill.labels.cached import Cached
from distill.labels.filtered import filter_benchmark
from distill.labels.filters import (
    Agreement,
    Filtered,
    FlipAgreement,
    MinConfidence,
    PeakMass,
    RelaxedCycle,
)
from distill.labels.generate import label
from distill.losses import CoordinateHuber, Example, HeatmapKL
from distill.matchers.memoized import MemoizedMatcher
from distill.matchers.oracle import Oracle
from student import StudentMatcher


def shifted(dx: float):
    """A matcher that answers with the query, moved to the right."""

    def matcher(src_img, trg_img, src_kps):
        points = src_kps + src_kps.new_tensor([dx, 0.0])
        return Matches(points, torch.ones_like(points[..., 0]), points.new_zeros(*points.shape[:2], 4, 4))

    return matcher


def label_of(pairs, dx=0.0) -> Matches:
    return shifted(dx)(pairs.src_img, pairs.trg_img, pairs.src_kps)


class Network(torch.nn.Module):
    """A matcher with a weight, which has to be where the images are."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, src_img, trg_img, src_kps):
        points = src_kps + self.weight
        return Matches(points, torch.ones_like(points[..., 0]), points.new_zeros(*points.shape[:2], 4, 4))


@pytest.mark.parametrize("criterion", [Agreement, FlipAgreement, RelaxedCycle])
def test_the_other_matcher_goes_where_the_pairs_are(make_pairs, criterion):
    pairs = to_device(make_pairs(3, size=32), "meta")  # stands for a GPU: nothing on it mixes with the processor's
    network = Network()
    weight = criterion(network)(pairs, label_of(pairs))
    assert weight.device.type == "meta" and network.weight.device.type == "meta"


def test_the_cycle_weighs_by_the_distance_on_coming_back(make_pairs):
    pairs = make_pairs(3, size=32)
    pairs = pairs._replace(src_kps=pairs.src_kps * 0.8)  # so that labels lie inside
    weight = RelaxedCycle(shifted(-1.0), tolerance=0.1)(pairs, label_of(pairs, 4.0))
    torch.testing.assert_close(weight, torch.full((1, 3), math.exp(-((3 / 32) ** 2) / (2 * 0.1**2))))


def test_the_cycle_begins_at_the_border_for_a_label_outside_the_target(make_pairs):
    """Students refuse points outside an image; what padding holds is no point."""
    pairs = collate_pairs([make_pairs(2, size=32), make_pairs(1, size=32)])
    asked = []

    def strict(src_img, trg_img, src_kps):
        check_query(src_img, trg_img, src_kps)
        asked.append(src_kps)
        return shifted(0)(src_img, trg_img, src_kps)

    outside = torch.tensor([[[-0.5, 10.0], [40.0, 33.0]], [[5.0, 6.0], [math.nan, math.nan]]])
    label = label_of(pairs)._replace(trg_kps=outside)
    weight = RelaxedCycle(strict, tolerance=0.1)(pairs, label)
    border = torch.tensor([[[0.0, 10.0], [32.0, 32.0]], [[5.0, 6.0], [0.0, 0.0]]])
    assert torch.equal(asked[0], border)
    torch.testing.assert_close(weight, gaussian_weight(border, pairs.src_kps, (32, 32), 0.1))


def test_agreement_weighs_by_the_distance_between_two_answers(make_pairs):
    pairs = make_pairs(3, size=32)
    weight = Agreement(shifted(2.0), tolerance=0.1)(pairs, label_of(pairs, -1.0))
    torch.testing.assert_close(weight, torch.full((1, 3), math.exp(-((3 / 32) ** 2) / (2 * 0.1**2))))


def test_in_the_mirror_what_moves_right_moves_left(make_pairs):
    pairs = make_pairs(3, size=32)
    alike = FlipAgreement(shifted(-2.0))(pairs, label_of(pairs, 2.0))
    torch.testing.assert_close(alike, torch.ones(1, 3))
    unlike = FlipAgreement(shifted(2.0), tolerance=0.1)(pairs, label_of(pairs, 2.0))
    torch.testing.assert_close(unlike, torch.full((1, 3), math.exp(-((4 / 32) ** 2) / (2 * 0.1**2))))


def test_the_mirror_shows_the_matcher_mirrored_pictures(make_pairs):
    seen = []

    def matcher(src_img, trg_img, src_kps):
        seen.extend([src_img, trg_img])
        return shifted(0)(src_img, trg_img, src_kps)

    pairs = make_pairs(2)
    FlipAgreement(matcher)(pairs, label_of(pairs))
    assert torch.equal(seen[0], pairs.src_img.flip(-1)) and torch.equal(seen[1], pairs.trg_img.flip(-1))


def test_two_peaks_halve_the_mass_near_the_peak(make_pairs):
    pairs = make_pairs(2, size=64)
    first, second = torch.tensor([[[16.0, 16.0]] * 2]), torch.tensor([[[48.0, 48.0]] * 2])
    one, other = (gaussian_heatmap(p, (32, 32), (64, 64), 3.0) for p in (first, second))
    ones = torch.ones(1, 2)
    criterion = PeakMass(radius=0.2)
    torch.testing.assert_close(criterion(pairs, Matches(first, ones, one)), ones, atol=1e-3, rtol=0)
    torch.testing.assert_close(criterion(pairs, Matches(first, ones, one + other)), ones / 2, atol=1e-3, rtol=0)


def test_criteria_multiply_the_confidence(make_pairs):
    pairs = make_pairs(3)
    halves = {"a": lambda p, label: torch.full((1, 3), 0.5), "b": lambda p, label: torch.tensor([[1.0, 0.5, 0.0]])}
    confidence = Filtered(Oracle(), halves).match_pairs(pairs).confidence
    assert confidence.tolist() == [[0.5, 0.25, 0.0]]
    sure = MinConfidence(0.4)(pairs, Oracle().match_pairs(pairs)._replace(confidence=torch.tensor([[0.3, 0.4, 1.0]])))
    assert sure.tolist() == [[0.0, 1.0, 1.0]]


def test_a_filter_knows_all_labels_and_refuses_when_none_is_left(few):
    confidence = filter_benchmark(Filtered(Oracle(), {}), few, batch_size=3, device="cpu", progress=False).all
    assert confidence.tolist() == [1.0] * 10
    nothing = Filtered(Oracle(), {"none": lambda pairs, label: torch.zeros_like(label.confidence)})
    with pytest.raises(LabelError, match="took out all 10"):
        filter_benchmark(nothing, few, batch_size=3, device="cpu", progress=False)


class Judge:
    """A criterion whose weights depend on the whole batch; notes which pairs it has judged."""

    def __init__(self) -> None:
        self.judged: list[list[str]] = []

    def __call__(self, pairs, label):
        self.judged.append([f"{src} {trg}" for src, trg in zip(pairs.src_hash, pairs.trg_hash, strict=True)])
        return (pairs.src_kps[..., 0] / pairs.src_kps[..., 0].max()).clamp(0, 1)


class Group:
    """A process group whose processes are threads of this one."""

    def __init__(self, size: int) -> None:
        self.size, self.place, self.barrier, self.sent = size, threading.local(), threading.Barrier(size), {}

    is_available = is_initialized = staticmethod(lambda: True)

    def get_world_size(self) -> int:
        return self.size

    def get_rank(self) -> int:
        return self.place.rank

    def all_gather_object(self, into: list, mine: object) -> None:
        self.sent[self.place.rank] = mine
        self.barrier.wait(60)
        into[:] = [self.sent[rank] for rank in range(self.size)]

    def each(self, work) -> list:
        """Returns what ``work`` returns in each of the processes."""

        def of(rank: int):
            self.place.rank = rank
            return work()

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(of, range(self.size)))


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_judge_their_share_only_and_find_what_one_finds(monkeypatch, processes):
    pairs = ShapesPairs("val", 11, 0, 32)

    def judged():
        judge = Judge()
        return judge.judged, filter_benchmark(Filtered(Oracle(), {"": judge}), pairs, 2, "cpu", progress=False)

    batches, alone = judged()
    group = Group(processes)
    monkeypatch.setattr(filtered, "distributed", group)
    shares, found = zip(*group.each(judged), strict=True)
    assert sorted(batch for share in shares for batch in share) == sorted(batches), "each batch once, by one of them"
    assert {len(share) for share in shares} == {6 // processes}
    for one in found:
        assert torch.equal(one.all, alone.all) and list(one.by_pair) == list(alone.by_pair)
    batch = collate_pairs([pairs[number] for number in (7, 0, 10)])
    confidences = [one(batch, Oracle().match_pairs(batch)).confidence for one in (alone, *found)]
    assert all(torch.equal(confidence, confidences[0]) for confidence in confidences)
    assert 0 < confidences[0][batch.kps_mask].min() < confidences[0].max() <= 1


@pytest.mark.parametrize("build", [lambda: MinConfidence(2), lambda: RelaxedCycle(shifted(0), 0)])
def test_amounts_that_cannot_work_are_named(build):
    with pytest.raises(ConfigError, match="of a filter"):
        build()


def test_a_pair_is_asked_about_once_and_its_answer_stays_the_same(few):
    asked = []

    class Counting(Oracle):
        def match_pairs(self, pairs):
            asked.extend(pairs.src_hash)
            return super().match_pairs(pairs)

    batch = collate_pairs([few[n] for n in range(4)])
    remembered, expected = MemoizedMatcher(Counting()), Oracle().match_pairs(batch)
    for _ in range(2):
        found = remembered.match_pairs(batch)
        torch.testing.assert_close(found.trg_kps[batch.kps_mask], expected.trg_kps[batch.kps_mask])
        torch.testing.assert_close(found.heatmap[batch.kps_mask], expected.heatmap[batch.kps_mask], atol=1e-3, rtol=0)
        assert not found.confidence[~batch.kps_mask].any()
    assert len(asked) == len(set(asked)) == len(remembered) == 4


def test_points_on_a_grid_are_the_same_every_time_and_know_no_counterpart(few):
    grid = GridPoints(few, side=4)
    pair = grid[0]
    assert torch.equal(pair.src_kps, grid[0].src_kps) and pair.trg_kps.isnan().all() and pair.kps_mask.all()
    cells = (pair.src_kps[0] / 8).floor()
    assert len({(int(x), int(y)) for x, y in cells}) == 16 and cells.min() == 0 and cells.max() == 3
    assert not torch.equal(GridPoints(few, side=4, seed=1)[0].src_kps, pair.src_kps)
    assert len(grid) == 4 and (grid.name, grid.threshold) == (few.name, few.threshold)
    with pytest.raises(ConfigError, match="points.side"):
        GridPoints(few, side=0)


def test_points_on_a_grid_within_the_object_are_those_inside_its_box(few):
    everywhere, inside = GridPoints(few, side=20)[0].src_kps[0], GridPoints(few, side=20, within="box")[0]
    x0, y0, x1, y1 = few[0].src_bbox[0].tolist()
    expected = [p for p in everywhere.tolist() if x0 <= p[0] <= x1 and y0 <= p[1] <= y1]
    assert 0 < len(expected) < 400 and inside.kps_mask.all()
    torch.testing.assert_close(inside.src_kps[0], torch.tensor(expected))
    with pytest.raises(ConfigError, match=r"points.within to be image, box or mask but got 'msk'; did you mean 'mask'"):
        GridPoints(few, within="msk")


def test_a_student_learns_from_hundreds_of_labels_a_pair_with_small_heatmaps(few, tmp_path):
    grid = GridPoints(few, side=20, within="box")

    class Small:
        def fingerprint(self):
            return {"method": "small"}

        def match_pairs(self, pairs):
            heatmap = torch.rand(*pairs.kps_mask.shape, 4, 4, generator=torch.Generator().manual_seed(0))
            return Matches(pairs.src_kps, torch.ones(pairs.kps_mask.shape), heatmap)

    label(Cached(tmp_path, Small()), grid, progress=False)
    batch = collate_pairs([grid[0], grid[1]])
    found, present = Cached(tmp_path, Small()).store.lookup(batch)
    assert present[batch.kps_mask].all() and found.heatmap.shape[-2:] == (4, 4) and batch.kps_mask.sum() > 100
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    points = sum(int(grid[i].kps_mask.sum()) for i in range(len(grid)))
    assert size / points < 80, "bytes a label"
    student = StudentMatcher("resnet10t", width=16)
    prediction, src_map, trg_map = student.forward_with_descriptors(batch.src_img, batch.trg_img, batch.src_kps)
    for loss in (HeatmapKL(), CoordinateHuber()):
        value = loss(Example(batch, found, prediction, student, src_map, trg_map))
        gradients = torch.autograd.grad(value, list(student.parameters()), retain_graph=True, allow_unused=True)
        assert torch.isfinite(value) and any(g is not None and g.abs().sum() > 0 for g in gradients)
