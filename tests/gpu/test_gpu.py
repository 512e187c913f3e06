"""The verbs on a card: they run, and answer as on a CPU."""

import json

import numpy as np
import pytest
import torch

from distill.__main__ import main
from distill.data.datasets.shapes import ShapesPairs
from distill.data.pairs import collate_pairs
from teacher import DiffusionFeatures, PromptOptimization
from teacher.pretrain import build_autoencoder, build_unet
from teacher.pretrain.latents import encode
from teacher.source_image import Descent

pytestmark = pytest.mark.gpu
FEW = ["train.n_pairs=4", "val.n_pairs=2", "test.n_pairs=2"]


@pytest.fixture(scope="module")
def model(root) -> str:
    return str(root / "checkpoints" / "sd-mini")


@pytest.mark.parametrize("difficulty", ["medium", "hard"])
def test_the_teacher_answers_on_a_card_as_on_a_cpu(model, difficulty):
    pair = ShapesPairs("val", 4, 0, 128, difficulty=difficulty)[0]
    layers = ["up@1/2:0"]
    here, there = (
        PromptOptimization(model, device=d, steps=10, layers=layers).match_pairs(pair) for d in ("cpu", "cuda")
    )
    distance = (here.trg_kps - there.trg_kps).norm(dim=-1)
    assert distance.median() < 0.5 and (distance < 2).float().mean() > 0.8, "px; a flat maximum may move further"


@pytest.mark.parametrize(
    "settings", [{}, {"queries": "conditioned"}, {"queries": "conditioned", "noise_draws": None}], ids=str
)
def test_steps_that_are_replayed_as_a_graph_answer_as_those_that_are_launched(model, settings, caplog):
    pairs = collate_pairs([ShapesPairs("val", 4, 0, 128)[number] for number in range(3)])
    replayed, launched = (
        PromptOptimization(model, device="cuda", steps=12, cuda_graph=graph, **settings).match_pairs(pairs)
        for graph in ("auto", "off")
    )
    assert "cannot be captured" not in caplog.text
    distance = (replayed.trg_kps - launched.trg_kps).norm(dim=-1)[pairs.kps_mask]
    assert distance.median() < 0.1 and (distance < 1).float().mean() > 0.9, "px"


def test_pairs_asked_together_are_answered_as_one_by_one(model):
    pairs = [ShapesPairs("val", 4, 0, 128)[number] for number in range(3)]
    together = PromptOptimization(model, device="cuda", steps=10).match_pairs(collate_pairs(pairs))
    for row, pair in enumerate(pairs):
        alone = PromptOptimization(model, device="cuda", steps=10).match_pairs(pair).trg_kps[0]
        distance = (together.trg_kps[row, : len(alone)] - alone).norm(dim=-1)
        assert distance.median() < 0.1 and (distance < 1).float().mean() > 0.9, "px"


def test_a_step_waits_for_nothing(model):
    pair, step, waits = ShapesPairs("val", 4, 0, 128)[0], Descent.step, []

    def watched(self):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            waits.append(1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Descent, "step", watched)
        PromptOptimization(model, device="cuda", steps=10, cuda_graph="off").match_pairs(pair)
    assert len(waits) == 10


def test_diffusion_features_are_the_same_on_a_card(model):
    pair = ShapesPairs("val", 4, 0, 128)[0]
    here, there = (DiffusionFeatures(model, device=d).match_pairs(pair) for d in ("cpu", "cuda"))
    torch.testing.assert_close(here.heatmap, there.heatmap, atol=5e-3, rtol=0)


def test_latents_and_noise_predictions_are_the_same_on_a_card():
    torch.manual_seed(0)
    autoencoder, unet = (
        build_autoencoder(8, 4, 2).eval(),
        build_unet(8, 4, [16, 32], [False, True], [False, True], 24).eval(),
    )
    images, prompts = torch.rand(2, 3, 32, 32), torch.randn(2, 7, 24)
    with torch.no_grad():
        latents = encode(autoencoder, images)
        predicted = unet(latents, 10, prompts).sample
        on_card = encode(autoencoder.cuda(), images.cuda())
        torch.testing.assert_close(on_card.cpu(), latents, atol=1e-3, rtol=1e-3)
        found = unet.cuda()(on_card, 10, prompts.cuda()).sample
    torch.testing.assert_close(found.cpu(), predicted, atol=5e-3, rtol=5e-3)


def test_pretraining_runs_through_both_stages_and_goes_on(tmp_path):
    small = ["size=32", "autoencoder.steps=3", "autoencoder.model.channels=8", "autoencoder.training.crop=32"]
    small += ["diffusion.unet.latent_side=8", "diffusion.unet.channels=[16,32,32]", "diffusion.batch_size=8"]
    small += [
        "diffusion.latents.store.capacity=64",
        "diffusion.latents.batches.at_start=32",
        "diffusion.checkpoint_every=2",
    ]
    small += ["diffusion.validate_every=2", "teacher_score=null", "device=cuda", "num_workers=2"]
    for steps in (4, 6):
        assert main(["pretrain", f"run.dir={tmp_path}/run", f"diffusion.steps={steps}", *small]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "diffusion.jsonl").read_text().splitlines()]
    assert all(np.isfinite(row["val/loss"]) for row in rows if "val/loss" in row)
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()


def test_pictures_may_be_drawn_on_the_card_too(tmp_path):
    small = ["size=32", "autoencoder.steps=2", "autoencoder.model.channels=8", "autoencoder.training.crop=32"]
    small += ["diffusion.unet.latent_side=8", "diffusion.unet.channels=[16,32,32]", "diffusion.batch_size=4"]
    small += ["diffusion.steps=2", "diffusion.latents.store.capacity=64", "diffusion.latents.batches.at_start=32"]
    more = ["diffusion.validate_every=2", "teacher_score=null", "device=cuda", "data.device=cuda", "num_workers=1"]
    assert main(["pretrain", f"run.dir={tmp_path}/run", *small, *more]) == 0


def test_labels_students_and_scores_are_made_on_a_card(tmp_path):
    assert main(["label", f"labels.dir={tmp_path}/labels", "device=cuda", "teacher.steps=5", *FEW]) == 0
    fit = ["fit", f"run.dir={tmp_path}/fit", f"labels.dir={tmp_path}/labels", "device=cuda", "teacher.steps=5", *FEW]
    assert main([*fit, "trainer.max_epochs=1", "trainer.accelerator=gpu"]) == 0
    weights, scores = tmp_path / "fit" / "student.safetensors", {}
    for device in ("cpu", "cuda"):
        run = tmp_path / device
        assert main(["evaluate", f"ckpt={weights}", f"run.dir={run}", f"device={device}", "data.n_pairs=8"]) == 0
        scores[device] = json.loads((run / "metrics.json").read_text())["pck"]["image"]["0.10"]
    assert scores["cpu"] == pytest.approx(scores["cuda"], abs=2.0)
