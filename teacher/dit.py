"""Nearest neighbours among features of diffusion transformers: Stable Diffusion 3 and FLUX, as diffusers has them.

Gan et al., "Unleashing Diffusion Transformers for Visual Correspondence by Modulating Massive Activations" (DiTF), NeurIPS 2025:
few channels of a transformer's blocks have values so large that the rest is lost in a cosine. The adaptive layer norm with which a
block begins scales these channels down, so the features are read behind it. The massive channels are set to zero
before it, so that they do not enter the norm's mean and variance either (github.com/ganchaofan0000/DiTF, ``eval_spair.py``).

Never run on real weights here: hooks, shapes and arithmetic are tested on random models of both architectures. Deviations: the published
figures use a caption of each photograph, here the prompt is zeros, or one that a file holds.
"""

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel
from pydantic import AfterValidator, BeforeValidator, Strict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.errors import ConfigError, WeightsError
from distill.core.geometry import resize_images
from distill.core.numbers import is_whole
from distill.core.weights import check_finite
from teacher.feature_matcher import FeatureMatcher, FeatureSettings
from teacher.frozen_model import DTYPES
from teacher.pipeline import as_device, load_part, meta_model
from teacher.pipeline_checks import check_not_quantised, check_scale, check_tensors, check_variant
from teacher.pipeline_files import (
    file_digest,
    locate_folder,
    missing_files,
    parts_digest,
    read_config,
    weight_files,
)
from teacher.settings import Positive, Precision, Timestep

VERSION = "2"
KINDS = {"FluxTransformer2DModel": FluxTransformer2DModel, "SD3Transformer2DModel": SD3Transformer2DModel}
STEPS = 1000
"""Of the diffusion time, which flow matching counts from 0 (the image) to this (noise)."""


def _as_channels(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f"discard to be a list of channels (got {value!r})")
    return tuple(value)


def _in_order(channels: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(channels)))


Channels = Annotated[
    tuple[Annotated[int, Strict(), Ge(0)], ...], BeforeValidator(_as_channels), AfterValidator(_in_order)
]


class TransformerFeaturesSettings(FeatureSettings):
    """Settings of transformer features. Those not listed here are of :class:`FeatureSettings`.

    Attributes:
        block: whose modulated input is read, from 0 on; FLUX's blocks of two streams first, then those of one. The paper's 28 of FLUX.
        timestep: diffusion time, of 1000. The paper's 260.
        draws: draws of noise that are averaged. The paper's 8.
        discard: massive channels that are set to zero; the paper's 154 and 1446 of FLUX. They differ from model to model; an
            empty list for none.
        guidance: scale that a guidance-distilled model, such as FLUX.1-dev, is told. The paper's 3.5.
        precision: as there, half by default: these models have billions of weights.
    """

    block: Timestep = 28
    timestep: Annotated[int, Strict(), Ge(0)] = 260
    discard: Channels = (154, 1446)
    guidance: Positive = 3.5
    precision: Precision = "bf16"


class Prompt(NamedTuple):
    """What a transformer is told: tokens (1, L, D) and the pooled text (1, P)."""

    tokens: Tensor
    pooled: Tensor


