"""What a pretraining consists of, built from its configuration."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from omegaconf import DictConfig
from torch import nn

from distill.cli.config import instantiate
from distill.core.errors import ConfigError
from distill.training.callbacks.checkpoint_after_validation import CheckpointAfterValidation
from distill.training.callbacks.json_lines import JsonLines
from distill.training.callbacks.step_progress import StepProgress
from distill.training.whole_checkpoints import write_whole_checkpoints

STAGES = ("autoencoder", "diffusion")
"""In their order."""


def pictures(cfg: DictConfig, batch_size: int, start: int = 0) -> Any:
    """Returns the captioned pictures to train on, in batches, from picture ``start`` on."""
    return instantiate(cfg.data, batch_size=batch_size, start=start)


def read_autoencoder(cfg: DictConfig, folder: Path) -> nn.Module:
    """Returns the trained autoencoder that ``folder`` holds."""
    return instantiate(cfg.autoencoder.reader, pretrained_model_name_or_path=str(folder))


def autoencoder_module(cfg: DictConfig) -> LightningModule:
    """Returns the first stage: a new autoencoder and its training."""
    seed_everything(cfg.seed, verbose=False)
    return instantiate(cfg.autoencoder.training, autoencoder=instantiate(cfg.autoencoder.model))


def diffusion_module(cfg: DictConfig, autoencoder: nn.Module, captions: Iterable[str]) -> LightningModule:
    """Returns the second stage: tokenizer, text encoder and UNet, new or from ``diffusion.init_from``, and their training.

    Args:
        cfg: of the run.
        autoencoder: of the first stage.
        captions: that hold the words of the vocabulary.
    """
    part = cfg.diffusion
    seed_everything(cfg.seed, verbose=False)
    tokenizer = instantiate(part.tokenizer, captions=captions)
    return instantiate(
        part.training,
        unet=instantiate(part.unet),
        text_encoder=instantiate(part.text_encoder, tokenizer=tokenizer),
        tokenizer=tokenizer,
        autoencoder=autoencoder,
        scheduler=instantiate(part.scheduler),
    )


@torch.no_grad()
def check_latents(module: Any, image: torch.Tensor) -> None:
    """Raises a :class:`ConfigError` unless the autoencoder makes latents that the UNet takes.

    Args:
        module: of the second stage.
        image: (1, 3, S, S) in [0, 1].
    """
    latents, unet = module.autoencoder.encode(image.to(module.device)).latents, module.unet.config
    (_, channels, side, _), wanted = latents.shape, (unet.in_channels, unet.sample_size)
    if (channels, side) != wanted:
        raise ConfigError(
            f"Expected an autoencoder that makes latents of {wanted[0]} channels and {wanted[1]} cells a side, as diffusion.unet "
            f"says, but got latents of {channels} channels and {side} cells a side; correct autoencoder.init_from, or "
            "autoencoder.model.latent_channels and diffusion.unet.latent_side."
        )


def _progress(stage: str) -> StepProgress:
    """Returns the display of one of the two stages; how long the second one takes is not known before it is there."""
    number = STAGES.index(stage) + 1
    return StepProgress(f"{number}/{len(STAGES)} {stage}", then=" + 2/2" if number == 1 else "")


def trainer_of(cfg: DictConfig, folder: Path, name: str, device: str, callbacks: list[Callback]) -> Trainer:
    """Returns the trainer of one stage, which keeps its checkpoint and its log in ``folder``.

    Args:
        cfg: of the run.
        folder: of the run.
        name: of the stage: "autoencoder" or "diffusion".
        device: of the training, such as "cpu" or "cuda".
        callbacks: before those that every stage has.

    Raises:
        ConfigError: when Lightning does not take the settings.
    """
    validate_every = cfg.diffusion.validate_every if name == "diffusion" else None
    keep = CheckpointAfterValidation(
        validate_every,
        dirpath=folder / "checkpoints",
        save_top_k=0,
        save_last=True,
        every_n_train_steps=cfg.diffusion.checkpoint_every,
    )
    keep.CHECKPOINT_NAME_LAST = name
    trainer = instantiate(
        {"_target_": "lightning.Trainer"},
        max_steps=cfg[name].steps,
        accelerator="gpu" if device.startswith("cuda") else "cpu",
        devices=1,
        precision=cfg.precision,
        logger=JsonLines(folder, f"{name}.jsonl"),
        callbacks=[*callbacks, keep, _progress(name)],
        val_check_interval=validate_every,
        check_val_every_n_epoch=None if name == "diffusion" else 1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0 if name == "autoencoder" else None,
        enable_model_summary=False,
        enable_progress_bar=False,
        benchmark=device.startswith("cuda"),
        log_every_n_steps=10,
    )
    return write_whole_checkpoints(trainer)
