import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distill.core.errors import ConfigError, DataError, LabelError
from distill.core.types import Matches, PairBatch
from distill.data.pairs import collate_pairs
from distill.labels import LabelStore
from distill.labels.cached import Cached
from distill.labels.folder import LabelFolder
from distill.labels.generate import label
from distill.labels.index import Index, write_index
from distill.labels.records import Columns, Image, Record
from distill.matchers.oracle import Oracle


class Counting(Oracle):
    """An oracle that remembers how many points it was asked for."""

    def __init__(self, side: int = 4) -> None:
        super().__init__(heatmap_side=side)
        self.asked = 0

    def match_pairs(self, pairs: PairBatch) -> Matches:
        self.asked += int(pairs.kps_mask.sum())
        return super().match_pairs(pairs)


def test_what_was_written_is_read_back_by_another_process(tmp_path, few):
    batch, teacher = collate_pairs(few.items), Counting()
    store = LabelStore(tmp_path, teacher.fingerprint())
    store.add(batch, teacher.match_pairs(batch), batch.kps_mask)
    store.flush()
    labels, found = LabelStore(tmp_path, teacher.fingerprint()).lookup(batch)
    assert torch.equal(found, batch.kps_mask)
    torch.testing.assert_close(labels.trg_kps[found], batch.trg_kps[found])
    torch.testing.assert_close(labels.heatmap[found], teacher.match_pairs(batch).heatmap[found], atol=1e-3, rtol=1e-3)


def test_only_missing_points_are_asked_for_and_nothing_is_asked_twice(tmp_path, few):
    teacher = Counting()
    cached = Cached(tmp_path, teacher)
    cached.match_pairs(collate_pairs(few.items[:2]))
    assert teacher.asked == 4
    answer = cached.match_pairs(collate_pairs(few.items))
    assert teacher.asked == 10
    batch = collate_pairs(few.items)
    torch.testing.assert_close(answer.trg_kps[batch.kps_mask], batch.trg_kps[batch.kps_mask])
    cached.flush()
    Cached(tmp_path, teacher).match_pairs(batch)
    assert teacher.asked == 10


def test_a_point_is_the_same_within_rounding_and_another_one_beyond(tmp_path, make_pairs):
    pair = make_pairs(1)._replace(src_kps=torch.tensor([[[10.005, 10.0]]]))
    store = LabelStore(tmp_path, {})
    store.add(pair, Oracle().match_pairs(pair), pair.kps_mask)
    for shift, known in ((1e-5, True), (-1e-5, True), (0.2, False)):
        assert bool(store.lookup(pair._replace(src_kps=pair.src_kps + shift))[1].all()) == known


def test_labels_of_another_teacher_are_refused_and_the_field_is_named(tmp_path, few):
    Cached(tmp_path, Counting(4)).match_pairs(few[0])
    first = Cached(tmp_path, Counting(4))
    first.match_pairs(few[0])
    first.flush()
    with pytest.raises(LabelError, match=r"heatmap_side \(4 in the store, 8 asked for\)"):
        Cached(tmp_path, Counting(8))


def test_offered_labels_are_used_when_they_are_the_teachers_own_and_left_aside_otherwise(tmp_path, few):
    maker = Cached(tmp_path / "shipped", Counting(4))
    maker.match_pairs(few[0])
    maker.flush()
    same, other = Counting(4), Counting(8)
    Cached(tmp_path / "own", same, fallbacks=[tmp_path / "shipped"]).match_pairs(few[0])
    Cached(tmp_path / "own", other, fallbacks=[tmp_path / "shipped"]).match_pairs(few[0])
    assert (same.asked, other.asked) == (0, 3)


def written(folder: Path, *pairs: PairBatch) -> LabelStore:
    store = LabelStore(folder, Oracle(4).fingerprint())
    for pair in pairs:
        store.add(pair, Oracle(4).match_pairs(pair), pair.kps_mask)
    store.flush()
    return store


