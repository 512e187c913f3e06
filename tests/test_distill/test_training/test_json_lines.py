"""The log of a run, a JSON object on each line."""

import json

import pytest

from distill.training.callbacks.json_lines import JsonLines

DAMAGED = ["null", "{bad", "[1]", '{"step": "two"}', "[" * 5000, "\udcff"]


@pytest.mark.parametrize("line", DAMAGED)
def test_a_resumed_run_drops_damaged_lines_and_what_it_logs_anew(tmp_path, line):
    """One such line ended each attempt to resume with a traceback."""
    whole = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"loss": 9.0}, {"step": 5, "loss": 1.0}]
    lines = [json.dumps(row) for row in whole[:1]] + [line] + [json.dumps(row) for row in whole[1:]]
    text = "\n".join(lines) + '\n{"step": 6, "lo'
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    log = JsonLines(tmp_path)
    log.log_metrics({"loss": 0.5}, step=4)
    kept = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert kept == [*whole[:3], {"step": 4, "loss": 0.5}]
