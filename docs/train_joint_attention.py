"""Trains the miniature of Stable Diffusion 3 on which ``docs/joint_attention.py`` measures, on one processor core.

LATENTS is the folder of that name that ``pretrain`` writes, AUTOENCODER that of its first stage.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from joint_attention import CAPTION, WIDTH, Joint, as_map, build, run
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.geometry import sample_at
from distill.data.datasets.shapes import ShapesPairs
from teacher.pretrain.latents import BLOCK, encode


class Captions(nn.Module):
    """A table of token embeddings with positions: what a miniature reads text with.

    Args:
        vocabulary: number of tokens.
        length: tokens of a caption.
    """

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, WIDTH), nn.Parameter(torch.zeros(length, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns embeddings (B, L, C) of token numbers (B, L)."""
        return self.tokens(tokens) + self.places


def train(given: argparse.Namespace) -> None:
    """Trains a miniature for a while, and writes the average of its weights.

    Flow matching on captioned pictures, as Stable Diffusion 3, alone needs far more pictures than a processor core can show, so the
    states that enter the last block also learn to match annotated points of training pairs (cross-entropy over the target's cells).
    """
    latents, tokens = (np.load(given.latents / f"{name}.npy", mmap_mode="r") for name in ("latents", "tokens"))
    made = np.flatnonzero(np.load(given.latents / "made.npy").repeat(BLOCK))
    autoencoder = AutoencoderTiny.from_pretrained(given.autoencoder).eval().requires_grad_(False)
    annotated = AnnotatedPairs(autoencoder, given.pairs)
    model = build(latents.shape[-1], latents.shape[1], given.layers, given.seed)
    for module in model.modules():  # adaLN-Zero (Peebles and Xie, 2023): each block begins as the identity
        if type(module).__name__.startswith("AdaLayerNorm"):
            nn.init.zeros_(module.linear.weight)
            nn.init.zeros_(module.linear.bias)
    both = nn.ModuleDict({"model": model, "text": Captions(int(tokens[made].max()) + 1, tokens.shape[1])})
    average = torch.optim.swa_utils.AveragedModel(both, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.98))
    optimiser = torch.optim.AdamW(both.parameters(), lr=given.lr, betas=(0.9, 0.99), fused=True)
    rng, began, step, losses = np.random.default_rng(given.seed), time.monotonic(), 0, []
    while (share := (time.monotonic() - began) / (60 * given.minutes)) < 1:
        for group in optimiser.param_groups:
            group["lr"] = given.lr * min(1.0, (step + 1) / 50, (1 - share) / 0.3)
        rows = np.sort(rng.choice(made, given.batch_size))
        shown, told = torch.from_numpy(latents[rows]).float(), torch.from_numpy(tokens[rows]).long()
        parts = flow_loss(model, both["text"](told), shown), annotated.loss(model, rng, given.batch_size // 2)
        optimiser.zero_grad()
        (parts[0] + parts[1]).backward()
        if nn.utils.clip_grad_norm_(both.parameters(), 1.0).isfinite():
            optimiser.step()
        average.update_parameters(both)
        losses.append([part.item() for part in parts])
        step += 1
        if step % 20 == 0:
            print(
                f"{step} steps, {60 * given.minutes * share:.0f} s, losses {np.mean(losses[-20:], axis=0)}", flush=True
            )
            average.module["model"].save_pretrained(given.model)
    average.module["model"].save_pretrained(given.model)
    print(f"{step} steps, {len(made)} captioned pictures, last losses {np.mean(losses[-50:], axis=0)}")


def flow_loss(model: SD3Transformer2DModel, told: Tensor, latents: Tensor) -> Tensor:
    """Returns the mean squared error of the predicted velocity from image to noise, captions dropped for 15 %."""
    share = torch.sigmoid(torch.randn(len(latents)))
    noise, at = torch.randn_like(latents), share[:, None, None, None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(
            (1 - at) * latents + at * noise,
            encoder_hidden_states=told * (torch.rand(len(latents)) > 0.15)[:, None, None],
            pooled_projections=latents.new_zeros(len(latents), model.config.pooled_projection_dim),
            timestep=1000 * share,
            return_dict=False,
        )[0]
    return F.mse_loss(found.float(), noise - latents)


class AnnotatedPairs:
    """Training pairs of the procedural world, encoded once.

    Args:
        autoencoder: the first stage.
        number: of pairs.
    """

    def __init__(self, autoencoder: AutoencoderTiny, number: int) -> None:
        pairs = ShapesPairs(split="train", n_pairs=number, size=128, seed=0, difficulty="medium")
        self.rows = []
        for index in range(number):
            pair = pairs[index]
            known = pair.kps_mask[0]
            sides = encode(autoencoder, torch.cat([pair.src_img, pair.trg_img]))
            self.rows.append((sides, pair.src_kps[0, known] / 128, pair.trg_kps[0, known] / 128))

    def loss(self, model: SD3Transformer2DModel, rng: np.random.Generator, number: int) -> Tensor:
        """Returns the cross-entropy of the cells of annotated points, by the cosines of what enters the last block's attention."""
        chosen = [self.rows[index] for index in rng.choice(len(self.rows), number, replace=False)]
        latents = torch.cat([sides for sides, _, _ in chosen])
        timestep = int(rng.integers(0, 200))
        noisy = latents + timestep / 1000 * (torch.randn_like(latents) - latents)
        seen = [Joint() for _ in model.transformer_blocks]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run(model, noisy, noisy.new_zeros(len(noisy), CAPTION, WIDTH), timestep, seen)
        maps = F.normalize(as_map(seen[-1].states.float()), dim=1)
        losses = []
        for (_, src, trg), src_map, trg_map in zip(chosen, maps[::2], maps[1::2], strict=True):
            side = maps.shape[-1]
            cells = (trg * side).long().clamp(0, side - 1)
            cosines = sample_at(src_map[None], src[None], (1, 1))[0] @ trg_map.flatten(1)
            losses.append(F.cross_entropy(cosines / 0.05, cells[:, 1] * side + cells[:, 0]))
        return torch.stack(losses).mean()


def main() -> None:
    """Runs what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("latents", type=Path)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--minutes", type=float, default=22, help="the rate rises over 50 steps, and falls over the last 30 %%"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="captioned pictures a step; as many images of pairs")
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