def test_a_label_that_several_folders_have_counts_once(tmp_path, few):
    """The pairs have 3, 1, 4 and 2 points."""
    written(tmp_path / "own", few[0], few[1])
    written(tmp_path / "first", few[1], few[2])
    written(tmp_path / "second", few[2], few[0], few[3])
    store = LabelStore(tmp_path / "own", Oracle(4).fingerprint(), [tmp_path / "first", tmp_path / "second"])
    assert len(store) == 10 and len(LabelStore(tmp_path / "own", None, [tmp_path / "own"])) == 4
    store.refresh()
    assert len(store) == 10
    assert len(LabelStore(tmp_path / "new", Oracle(4).fingerprint(), [tmp_path / "first", tmp_path / "none"][:1])) == 5


def test_a_wrong_index_of_a_fallback_is_named_with_the_fallback(tmp_path, few):
    written(tmp_path / "own", few[0])
    shipped = tmp_path / "shipped"
    written(shipped, few[1])
    written(shipped, few[2])
    index = LabelFolder(shipped).index
    wrong = Index(index.files, index.key, index.file, np.roll(index.row, 1) % 1)
    write_index(shipped, wrong, Oracle(4).fingerprint())
    store = LabelStore(tmp_path / "own", Oracle(4).fingerprint(), [shipped])
    with pytest.raises(LabelError, match="an index that fits its files in .*") as told:
        store.lookup(collate_pairs(few.items))
    assert f"in {shipped} but" in str(told.value) and f"repair labels.dir={shipped}" in str(told.value)
    assert str(tmp_path / "own") not in str(told.value)


def test_missing_labels_name_every_folder_that_was_looked_in(tmp_path, few):
    written(tmp_path / "shipped", few[0])
    cached = Cached(tmp_path / "own", Oracle(4), fallbacks=[tmp_path / "shipped"], read_only=True)
    with pytest.raises(LabelError, match=rf"every point in {tmp_path}/own and {tmp_path}/shipped \(3 labels\)"):
        cached.match_pairs(few[2])


def test_missing_labels_without_a_teacher_are_an_error_that_says_how_to_make_them(tmp_path, few):
    with pytest.raises(LabelError, match=r"3 of 3 are missing, such as of source -> target.*python -m distill label"):
        Cached(tmp_path).match_pairs(few[0])


@pytest.mark.parametrize("cut", [10, 200])
def test_a_truncated_file_is_named(tmp_path, few, cut):
    cached = Cached(tmp_path, Counting())
    cached.match_pairs(few[0])
    cached.flush()
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(LabelError, match=f"{file.name} but it cannot be read"):
        Cached(tmp_path, Counting())


def test_a_foreign_file_is_named(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(LabelError, match="foreign.safetensors but its format is None"):
        LabelStore(tmp_path)


def test_an_interrupted_write_leaves_nothing_that_is_read(tmp_path, few, monkeypatch):
    cached = Cached(tmp_path, Counting())
    cached.match_pairs(few[0])
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        with pytest.raises(LabelError, match="No space left"):
            cached.flush()
    assert not list(tmp_path.iterdir())
    cached.flush()
    assert len(LabelStore(tmp_path)) == 3


def test_a_teacher_without_a_fingerprint_cannot_be_stored(tmp_path):
    with pytest.raises(ConfigError, match="fingerprint"):
        Cached(tmp_path, object())  # type: ignore[arg-type]


@pytest.mark.parametrize("told", [None, {}, {"method": 1}, {1: "mine"}, "mine"])
def test_a_fingerprint_that_is_no_text_by_name_is_refused(tmp_path, told):
    class Mine(Oracle):
        def fingerprint(self):
            return told

    with pytest.raises(ConfigError, match=r"fingerprint\(\) of Mine to return text by name"):
        Cached(tmp_path, Mine())


def test_a_teacher_that_cannot_be_called_is_refused(tmp_path):
    class Mine:
        def fingerprint(self):
            return {"method": "mine 1"}

    with pytest.raises(
        ConfigError, match=r"__call__\(src_img, trg_img, src_kps\) or match_pairs\(pairs\) but Mine has neither"
    ):
        Cached(tmp_path, Mine())


def test_an_answer_that_is_no_label_is_not_stored(tmp_path, few):
    class Mine(Oracle):
        def match_pairs(self, pairs):
            answer = super().match_pairs(pairs)
            return answer._replace(heatmap=answer.heatmap - 2)

    cached = Cached(tmp_path, Mine())
    with pytest.raises(DataError, match="heatmap of Mine whose best cell is at least 0"):
        cached.match_pairs(few.items[0])
    cached.flush()
    assert len(cached.store) == 0


@pytest.fixture
def many(tmp_path) -> Path:
    """A folder of three files of 400 labels each, with heatmaps of 4 x 4, and an index."""
    folder = LabelFolder(tmp_path / "many", {"method": "any"})
    heatmap = np.ones((4, 4), np.float16)
    for number in range(3):
        images = [Image(f"{side}{number}", side, (100, 100)) for side in ("src", "trg")]
        points = [np.array([place / 1000, 0.5], np.float32) for place in range(400)]
        folder.write([Columns.of([Record(*images, point, point, 0.5, heatmap) for point in points])])
    folder.write_index()
    return folder.path


def test_a_folder_whose_files_are_mostly_gone_gives_the_labels_that_are_left(many):
    files = sorted(many.glob("*.safetensors"))
    assert len(LabelStore(many)) == 1200 and len(files) == 3
    for file in files[1:]:
        file.unlink()
    assert len(LabelStore(many)) == 400


def test_a_compacting_that_is_stopped_loses_nothing(many, monkeypatch):
    store, old, unlink = LabelStore(many), {file.name for file in many.glob("*.safetensors")}, Path.unlink

    def stopping(path, **options):
        if path.name in old and len([file for file in many.iterdir() if file.name in old]) == 1:
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Path, "unlink", stopping)
        store.compact()
    assert len(list(many.glob("*.safetensors"))) == 2 and len(LabelStore(many)) == 1200


