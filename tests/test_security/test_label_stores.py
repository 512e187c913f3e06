"""A label store from a stranger: its metadata are data."""

import json
import re
import resource

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from distill.core.errors import LabelError
from distill.labels.audit import audit
from distill.labels.folder import LabelFolder
from distill.labels.index import FILE
from distill.labels.index import FORMAT as INDEX
from distill.labels.records import Columns, Image, Record
from distill.labels.repair import repair
from distill.labels.shard import FORMAT, write_shard

HOSTILE = {"_target_": "pathlib.Path.touch", "_args_": ["{marker}"]}
METADATA = {
    "no JSON": "{",
    "a list": "[]",
    "deep nesting": "[" * 20_000,
    "no fingerprint": json.dumps({"format": FORMAT}),
    "a fingerprint that is a number": json.dumps({"format": FORMAT, "fingerprint": 1, "images": 2}),
    "text that is no Unicode": json.dumps({"format": FORMAT, "fingerprint": {"method": "\ud800"}, "images": []}),
    "sides that no image has": json.dumps({"format": FORMAT, "fingerprint": {}, "images": [["a", "a", [10**400, 1]]]}),
    "sides of nothing": json.dumps({"format": FORMAT, "fingerprint": {}, "images": [["a", "a", [-10, 0]]]}),
    "targets": json.dumps({"format": FORMAT, "fingerprint": HOSTILE, "images": [HOSTILE]}),
}


@pytest.mark.parametrize("text", METADATA.values(), ids=METADATA)
def test_metadata_that_are_none_are_refused_in_one_line(tmp_path, text):
    marker = tmp_path / "marker"
    content = save({"checksum": np.zeros(1, np.uint32)}, {"distill": text.replace("{marker}", str(marker))})
    store = tmp_path / "store"
    store.mkdir()
    (store / ("a" * 32 + ".safetensors")).write_bytes(content)
    with pytest.raises(LabelError) as caught:
        len(LabelFolder(store).index)
    assert "\n" not in str(caught.value) and not marker.exists()


@pytest.fixture
def store(tmp_path):
    """Two labels in a file."""
    images, point = (Image("a", "a", (8, 8)), Image("b", "b", (8, 8))), np.full(2, 0.5, np.float32)
    records = [Record(*images, point * n, point, 0.5, np.ones((4, 4), np.float16)) for n in (0, 1)]
    write_shard(tmp_path / "store", Columns.of(records), {"method": "x"})
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"src_point": (1e30, -5)}, "1 impossible labels"),
        ({"trg_point": (np.inf, 0)}, "1 impossible labels"),
        ({"confidence": 1.5}, "1 impossible labels"),
        ({"heatmap": np.full((4, 4), -1, np.float16)}, "1 impossible labels"),
        ({"heatmap": np.ones((0, 0), np.float16)}, "heatmap.* differ"),
    ],
    ids=["a far point", "an infinite one", "too sure", "negative", "no cells"],
)
def test_values_that_no_teacher_answers_are_named_and_set_aside(store, changes, message):
    point = np.full(2, 0.5, np.float32)
    label = {
        "src_point": point,
        "trg_point": point,
        "confidence": 0.5,
        "heatmap": np.ones((4, 4), np.float16),
        **changes,
    }
    images = (Image("c", "c", (8, 8)), Image("d", "d", (8, 8)))
    write_shard(store, Columns.of([Record(*images, **label)]), {"method": "x"})
    assert [problem for problem in audit(store).problems if re.search(message, problem)]
    repair(store)
    assert not audit(store).problems and audit(store).labels == 2


def write_equal_rows(store, number, names=None, compression="snappy", **further) -> None:
    """Writes an index of ``number`` equal rows, of the files that are there unless ``names`` are given."""
    files = {path.name: path.stat().st_size for path in store.glob("*.safetensors")}
    about = {"format": INDEX, "fingerprint": {"method": "x"}, "files": dict.fromkeys(names, 10**12) if names else files}
    group = min(number, 1_000_000)
    columns = {"key": np.zeros(group, np.uint64), "file": np.zeros(group, np.int32), "row": np.zeros(group, np.int32)}
    columns |= {name: pa.array([value]).take(pa.array(np.zeros(group, np.int32))) for name, value in further.items()}
    table = pa.table(columns).replace_schema_metadata({"distill": json.dumps(about)})
    with pq.ParquetWriter(store / FILE, table.schema, compression=compression) as writer:
        for _ in range(max(1, number // group)):
            writer.write_table(table)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"number": 5_000_000}, "5000000 rows, and its files have room for"),
        ({"number": 2, "text": "x" * 100}, "its columns are not key, file, row"),
        ({"number": 2, "compression": "gzip"}, "it is not compressed by SNAPPY"),
    ],
    ids=["rows", "further columns", "another compression"],
)
def test_an_index_that_grows_beyond_its_files_is_refused_before_it_is_unpacked(store, attack, message):
    write_equal_rows(store, **attack)
    assert (store / FILE).stat().st_size < 1 << 17
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LabelError, match=f"an index of labels in .* cannot be read .*{message}.*label repair"):
        LabelFolder(store)
    assert any(message in problem for problem in audit(store).problems)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024, "KiB"


def test_no_row_of_an_index_is_read_whose_files_are_gone(store):
    """They may have been large, and so may what a stranger says of them."""
    write_equal_rows(store, 5_000_000, ["gone.safetensors"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(LabelFolder(store).index) == 2
    assert any("none of its 1 is in" in problem for problem in audit(store).problems)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 * 1024, "KiB"
