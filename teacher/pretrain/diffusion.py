"""Second stage: UNet and text encoder learn to denoise the latents of captioned pictures."""

from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from teacher.crops import crop
from teacher.pretrain.alignment import QueryRecorder, alignment_loss, coverage_loss

VISIBLE = 0.6
"""Share of the diffusion times, from the first on, at which a picture shows enough to be told by its caption."""


class DiffusionTraining(LightningModule):
    """Trains the UNet and the text encoder together on latents; the autoencoder stays frozen and outside.

    Rendering and encoding a picture costs about as much as a training step on it, so each is used several times:
    fresh latents replace the oldest of a pool, and batches are drawn from the pool.

    Args:
        unet: reads latents and prompts.
        text_encoder: turns tokens into prompts.
        tokenizer: turns captions into tokens.
        autoencoder: with its ``scaling_factor`` set.
        scheduler: the noise schedule; epsilon and velocity are understood as targets.
        batch_size: latents of one step.
        pool_size: latents kept.
        zoom: the smallest share of a picture's side that is shown; most pictures are shown whole or nearly so. The
            teacher looks at crops, which must not be strange to the model.
        alignment: weight of the loss that ties words to places, see :mod:`teacher.pretrain.alignment`; 0 leaves it out.
        drop_caption: the share of a batch that is denoised without its captions. That is what classifier-free guidance
            needs, and what the words can be tied to.
        lr: learning rate of AdamW.
        warmup: steps until it is reached.
        decay: the share of the trainer's steps over which it falls to zero at the end.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        autoencoder: AutoencoderTiny,
        scheduler: DDIMScheduler,
        batch_size: int,
        pool_size: int,
        zoom: float,
        alignment: float,
        drop_caption: float,
        lr: float,
        warmup: int,
        decay: float,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self._frozen = [autoencoder.eval().requires_grad_(False)]  # in a list: no child, hence in no checkpoint
        self.batch_size, self.pool = batch_size, LatentPool(pool_size)
        self.zoom, self.alignment, self.drop_caption = zoom, alignment, drop_caption
        self._tape = QueryRecorder(unet)
        self.lr, self.warmup, self.decay = lr, warmup, decay

    @property
    def autoencoder(self) -> AutoencoderTiny:
        """The frozen autoencoder, on this module's device."""
        return self._frozen[0].to(self.device)

    @property
    def n_timesteps(self) -> int:
        """How many diffusion times there are."""
        return int(self.scheduler.config.num_train_timesteps)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Adds fresh pictures to the pool and learns from some of it.

        ``batch`` holds "image" (F, 3, S, S) in [0, 1], "caption", F texts, and "decoys", F times D texts that are wrong.
        """
        captions, decoys = batch["caption"], batch["decoys"]
        texts = [text for own, wrong in zip(captions, decoys, strict=True) for text in (own, *wrong)]
        tokens = self.tokenize(texts).unflatten(0, (len(captions), -1))
        self.pool.add(self.encode(self._zoomed(batch["image"])), tokens)
        latents, tokens = self.pool.draw(self.batch_size)
        share = torch.rand(len(latents), device=self.device)
        untold = torch.arange(len(latents), device=self.device) < round(self.drop_caption * len(latents))
        share = torch.where(untold, share.square(), share)  # words are tied to what can still be seen
        timesteps = (share * self.n_timesteps).long()
        told = torch.where(untold[:, None], self.tokenize([""]), tokens[:, 0])
        loss = self.denoising_loss(latents, told, torch.randn_like(latents), timesteps)
        self.log("train/loss", loss, prog_bar=True)
        visible = untold & (share < VISIBLE)
        if self.alignment == 0 or not visible.any():
            return loss
        telling = self.alignment_loss(tokens[visible], visible)
        self.log("train/alignment", telling, prog_bar=True)
        return loss + self.alignment * telling

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Logs the loss on pictures that are never trained on, at the same noise and timesteps each time."""
        latents, tokens = self.encode(batch["image"]), self.tokenize(batch["caption"])
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
        self._tape.clear()
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        target = self.scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        return F.mse_loss(self.unet(noisy, timesteps, prompts).sample.float(), target)

    def alignment_loss(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Returns how badly words find their places in the latest pass, as a mean over the layers.

        Args:
            tokens: (V, 1 + D, L) of the captions and decoys that the pass did not see, of the pictures that are not lost
                in noise.
            visible: (B,) bool, which of the pass's pictures these are.
        """
        n_pictures = len(tokens)
        tokens = torch.cat([tokens[:, 0], tokens[:, 1:].flatten(0, 1)])
        marks = torch.tensor(self.tokenizer.all_special_ids, device=tokens.device)
        is_word = ~torch.isin(tokens, marks)
        prompts = self.text_encoder(tokens).last_hidden_state
        telling = is_word[:n_pictures] & ~_in_all(tokens[:n_pictures])
        losses = [
            alignment_loss(query[visible], key, tokens, is_word)
            + coverage_loss(query[visible], key[:n_pictures], telling)
            for query, key in self._tape.against(prompts)
        ]
        return torch.stack(losses).mean()

    def _zoomed(self, images: Tensor) -> Tensor:
        """Returns a random crop of each of ``images`` (F, 3, S, S), resized to the whole side."""
        side = 1 - (1 - self.zoom) * torch.rand(len(images), 1, device=images.device).square()
        boxes = torch.cat([torch.rand(len(images), 2, device=images.device) * (1 - side), side], dim=1)
        return torch.cat([crop(image, box[None]) for image, box in zip(images, boxes, strict=True)])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Returns scaled latents (F, C, s, s) of ``images`` (F, 3, S, S) in [0, 1]."""
        latents = self.autoencoder.encode(images * 2 - 1).latents
        return (latents * self.autoencoder.config.scaling_factor).float()

    def tokenize(self, captions: list[str]) -> Tensor:
        """Returns (F, L) token numbers, padded."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return tokens.input_ids.to(self.device)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW; warm-up, a plateau, and a straight fall to zero."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, betas=(0.9, 0.99), weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        fall = max(1, int(steps * self.decay))

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / self.warmup, max(0.0, (steps - step) / fall))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clips the gradient's norm at 1."""
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)


def _in_all(tokens: Tensor) -> Tensor:
    """Returns (B, L), which of ``tokens`` (B, L) are in every row: such a word says nothing of its picture."""
    return (tokens[:, :, None, None] == tokens).any(-1).all(-1)


class LatentPool:
    """The newest latents with the tokens of their captions and decoys, to draw batches from.

    Args:
        capacity: how many are kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.latents: Tensor | None = None
        self.tokens: Tensor | None = None
        self.seen = 0

    def add(self, latents: Tensor, tokens: Tensor) -> None:
        """Puts F latents in the place of the oldest ones."""
        if self.latents is None or self.tokens is None:
            self.latents = latents.new_empty(self.capacity, *latents.shape[1:])
            self.tokens = tokens.new_empty(self.capacity, *tokens.shape[1:])
        places = (torch.arange(len(latents), device=latents.device) + self.seen) % self.capacity
        self.latents[places], self.tokens[places] = latents, tokens
        self.seen += len(latents)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Returns ``count`` of the kept latents and their tokens, drawn with replacement."""
        assert self.latents is not None and self.tokens is not None
        rows = torch.randint(min(self.seen, self.capacity), (count,), device=self.latents.device)
        return self.latents[rows], self.tokens[rows]
