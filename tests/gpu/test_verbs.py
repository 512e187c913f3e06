"""Comparing, benchmarks, resuming, autocast and a full memory on a card."""

import json
from pathlib import Path

import pytest
import torch

from distill.__main__ import main
from distill.core.types import PairBatch
from distill.data.datasets.shapes import ShapesPairs
from distill.data.pairs import collate_pairs, to_device
from distill.export.student_file import load_student
from teacher import PromptOptimization

pytestmark = pytest.mark.gpu
DEVICE, ACCELERATOR = "cuda", "gpu"
FIT = [
    *("student.backbone=test_resnet", "student.strides=[8,16]", "student.width=16", "data.size=64", "teacher=oracle"),
    *("train.n_pairs=32", "val.n_pairs=8", "test.n_pairs=0", "onnx=false", "pictures=0", "loss=distillation"),
    *(f"device={DEVICE}", f"trainer.accelerator={ACCELERATOR}", "trainer.check_val_every_n_epoch=1"),
    "trainer.log_every_n_steps=1",
]


def fit(folder: Path, *settings: str) -> Path:
    assert main(["fit", f"run.dir={folder}", *FIT, *settings]) == 0
    return folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    return fit(tmp_path_factory.mktemp("gpu") / "fit", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def pairs() -> PairBatch:
    return collate_pairs([ShapesPairs("val", 12, 0, 64)[number] for number in range(12)])


def test_matchers_are_compared_on_a_card_as_on_a_cpu(fitted, tmp_path):
    scores = {}
    for device in ("cpu", DEVICE):
        settings = ["matchers=[student,box_relative]", "data.n_pairs=16", "data.size=64", f"device={device}"]
        run = tmp_path / device
        assert main(["compare", f"ckpt={fitted}/student.safetensors", f"run.dir={run}", "panels=1", *settings]) == 0
        rows = {row["matcher"]: row for row in json.loads((run / "metrics.json").read_text())["matchers"]}
        scores[device] = rows["student"]["pck"]["image"]["0.10"]
        assert rows["student"]["peak_memory_mib"] > 0
    assert scores[DEVICE] == pytest.approx(scores["cpu"], abs=2.0)


def test_a_student_is_measured_on_a_card(fitted, tmp_path):
    settings = [f"device={DEVICE}", "batches=[1,4]", "threads=[1]", "precisions=[fp32]", "compiled=false", "repeats=3"]
    common = [f"run.dir={tmp_path}/bench", "pck_pairs=4", f"ckpt={fitted}/student.safetensors"]
    assert main(["bench", "what=[student]", *settings, *common]) == 0
    rows = json.loads((tmp_path / "bench" / "bench.json").read_text())["rows"]
    measured = [row for row in rows if "torch" in row["variant"]]
    assert {row["batch"] for row in measured} == {1, 4}
    assert all(row["latency_ms"] > 0 and row["peak_memory_mib"] > 0 for row in measured)


def test_a_fit_on_a_card_goes_on_from_its_checkpoint(tmp_path):
    whole = fit(tmp_path / "whole", "trainer.max_epochs=3")
    fit(tmp_path / "parts", "trainer.max_epochs=1")
    parts = fit(tmp_path / "parts", "trainer.max_epochs=3", "run.resume=true")
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, parts)]
    assert states[0]["global_step"] == states[1]["global_step"]
    one, other = (torch.cat([value.float().flatten() for value in s["state_dict"].values()]) for s in states)
    # Kernels that add in no fixed order let weights drift apart, but by far less than an epoch moves them.
    assert (one - other).norm() / one.norm() < 1e-2


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_fit_in_mixed_precision_learns_finite_weights(tmp_path, precision):
    run = fit(tmp_path / "run", "trainer.max_epochs=2", f"trainer.precision={precision}")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["train/loss"] for row in rows if row.get("train/loss") is not None]
    assert losses and all(loss < 1e4 for loss in losses)
    student = load_student(run / "student.safetensors")
    assert all(torch.isfinite(value).all() for value in student.parameters())


def test_a_student_under_autocast_answers_in_single_precision_and_nearly_the_same(fitted, pairs):
    student = load_student(fitted / "student.safetensors").to(DEVICE).eval()
    here = to_device(pairs, DEVICE)
    with torch.no_grad():
        plain = student(here.src_img, here.trg_img, here.src_kps)
        with torch.autocast(DEVICE, torch.bfloat16):
            mixed = student(here.src_img, here.trg_img, here.src_kps)
    assert mixed.trg_kps.dtype == torch.float32
    assert (mixed.trg_kps - plain.trg_kps).norm(dim=-1)[here.kps_mask].median() < 2, "px of 64"


def test_a_teacher_that_runs_out_of_memory_goes_on_with_smaller_batches_and_the_same_answers(root, pairs, caplog):
    model = str(root / "checkpoints" / "sd-mini")
    settings = {"device": DEVICE, "steps": 4, "queries": "conditioned", "cuda_graph": "off"}
    expected = PromptOptimization(model, **settings, batch_size=8).match_pairs(pairs)
    starved = PromptOptimization(model, **settings, batch_size=4096)
    assert starved.pipeline is not None  # the weights fit
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 150 * 2**20) / total)
    try:
        found = starved.match_pairs(pairs)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Out of memory" in caplog.text
    distance = (found.trg_kps - expected.trg_kps).norm(dim=-1)[pairs.kps_mask]
    assert distance.median() < 0.1 and (distance < 1).float().mean() > 0.9, "px"