class TransformerFeatures(FeatureMatcher):
    """Compares the features of a diffusion transformer by their cosine.

    Args:
        model: a pipeline folder of SD3 or FLUX as diffusers saves it, or a hub id; ``transformer`` and ``vae`` are read.
        image_size: side in px of what the transformer sees.
        variant: of the weight files.
        prompt_file: a safetensors file with "tokens" (L, D) and "pooled" (P), made once by the pipeline's text encoders; None for zeros.
        device: "auto" takes a GPU where there is one.
        settings: see :class:`TransformerFeaturesSettings`.

    Raises:
        ConfigError: for settings that cannot work, before weights are read.
        WeightsError: for a folder that is no pipeline of SD3 or FLUX, before weights are read.
    """

    settings: TransformerFeaturesSettings

    def __init__(
        self,
        model: str,
        image_size: int = 640,
        variant: str | None = None,
        prompt_file: str | None = None,
        device: str = "auto",
        **settings: Any,
    ) -> None:
        super().__init__(as_device(device), TransformerFeaturesSettings(**settings))
        self.model, self.variant, self.size, self.prompt_file = model, variant, image_size, prompt_file
        self.folder = locate_folder(model, variant, ("transformer", "vae"))
        self.kind = _check_folder(self.folder, variant)
        self._config = _check_parts(self.folder, self.kind)
        _check_settings(self.settings, self._config)
        _check_image_size(image_size, self._config, len(read_config(self.folder, "vae")["block_out_channels"]))
        self._prompt = _read_prompt(prompt_file, self._config)

    def fingerprint(self) -> dict[str, str]:
        """Returns all that decides an answer besides images and points, by field name."""
        told = {"method": f"transformer_features {VERSION}", "kind": self.kind, "image_size": str(self.size)}
        told |= {"weights": parts_digest(self.folder, ("transformer", "vae"), self.variant)}
        told |= {"prompt": "zeros" if self.prompt_file is None else file_digest(Path(self.prompt_file).expanduser())}
        decisive = self.settings.decisive()
        if not self._is_guided:
            del decisive["guidance"]
        return decisive | told

    def _compute(self, image: Tensor, key: str) -> Tensor:
        """See :meth:`teacher.feature_matcher.FeatureMatcher._compute`."""
        latent = self._encode(image)
        settings, share = self.settings, self.settings.timestep / STEPS
        noisy = (1 - share) * latent + share * self._noise(latent, key) if settings.draws else latent
        batches = self._batch.run(lambda rows: self._features(noisy[rows]), len(noisy))
        states = torch.cat([states for states, _ in batches]).float().mean(0, keepdim=True)
        modulated = modulate(self._norm, states, batches[0][1].float(), settings.discard)
        side = round(modulated.shape[1] ** 0.5)
        return F.normalize(modulated[0].T.unflatten(1, (side, side)), dim=0)

    def _features(self, noisy: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what enters the block's norm for the image's tokens (R, S, C), and the embedding (1, C) that modulates it."""
        found: list[tuple[Tensor, Tensor]] = []
        tokens = self._prompt.tokens.shape[1]

        def leave(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            states = given[0]
            found.append((states[:, tokens:] if self._joint else states, named["emb"][:1]))
            raise _BlockReached

        handle = self._norm.register_forward_pre_hook(leave, with_kwargs=True)
        self.passes += len(noisy)
        try:
            with suppress(_BlockReached):
                self._run(noisy.to(self._transformer.dtype))
        finally:
            handle.remove()
        return found[0]

    def _run(self, noisy: Tensor) -> None:
        rows, share = len(noisy), self.settings.timestep / STEPS
        tokens, pooled = (value.to(noisy).expand(rows, *value.shape[1:]) for value in self._prompt)
        common = {"encoder_hidden_states": tokens, "pooled_projections": pooled, "return_dict": False}
        if self.kind == "SD3Transformer2DModel":
            self._transformer(noisy, timestep=noisy.new_full((rows,), float(self.settings.timestep)), **common)
            return
        packed, places = packed_latents(noisy)
        self._transformer(
            packed,
            timestep=noisy.new_full((rows,), share),
            img_ids=places.to(noisy.device, torch.float32),
            txt_ids=torch.zeros(tokens.shape[1], 3, device=noisy.device),
            guidance=noisy.new_full((rows,), self.settings.guidance) if self._is_guided else None,
            **common,
        )

    def _encode(self, image: Tensor) -> Tensor:
        """Returns the latent (1, C, h, w) of ``image`` (3, H, W): posterior mean, shifted and scaled as trained on."""
        square = resize_images(image[None].to(self.device, torch.float32), (self.size, self.size))
        latent = self._vae.encode((square.clamp(0, 1) * 2 - 1).to(self._vae.dtype)).latent_dist.mean.float()
        return (latent - (self._vae.config.shift_factor or 0.0)) * self._vae.config.scaling_factor

    @cached_property
    def _transformer(self) -> Any:
        return load_part(
            KINDS[self.kind], self.folder, "transformer", self.variant, DTYPES[self.settings.precision]
        ).to(self.device)

    @cached_property
    def _vae(self) -> Any:
        return load_part(AutoencoderKL, self.folder, "vae", self.variant, DTYPES[self.settings.precision]).to(
            self.device
        )

    @property
    def _is_guided(self) -> bool:
        """Whether the model is told a scale of guidance, as FLUX.1-dev is, and neither FLUX.1-schnell nor SD3."""
        return bool(self._config.get("guidance_embeds"))

    @property
    def _joint(self) -> bool:
        """Whether the block is one of FLUX's of one stream, in which the prompt's tokens come before the image's."""
        return self.settings.block >= self._config["num_layers"]

    @property
    def _norm(self) -> nn.Module:
        blocks = self._transformer.transformer_blocks
        if self._joint:
            return self._transformer.single_transformer_blocks[self.settings.block - len(blocks)].norm
        return blocks[self.settings.block].norm1


class _BlockReached(Exception):
    """Leaves the forward pass where nothing that follows is needed."""


def modulate(norm: nn.Module, states: Tensor, embedding: Tensor, discard: tuple[int, ...]) -> Tensor:
    """Returns the output (B, S, C) of a block's adaptive layer norm, in single precision, its massive channels silenced.

    Args:
        norm: diffusers' norm, whose first result is LN(x) (1 + scale) + shift.
        states: (B, S, C) that enter it.
        embedding: (B, C) of time and text, from which scale and shift are computed.
        discard: channels of ``states`` that are set to zero first.
    """
    states = states.clone()
    states[..., list(discard)] = 0
    dtype = next(norm.parameters()).dtype
    emb = norm.linear(norm.silu(embedding.to(dtype))).float()  # type: ignore[operator]
    shift, scale = emb.chunk(emb.shape[-1] // states.shape[-1], dim=-1)[:2]  # of every norm of this kind the first two
    normalised = F.layer_norm(states, states.shape[-1:], eps=1e-6)
    return normalised * (1 + scale[:, None]) + shift[:, None]


def packed_latents(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Returns FLUX's tokens (R, h/2 * w/2, 4 C) of latents (R, C, h, w), and their places (h/2 * w/2, 3): 0, row, column."""
    rows, channels, height, width = latents.shape
    patches = latents.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    grid = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    places = torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1)
    return patches.reshape(rows, -1, 4 * channels), places.flatten(0, 1)


def _check_folder(folder: Path, variant: str | None) -> str:
    """Returns the class of the transformer in a pipeline folder, having checked what can be without loading it."""
    if missing := missing_files(folder, ("transformer", "vae"), variant):
        raise WeightsError(
            f"Expected a pipeline of SD3 or FLUX as diffusers saves it in {folder} but it lacks {', '.join(missing)}; copy it whole."
        )
    check_variant(folder, ("transformer", "vae"), variant)
    kind = read_config(folder, "transformer").get("_class_name")
    if not isinstance(kind, str) or kind not in KINDS:
        raise WeightsError(
            f"Expected a transformer of class {' or '.join(KINDS)} in {folder / 'transformer'} but got {kind!r}; teacher=dift reads UNets."
        )
    if read_config(folder, "vae").get("_class_name") != "AutoencoderKL":
        raise WeightsError(f"Expected a VAE of class AutoencoderKL in {folder / 'vae'}; choose another pipeline.")
    for part in ("transformer", "vae"):
        check_not_quantised(read_config(folder, part), folder / part)
        for file in weight_files(folder, part, variant):
            check_tensors(file)
    return str(kind)


def _check_parts(folder: Path, kind: str) -> dict[str, Any]:
    """Returns the configuration of the transformer, its defaults filled in, when it and the VAE suit each other.

    Raises:
        WeightsError: when a configuration describes no model, or they do not suit.
    """
    transformer = dict(meta_model(KINDS[kind], folder, "transformer").config)
    vae = dict(meta_model(AutoencoderKL, folder, "vae").config)
    check_scale(read_config(folder, "vae"), folder)
    if not isinstance(read_config(folder, "vae").get("block_out_channels"), list):
        raise WeightsError(
            f"Expected block_out_channels to be a list in {folder / 'vae' / 'config.json'} but there is none; copy it again."
        )
    reads = transformer["in_channels"] // (
        1 if kind == "SD3Transformer2DModel" else 4
    )  # FLUX's tokens are of 2 x 2 cells
    if vae["latent_channels"] != reads:
        raise WeightsError(
            f"Expected a transformer that reads the VAE's latents of {vae['latent_channels']} channels in {folder / 'transformer'} but "
            f"it reads {reads}; choose a text-to-image pipeline."
        )
    places, width = transformer.get("axes_dims_rope"), transformer["attention_head_dim"]
    if places is not None and sum(places) != width:
        raise WeightsError(
            f"Expected axes_dims_rope in {folder / 'transformer' / 'config.json'} to add up to attention_head_dim={width} but got "
            f"{list(places)}; copy the folder again."
        )
    return transformer


def _check_settings(settings: TransformerFeaturesSettings, config: dict[str, Any]) -> None:
    blocks = config["num_layers"] + config.get("num_single_layers", 0)
    if settings.block >= blocks:
        raise ConfigError(
            f"Expected block of transformer features below {blocks}, this model's, but got {settings.block}."
        )
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if any(channel >= width for channel in settings.discard):
        raise ConfigError(f"Expected discard to name channels below {width} but got {list(settings.discard)}.")
    if settings.timestep > STEPS:
        raise ConfigError(f"Expected timestep of at most {STEPS} but got {settings.timestep}.")


def _check_image_size(image_size: int, config: dict[str, Any], halvings: int) -> None:
    """Raises a :class:`ConfigError` for a side, px, that is no whole number of tokens, or too large for SD3's table of places."""
    cell = 2 ** (halvings - 1)
    unit = cell * (config["patch_size"] if "pos_embed_max_size" in config else 2)
    whole = is_whole(image_size)
    if not whole or image_size <= 0 or image_size % unit:
        raise ConfigError(
            f"Expected image_size to be a multiple of {unit} for this model but got {image_size!r}; round it."
        )
    most = config.get("pos_embed_max_size")
    if most is not None and image_size > most * unit:
        raise ConfigError(
            f"Expected image_size of at most {most * unit} px for this model but got {image_size}; lower it."
        )


def _read_prompt(file: str | None, config: dict[str, Any]) -> Prompt:
    """Returns the prompt that a file holds; without one, a single token of zeros.

    Raises:
        WeightsError: when the file is missing or damaged, holds NaN or infinity, or is of another model.
    """
    width, pooled = config["joint_attention_dim"], config["pooled_projection_dim"]
    if file is None:
        return Prompt(torch.zeros(1, 1, width), torch.zeros(1, pooled))
    try:
        given = load_file(Path(file).expanduser())
        tokens, text = given["tokens"].float(), given["pooled"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise WeightsError(
            f'Expected "tokens" and "pooled" in safetensors in prompt_file {file} but got: {error}.'
        ) from error
    check_finite(given, file)
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != width or text.shape != (pooled,):
        raise WeightsError(
            f"Expected tokens (L, {width}) and pooled ({pooled},) in {file} but got {tuple(tokens.shape)} and {tuple(text.shape)}; make "
            "it with this model's text encoders."
        )
    return Prompt(tokens[None], text[None])
