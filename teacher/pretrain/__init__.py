"""Training of a small Stable Diffusion from scratch; needed once, for weights that may be shipped."""

from teacher.pretrain.architecture import (
    build_autoencoder,
    build_scheduler,
    build_text_encoder,
    build_tokenizer,
    build_unet,
)
from teacher.pretrain.autoencoder import AutoencoderTraining, latent_scale, reconstruction_psnr
from teacher.pretrain.callbacks import FiniteWeightAveraging, Snapshot
from teacher.pretrain.diffusion import DiffusionTraining
from teacher.pretrain.latents import LatentBatches, LatentBlocks, LatentStore
from teacher.pretrain.pipeline import save_autoencoder

__all__ = [
    "AutoencoderTraining",
    "DiffusionTraining",
    "FiniteWeightAveraging",
    "LatentBatches",
    "LatentBlocks",
    "LatentStore",
    "Snapshot",
    "build_autoencoder",
    "build_scheduler",
    "build_text_encoder",
    "build_tokenizer",
    "build_unet",
    "latent_scale",
    "reconstruction_psnr",
    "save_autoencoder",
]
