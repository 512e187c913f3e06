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

import hashlib
import json
import os
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import DataLoader

from distill.cli.config import instantiate
from distill.cli.reporting import announce
from distill.cli.run_folder import RunFolder, check_unchanged
from distill.core.errors import ConfigError
from distill.system.environment import choose_device
from distill.training.callbacks.json_lines import JsonLines
from distill.training.callbacks.step_progress import StepProgress
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
VALIDATION_START = 10**8  # pictures that training never reaches
VALIDATION_PICTURES = 64
MOST_WORKERS = 12


def run(cfg: DictConfig) -> Path:
    """Trains both stages; returns the pipeline's folder.

    Raises:
        ConfigError: when a folder to start from is not there, or a number cannot work.
    """
    _check(cfg)
    check_unchanged(cfg, FREE_ON_RESUME)
    device, source = choose_device(cfg.device), _pictures(cfg, VALIDATION_PICTURES)
    folder = RunFolder.create(cfg, resume=True)
    steps = f"an autoencoder in {cfg.autoencoder.steps} steps, then a diffusion model in {cfg.diffusion.steps}"
    announce("pretrain", steps, device, folder.path)
    pictures = source.batch(VALIDATION_START, VALIDATION_PICTURES)
    autoencoder = _autoencoder(cfg, folder, pictures["image"], device)
    module = _diffusion(cfg, autoencoder)
    _train_diffusion(cfg, folder, module, pictures, device)
    _draw_curve(folder, cfg.diffusion.batch_size)
    print(f"pipeline: {folder / 'pipeline'}")
    return folder / "pipeline"


def _check(cfg: DictConfig) -> None:
    for stage in ("autoencoder", "diffusion"):
        given = cfg[stage].init_from
        if given is not None and not Path(given).expanduser().is_dir():
            raise ConfigError(f"Expected a folder in {stage}.init_from but there is none at {given}; correct it.")
    least = {"diffusion.latents.batches.fresh": 0, "num_workers": 0}
    names = ("autoencoder.steps", "autoencoder.batch_size", "diffusion.steps", "diffusion.batch_size", *least)
    names += ("diffusion.latents.store.capacity", "diffusion.latents.batches.at_start", "diffusion.checkpoint_every")
    for name in names:
        value = OmegaConf.select(cfg, name)
        if value is not None and value < least.get(name, 1):
            raise ConfigError(f"Expected {name} of at least {least.get(name, 1)} but got {value}; correct it.")
    side = cfg.size // 2**cfg.autoencoder.model.num_downsamples
    if cfg.diffusion.unet.latent_side != side and cfg.autoencoder.init_from is None:
        raise ConfigError(
            f"Expected diffusion.unet.latent_side={side}, which is what autoencoder.model.num_downsamples makes of size="
            f"{cfg.size}, but got {cfg.diffusion.unet.latent_side}; correct one of them."
        )


def _autoencoder(cfg: DictConfig, folder: RunFolder, pictures: torch.Tensor, device: str) -> nn.Module:
    """Returns the autoencoder of a finished first stage, training what is missing of it."""
    done = folder.path / "autoencoder"
    given = cfg.autoencoder.init_from
    if given is not None or done.is_dir():
        path = str(Path(given).expanduser() if given is not None else done)
        return instantiate(cfg.autoencoder.reader, pretrained_model_name_or_path=path)
    seed_everything(cfg.seed, verbose=False)
    module = instantiate(cfg.autoencoder.training, autoencoder=instantiate(cfg.autoencoder.model))
    last = folder.path / "checkpoints" / "autoencoder.ckpt"
    seen, batch = _steps_done(last), cfg.autoencoder.batch_size
    trainer = _trainer(cfg, folder, cfg.autoencoder, "autoencoder", device, [])
    dataset, workers = _pictures(cfg, batch, seen * batch), num_workers(cfg.num_workers)
    context = "spawn" if workers and dataset.device != "cpu" else None
    data = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=context)
    run_fit(trainer, module, data, ckpt_path=str(last) if seen else None)
    psnr = module.finish(pictures)
    print(f"autoencoder: {psnr:.1f} dB on {len(pictures)} pictures")
    instantiate(cfg.autoencoder.writer, autoencoder=module.autoencoder, folder=done)
    return module.autoencoder


def _diffusion(cfg: DictConfig, autoencoder: nn.Module) -> LightningModule:
    part = cfg.diffusion
    seed_everything(cfg.seed, verbose=False)
    held_out = _pictures(cfg, 500, VALIDATION_START)
    texts = (caption for batch in islice(held_out, 6) for caption in batch["caption"])
    tokenizer = instantiate(part.tokenizer, captions=texts)
    return instantiate(
        part.training,
        unet=instantiate(part.unet),
        text_encoder=instantiate(part.text_encoder, tokenizer=tokenizer),
        tokenizer=tokenizer,
        autoencoder=autoencoder,
        scheduler=instantiate(part.scheduler),
    )