def test_compacting_keeps_every_label_in_one_file(tmp_path, few):
    cached = Cached(tmp_path, Counting())
    for pair in few.items:
        cached.match_pairs(pair)
        cached.flush()
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    cached.store.compact()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    labels, found = LabelStore(tmp_path, Counting().fingerprint()).lookup(few[2])
    assert found.all()
    torch.testing.assert_close(labels.trg_kps, few[2].trg_kps)


def test_labelling_a_data_set_is_resumed_where_it_was(tmp_path, few):
    teacher = Counting()
    assert label(Cached(tmp_path, teacher), few, progress=False, every=slice(0, None, 2)) > 0
    label(Cached(tmp_path, teacher), few, progress=False)
    assert teacher.asked == 10 and len(LabelStore(tmp_path)) == 10


def test_two_writers_share_a_folder(tmp_path, few):
    first, second = Cached(tmp_path, Counting()), Cached(tmp_path, Counting())
    first.match_pairs(few[0])
    second.match_pairs(few[1])
    first.flush()
    second.flush()
    assert len(LabelStore(tmp_path)) == 4


def test_the_metadata_is_json(tmp_path, few):
    cached = Cached(tmp_path, Counting())
    cached.match_pairs(few[0])
    cached.flush()
    (file,) = tmp_path.glob("*.safetensors")
    raw = file.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    about = json.loads(header["__metadata__"]["distill"])
    assert about["fingerprint"]["method"] == "oracle 1" and about["format"] == "distill-labels-3"
    assert about["images"] == [["source-3", "source", [32, 32]], ["target-3", "target", [32, 32]]]


class Interrupted(Oracle):
    """An oracle that is interrupted when it is asked for a pair too many."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__(heatmap_side=4)
        self.left, self.error = after, error

    def match_pairs(self, pairs: PairBatch) -> Matches:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().match_pairs(pairs)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")], ids=["ctrl-c", "an error"])
def test_what_was_finished_before_an_interruption_is_stored(tmp_path, few, make_pairs, error):
    pairs = type(few)([make_pairs(2, seed=seed) for seed in range(40)])
    with pytest.raises(type(error)):
        label(Cached(tmp_path, Interrupted(12, error)), pairs, progress=False, batch_size=1)
    assert len(LabelStore(tmp_path)) == 24  # 12 of 40 pairs of two points
    assert label(Cached(tmp_path, Oracle(heatmap_side=4)), pairs, progress=False) == 56
