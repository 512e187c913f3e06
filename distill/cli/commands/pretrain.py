"""Train the small Stable Diffusion that the default teacher uses, on the project's own pictures.

First an autoencoder, then UNet and text encoder on its latents. The folder gets pipeline/, which diffusers loads,
samples/, the curve (metrics.jsonl, curve.png) and checkpoints; a run that is there is continued, at whatever moment
it was stopped. A GPU is used where there is one: there it takes minutes, on two cores hours.

Examples:
  python -m distill pretrain
  python -m distill pretrain run.dir=runs/short diffusion.steps=2000 autoencoder.steps=500
"""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader

from distill.cli.config import instantiate
from distill.cli.run_folder import RunFolder
from distill.core.errors import ConfigError
from distill.system.environment import choose_device
from distill.training.callbacks.json_lines import JsonLines

VALIDATION_START = 10**8  # pictures that training never reaches
VALIDATION_PICTURES = 64
AVERAGE_EVERY = 10  # steps; averaging at each costs a twentieth of the time on two cores


def run(cfg: DictConfig) -> Path:
    """Trains both stages; returns the pipeline's folder.

    Raises:
        ConfigError: when a folder to start from is not there.
    """
    for stage in ("autoencoder", "diffusion"):
        given = cfg[stage]["from"]
        if given is not None and not Path(given).is_dir():
            raise ConfigError(f"Expected a folder in {stage}.from but there is none at {given}; correct it.")
    device = choose_device(cfg.device)
    folder = RunFolder.create(cfg, resume=True)
    pictures = next(iter(_pictures(cfg, VALIDATION_PICTURES, VALIDATION_START)))
    autoencoder = _autoencoder(cfg, folder, pictures["image"], device)
    module, snapshot = _diffusion(cfg, folder, autoencoder, pictures["caption"])
    validation: DataLoader = DataLoader([pictures], batch_size=None)  # type: ignore[arg-type]
    trainer = _trainer(
        cfg,
        folder,
        cfg.diffusion,
        "diffusion",
        device,
        [
            snapshot,
            EMAWeightAveraging(update_every_n_steps=AVERAGE_EVERY, decay=cfg.diffusion.ema**AVERAGE_EVERY),
            *_watching(cfg, folder),
        ],
    )
    last = folder.path / "checkpoints" / "diffusion.ckpt"
    seen = _steps_done(last)
    seed_everything(cfg.seed + seen, verbose=False)  # continuing with the same numbers would repeat noise and draws
    fresh = cfg.diffusion.fresh
    trainer.fit(
        module,
        DataLoader(_pictures(cfg, fresh, seen * fresh), batch_size=None),
        validation,
        ckpt_path=str(last) if seen else None,
        weights_only=True,
    )
    _draw_curve(folder, cfg.diffusion.training.batch_size)
    print(f"pipeline: {folder / 'pipeline'}")
    return folder / "pipeline"


def _autoencoder(cfg: DictConfig, folder: RunFolder, pictures: torch.Tensor, device: str) -> nn.Module:
    """Returns the autoencoder of a finished first stage, training what is missing of it."""
    done = folder.path / "autoencoder"
    given = cfg.autoencoder["from"]
    if given is not None or done.is_dir():
        return instantiate(cfg.autoencoder.reader, pretrained_model_name_or_path=str(given or done))
    seed_everything(cfg.seed, verbose=False)
    module = instantiate(cfg.autoencoder.training, autoencoder=instantiate(cfg.autoencoder.model))
    last = folder.path / "checkpoints" / "autoencoder.ckpt"
    seen, batch = _steps_done(last), cfg.autoencoder.batch_size
    trainer = _trainer(cfg, folder, cfg.autoencoder, "autoencoder", device, [])
    data = DataLoader(_pictures(cfg, batch, seen * batch), batch_size=None)
    trainer.fit(module, data, ckpt_path=str(last) if seen else None, weights_only=True)
    psnr = module.finish(pictures)
    print(f"autoencoder: {psnr:.1f} dB on {len(pictures)} pictures")
    module.autoencoder.save_pretrained(done)
    return module.autoencoder


def _diffusion(
    cfg: DictConfig, folder: RunFolder, autoencoder: nn.Module, captions: list[str]
) -> tuple[LightningModule, Callback]:
    part = cfg.diffusion
    seed_everything(cfg.seed, verbose=False)
    texts = (caption for batch in islice(_pictures(cfg, 500, VALIDATION_START), 6) for caption in batch["caption"])
    tokenizer = instantiate(part.tokenizer, captions=texts)
    module = instantiate(
        part.training,
        unet=instantiate(part.unet),
        text_encoder=instantiate(part.text_encoder, tokenizer=tokenizer),
        tokenizer=tokenizer,
        autoencoder=autoencoder,
        scheduler=instantiate(part.scheduler),
    )
    return module, instantiate(part.snapshot, folder=folder.path, captions=captions[:8])


def _watching(cfg: DictConfig, folder: RunFolder) -> list[Callback]:
    return [instantiate(cfg.watch, folder=folder / "pipeline")] if cfg.watch is not None else []


def _trainer(
    cfg: DictConfig, folder: RunFolder, stage: DictConfig, name: str, device: str, callbacks: list[Callback]
) -> Trainer:
    keep = ModelCheckpoint(
        folder.path / "checkpoints", save_top_k=0, save_last=True, every_n_train_steps=cfg.diffusion.checkpoint_every
    )
    keep.CHECKPOINT_NAME_LAST = name
    return Trainer(
        max_steps=stage.steps,
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        precision=cfg.precision,
        logger=JsonLines(folder.path, f"{name}.jsonl"),
        callbacks=[*callbacks, keep, RichProgressBar(leave=False)],
        val_check_interval=cfg.diffusion.validate_every if name == "diffusion" else None,
        check_val_every_n_epoch=None if name == "diffusion" else 1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0 if name == "autoencoder" else None,
        enable_model_summary=False,
        log_every_n_steps=10,
    )


def _pictures(cfg: DictConfig, batch_size: int, start: int) -> Any:
    return instantiate(cfg.data, batch_size=batch_size, start=start)


def _steps_done(checkpoint: Path) -> int:
    if not checkpoint.is_file():
        return 0
    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])


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
