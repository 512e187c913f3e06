"""Files of labels, prompts and indices that somebody made to do harm: nothing runs, and one line says what is wrong."""

import contextlib
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from distill.core.errors import LabelError
from distill.data.pairs import collate_pairs
from distill.labels.audit import audit
from distill.labels.cached import Cached
from distill.labels.generate import label
from distill.labels.index import FILE, Index, read_index, write_index
from distill.labels.prompt_cache import FORMAT as PROMPTS
from distill.labels.prompt_cache import PromptCacheStore
from distill.labels.shard import FORMAT as LABELS
from distill.labels.store import LabelStore
from distill.matchers.oracle import Oracle


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "harmed")


@pytest.fixture
def folder(tmp_path, few) -> Path:
    label(Cached(tmp_path / "labels", Oracle(heatmap_side=4), flush_seconds=0), few, progress=False)
    return tmp_path / "labels"


def test_an_index_with_a_pickled_type_runs_nothing(tmp_path, folder, few):
    index, path = LabelStore(folder)._main.index, tmp_path / "harmed"
    write_index(folder, index, Oracle(heatmap_side=4).fingerprint())
    table = pq.read_table(folder / FILE)
    harmful = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Harm(path))}
    fields = [field.with_metadata(harmful) for field in table.schema]
    pq.write_table(table.cast(pa.schema(fields, table.schema.metadata)), folder / FILE)
    with contextlib.suppress(LabelError):
        assert LabelStore(folder).lookup(collate_pairs(few.items))[1].sum() == 10
    assert not path.exists()


def test_an_index_that_names_files_elsewhere_reads_none_of_them(tmp_path, folder, few):
    outside = tmp_path / "outside"
    label(Cached(outside, Oracle(heatmap_side=4)), few, progress=False)
    (secret,) = outside.glob("*.safetensors")
    for name in (f"../outside/{secret.name}", str(secret)):
        real = LabelStore(outside)._main.index
        write_index(folder, Index([secret], real.key, real.file, real.row), Oracle(heatmap_side=4).fingerprint())
        metadata = pq.read_metadata(folder / FILE).metadata
        about = json.loads(metadata[b"distill"]) | {"files": {name: secret.stat().st_size}}
        table = pq.read_table(folder / FILE).replace_schema_metadata({"distill": json.dumps(about)})
        pq.write_table(table, folder / FILE)
        with pytest.raises(LabelError, match="Expected file names"):
            read_index(folder)


def test_an_index_with_rows_that_no_file_has_is_named(folder, few):
    index = LabelStore(folder)._main.index
    write_index(folder, Index(index.files, index.key, index.file, index.row + 1000), Oracle(4).fingerprint())
    with pytest.raises(LabelError, match="an index that fits its files"):
        LabelStore(folder).lookup(collate_pairs(few.items))


DEEP = "[" * 100_000 + "]" * 100_000
METADATA = {
    "deep": DEEP,
    "a list": "[]",
    "no images": json.dumps({"format": LABELS, "fingerprint": {}}),
    "numbers for names": json.dumps({"format": LABELS, "fingerprint": {}, "images": [[1, 2, [3, 4]]] * 2}),
    "text for sizes": json.dumps({"format": LABELS, "fingerprint": {}, "images": [["a", "b", ["x", "y"]]] * 2}),
    "a fingerprint of lists": json.dumps(
        {"format": LABELS, "fingerprint": {"method": [1]}, "images": [["a", "b", [3, 4]]] * 2}
    ),
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA.keys())
def test_a_file_of_labels_with_other_metadata_is_named(folder, metadata):
    path = next(folder.glob("*.safetensors"))
    save_file(load_file(path), folder / "hostile.safetensors", {"distill": metadata})
    with pytest.raises(LabelError, match=r"hostile\.safetensors"):
        LabelStore(folder)
    assert any("hostile.safetensors" in problem for problem in audit(folder).problems)


@pytest.mark.parametrize("name", ["src", "src_point", "trg_point", "confidence", "heatmap", "checksum"])
def test_a_column_of_another_type_is_named(folder, name):
    path = next(folder.glob("*.safetensors"))
    columns, about = (
        load_file(path),
        json.dumps({"format": LABELS, "fingerprint": {}, "images": [["a", "b", [3, 4]]] * 2}),
    )
    save_file(columns | {name: columns[name].astype(np.float64)}, folder / "hostile.safetensors", {"distill": about})
    with pytest.raises(LabelError, match=rf"Expected columns of .*hostile\.safetensors but \['{name}'\] differ"):
        LabelStore(folder)


@pytest.mark.parametrize(
    "about",
    [
        DEEP,
        "[]",
        json.dumps({"format": PROMPTS}),
        json.dumps({"format": PROMPTS, "fingerprint": {"a": "b"}, "images": []}),
        json.dumps({"format": PROMPTS, "fingerprint": {"a": "b"}, "images": [3]}),
    ],
    ids=["deep", "a list", "no fingerprint", "no images", "a number for a name"],
)
def test_a_file_of_prompts_with_other_metadata_is_named(tmp_path, about):
    columns = {
        "image": np.zeros(1, np.int32),
        "place": np.zeros((1, 2)),
        "token": np.zeros(1, np.int64),
        "embedding": np.zeros((1, 2, 3), np.float32),
        "checksum": np.zeros(1, np.uint32),
    }
    (tmp_path / "prompt_cache").mkdir()
    save_file(columns, tmp_path / "prompt_cache" / "hostile.safetensors", {"distill": about})
    with pytest.raises(LabelError, match=r"hostile\.safetensors"):
        PromptCacheStore(tmp_path, {"a": "b"})
