"""First stage: the autoencoder between pictures and latents."""

from typing import Any

import torch
from diffusers import AutoencoderTiny
from lightning import LightningModule
from torch import Tensor
from torch.nn import functional as F

from distill.core.schedules import drop_length
from teacher.pretrain.seeding import AUTOENCODER, step_generator


class AutoencoderTraining(LightningModule):
    """Trains an autoencoder on random crops: absolute and squared error of colours, absolute error of their differences.

    The latents are held near unit scale and are disturbed before decoding, so that the diffusion model's small errors
    do not matter: the part that the KL term plays in a variational autoencoder.

    Args:
        autoencoder: a diffusers ``AutoencoderTiny``.
        crop: side in pixels of the crops that are trained on.
        noise: standard deviation of the disturbance; latents have about 1.
        lr: peak learning rate of the one-cycle schedule.
        seed: of crops and disturbance, which depend on it and the step's number only.
    """

    def __init__(self, autoencoder: AutoencoderTiny, crop: int, noise: float, lr: float, seed: int = 0) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.crop, self.noise, self.lr, self.seed = crop, noise, lr, seed

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """``batch["image"]`` is (B, 3, S, S) in [0, 1]."""
        generator = step_generator(self.device, self.seed, self.global_step, AUTOENCODER)
        images = self._random_crop(batch["image"], generator) * 2 - 1
        latents = self.autoencoder.encode(images).latents
        disturbance = torch.randn(latents.shape, generator=generator, device=self.device, dtype=latents.dtype)
        decoded = self.autoencoder.decode(latents + self.noise * disturbance).sample.float()
        colour = F.l1_loss(decoded, images)
        edges = sum(F.l1_loss(decoded.diff(dim=d), images.diff(dim=d)) for d in (-1, -2))
        scale = (latents.float().pow(2).mean() - 1).abs() + latents.float().mean().abs()
        squared = F.mse_loss(decoded, images)
        psnr = -10 * torch.log10(squared.detach() / 4)
        self.log_dict({"train/colour": colour, "train/edges": edges, "train/psnr": psnr}, prog_bar=True)
        return colour + 2 * squared + 0.5 * edges + 0.05 * scale

    def finish(self, images: Tensor) -> float:
        """Ends the training: notes in the autoencoder's configuration what brings latents to unit scale.

        Measured on ``images`` (B, 3, S, S) in [0, 1]; returns the reconstruction's PSNR on them in dB.
        """
        self.autoencoder.eval()
        images = images.to(self.autoencoder.device)
        self.autoencoder.register_to_config(scaling_factor=latent_scale(self.autoencoder, images))
        return reconstruction_psnr(self.autoencoder, images)

    def _random_crop(self, images: Tensor, generator: torch.Generator) -> Tensor:
        room = images.shape[-1] - self.crop + 1
        top, left = torch.randint(room, (2,), generator=generator, device=generator.device).tolist()
        return images[..., top : top + self.crop, left : left + self.crop].contiguous(memory_format=torch.channels_last)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the length of the schedule to this training, which may have other steps than the checkpoint's had."""
        drop_length(checkpoint)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW under a one-cycle schedule over the trainer's steps."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=1e-4)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@torch.no_grad()
def reconstruction_psnr(autoencoder: AutoencoderTiny, images: Tensor) -> float:
    """Returns the mean peak signal-to-noise ratio in dB over ``images`` (B, 3, H, W) in [0, 1]."""
    decoded = autoencoder.decode(autoencoder.encode(images * 2 - 1).latents).sample.clamp(-1, 1) / 2 + 0.5
    return float((-10 * torch.log10((decoded - images).pow(2).mean((1, 2, 3)))).mean())


@torch.no_grad()
def latent_scale(autoencoder: AutoencoderTiny, images: Tensor) -> float:
    """Returns the factor that brings the latents of ``images`` (B, 3, H, W) in [0, 1] to unit deviation."""
    return 1 / float(autoencoder.encode(images * 2 - 1).latents.std())
