"""Training a miniature Stable Diffusion, and what comes out of it."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from distill.__main__ import main
from teacher import PromptOptimization

SMALL = [
    "size=32",
    "device=cpu",
    "autoencoder.steps=4",
    "autoencoder.batch_size=2",
    "autoencoder.model.channels=8",
    "autoencoder.model.halvings=2",
    "autoencoder.training.crop=32",
    "diffusion.fresh=2",
    "diffusion.text_encoder.width=32",
    "diffusion.unet.latent_side=8",
    "diffusion.unet.channels=[16,32]",
    "diffusion.unet.encoder_attention=[true,true]",
    "diffusion.unet.decoder_attention=[true,true]",
    "watch.every=1",
    "watch.pairs.n_pairs=2",
    "watch.teacher.steps=1",
    "diffusion.training.batch_size=2",
    "diffusion.training.pool_size=16",
    "diffusion.checkpoint_every=2",
    "diffusion.validate_every=2",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    assert main(["pretrain", f"run.dir={folder}", "diffusion.steps=4", *SMALL]) == 0
    return folder


def test_the_folder_holds_a_pipeline_samples_and_the_curve(trained):
    assert (trained / "curve.png").is_file() and len(list((trained / "samples").glob("*.png"))) == 2
    rows = [json.loads(line) for line in (trained / "diffusion.jsonl").read_text().splitlines()]
    assert any("val/loss" in row for row in rows)
    assert [row["step"] for row in rows if 0 <= row.get("val/pck@0.10", -1) <= 100] == [2, 4, 4]


def test_diffusers_loads_it_and_draws_from_a_caption(trained):
    pipeline = StableDiffusionPipeline.from_pretrained(trained / "pipeline", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    (picture,) = pipeline("a dog facing left", num_inference_steps=2).images
    assert picture.size == (32, 32)
    words = pipeline.tokenizer("a dog facing left").input_ids
    assert len(words) == 6  # one token a word, and the two marks


@pytest.mark.parametrize("queries", ["conditioned", "frozen"])
def test_the_teacher_runs_on_it_out_of_the_box(trained, make_pairs, queries):
    settings = {"steps": 2, "layers": ["up@1/2", "up@1/1"], "queries": queries}
    teacher = PromptOptimization(str(trained / "pipeline"), device="cpu", **settings)
    assert torch.isfinite(teacher.match_pairs(make_pairs(2)).trg_kps).all()


def test_a_run_goes_on_where_it_stopped(trained):
    assert main(["pretrain", f"run.dir={trained}", "diffusion.steps=7", *SMALL]) == 0
    checkpoint = torch.load(trained / "checkpoints" / "diffusion.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    samples = sorted(path.stem for path in (trained / "samples").glob("*.png"))
    assert samples[-2:] == ["000006", "000007"], "the end is written, whether it is a time for validation or not"


def test_the_frozen_autoencoder_is_in_no_checkpoint(trained):
    state = torch.load(trained / "checkpoints" / "diffusion.ckpt", weights_only=True)["state_dict"]
    assert not any("autoencoder" in name for name in state)


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_a_folder_to_start_from_that_is_missing_is_named_before_anything_is_written(stage, tmp_path, capsys):
    assert main(["pretrain", f"run.dir={tmp_path}/run", f"{stage}.from={tmp_path}/nowhere", *SMALL]) == 2
    assert f"Expected a folder in {stage}.from" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_may_start_from_another_ones_pipeline(trained, tmp_path):
    given = [f"autoencoder.from={trained}/pipeline/vae", f"diffusion.from={trained}/pipeline"]
    assert main(["pretrain", f"run.dir={tmp_path}/run", "diffusion.steps=2", *given, *SMALL]) == 0
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
    assert json.loads((tmp_path / "run" / "pipeline" / "vae" / "config.json").read_text())["_name_or_path"] == ""