def _train_diffusion(cfg: DictConfig, folder: RunFolder, module: Any, pictures: dict[str, Any], device: str) -> None:
    part, last = cfg.diffusion, folder.path / "checkpoints" / "diffusion.ckpt"
    seen = _steps_done(last)
    if seen > part.steps:
        raise ConfigError(
            f"Expected diffusion.steps of at least {seen}, which are done, but got {part.steps}; raise it."
        )
    _check_latents(module, pictures["image"][:1])
    blocks = instantiate(
        part.latents.blocks,
        pictures=_pictures(cfg, 1),
        autoencoder=module.autoencoder,
        tokenizer=module.tokenizer,
    )
    about = {"pictures": OmegaConf.to_container(cfg.data, resolve=True), "autoencoder": _digest(module.autoencoder)}
    about |= {"tokenizer": module.tokenizer.get_vocab(), "zoom": blocks.zoom, "length": part.tokenizer.length}
    workers = num_workers(cfg.num_workers)
    store = instantiate(part.latents.store, folder=folder / "latents", blocks=blocks, num_workers=workers, about=about)
    batches = instantiate(part.latents.batches, store=store, batch_size=part.batch_size, first_step=seen)
    snapshot = instantiate(part.snapshot, folder=folder.path, captions=pictures["caption"][:8])
    callbacks = [snapshot, instantiate(part.averaging)]
    if cfg.teacher_score is not None:
        callbacks.append(instantiate(cfg.teacher_score, folder=folder / "pipeline"))
    if seen == part.steps:  # nothing is left to train; the checkpoint holds the averaged weights
        load_state(module, last)
        snapshot.write(module, seen)
        return
    trainer = _trainer(cfg, folder, part, "diffusion", device, callbacks)
    try:
        run_fit(
            trainer,
            module,
            DataLoader(batches, batch_size=None),
            DataLoader([pictures], batch_size=None),  # type: ignore[arg-type]
            ckpt_path=str(last) if seen else None,
        )
    finally:
        store.close()


@torch.no_grad()
def _check_latents(module: Any, image: torch.Tensor) -> None:
    latents, unet = module.autoencoder.encode(image.to(module.device)).latents, module.unet.config
    (_, channels, side, _), wanted = latents.shape, (unet.in_channels, unet.sample_size)
    if (channels, side) != wanted:
        raise ConfigError(
            f"Expected an autoencoder that makes latents of {wanted[0]} channels and {wanted[1]} cells a side, as diffusion.unet "
            f"says, but got latents of {channels} channels and {side} cells a side; correct autoencoder.init_from, or "
            "autoencoder.model.latent_channels and diffusion.unet.latent_side."
        )


def _trainer(
    cfg: DictConfig, folder: RunFolder, stage: DictConfig, name: str, device: str, callbacks: list[Callback]
) -> Trainer:
    keep = ModelCheckpoint(
        folder.path / "checkpoints", save_top_k=0, save_last=True, every_n_train_steps=cfg.diffusion.checkpoint_every
    )
    keep.CHECKPOINT_NAME_LAST = name
    return Trainer(
        max_steps=stage.steps,
        accelerator="gpu" if device.startswith("cuda") else "cpu",
        devices=1,
        precision=cfg.precision,
        logger=JsonLines(folder.path, f"{name}.jsonl"),
        callbacks=[*callbacks, keep, StepProgress(name)],
        val_check_interval=cfg.diffusion.validate_every if name == "diffusion" else None,
        check_val_every_n_epoch=None if name == "diffusion" else 1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0 if name == "autoencoder" else None,
        enable_model_summary=False,
        enable_progress_bar=False,
        benchmark=device.startswith("cuda"),
        log_every_n_steps=10,
    )


def num_workers(asked: int | None) -> int:
    """Returns how many processes draw pictures: those asked for, else one for each core but one, and at most 12."""
    return asked if asked is not None else min(MOST_WORKERS, len(os.sched_getaffinity(0)) - 1)


def _pictures(cfg: DictConfig, batch_size: int, start: int = 0) -> Any:
    return instantiate(cfg.data, batch_size=batch_size, start=start)


def _digest(module: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for value in module.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


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
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    figure, (losses, scores) = pyplot.subplots(1, 2, figsize=(11, 4))
    for axes, keys in ((losses, ("train/loss", "val/loss")), (scores, ("val/pck@0.10",))):
        for key in keys:
            points = [(row["step"] * pictures_a_step, row[key]) for row in rows if key in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=key, marker="" if key == "train/loss" else ".")
                axes.legend()
        axes.set(xlabel="samples seen")
    losses.set(ylabel="mean squared error", yscale="log")
    scores.set(ylabel="the teacher's PCK@0.10 per image, %", ylim=(0, 100))
    figure.savefig(folder / "curve.png", dpi=120, bbox_inches="tight")
    pyplot.close(figure)
