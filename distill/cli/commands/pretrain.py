"""Train the small Stable Diffusion that the default teacher uses, on the project's own pictures.

First an autoencoder, then UNet and text encoder on its latents, which further processes make at the same time. The folder
gets pipeline/, which diffusers loads, samples/, the curve (diffusion.jsonl, curve.png), latents/ and checkpoints. An existing
run is continued from its last checkpoint (diffusion.checkpoint_every), and ends as if it had never stopped. The defaults suit a
GPU; without one, take smaller batches.

Examples:
  python -m distill pretrain
  python -m distill pretrain diffusion.batch_size=32 autoencoder.batch_size=4
  python -m distill pretrain run.dir=runs/short diffusion.steps=2000 autoencoder.steps=500
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from distill.cli.config import instantiate
from distill.cli.pretrain_checks import check_settings, rehearse
from distill.cli.pretrain_parts import (
    autoencoder_module,
    check_latents,
    diffusion_module,
    pictures,
    read_autoencoder,
    trainer_of,
)
from distill.cli.reporting import announce
from distill.cli.run_folder import RunFolder, check_free, check_unchanged
from distill.core.digest import state_digest
from distill.core.errors import ConfigError
from distill.core.workers import quiet_worker
from distill.evaluation.figures import read_curve
from distill.system.environment import available_cores, choose_device
from distill.training.checkpoint import load_state, read_resumable
from distill.training.train import run_fit

FREE_ON_RESUME = (
    "run",
    "device",
    "data.device",
    "num_workers",
    "autoencoder.steps",
    "diffusion.steps",
    "diffusion.checkpoint_every",
    "diffusion.validate_every",
    "teacher_score",
)
"""Settings that may change when a run is continued; with other steps, the learning rate falls at another time."""
REPLACED = ("pipeline", "autoencoder", "checkpoints", "latents", "samples", "*.jsonl", "curve.png")
"""What a run writes, and goes on from where it is there."""
VALIDATION_START = 10**8  # pictures that training never reaches
VALIDATION_PICTURES = 64
CAPTIONS = 3_000  # that hold every word there is
MOST_WORKERS = 12


def run(cfg: DictConfig) -> Path:
    """Trains both stages; returns the pipeline's folder.

    Raises:
        ConfigError: when a folder to start from is not there, or settings cannot work, alone or together.
    """
    check_settings(cfg)
    check_unchanged(cfg, FREE_ON_RESUME)
    check_free(Path(cfg.run.dir), REPLACED)
    _check_steps(cfg)
    device = choose_device(cfg.device)
    choose_device(cfg.data.device)
    validation = pictures(cfg, VALIDATION_PICTURES).batch(VALIDATION_START, VALIDATION_PICTURES)
    rehearse(cfg, validation, _trained(cfg), device)
    with RunFolder.create(cfg, resume=True) as folder:
        announce("pretrain", _stages(cfg), device, folder.path)
        autoencoder = _autoencoder(cfg, folder, validation["image"], device)
        _train_diffusion(cfg, folder, diffusion_module(cfg, autoencoder, _captions(cfg)), validation, device)
        _draw_curve(folder, cfg.diffusion.batch_size)
    print(f"pipeline: {folder / 'pipeline'}")
    return folder / "pipeline"


def _captions(cfg: DictConfig) -> Iterator[str]:
    """Returns the captions that the vocabulary is made of, without their pictures where the data set can tell."""
    held_out = pictures(cfg, 500, VALIDATION_START)
    tell = getattr(held_out, "captions", None)
    if callable(tell):
        return iter(tell(VALIDATION_START, CAPTIONS))
    return islice((caption for batch in held_out for caption in batch["caption"]), CAPTIONS)


def _stages(cfg: DictConfig) -> str:
    """Returns what is done, with the numbers that the progress has too."""
    diffusion = f"a diffusion model in {cfg.diffusion.steps} steps"
    if _trained(cfg) is not None:
        return f"2/2 {diffusion}; its autoencoder is there"
    return f"1/2 an autoencoder in {cfg.autoencoder.steps} steps, 2/2 {diffusion}"


def _check_steps(cfg: DictConfig) -> None:
    seen = _steps_done(Path(cfg.run.dir) / "checkpoints" / "diffusion.ckpt")
    if seen > cfg.diffusion.steps:
        raise ConfigError(
            f"Expected diffusion.steps of at least {seen}, which are done, but got {cfg.diffusion.steps}; raise it."
        )


def _trained(cfg: DictConfig) -> Path | None:
    """Returns the folder of an autoencoder that is not trained: one to start from, or that of a finished first stage."""
    if cfg.autoencoder.init_from is not None:
        return Path(cfg.autoencoder.init_from).expanduser()
    done = Path(cfg.run.dir) / "autoencoder"
    return done if done.is_dir() else None


def _autoencoder(cfg: DictConfig, folder: RunFolder, images: torch.Tensor, device: str) -> nn.Module:
    """Returns the autoencoder of a finished first stage, training what is missing of it."""
    trained = _trained(cfg)
    if trained is not None:
        return read_autoencoder(cfg, trained)
    module: Any = autoencoder_module(cfg)
    last = folder.path / "checkpoints" / "autoencoder.ckpt"
    seen, batch = _steps_done(last), cfg.autoencoder.batch_size
    trainer = trainer_of(cfg, folder.path, "autoencoder", device, [])
    dataset, workers = pictures(cfg, batch, seen * batch), num_workers(cfg.num_workers)
    context = "spawn" if workers and dataset.device != "cpu" else None
    data = DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=context, worker_init_fn=quiet_worker
    )
    run_fit(trainer, module, data, ckpt_path=str(last) if seen else None)
    psnr = module.finish(images)
    print(f"autoencoder: {psnr:.1f} dB on {len(images)} pictures")
    instantiate(cfg.autoencoder.writer, autoencoder=module.autoencoder, folder=folder / "autoencoder")
    return module.autoencoder


def _train_diffusion(cfg: DictConfig, folder: RunFolder, module: Any, validation: dict[str, Any], device: str) -> None:
    part, last = cfg.diffusion, folder.path / "checkpoints" / "diffusion.ckpt"
    seen = _steps_done(last)
    check_latents(module, validation["image"][:1])
    blocks = instantiate(
        part.latents.blocks,
        pictures=pictures(cfg, 1),
        autoencoder=module.autoencoder,
        tokenizer=module.tokenizer,
    )
    drawn = {
        name: value for name, value in cfg.data.items() if name != "device"
    }  # which may change, see FREE_ON_RESUME
    about = {
        "pictures": OmegaConf.to_container(OmegaConf.create(drawn)),
        "autoencoder": state_digest(module.autoencoder),
    }
    about |= {"tokenizer": module.tokenizer.get_vocab(), "zoom": blocks.zoom, "length": part.tokenizer.length}
    workers = num_workers(cfg.num_workers)
    store = instantiate(part.latents.store, folder=folder / "latents", blocks=blocks, num_workers=workers, about=about)
    batches = instantiate(part.latents.batches, store=store, batch_size=part.batch_size, first_step=seen)
    snapshot = instantiate(part.snapshot, folder=folder.path, captions=validation["caption"][:8])
    callbacks = [snapshot, instantiate(part.averaging)]
    if cfg.teacher_score is not None:
        callbacks.append(instantiate(cfg.teacher_score, folder=folder / "pipeline"))
    if seen == part.steps:  # nothing is left to train; the checkpoint holds the averaged weights
        load_state(module, last)
        snapshot.write(module, seen)
        return
    trainer = trainer_of(cfg, folder.path, "diffusion", device, callbacks)
    try:
        run_fit(
            trainer,
            module,
            DataLoader(batches, batch_size=None),
            DataLoader([validation], batch_size=None),  # type: ignore[arg-type]
            ckpt_path=str(last) if seen else None,
        )
    finally:
        store.close()


def num_workers(asked: int | None) -> int:
    """Returns how many processes draw pictures: those asked for, else one for each core but one, and at most 12."""
    return asked if asked is not None else min(MOST_WORKERS, available_cores() - 1)


def _steps_done(checkpoint: Path) -> int:
    if not checkpoint.is_file():
        return 0
    return int(read_resumable(checkpoint)["global_step"])


def _draw_curve(folder: RunFolder, pictures_a_step: int) -> None:
    """Draws the losses of the second stage, and the teacher's PCK where it was measured, against the pictures drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    log = folder / "diffusion.jsonl"
    logged = read_curve(log) if log.is_file() else {}
    figure, (losses, scores) = pyplot.subplots(1, 2, figsize=(11, 4))
    for axes, keys in ((losses, ("train/loss", "val/loss")), (scores, ("val/pck@0.10",))):
        for key in keys:
            points = [(step * pictures_a_step, value) for step, value in logged.get(key, [])]
            if points:
                axes.plot(*zip(*points, strict=True), label=key, marker="" if key == "train/loss" else ".")
                axes.legend()
        axes.set(xlabel="samples seen")
    losses.set(ylabel="mean squared error", yscale="log")
    scores.set(ylabel="the teacher's PCK@0.10 per image, %", ylim=(0, 100))
    figure.savefig(folder / "curve.png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
