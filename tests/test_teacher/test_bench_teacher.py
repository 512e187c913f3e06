import json
import mmap

import pytest
import torch

from distill.__main__ import main
from distill.bench.teacher import FirstPairs, measure, variants
from distill.cli.config import compose
from distill.core.errors import ConfigError
from distill.matchers.oracle import Oracle
from distill.system.memory import PeakMemory

SMALL = [
    *("bench", "teacher", "device=cpu", "data.size=64", "data.n_pairs=4", "ablation=true"),
    *("paper.steps=2", "paper.embeddings=1", "paper.crops=4", "teacher.steps=1", "teacher.embeddings=1"),
    *("teacher.crops=1", "teacher.prompt_length=7", "teacher.queries=conditioned", "teacher.layers=[up@1/2]"),
    "teacher.consensus=0",
]


def test_bench_measures_from_plain_loops_to_the_configured_teacher(sd1_folder, tmp_path):
    assert (
        main(
            [
                *SMALL,
                f"teacher.model={sd1_folder}",
                f"run.dir={tmp_path}/b",
                "~increments.bf16",
                "~increments.frozen_queries",
            ]
        )
        == 0
    )
    rows = json.loads((tmp_path / "b" / "bench.json").read_text())["rows"]
    by_name = {row["variant"]: row for row in rows}
    assert list(by_name)[:2] == ["reference", "nothing_shared"] and list(by_name)[-1] == "as configured"
    assert len({row["points"] for row in rows}) == 1
    plain, same = by_name["reference"], by_name["nothing_shared"]
    assert plain["passes_per_point"] == same["passes_per_point"] == 2 + 4
    assert plain["pck@0.10"] == same["pck@0.10"] == by_name["batches"]["pck@0.10"]
    assert by_name["as configured"]["passes_per_point"] == 1 + 1
    assert by_name["four_points_a_prompt"]["passes_per_point"] < 2
    for row in rows:
        assert row["what"] == "teacher" and row["per_second"] > 0 and row["peak_memory_mib"] > 10
        assert row["latency_ms"] > 0 and row["threads"] >= 1 and row["batch"] == 1


def test_increments_add_up_on_top_of_the_papers_settings():
    cfg = compose("bench", ["ablation=true", "teacher.model=x"])
    found = {name: config for name, config, _ in variants(cfg)}
    assert found["truncated_unet"]["truncate_unet"] and not found["truncated_unet"]["share_prefix"]
    assert found["truncated_unet"]["steps"] == 129 and found["truncated_unet"]["crop_source"] == "fresh"
    last = found["four_points_a_prompt"]
    assert last["points_per_prompt"] == 4 and last["start"] == "query" and last["steps"] == cfg.teacher.steps


def test_the_papers_method_reads_layers_that_the_configured_model_has():
    cfg = compose("bench", [])
    found = {name: config for name, config, _ in variants(cfg)}
    assert found["reference"]["layers"] == list(cfg.teacher.layers) == found["as configured"]["layers"]


@pytest.mark.parametrize("teacher", ["oracle", "nearest_neighbour", "fused", "dift", "dit", "student", "hub"])
def test_a_teacher_that_optimises_no_prompts_is_measured_alone(teacher):
    cfg = compose("bench", [f"teacher={teacher}"])
    cfg.ablation = True
    assert [name for name, _, _ in variants(cfg)] == ["as configured"]


def test_pck_of_a_teacher_is_per_image_as_that_of_a_student(few, make_pairs):
    """One of four points is wrong, and in the other pair none of one: (75 + 100) / 2 per image, 4 of 5 per point."""
    few.items = [make_pairs(n, seed=n) for n in (4, 1)]

    class NearlyRight:
        def match_pairs(self, asked):
            answer = Oracle().match_pairs(asked)
            miss = torch.zeros_like(answer.trg_kps)
            miss[:, 1:2] = 100
            return answer._replace(trg_kps=answer.trg_kps + miss)

    row = measure(NearlyRight(), "nearly", few)
    assert (row["pck@0.10"], row["pck_point@0.10"]) == (87.5, 80.0)


def test_more_pairs_than_there_are_cannot_be_measured_on(few):
    with pytest.raises(ConfigError, match="between 1 and 4"):
        FirstPairs(few, 5)
    assert len(FirstPairs(few, 2)) == 2


def test_the_peak_covers_what_was_held_only_for_a_while():
    with PeakMemory() as before:
        pass
    with PeakMemory() as during, mmap.mmap(-1, 2**28) as held:  # 256 MiB that no allocator had before
        held.write(bytes(2**28))
    assert during.mib > before.mib + 200
