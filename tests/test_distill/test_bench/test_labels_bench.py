import json

import pytest

from distill.__main__ import main
from distill.bench.labels import label_rates
from distill.cli.config import compose


def test_the_benchmark_writes_opens_and_reads_a_store():
    rows = {row["variant"]: row for row in label_rates(16_000, 400)}
    of_all = {"find all pairs", "read all pairs, 16 at a time"}
    assert set(rows) == of_all | {"write", "open without index", "open", "read 16 pairs at a time", "read pair by pair"}
    assert all(rows[name]["seconds"] > 0 and rows[name]["peak_memory_mib"] > 0 for name in of_all)
    assert 0 < rows["open"]["index_mib"] < 1 and all(row["per_second"] > 0 for row in rows.values())
    assert rows["read pair by pair"]["pairs_per_second"] == pytest.approx(
        rows["read pair by pair"]["per_second"] / 10, rel=0.01
    )


def test_bench_labels_is_a_choice_of_the_command(tmp_path):
    assert main(["bench", "what=labels", "labels=8000", f"run.dir={tmp_path}/b"]) == 0
    rows = json.loads((tmp_path / "b" / "bench.json").read_text())["rows"]
    assert {row["what"] for row in rows} == {"labels"}
    assert compose("bench").labels == 1_000_000
