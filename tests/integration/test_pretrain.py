"""Training a miniature Stable Diffusion, and what comes out of it."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from distill.__main__ import main
from distill.cli.commands import pretrain
from distill.cli.config import compose
from distill.cli.pretrain_checks import check_settings
from distill.training.callbacks.step_progress import StepProgress
from teacher import PromptOptimization
from teacher.pretrain import AutoencoderTraining, DiffusionTraining, build_autoencoder, callbacks, pipeline

SMALL = [
    "size=32",
    "device=cpu",
    "num_workers=0",
    "autoencoder.steps=4",
    "autoencoder.batch_size=2",
    "autoencoder.model.channels=8",
    "autoencoder.training.crop=32",
    "diffusion.latents.store.capacity=64",
    "diffusion.latents.batches.at_start=32",
    "diffusion.text_encoder.width=32",
    "diffusion.unet.latent_side=8",
    "diffusion.unet.channels=[16,32,32]",
    "diffusion.averaging.every=1",
    "diffusion.batch_size=2",
    "diffusion.checkpoint_every=2",
    "diffusion.validate_every=2",
    "teacher_score.every=1",
    "teacher_score.pairs.n_pairs=2",
    "teacher_score.teacher.steps=1",
]
UNSCORED = [*(s for s in SMALL if "teacher_score" not in s), "teacher_score=null"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Captions enough to hold the words of these tests, and pictures drawn in two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "CAPTIONS", 300)
        patch.setattr(callbacks, "draw_grid", partial(callbacks.draw_grid, steps=2))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, quick):
    folder = tmp_path_factory.mktemp("pretrain") / "run"
    assert main(["pretrain", f"run.dir={folder}", "diffusion.steps=4", *SMALL]) == 0
    return folder


def test_the_folder_holds_a_pipeline_samples_and_the_curve(trained):
    assert (trained / "curve.png").is_file() and len(list((trained / "samples").glob("*.png"))) == 2
    rows = [json.loads(line) for line in (trained / "diffusion.jsonl").read_text().splitlines()]
    assert any("val/loss" in row for row in rows)
    assert [row["step"] for row in rows if 0 <= row.get("val/pck@0.10", -1) <= 100] == [2, 4, 4]


def test_latents_are_those_of_any_device(trained):
    about = json.loads((trained / "latents" / "about.json").read_text())["pictures"]
    assert "device" not in about and about["size"] == 32


def test_a_curve_is_drawn_of_a_log_that_was_cut(trained, tmp_path):
    log = (trained / "diffusion.jsonl").read_text()
    (tmp_path / "diffusion.jsonl").write_text(log + log[: len(log) // 3].rstrip("}\n"))
    pretrain._draw_curve(tmp_path, 2)
    assert (tmp_path / "curve.png").is_file()


def test_an_older_pipeline_is_there_until_the_new_one_is(tmp_path, monkeypatch):
    folder, draft, removed = tmp_path / "pipeline", tmp_path / "pipeline.draft", []
    for made, text in ((folder, "old"), (draft, "new")):
        made.mkdir()
        (made / "model_index.json").write_text(text)
    remove = shutil.rmtree

    def told(path, **kwargs):
        removed.append((path, (folder / "model_index.json").read_text()))
        remove(path, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", told)
    pipeline._replace(folder, draft)
    assert removed[-1] == (tmp_path / "pipeline.old", "new") and folder not in dict(removed)
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]


def test_diffusers_loads_it_and_draws_from_a_caption_without_further_arguments_or_warnings(trained):
    code = (
        "from diffusers import StableDiffusionPipeline\n"
        f"pipeline = StableDiffusionPipeline.from_pretrained({str(trained / 'pipeline')!r})\n"
        "print(pipeline('a dog facing left', num_inference_steps=2).images[0].size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(32, 32)" and "will be ignored" not in done.stderr
    tokenizer = StableDiffusionPipeline.from_pretrained(trained / "pipeline").tokenizer
    assert len(tokenizer("a dog facing left").input_ids) == 6  # one token a word, and the two marks


@pytest.mark.parametrize("queries", ["conditioned", "frozen"])
def test_the_teacher_reads_the_papers_layers_of_it(trained, make_pairs, queries):
    settings = {"steps": 2, "layers": ["up@1/4", "up@1/2:0"], "queries": queries, "consensus": 0.0}
    teacher = PromptOptimization(str(trained / "pipeline"), device="cpu", **settings)
    assert torch.isfinite(teacher.match_pairs(make_pairs(2)).trg_kps).all()


def test_labels_are_made_with_it_from_the_command_line(trained, tmp_path):
    teacher = ["teacher=prompt_optimization", f"teacher.model={trained}/pipeline", "teacher.layers=[up@1/4,up@1/2:0]"]
    data = [
        "data=shapes",
        "data.size=32",
        "train.n_pairs=1",
        "val.n_pairs=1",
        "test.n_pairs=1",
        "teacher.steps=2",
        "device=cpu",
    ]
    assert main(["label", f"labels.dir={tmp_path}/labels", *teacher, *data]) == 0
    assert list((tmp_path / "labels").rglob("*.safetensors"))


def test_the_pipeline_has_the_shape_of_stable_diffusion(trained):
    unet, vae = (json.loads((trained / "pipeline" / part / "config.json").read_text()) for part in ("unet", "vae"))
    assert unet["in_channels"] == vae["latent_channels"] == 4
    assert unet["down_block_types"] == ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    assert unet["up_block_types"] == ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]


def test_the_default_model_is_the_one_that_was_tried_on_a_gpu():
    config = compose("pretrain", [])
    unet = config.diffusion.unet
    assert (unet.latent_side, unet.latent_channels, list(unet.channels)) == (32, 4, [64, 128, 192])
    assert list(unet.encoder_attention) == list(unet.decoder_attention) == [False, True, True]
    model = config.autoencoder.model
    assert (model.channels, model.latent_channels, model.num_downsamples) == (32, 4, 2)
    assert config.diffusion.batch_size == 256 and config.diffusion.training.drop_caption == 0.15
    check_settings(config)


def test_a_run_goes_on_where_it_stopped(trained):
    assert main(["pretrain", f"run.dir={trained}", "diffusion.steps=7", *SMALL]) == 0
    checkpoint = torch.load(trained / "checkpoints" / "diffusion.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    samples = sorted(path.stem for path in (trained / "samples").glob("*.png"))
    assert samples[-2:] == ["000006", "000007"], "the end is written, whether it is a time for validation or not"


def interrupted_at(number: int, step):
    def training_step(self, batch, batch_idx):
        if self.global_step == number:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    return training_step


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_interrupted_run_ends_with_the_weights_of_one_that_was_not(optimizer, tmp_path, monkeypatch, capsys):
    settings = [*UNSCORED, "autoencoder.training.crop=24", "diffusion.steps=6", "precision=32-true"]
    settings += [f"diffusion.training.optimizer={optimizer}"]
    assert main(["pretrain", f"run.dir={tmp_path}/whole", *settings]) == 0
    for stage, kind, at, kept in (("autoencoder", AutoencoderTraining, 3, 2), ("diffusion", DiffusionTraining, 5, 4)):
        with monkeypatch.context() as context:
            context.setattr(kind, "training_step", interrupted_at(at, kind.training_step))
            assert main(["pretrain", f"run.dir={tmp_path}/parts", *settings]) == 130
        assert "interrupted, the same command goes on" in capsys.readouterr().err
        checkpoint = torch.load(tmp_path / "parts" / "checkpoints" / f"{stage}.ckpt", weights_only=True)
        assert checkpoint["global_step"] == kept
    assert main(["pretrain", f"run.dir={tmp_path}/parts", *settings]) == 0
    for part, name in (
        ("vae", "diffusion_pytorch_model"),
        ("unet", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        whole, parts = (load_file(tmp_path / f / "pipeline" / part / f"{name}.safetensors") for f in ("whole", "parts"))
        assert all(torch.equal(whole[key], parts[key]) for key in whole), part
    states = [
        torch.load(tmp_path / f / "checkpoints" / "diffusion.ckpt", weights_only=True)["current_model_state"]
        for f in ("whole", "parts")
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_validation_that_was_interrupted_is_made_when_the_run_goes_on(tmp_path, monkeypatch):
    settings = [*UNSCORED, "diffusion.steps=6", "autoencoder.steps=2", "precision=32-true"]
    assert main(["pretrain", f"run.dir={tmp_path}/whole", *settings]) == 0
    validate = DiffusionTraining.validation_step

    def interrupted(self, batch, batch_idx):
        if self.global_step == 4:
            raise KeyboardInterrupt
        return validate(self, batch, batch_idx)

    with monkeypatch.context() as context:
        context.setattr(DiffusionTraining, "validation_step", interrupted)
        assert main(["pretrain", f"run.dir={tmp_path}/parts", *settings]) == 130
    checkpoint = torch.load(tmp_path / "parts" / "checkpoints" / "diffusion.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    assert main(["pretrain", f"run.dir={tmp_path}/parts", *settings]) == 0
    logged = [
        [
            row
            for row in map(json.loads, (tmp_path / f / "diffusion.jsonl").read_text().splitlines())
            if "val/loss" in row
        ]
        for f in ("whole", "parts")
    ]
    assert [row["step"] for row in logged[0]] == [1, 3, 5] and logged[1] == logged[0]  # counted from 0
    samples = [sorted(path.name for path in (tmp_path / f / "samples").iterdir()) for f in ("whole", "parts")]
    assert samples[1] == samples[0]
    whole, parts = (
        load_file(tmp_path / f / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
        for f in ("whole", "parts")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_finished_run_stays_as_it_is(trained, tmp_path):
    given = [f"autoencoder.init_from={trained}/pipeline/vae", "diffusion.averaging.decay=0.99"]
    command = ["pretrain", f"run.dir={tmp_path}/run", "diffusion.steps=2", *UNSCORED, *given]
    assert main(command) == 0
    file = tmp_path / "run" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    before = load_file(file)
    shutil.rmtree(tmp_path / "run" / "pipeline")  # as if it had been stopped just before
    assert main(command) == 0
    after = load_file(file)
    assert all(torch.equal(before[key], after[key]) for key in before), "the averaged weights are written again"


@pytest.mark.parametrize(
    "setting",
    [
        "diffusion.unet.channels=[16,32,48]",
        "autoencoder.model.channels=16",
        "diffusion.training.optimizer=muon",
        "seed=1",
    ],
)
def test_a_run_is_not_continued_with_another_model(trained, setting, capsys):
    before = (trained / "config.yaml").read_text()
    assert main(["pretrain", f"run.dir={trained}", "diffusion.steps=7", *SMALL, setting]) == 2
    error = capsys.readouterr().err
    assert setting.split("=")[0] in error and "start anew with run.dir" in error
    assert (trained / "config.yaml").read_text() == before


def test_fewer_steps_than_are_done_are_refused(trained, capsys):
    assert main(["pretrain", f"run.dir={trained}", "diffusion.steps=1", *SMALL]) == 2
    assert "Expected diffusion.steps of at least" in capsys.readouterr().err


def test_an_autoencoder_that_does_not_fit_the_unet_is_refused(tmp_path, capsys):
    build_autoencoder(channels=8, latent_channels=12, num_downsamples=3).save_pretrained(tmp_path / "vae")
    given = f"autoencoder.init_from={tmp_path}/vae"
    assert main(["pretrain", f"run.dir={tmp_path}/run", "diffusion.steps=2", *UNSCORED, given]) == 2
    assert "latents of 12 channels and 4 cells a side" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer"])
def test_a_pipeline_to_start_from_that_lacks_a_part_is_refused(trained, part, tmp_path, capsys):
    folder = shutil.copytree(trained / "pipeline", tmp_path / "pipeline")
    shutil.rmtree(folder / part)
    given = [f"diffusion.init_from={folder}", f"autoencoder.init_from={folder}/vae"]
    assert main(["pretrain", f"run.dir={tmp_path}/run", "diffusion.steps=2", *given, *UNSCORED]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pipeline/model_index.json", "autoencoder/config.json", "diffusion.jsonl"])
def test_files_of_others_are_neither_replaced_nor_taken_for_ones_own(name, tmp_path, capsys):
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    assert main(["pretrain", f"run.dir={tmp_path}/mine", "diffusion.steps=1", *UNSCORED]) == 2
    assert "which the run would replace; choose another run.dir" in capsys.readouterr().err
    assert [path.read_text() for path in (tmp_path / "mine").rglob("*") if path.is_file()] == ["mine"]


def test_the_frozen_autoencoder_is_in_no_checkpoint(trained):
    state = torch.load(trained / "checkpoints" / "diffusion.ckpt", weights_only=True)["state_dict"]
    assert not any("autoencoder" in name for name in state)


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_a_folder_to_start_from_that_is_missing_is_named_before_anything_is_written(stage, tmp_path, capsys):
    assert main(["pretrain", f"run.dir={tmp_path}/run", f"{stage}.init_from={tmp_path}/nowhere", *SMALL]) == 2
    assert f"Expected a folder in {stage}.init_from" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_line_of_a_log_separates_steps_from_what_was_logged(capsys, monkeypatch):
    """It read "61/5000 stepstrain/colour 0.5"."""
    monkeypatch.setattr("distill.system.progress.MINUTE", 0)
    shown = StepProgress("autoencoder", every=1)
    shown._bar._tasks[0].total = 9
    trainer = SimpleNamespace(global_step=1, progress_bar_metrics={"train/colour": 0.5, "train/psnr": 6})
    shown.on_train_batch_end(trainer, None)
    assert "autoencoder: 1/9 steps, train/colour 0.5, train/psnr 6, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("diffusion.steps=0", "diffusion.steps of at least 1"),
        ("num_workers=-1", "num_workers of at least 0"),
        ("num_workers=5000", "num_workers of at most"),
        ("diffusion.latents.store.capacity=0", "capacity of at least 1"),
        ("diffusion.unet.latent_side=9", "latent_side=8"),
        ("data.shares=[1]", "data.shares"),
        ("data.difficulty=[hard,wild]", "wild"),
        ("autoencoder.training.crop=128", "autoencoder.training.crop of at most size=32 but got 128"),
        ("autoencoder.training.crop=0", "autoencoder.training.crop of at least 1 but got 0"),
        (
            "autoencoder.training.crop=31",
            "a multiple of 4, 2 to the power of autoencoder.model.num_downsamples, but got 31",
        ),
        ("size=34", "Expected size to be a multiple of 4"),
        ("autoencoder.training.lr=-1", "autoencoder.training.lr above 0 but got -1"),
        ("autoencoder.training.noise=-1", "autoencoder.training.noise of at least 0 but got -1"),
        ("autoencoder.model.channels=0", "autoencoder.model.channels of at least 1"),
        ("autoencoder.model.num_downsamples=-1", "autoencoder.model.num_downsamples of at least 0"),
        ("diffusion.unet.channels=[16,32]", "Expected settings of diffusion that fit each other"),
        ("diffusion.unet.channels=[10,20,30]", "Expected settings of diffusion that fit each other"),
        ("diffusion.unet.prompt_width=64", "Expected settings of diffusion that fit each other"),
        ("diffusion.unet.latent_channels=8", "Expected an autoencoder that makes latents of 8 channels"),
        ("diffusion.text_encoder.width=30", "multiple of the number of attention heads (4)"),
        ("diffusion.training.warmup=0", "diffusion.training.warmup of at least 1 but got 0"),
        ("diffusion.training.drop_caption=2", "diffusion.training.drop_caption of at most 1 but got 2"),
        ("diffusion.training.logit_normal=1.5", "diffusion.training.logit_normal of at most 1 but got 1.5"),
        ("diffusion.training.optimizer=moun", "did you mean 'muon'? valid names: adamw, muon"),
        ("diffusion.training.beta2=1", "diffusion.training.beta2 below 1 but got 1"),
        ("diffusion.averaging.decay=1", "diffusion.averaging.decay below 1 but got 1"),
        ("diffusion.averaging.every=0", "diffusion.averaging.every of at least 1"),
        ("diffusion.latents.blocks.zoom=0", "diffusion.latents.blocks.zoom above 0 but got 0"),
        ("diffusion.validate_every=0", "diffusion.validate_every of at least 1"),
        ("precision=half", "Precision 'half' is invalid"),
        ("teacher_score.every=0", "teacher_score.every of at least 1"),
        ("teacher_score.teacher.layers=[nope]", "nope"),
    ],
)
def test_numbers_that_cannot_work_are_named_before_anything_is_written(setting, words, tmp_path, capsys):
    assert main(["pretrain", f"run.dir={tmp_path}/run", *SMALL, setting]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_run_may_start_from_another_ones_pipeline(trained, tmp_path):
    given = [f"autoencoder.init_from={trained}/pipeline/vae", f"diffusion.init_from={trained}/pipeline"]
    assert main(["pretrain", f"run.dir={tmp_path}/run", "diffusion.steps=2", *given, *SMALL]) == 0
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()
    assert json.loads((tmp_path / "run" / "pipeline" / "vae" / "config.json").read_text())["_name_or_path"] == ""


def test_the_bar_counts_steps(trained, capfd, tmp_path):
    given = [f"autoencoder.init_from={trained}/pipeline/vae", "num_workers=1"]
    assert main(["pretrain", f"run.dir={tmp_path}/run", "diffusion.steps=2", *UNSCORED, *given]) == 0
    shown = capfd.readouterr().err
    assert re.search(r"diffusion.* 2/2 steps", shown) and "Epoch" not in shown and "-2" not in shown


def test_processes_draw_the_pictures_where_there_are_cores(monkeypatch):
    for cores, workers in ((1, 0), (2, 1), (64, 12)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert pretrain.num_workers(None) == workers and pretrain.num_workers(3) == 3


def test_mixed_worlds_are_drawn_as_often_as_their_shares_say():
    from distill.data.datasets.shapes import CaptionedShapes

    worlds = CaptionedShapes(32, 0, ["colourful", "hard"], 1, shares=[2, 1])
    drawn = [worlds.difficulty_of(index) for index in range(3000)]
    assert abs(np.mean([name == "hard" for name in drawn]) - 1 / 3) < 0.03
    assert drawn[:50] == [worlds.difficulty_of(index) for index in range(50)]
