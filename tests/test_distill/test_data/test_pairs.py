import numpy as np
import pytest
import torch

from distill.core.errors import DataError
from distill.core.geometry import relative_points
from distill.data.pair_sampling import sample_pairs
from distill.data.pairs import Query, collate_pairs, select_pairs, to_original
from distill.labels.store import LabelStore
from distill.matchers.oracle import Oracle


def test_batches_are_padded_to_the_most_points(make_pairs):
    batch = collate_pairs([make_pairs(2), make_pairs(4, seed=1)])
    assert batch.kps_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.kps_id.tolist() == [[0, 1, -1, -1], [0, 1, 2, 3]]
    assert batch.src_hash == ["source-0", "source-1"]


def test_images_of_different_sizes_do_not_make_a_batch(make_pairs):
    with pytest.raises(DataError, match="one size in a batch"):
        collate_pairs([make_pairs(2), make_pairs(2, size=16)])


def test_selecting_rows_takes_everything_of_them(make_pairs):
    batch = collate_pairs([make_pairs(2, seed=s) for s in range(3)])
    chosen = select_pairs(batch, [2, 0])
    assert chosen.trg_hash == ["target-2", "target-0"]
    torch.testing.assert_close(chosen.src_kps[0], batch.src_kps[2])


def test_points_go_back_to_original_pixels(make_pairs):
    pair = make_pairs(1)._replace(trg_size=torch.tensor([[64, 16]]))
    assert to_original(torch.tensor([[[16.0, 16.0]]]), pair)[0, 0].tolist() == [8.0, 32.0]


@pytest.mark.parametrize("precision", [np.float32, np.float64])
def test_points_relative_to_a_box_are_those_of_numpy_to_the_bit(precision):
    """Labels are keyed by them."""
    random = np.random.default_rng(0)
    corners = random.integers(0, 100, (1000, 2)) + random.random((1000, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + random.uniform(1, 900, (1000, 2))], 1).astype(np.float32)
    points = random.uniform(0, 1000, (1000, 2)).astype(precision)
    wide = boxes.astype(precision)
    expected = (points - wide[:, :2]) / (wide[:, 2:] - wide[:, :2])
    found = relative_points(torch.from_numpy(points), torch.from_numpy(boxes))
    assert expected.dtype == precision and np.array_equal(found.numpy(), expected)
    each = [relative_points(torch.from_numpy(points[n : n + 1]), torch.from_numpy(boxes[n])) for n in range(1000)]
    assert torch.equal(torch.cat(each), found)


def test_a_query_and_a_stored_label_have_one_key(make_pairs):
    content = torch.tensor([[3.0, 1.0, 29.0, 32.0]])
    pair = make_pairs(50)._replace(src_content=content)
    points = pair.src_kps[0].double().numpy()
    expected = (points - [3, 1]) / [26, 31]
    assert np.array_equal(Query.of(pair).points, expected)
    store = LabelStore("nowhere", {})
    store.add(pair, Oracle().match_pairs(pair), pair.kps_mask)
    assert np.array_equal([r.src_point for r in store._unwritten.values()], expected.astype(np.float32))
    assert store.known(Query.of(pair)).all() and len(store) == 50


@pytest.mark.parametrize(("threshold", "expected"), [("bbox", 28.0), ("img", 32.0)])
def test_the_tolerance_base_is_the_longer_side(make_pairs, threshold, expected):
    assert float(make_pairs(3, threshold=threshold).pck_threshold) == expected


def test_the_keypoint_box_spans_the_visible_points(make_pairs):
    pair = make_pairs(3, threshold="kps_bbox")
    points = pair.trg_kps[0]
    assert float(pair.pck_threshold) == pytest.approx(float((points.amax(0) - points.amin(0)).max()))


def test_pairs_are_of_one_category_and_none_comes_twice():
    categories = ["a", "b", "a", "b", "b", "c"]
    pairs = sample_pairs(categories, 8, seed=0)
    assert len(set(pairs)) == 8
    assert all(s != t and categories[s] == categories[t] for s, t in pairs)
    assert pairs == sample_pairs(categories, 8, seed=0) != sample_pairs(categories, 8, seed=1)


def test_a_source_gets_its_targets_together():
    pairs = sample_pairs(["a"] * 6, 12, seed=0, per_source=4)
    assert [len({s for s, _ in pairs[k : k + 4]}) for k in (0, 4, 8)] == [1, 1, 1] and len({s for s, _ in pairs}) == 3
