"""Damage of every kind is found, named, and mended."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from distill.__main__ import main
from distill.core.errors import ConfigError, DataError, LabelError
from distill.data.pairs import collate_pairs
from distill.labels.audit import audit
from distill.labels.cached import Cached
from distill.labels.folder import LabelFolder
from distill.labels.formats import export
from distill.labels.generate import label
from distill.labels.index import Index, write_index
from distill.labels.merge import merge
from distill.labels.records import Columns
from distill.labels.repair import repair
from distill.labels.shard import open_shard
from distill.labels.store import LabelStore
from distill.matchers.oracle import Oracle


def fill(folder: Path, pairs, side: int = 4, every: slice | None = None) -> Path:
    """Labels ``pairs``, one file for each."""
    label(Cached(folder, Oracle(heatmap_side=side), flush_seconds=0), pairs, progress=False, every=every)
    return folder


def contents(folder: Path) -> dict:
    """What a folder says of every point, read without the index."""
    rows = {}
    for path in sorted(folder.glob("*.safetensors")):
        part = LabelFolder(folder)._shard(path).columns
        for row in range(len(part)):
            key = (part.images[part.src[row]].hash, part.images[part.trg[row]].hash, *part.src_point[row].tolist())
            assert key not in rows, f"{key} is there twice"
            rows[key] = (part.trg_point[row].tobytes(), part.confidence[row], part.heatmap[row].tobytes())
    return rows


def flip_a_heatmap(folder: Path, pairs: Any) -> str:
    path = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    return rf"{path.name} has 1 damaged labels, such as of source -> target at \("


def flip_a_name(folder: Path, pairs: Any) -> str:
    path = sorted(folder.glob("*.safetensors"))[1]
    content = path.read_bytes()
    assert content.count(b'\\"source\\"') == 1
    path.write_bytes(content.replace(b'\\"source\\"', b'\\"sourbe\\"'))
    return f"{path.name} has other bytes than its name says"


def cut(folder: Path, pairs: Any) -> str:
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-40])
    return f"{path.name} cannot be read"


def foreign(folder: Path, pairs: Any) -> str:
    save_file({"x": torch.zeros(1)}, folder / "weights.safetensors")
    return "weights.safetensors cannot be read .*its format is None"


def garbage(folder: Path, pairs: Any) -> str:
    (folder / "b.safetensors").write_bytes(b"not at all")
    return "b.safetensors cannot be read"


def another_teacher(folder: Path, pairs: Any) -> str:
    other = folder.parent / "other"
    pair = pairs[0]
    store = LabelStore(other, Oracle(heatmap_side=5).fingerprint())
    store.add(pair, Oracle(heatmap_side=5).match_pairs(pair), pair.kps_mask)
    store.flush()
    (path,) = other.glob("*.safetensors")
    shutil.copy(path, folder)
    return rf"{path.name} is of another teacher: heatmap_side \(5 in the store, 4 in most others\)"


def an_index_of_another_teacher(folder: Path, pairs: Any) -> str:
    other = fill(folder.parent / "other", pairs, side=5)
    shutil.copy(other / "index.parquet", folder)
    return r"index.parquet is of another teacher: heatmap_side \(5 in the store, 4 in the files\)"


def an_index_of_other_files(folder: Path, pairs: Any) -> str:
    other = folder.parent / "other"
    label(Cached(other, Oracle(heatmap_side=4)), pairs, progress=False)
    name = next(other.glob("*.safetensors"))
    write_index(other, LabelFolder(other).index, Oracle(heatmap_side=4).fingerprint())
    shutil.copy(other / "index.parquet", folder)
    assert not (folder / name.name).exists()
    return "index.parquet is of other files: none of its 1 is in"


def an_index_with_a_flipped_bit(folder: Path, pairs: Any) -> str:
    path = folder / "index.parquet"
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)
    return "Expected an index of labels in .*index.parquet but it cannot be read"


def an_index_that_is_cut(folder: Path, pairs: Any) -> str:
    (folder / "index.parquet").write_bytes((folder / "index.parquet").read_bytes()[:100])
    return "index.parquet but it cannot be read"


def an_index_that_is_wrong(folder: Path, pairs: Any) -> str:
    index = LabelFolder(folder).index
    write_index(folder, Index(index.files, index.key, index.file, index.row[::-1].copy()), Oracle(4).fingerprint())
    return r"index.parquet has \d+ labels elsewhere than the files"


def labels_that_disagree(folder: Path, pairs: Any) -> str:
    pair = pairs[0]
    store = LabelStore(folder, Oracle(heatmap_side=4).fingerprint())
    answer = Oracle(heatmap_side=4).match_pairs(pair)
    store.add(pair, answer._replace(trg_kps=answer.trg_kps + 1), pair.kps_mask)
    store._main.write([Columns.of([*store._unwritten.values()])])
    return r"3 labels disagree with another of their point: source -> target at \("


DAMAGES = [
    flip_a_heatmap,
    flip_a_name,
    cut,
    foreign,
    garbage,
    another_teacher,
    an_index_of_another_teacher,
    an_index_of_other_files,
    an_index_with_a_flipped_bit,
    an_index_that_is_cut,
    an_index_that_is_wrong,
    labels_that_disagree,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_named_mended_and_made_again(damage: Callable[[Path, Any], str], tmp_path, few):
    folder = fill(tmp_path / "labels", few)
    before = contents(folder)
    assert audit(folder).problems == []
    message = damage(folder, few)
    with pytest.raises(LabelError, match=message):
        raise LabelError("; ".join(audit(folder).problems))
    repair(folder)
    assert audit(folder).problems == []
    assert contents(folder).items() <= before.items()
    fill(folder, few)
    assert contents(folder) == before and audit(folder).problems == []


def test_of_a_file_with_one_flipped_bit_all_other_labels_are_kept(tmp_path, few):
    folder = fill(tmp_path / "labels", few)
    path = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    repair(folder)
    assert len(LabelStore(folder)) == 9 and (folder / "damaged" / path.name).exists()


def test_a_flipped_bit_is_found_when_the_label_is_read(tmp_path, few):
    folder = fill(tmp_path / "labels", few)
    message = flip_a_heatmap(folder, few).split(" has ")[0]
    with pytest.raises(LabelError, match=f"{message} as they were written but 1 are damaged, such as of source"):
        LabelStore(folder).lookup(collate_pairs(few.items))


def test_a_file_that_was_cut_is_found_on_opening(tmp_path, few):
    folder = fill(tmp_path / "labels", few)
    cut(folder, few)
    with pytest.raises(LabelError, match=r"Expected \d+ bytes of labels in .* but it has \d+"):
        LabelStore(folder)


def test_a_wrong_index_gives_no_wrong_labels(tmp_path, few):
    folder = fill(tmp_path / "labels", few)
    an_index_that_is_wrong(folder, few)
    with pytest.raises(LabelError, match="an index that fits its files"):
        LabelStore(folder).lookup(collate_pairs(few.items))


def test_the_index_only_saves_time(tmp_path, few):
    folder, batch = fill(tmp_path / "labels", few), collate_pairs(few.items)
    assert (folder / "index.parquet").exists()
    with_index = LabelStore(folder).lookup(batch)[0]
    (folder / "index.parquet").unlink()
    for one, other in zip(with_index, LabelStore(folder).lookup(batch)[0], strict=True):
        assert torch.equal(one, other)


def test_opening_by_the_index_opens_no_file_of_labels(tmp_path, few, monkeypatch):
    folder = fill(tmp_path / "labels", few)
    opened = []
    monkeypatch.setattr("distill.labels.folder.open_shard", lambda path: opened.append(path) or open_shard(path))
    store = LabelStore(folder)
    assert len(store) == 10 and not opened
    assert store.lookup(few[1])[1].all() and len(opened) == 1


def test_merging_adds_what_is_missing_once(tmp_path, few):
    whole = fill(tmp_path / "whole", few)
    a = fill(tmp_path / "a", few, every=slice(0, 3))
    b = fill(tmp_path / "b", few, every=slice(1, None))
    LabelStore(b).compact()  # so that one file holds labels that a has and labels that it has not
    assert merge([a, b], tmp_path / "c") == 10
    assert contents(tmp_path / "c") == contents(whole)
    assert merge([a, b], tmp_path / "c") == 0 and audit(tmp_path / "c").notes == []


def test_stores_that_disagree_are_not_merged_and_the_point_is_named(tmp_path, few):
    a, b = fill(tmp_path / "a", few), tmp_path / "b"
    answer = Oracle(heatmap_side=4).match_pairs(few[0])
    store = LabelStore(b, Oracle(heatmap_side=4).fingerprint())
    store.add(few[0], answer._replace(confidence=answer.confidence * 0.5), few[0].kps_mask)
    store.flush()
    with pytest.raises(LabelError, match=r"3 of 3 that both have differ, such as of source -> target at \("):
        merge([a, b], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_labels_that_differ_by_rounding_are_the_same_and_the_first_is_kept(tmp_path, few):
    a, b = fill(tmp_path / "a", few), tmp_path / "b"
    answer = Oracle(heatmap_side=4).match_pairs(few[0])
    store = LabelStore(b, Oracle(heatmap_side=4).fingerprint())
    store.add(few[0], answer._replace(trg_kps=answer.trg_kps + 1e-3), few[0].kps_mask)
    store.flush()
    before = contents(a)
    assert merge([b], a) == 0 and contents(a) == before
    for file in b.glob("*.safetensors"):
        (a / file.name).write_bytes(file.read_bytes())
    found = audit(a)
    assert found.problems == [] and any(note.startswith("3 labels are there twice") for note in found.notes)


def test_stores_of_two_teachers_are_not_merged_and_the_field_is_named(tmp_path, few):
    a, b = fill(tmp_path / "a", few), fill(tmp_path / "b", few, side=5)
    with pytest.raises(LabelError, match=r"heatmap_side \(5 in .*/b, 4 in .*/a\)"):
        merge([a, b], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_merging_nothing_is_an_error(tmp_path, few):
    with pytest.raises(LabelError, match="Expected labels in .*/none but found none"):
        merge([tmp_path / "none"], fill(tmp_path / "a", few))


@pytest.mark.parametrize("suffix", ["parquet", "csv", "json", "jsonl"])
def test_exported_tables_say_what_the_store_says(tmp_path, few, suffix):
    folder, file = fill(tmp_path / "labels", few), tmp_path / f"labels.{suffix}"
    assert export(folder, file) == 10
    if suffix == "parquet":
        rows = pq.read_table(file).to_pylist()
        assert json.loads(pq.read_schema(file).metadata[b"made by"])["method"] == "oracle 1"
    elif suffix == "csv":
        rows = list(csv.DictReader(file.open()))
    else:
        text = file.read_text()
        rows = json.loads(text) if suffix == "json" else [json.loads(line) for line in text.splitlines()]
    found = {(row["src_hash"], round(float(row["src_x"]), 3)): row for row in rows}
    assert len(rows) == len(found) == 10
    for pair in few.items:
        for (x, y), (u, v) in zip(pair.src_kps[0].tolist(), pair.trg_kps[0].tolist(), strict=True):
            row = found[pair.src_hash[0], round(x, 3)]
            named = [float(row[name]) for name in ("src_y", "trg_x", "trg_y", "confidence", "src_height", "trg_width")]
            np.testing.assert_allclose(named, [y, u, v, 1, 32, 32], rtol=1e-5)
            assert (row["src_name"], row["trg_hash"]) == ("source", pair.trg_hash[0])


def test_an_export_overwrites_nothing_and_knows_its_suffixes(tmp_path, few):
    folder = fill(tmp_path / "labels", few)
    (tmp_path / "a.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"a.csv is there"):
        export(folder, tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="did you mean '.json'"):
        export(folder, tmp_path / "a.jsn")
    with pytest.raises(LabelError, match="found none"):
        export(tmp_path / "empty", tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_text() == "mine" and not (tmp_path / "b.csv").exists()
    with pytest.raises(DataError, match="Expected a place to write .*c.csv but got: .*; choose another folder"):
        export(folder, tmp_path / "a.csv" / "c.csv")


def test_the_words_after_label_look_after_a_store(tmp_path, few, capsys):
    folder = fill(tmp_path / "labels", few)
    assert main(["label", "status", f"labels.dir={folder}"]) == 0
    assert "labels: 10\nfiles: 4" in capsys.readouterr().out
    assert main(["label", "verify", f"labels.dir={folder}"]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    flip_a_heatmap(folder, few)
    assert main(["label", "verify", f"labels.dir={folder}"]) == 2
    assert "1 damaged labels" in capsys.readouterr().err
    assert main(["label", "repair", f"labels.dir={folder}"]) == 0
    assert "moved to damaged/" in capsys.readouterr().out
    assert main(["label", "merge", f"labels.dir={tmp_path}/m", f"label.sources=[{folder}]"]) == 0
    assert main(["label", "export", f"labels.dir={tmp_path}/m", f"label.file={tmp_path}/x.csv"]) == 0
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 10


def test_a_folder_of_something_else_is_not_repaired(tmp_path, capsys):
    """The trained student in the folder of a fit was moved to damaged/."""
    student = tmp_path / "student.safetensors"
    save_file({"x": torch.zeros(1)}, student)
    assert main(["label", "repair", f"labels.dir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert (
        f"Expected a folder of labels but {tmp_path} holds student.safetensors" in told
        and "<its run.dir>/labels" in told
    )
    assert list(tmp_path.iterdir()) == [student]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "verfy"], "did you mean 'verify'"),
        (["label", "label.action=verfy"], "did you mean 'verify'"),
        (["label", "verify", "labels.dir={tmp}/none"], "Expected a folder of labels but found none"),
        (["label", "status", "labels.dir={tmp}/none"], "Expected a folder of labels but found none"),
        (["label", "merge", "labels.dir={tmp}/none"], "add label.sources"),
        (["label", "export", "labels.dir={tmp}/none"], "add label.file"),
        (["label", "labels.dir={tmp}/none", "teacher=oracle", "trainer.devices=2"], "from the command line"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(arguments, message, tmp_path, capsys):
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_what_is_no_number_is_null_in_json(tmp_path, few, suffix):
    pair = few[0]
    answer = Oracle(heatmap_side=4).match_pairs(pair)
    store = LabelStore(tmp_path / "labels", Oracle(heatmap_side=4).fingerprint())
    store.add(pair, answer._replace(trg_kps=answer.trg_kps * torch.tensor([float("nan"), 1.0])), pair.kps_mask)
    store.flush()
    export(tmp_path / "labels", tmp_path / f"a.{suffix}")

    def refused(text: str):
        raise AssertionError(f"{text} is no JSON")

    text = (tmp_path / f"a.{suffix}").read_text()
    texts = [text] if suffix == "json" else text.splitlines()
    rows = [json.loads(each, parse_constant=refused) for each in texts]
    rows = rows[0] if suffix == "json" else rows
    assert [row["trg_x"] for row in rows] == [None] * 3 and all(row["trg_y"] > 0 for row in rows)
