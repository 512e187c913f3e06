"""Checks of a pretraining before anything is written: each number, and all parts together on one picture."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from distill.cli.config import instantiate
from distill.cli.pretrain_parts import autoencoder_module, check_latents, diffusion_module, read_autoencoder, trainer_of
from distill.core.errors import ConfigError, in_one_line
from distill.core.protocols import match
from distill.data.pairs import collate_pairs
from distill.system.environment import check_workers

AT_LEAST = {
    "autoencoder.steps": 1,
    "autoencoder.model.channels": 1,
    "autoencoder.model.latent_channels": 1,
    "autoencoder.model.num_downsamples": 0,
    "autoencoder.training.crop": 1,
    "autoencoder.training.noise": 0,
    "diffusion.steps": 1,
    "diffusion.latents.store.capacity": 1,
    "diffusion.latents.batches.at_start": 1,
    "diffusion.latents.batches.fresh": 0,
    "diffusion.text_encoder.width": 1,
    "diffusion.text_encoder.layers": 1,
    "diffusion.unet.latent_side": 1,
    "diffusion.tokenizer.length": 3,
    "diffusion.training.drop_caption": 0,
    "diffusion.training.logit_normal": 0,
    "diffusion.training.warmup": 1,
    "diffusion.training.decay": 0,
    "diffusion.training.beta2": 0,
    "diffusion.averaging.every": 1,
    "diffusion.averaging.check_every": 1,
    "diffusion.checkpoint_every": 1,
    "diffusion.validate_every": 1,
    "teacher_score.every": 1,
}
ABOVE = {
    "autoencoder.training.lr": 0,
    "diffusion.training.lr": 0,
    "diffusion.latents.blocks.zoom": 0,
    "diffusion.averaging.decay": 0,
}
AT_MOST = {
    "diffusion.training.drop_caption": 1,
    "diffusion.training.logit_normal": 1,
    "diffusion.training.decay": 1,
    "diffusion.latents.blocks.zoom": 1,
}
BELOW = {"diffusion.averaging.decay": 1, "diffusion.training.beta2": 1}
"""Bounds of numbers, by key, that :data:`distill.cli.keys.LEAST` does not hold."""

UNFIT = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, ZeroDivisionError)
"""What torch, diffusers and transformers raise about shapes that do not fit."""


def check_settings(cfg: DictConfig) -> None:
    """Checks numbers, folders to start from, and sizes that follow from each other.

    Raises:
        ConfigError: naming the setting.
    """
    for stage in ("autoencoder", "diffusion"):
        given = cfg[stage].init_from
        if given is not None and not Path(given).expanduser().is_dir():
            raise ConfigError(f"Expected a folder in {stage}.init_from but there is none at {given}; correct it.")
    start, own = cfg.diffusion.init_from, Path(cfg.run.dir, "pipeline").resolve()
    if start is not None and Path(start).expanduser().resolve() == own:
        raise ConfigError(
            f"Expected diffusion.init_from to be another folder than {own}, which the run replaces; choose another run.dir."
        )
    _check_ranges(cfg)
    check_workers(cfg.num_workers or 0)
    if cfg.autoencoder.init_from is None:
        _check_sides(cfg)


def _check_ranges(cfg: DictConfig) -> None:
    rules: list[tuple[dict[str, int], str, Any]] = [
        (AT_LEAST, "of at least", lambda value, bound: value >= bound),
        (ABOVE, "above", lambda value, bound: value > bound),
        (AT_MOST, "of at most", lambda value, bound: value <= bound),
        (BELOW, "below", lambda value, bound: value < bound),
    ]
    for bounds, words, holds in rules:
        for name, bound in bounds.items():
            value = OmegaConf.select(cfg, name)
            if isinstance(value, int | float) and not holds(value, bound):
                raise ConfigError(f"Expected {name} {words} {bound} but got {value}; correct it.")


def _check_sides(cfg: DictConfig) -> None:
    """Checks the sides of pictures, crops and latents against the halvings of a new autoencoder."""
    halvings, crop = 2**cfg.autoencoder.model.num_downsamples, OmegaConf.select(cfg, "autoencoder.training.crop")
    reason = "2 to the power of autoencoder.model.num_downsamples"
    if cfg.size % halvings:
        raise ConfigError(f"Expected size to be a multiple of {halvings}, {reason}, but got {cfg.size}; correct it.")
    if crop is not None and crop > cfg.size:
        raise ConfigError(
            f"Expected autoencoder.training.crop of at most size={cfg.size} but got {crop}; correct one of them."
        )
    if crop is not None and crop % halvings:
        raise ConfigError(
            f"Expected autoencoder.training.crop to be a multiple of {halvings}, {reason}, but got {crop}; correct it."
        )
    side = cfg.size // halvings
    if cfg.diffusion.unet.latent_side != side:
        raise ConfigError(
            f"Expected diffusion.unet.latent_side={side}, which is what autoencoder.model.num_downsamples makes of size="
            f"{cfg.size}, but got {cfg.diffusion.unet.latent_side}; correct one of them."
        )


def rehearse(cfg: DictConfig, example: dict[str, Any], trained: Path | None, device: str) -> None:
    """Builds both stages, and the teacher that scores them, with random weights, and has them work on one picture.

    A setting of the second stage that does not fit would otherwise be found after the first stage, and one of the teacher after
    thousands of steps.

    Args:
        cfg: of the run.
        example: a batch of pictures, see :class:`distill.data.datasets.shapes.CaptionedShapes`.
        trained: the folder of an autoencoder that is not trained here; None for a new one.
        device: of the training.

    Raises:
        ConfigError: when settings do not fit each other.
        WeightsError: when a folder to start from lacks files.
    """
    image, caption = example["image"][:1].cpu(), example["caption"]
    with TemporaryDirectory() as name:
        folder = Path(name)
        for stage in ("autoencoder", "diffusion"):
            trainer_of(cfg, folder, stage, device, [])
        try:
            stage = "autoencoder"
            autoencoder = _rehearsed_autoencoder(cfg, image, trained)
            stage = "diffusion"
            module: Any = diffusion_module(cfg, autoencoder, caption)
            check_latents(module, image)
            _denoise(module, image, caption[:1])
            snapshot = instantiate(cfg.diffusion.snapshot, folder=folder, captions=caption[:1])
            instantiate(cfg.diffusion.averaging)
            snapshot.write(module, 0)
            if cfg.teacher_score is not None:
                stage = "teacher_score"
                _answer_one_point(instantiate(cfg.teacher_score, folder=folder / "pipeline"))
        except UNFIT as error:
            reason = in_one_line(error)
            raise ConfigError(f"Expected settings of {stage} that fit each other but got: {reason}") from error


def _rehearsed_autoencoder(cfg: DictConfig, image: torch.Tensor, trained: Path | None) -> Any:
    if trained is not None:
        return read_autoencoder(cfg, trained)
    module: Any = autoencoder_module(cfg)
    with torch.no_grad():
        decoded = module.autoencoder.decode(module.autoencoder.encode(image * 2 - 1).latents).sample
    if decoded.shape != image.shape:
        raise ValueError(f"pictures of {tuple(image.shape)} are {tuple(decoded.shape)} when they are decoded")
    module.autoencoder.register_to_config(scaling_factor=1.0)  # what the end of the training writes there
    return module.autoencoder


def _answer_one_point(score: Any) -> None:
    pairs = collate_pairs([score.pairs[0]])
    one = {name: getattr(pairs, name)[:, :1] for name in ("src_kps", "trg_kps", "kps_mask", "kps_id")}
    match(score.teacher(model=str(score.folder)), pairs._replace(**one))


@torch.no_grad()
def _denoise(module: Any, image: torch.Tensor, caption: list[str]) -> None:
    latents = module.autoencoder.encode(image).latents
    tokens = module.tokenizer(caption, padding="max_length", truncation=True, return_tensors="pt").input_ids
    module.denoising_loss(latents, tokens, torch.zeros_like(latents), torch.zeros(1, dtype=torch.long))
