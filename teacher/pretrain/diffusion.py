"""Second stage: UNet and text encoder learn to denoise the latents of captioned pictures."""

from typing import Any, get_args

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from distill.core.errors import ConfigError, nearest
from teacher.pretrain.latents import encode, tokenize
from teacher.pretrain.optimizer import OptimizerName, build_optimizer
from teacher.pretrain.seeding import DIFFUSION, step_generator
from teacher.pretrain.unet_step import GraphedUNetStep, UNetStep

LOGIT_MEAN, LOGIT_DEVIATION = 0.2, 1.0
"""Of the normal distribution whose sigmoid is a timestep, as a share of all."""


class DiffusionTraining(LightningModule):
    """Trains the UNet and the text encoder together on latents, by denoising alone; the autoencoder stays frozen and outside.

    What is random in a step depends on the seed and the step's number only, so that a training which was interrupted goes
    on exactly. A step whose gradients are not finite changes nothing.

    Args:
        unet: reads latents and prompts.
        text_encoder: turns tokens into prompts.
        tokenizer: turns captions into tokens.
        autoencoder: with its ``scaling_factor`` set; draws the samples.
        scheduler: the noise schedule; epsilon and velocity are understood as targets.
        drop_caption: the share of a batch that is denoised without its captions, for guidance and for a prompt that says
            nothing.
        lr: peak learning rate.
        warmup: steps until it is reached.
        decay: the share of the trainer's steps over which it falls to a hundredth at the end.
        optimizer: "adamw" or "muon", see :func:`teacher.pretrain.optimizer.build_optimizer`.
        beta2: decay a step of AdamW's average of the squared gradients, at least 0 and below 1.
        logit_normal: the chance that a picture with its caption has a timestep from a logit-normal distribution, which prefers the
            middle ones (Esser et al., ICML 2024, arXiv:2403.03206), in place of a uniform one.
        seed: of noise and timesteps.

    Attributes:
        lr_scale: factor on the learning rate, lowered when the weights stopped being finite.
        restarted_at: the step after which the rate warms up anew.

    Raises:
        ConfigError: for an optimiser that is not known.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        autoencoder: AutoencoderTiny,
        scheduler: DDIMScheduler,
        drop_caption: float,
        lr: float,
        warmup: int,
        decay: float,
        optimizer: OptimizerName = "adamw",
        beta2: float = 0.99,
        logit_normal: float = 0.0,
        seed: int = 0,
    ) -> None:
        if optimizer not in get_args(OptimizerName):
            raise ConfigError(
                f"Expected a known diffusion.training.optimizer but got {optimizer!r}; {nearest(optimizer, get_args(OptimizerName))}."
            )
        super().__init__()
        self.automatic_optimization = False  # the gradients come from UNetStep
        self.unet, self.text_encoder = unet, text_encoder
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self._frozen = [autoencoder.eval().requires_grad_(False)]  # in a list: no child, hence in no checkpoint
        self.drop_caption, self.logit_normal, self.seed = drop_caption, logit_normal, seed
        self.lr, self.warmup, self.decay = lr, warmup, decay
        self.optimizer_name, self.beta2 = optimizer, beta2
        self.lr_scale, self.restarted_at = 1.0, 0
        self._unet_step: UNetStep | None = None
        self._empty = tokenize(tokenizer, [""])

    @property
    def autoencoder(self) -> AutoencoderTiny:
        """The frozen autoencoder, on this module's device."""
        return self._frozen[0].to(self.device)

    @property
    def n_timesteps(self) -> int:
        """How many diffusion times there are."""
        return int(self.scheduler.config.num_train_timesteps)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Learns from one batch: "latents" (B, C, s, s), scaled, and "tokens" (B, L)."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        step = self.global_step
        noisy, target, timesteps, tokens = self._noised(batch["latents"].float(), batch["tokens"], step)
        self.text_encoder.zero_grad(set_to_none=True)
        prompts = self.text_encoder(tokens).last_hidden_state.float()
        if self._unet_step is None:
            self._unet_step = (GraphedUNetStep if self.device.type == "cuda" else UNetStep)(self.unet)
        loss, gradient = self._unet_step(noisy, timesteps, prompts.detach(), target)
        prompts.backward(gradient)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self._clip_or_skip(optimizer.optimizer)
        optimizer.step()
        self.log("train/loss", loss.clone(), prog_bar=True)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Logs the loss on pictures that are never trained on, at the same noise and timesteps each time."""
        latents = encode(self.autoencoder, batch["image"])
        tokens = tokenize(self.tokenizer, batch["caption"]).to(self.device)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(latents.shape, generator=generator).to(self.device)
        timesteps = torch.arange(len(latents), device=self.device) * self.n_timesteps // len(latents)
        loss = self.denoising_loss(latents, tokens, noise, timesteps)
        self.log("val/loss", loss, prog_bar=True, batch_size=len(latents))

    def denoising_loss(self, latents: Tensor, tokens: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns the mean squared error of the UNet's answer to noisy latents.

        Args:
            latents: (B, C, s, s), scaled.
            tokens: (B, L).
            noise: like ``latents``.
            timesteps: (B,).
        """
        prompts = self.text_encoder(tokens).last_hidden_state
        noisy, target = self._noise_and_target(latents, noise, timesteps)
        return F.mse_loss(self.unet(noisy, timesteps, prompts).sample.float(), target)

    def _noised(self, latents: Tensor, tokens: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns a step's noisy latents, its targets, timesteps (B,) and tokens (B, L).

        The first of the batch, which is in random order, lose their captions. Their timesteps tend to the early ones, at which the
        teacher reads a model without a caption.
        """
        generator = step_generator(self.device, self.seed, step, DIFFUSION)
        dropped = torch.arange(len(latents), device=self.device) < round(self.drop_caption * len(latents))
        share = self._time_shares(dropped, generator)
        timesteps = (share * self.n_timesteps).long().clamp_(max=self.n_timesteps - 1)
        noise = torch.randn(latents.shape, device=self.device, generator=generator)
        return (
            *self._noise_and_target(latents, noise, timesteps),
            timesteps,
            torch.where(dropped[:, None], self._empty.to(self.device), tokens),
        )

    def _time_shares(self, dropped: Tensor, generator: torch.Generator) -> Tensor:
        """Draws (B,) timesteps as shares of all, in [0, 1], for pictures without caption where ``dropped`` (B,)."""
        uniform = torch.rand(len(dropped), device=self.device, generator=generator)
        told = uniform
        if self.logit_normal:
            normal = torch.randn(len(dropped), device=self.device, generator=generator)
            chosen = torch.rand(len(dropped), device=self.device, generator=generator) < self.logit_normal
            told = torch.where(chosen, (LOGIT_MEAN + LOGIT_DEVIATION * normal).sigmoid(), uniform)
        return torch.where(dropped, uniform.square(), told)

    def _noise_and_target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        return noisy, self.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise

    def _clip_or_skip(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradients' norm at 1; where it is not finite, has the optimiser skip its step.

        The fused AdamW reads ``found_inf`` on the device, as for :class:`torch.amp.GradScaler`: the host waits for nothing.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        torch._foreach_mul_(gradients, (1 / (norm + 1e-6)).clamp(max=1))
        self.log("train/skipped", optimizer.found_inf)  # type: ignore[attr-defined]

    def learning_rate(self, step: int) -> float:
        """Returns the rate of a step: warm-up, a plateau, and a straight fall."""
        steps = int(self.trainer.max_steps)
        left = (steps - step) / max(1, steps * self.decay)
        return self.lr * self.lr_scale * min(1.0, (step - self.restarted_at + 1) / self.warmup, max(0.01, left))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW or Muon."""
        return build_optimizer(self.optimizer_name, self, self.lr, self.beta2)
