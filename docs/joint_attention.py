"""Whether prompt optimisation carries over to joint attention, measured on a miniature of Stable Diffusion 3.

In a transformer with joint attention the image's tokens attend to the text's, so a prompt changes the image's features. A concept
token that only attends (Helbling et al., "ConceptAttention", ICML 2025) changes nothing: the image's queries, keys, values and
outputs are computed once. The experiment optimises such tokens, and the same tokens in full joint attention.

    python docs/train_joint_attention.py LATENTS AUTOENCODER MODEL    # the first two as pretrain writes them
    python docs/joint_attention.py AUTOENCODER MODEL

What was found: docs/results/teacher.md.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import AutoencoderTiny, SD3Transformer2DModel
from torch import Tensor
from torch.nn import functional as F

from distill.core.geometry import image_size, sample_at
from distill.core.readout import windowed_soft_argmax
from distill.core.types import Matches
from distill.data.datasets.shapes import ShapesPairs
from distill.evaluation.evaluate import Evaluation, evaluate
from distill.matchers.box_relative import BoxRelative
from teacher.pretrain.latents import encode
from teacher.settings import Settings
from teacher.source_image import attention_loss
from teacher.target_image import read_out

WIDTH, HEAD = 128, 32
CAPTION = 24
"""Tokens of a caption; without one they are zeros, in training for 15 % of the pictures, and always when points are matched."""

Score = Literal["key", "query", "output"]


def build(side: int, channels: int, layers: int, seed: int) -> SD3Transformer2DModel:
    """Returns a miniature with random weights for latents (channels, side, side)."""
    torch.manual_seed(seed)
    return SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=layers,
        attention_head_dim=HEAD,
        num_attention_heads=WIDTH // HEAD,
        joint_attention_dim=WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=8,
        pos_embed_max_size=side // 2,
        qk_norm="rms_norm",
    )


def as_map(states: Tensor) -> Tensor:
    """Returns states (B, S, C) of the image's tokens as maps (B, C, s, s)."""
    side = round(states.shape[1] ** 0.5)
    return states.mT.unflatten(2, (side, side))


class Joint:
    """diffusers' joint attention, written out, which keeps what was computed.

    Attributes:
        image: queries, keys and values of the image's tokens, each (B, heads, S, d).
        text: the same of the text's.
        outputs: of image and text, (B, heads, S + L, d), before they are projected.
        states: of the image that entered, behind the adaptive norm, (B, S, C).
    """

    image: tuple[Tensor, Tensor, Tensor]
    text: tuple[Tensor, Tensor, Tensor]
    outputs: Tensor
    states: Tensor

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Attends; what diffusers asks of a processor."""
        self.states = hidden_states
        self.image, self.text = projected(attn, hidden_states, False), projected(attn, encoder_hidden_states, True)
        query, key, value = (torch.cat(both, dim=2) for both in zip(self.image, self.text, strict=True))
        self.outputs = F.scaled_dot_product_attention(query, key, value)
        return leave(attn, self.outputs, hidden_states.shape[1])


class Attending:
    """Joint attention of concept tokens that see the image, its caption and themselves, and that nothing sees.

    Args:
        seen: the attention of the same block in the pass of the image, which is not run again.
        draw: which row of that pass.

    Attributes:
        text: queries, keys and values of the concepts, each (1, heads, N, d).
        outputs: (1, heads, N, d).
    """

    text: tuple[Tensor, Tensor, Tensor]
    outputs: Tensor

    def __init__(self, seen: Joint, draw: int) -> None:
        rows = slice(draw, draw + 1)
        _, self.keys, self.values = (
            torch.cat([image[rows], text[rows]], dim=2) for image, text in zip(seen.image, seen.text, strict=True)
        )

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Attends; what diffusers asks of a processor."""
        query, key, value = self.text = projected(attn, encoder_hidden_states, True)
        scale = query.shape[-1] ** -0.5
        logits = torch.cat([query @ self.keys.mT, (query * key).sum(-1, keepdim=True)], dim=-1) * scale
        weights = logits.softmax(-1)
        self.outputs = weights[..., :-1] @ self.values + weights[..., -1:] * value
        return leave(attn, self.outputs, 0)


def projected(attn: Any, states: Tensor, text: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Returns queries, keys and values (B, heads, L, d) of tokens (B, L, C)."""
    layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj) if text else (attn.to_q, attn.to_k, attn.to_v)
    norms = (attn.norm_added_q, attn.norm_added_k) if text else (attn.norm_q, attn.norm_k)
    query, key, value = (layer(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers)
    return norms[0](query), norms[1](key), value


def leave(attn: Any, outputs: Tensor, n_image: int) -> tuple[Tensor, Tensor]:
    """Returns what the block goes on with, of the image's ``n_image`` tokens and of the text's."""
    joined = outputs.transpose(1, 2).flatten(2)
    image, text = joined[:, :n_image], joined[:, n_image:]
    return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


@contextmanager
def processors(model: SD3Transformer2DModel, replaced: list[Any]) -> Iterator[None]:
    """Lets the first blocks attend with the given processors."""
    blocks = list(zip(model.transformer_blocks, replaced, strict=False))
    before = [block.attn.processor for block, _ in blocks]
    for block, processor in blocks:
        block.attn.processor = processor
    try:
        yield
    finally:
        for (block, _), processor in zip(blocks, before, strict=True):
            block.attn.processor = processor


def attention_map(score: Score, image: Joint, concept: Joint | Attending, tokens: slice, row: slice) -> Tensor:
    """Returns maps (N, s, s) over the image's tokens, in [0, 1].

    Args:
        score: "key": the share of the image's attention that goes to the concept, as in prompt optimisation of a UNet; were the image
            to attend to it, where it does not. "query": the concept's attention over the image, of peak 1. "output": the cosine
            of both outputs (ConceptAttention), as exp(10 (cos - 1)).
        image: of the pass in which the image was computed.
        concept: of the pass in which the concepts were.
        tokens: the concepts among the text of ``concept``.
        row: of ``image``, one for all concepts or one for each.
    """
    (q_image, k_image, _), n_image = (value[row] for value in image.image), image.image[0].shape[2]
    q_text, k_text, _ = (value[:, :, tokens] for value in concept.text)
    scale = q_image.shape[-1] ** -0.5
    if score == "query":
        weights = (q_text @ k_image.mT * scale).softmax(-1).mean(1)
        maps = weights / weights.amax(-1, keepdim=True)
    elif score == "key":
        others = torch.cat([k_image, image.text[1][row][:, :, :CAPTION]], dim=2)
        total = (q_image @ others.mT * scale).logsumexp(-1)[:, :, None]
        maps = torch.sigmoid(k_text @ q_image.mT * scale - total).mean(1)
    else:
        ours = concept.outputs[:, :, -concept.text[0].shape[2] :][:, :, tokens].transpose(1, 2).flatten(2)
        theirs = image.outputs[row][:, :, :n_image].transpose(1, 2).flatten(2)
        maps = torch.exp(10 * (F.normalize(ours, dim=-1) @ F.normalize(theirs, dim=-1).mT - 1))
    side = round(n_image**0.5)
    return maps.flatten(0, 1).unflatten(-1, (side, side))


class Concepts:
    """Matches by concept tokens that are optimised until a map peaks at the source point.

    Args:
        model: the miniature.
        autoencoder: its first stage.
        block: whose attention is read.
        timestep: diffusion time, of 1000.
        score: which map, see :func:`attention_map`.
        joint: whether the image attends to the concept and is computed anew in every step, one pass for each point, or
            the concept only attends.
        lr: learning rate of Adam.
        steps: of Adam.
        draws: of noise; a step sees one of them, the target all.
    """

    def __init__(
        self,
        model: SD3Transformer2DModel,
        autoencoder: AutoencoderTiny,
        block: int,
        timestep: int,
        score: Score,
        joint: bool,
        lr: float = 0.2,
        steps: int = 50,
        draws: int = 4,
    ) -> None:
        self.model, self.autoencoder, self.block, self.timestep = model, autoencoder, block, timestep
        self.score, self.joint, self.lr, self.steps, self.draws = score, joint, lr, steps, draws
        self.settings = Settings()

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs; see :class:`distill.core.protocols.Matcher`."""
        rows = [self._match(*row) for row in zip(src_img, trg_img, src_kps, strict=True)]
        points, heatmap = (torch.stack(values) for values in zip(*rows, strict=True))
        return Matches(points, heatmap.amax((-2, -1)).clamp(0, 1), heatmap)

    def _match(self, src_img: Tensor, trg_img: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        width, height = src_img.shape[-1], src_img.shape[-2]
        with torch.enable_grad():
            concept = self.optimise(src_img, points / points.new_tensor([width, height]))
        with torch.no_grad():
            maps = self.maps_of(trg_img)
            heatmap = torch.stack([maps(concept, draw) for draw in range(self.draws)]).mean(0)
            heatmap = F.interpolate(heatmap[None], scale_factor=2, mode="bilinear", align_corners=False)
        found = read_out(heatmap, self.settings)[0] * points.new_tensor([trg_img.shape[-1], trg_img.shape[-2]])
        return found, heatmap[0]

    def optimise(self, image: Tensor, points: Tensor) -> Tensor:
        """Returns concepts (N, C) for points (N, 2), in fractions of the sides of ``image`` (3, H, W)."""
        with torch.no_grad():
            maps = self.maps_of(image)
        start = torch.randn(len(points), WIDTH, generator=torch.Generator().manual_seed(0))
        concept = start.requires_grad_()
        optimiser = torch.optim.Adam([concept], lr=self.lr)
        for step in range(self.steps):
            found = maps(concept, step % self.draws)
            loss = attention_loss([found[:, None]], points[:, None], self.settings, 2 * found.shape[-1])
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
        return concept.detach()

    def maps_of(self, image: Tensor) -> Any:
        """Returns a function that gives maps (N, s, s) of concepts (N, C) at a draw of noise, the image computed as ``joint`` says."""
        noisy = noisy_latents(self.autoencoder, image, self.timestep, self.draws)
        if self.joint:
            return lambda concept, draw: self._jointly(noisy[draw], concept)
        seen = [Joint() for _ in range(self.block + 1)]
        run(self.model, noisy, noisy.new_zeros(self.draws, CAPTION, WIDTH), self.timestep, seen)
        return lambda concept, draw: self._alone(seen, draw, concept)

    def _jointly(self, noisy: Tensor, concept: Tensor) -> Tensor:
        """Runs the image with each concept in its prompt."""
        text = torch.cat([noisy.new_zeros(len(concept), CAPTION, WIDTH), concept[:, None]], dim=1)
        seen = [Joint() for _ in range(self.block + 1)]
        run(self.model, noisy.expand(len(concept), *noisy.shape), text, self.timestep, seen)
        return attention_map(self.score, seen[-1], seen[-1], slice(CAPTION, None), slice(None))

    def _alone(self, seen: list[Joint], draw: int, concept: Tensor) -> Tensor:
        """Runs the concepts alone through the blocks."""
        attending = [Attending(one, draw) for one in seen]
        run(self.model, None, concept[None], self.timestep, attending)
        return attention_map(self.score, seen[-1], attending[-1], slice(None), slice(draw, draw + 1))


def run(model: SD3Transformer2DModel, noisy: Tensor | None, text: Tensor, timestep: int, kept: list[Any]) -> None:
    """Runs tokens through the first blocks, as many as there are processors in ``kept``.

    Args:
        model: the miniature.
        noisy: latents (B, C, s, s); None for text alone, whose processors know the image.
        text: embeddings (B, L, C).
        timestep: diffusion time, of 1000.
        kept: the processors.
    """
    rows = len(text)
    image = text.new_zeros(rows, 0, WIDTH) if noisy is None else model.pos_embed(noisy)
    pooled = text.new_zeros(rows, model.config.pooled_projection_dim)
    emb, states = model.time_text_embed(text.new_full((rows,), float(timestep)), pooled), model.context_embedder(text)
    with processors(model, kept):
        for block in model.transformer_blocks[: len(kept)]:
            states, image = block(hidden_states=image, encoder_hidden_states=states, temb=emb)


@torch.no_grad()
def noisy_latents(autoencoder: AutoencoderTiny, image: Tensor, timestep: int, draws: int) -> Tensor:
    """Returns latents (draws, C, s, s) of ``image`` (3, H, W) with noise, on the straight line of flow matching."""
    share, latent = timestep / 1000, encode(autoencoder, image[None])
    noise = torch.randn(draws, *latent.shape[1:], generator=torch.Generator().manual_seed(1))
    return (1 - share) * latent + share * noise


class Nearest:
    """Nearest neighbours among the states that enter a block's attention, averaged over draws of noise.

    Args:
        model: the miniature.
        autoencoder: its first stage.
        block: whose input is compared.
        timestep: diffusion time, of 1000.
        draws: of noise.
    """

    def __init__(
        self, model: SD3Transformer2DModel, autoencoder: AutoencoderTiny, block: int, timestep: int, draws: int = 4
    ) -> None:
        self.model, self.autoencoder, self.block, self.timestep, self.draws = model, autoencoder, block, timestep, draws

    @torch.no_grad()
    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs; see :class:`distill.core.protocols.Matcher`."""
        src, trg = (torch.stack([self.describe(image) for image in images]) for images in (src_img, trg_img))
        queries = F.normalize(sample_at(src, src_kps, image_size(src_img)), dim=-1)
        heatmap = torch.einsum("bnc,bchw->bnhw", queries, trg)
        found = windowed_soft_argmax(heatmap, image_size(trg_img), 0.05, 2.0)
        return Matches(found, ((1 + heatmap.amax((-2, -1))) / 2).clamp(0, 1), heatmap)

    def describe(self, image: Tensor) -> Tensor:
        """Returns descriptors of length 1, (C, s, s)."""
        noisy = noisy_latents(self.autoencoder, image, self.timestep, self.draws)
        seen = [Joint() for _ in range(self.block + 1)]
        run(self.model, noisy, noisy.new_zeros(self.draws, CAPTION, WIDTH), self.timestep, seen)
        return F.normalize(as_map(seen[-1].states.mean(0, keepdim=True))[0], dim=0)


def measure(given: argparse.Namespace) -> None:
    """Prints a row for each way of matching on the trained miniature, then on one with random weights."""
    autoencoder = AutoencoderTiny.from_pretrained(given.autoencoder).eval().requires_grad_(False)
    trained = SD3Transformer2DModel.from_pretrained(given.model).eval().requires_grad_(False)
    config = trained.config
    random = build(config.sample_size, config.in_channels, config.num_layers, 0).eval().requires_grad_(False)
    pairs = ShapesPairs(split=given.split, n_pairs=given.pairs, size=128, seed=0, difficulty="medium")
    print(row_of("relative position in the box", evaluate(BoxRelative(), pairs, "box", 1, progress=False)), flush=True)
    for name, model in (("trained", trained), ("random", random)):
        for block in given.blocks:
            for timestep in given.timesteps:
                of_block = (model, autoencoder, block, timestep)
                found = evaluate(Nearest(*of_block), pairs, "nearest", 1, progress=False)
                print(row_of(f"{name}, block {block}, time {timestep}: nearest neighbour", found), flush=True)
                for score in given.scores:
                    matcher = Concepts(*of_block, score, False, given.lr)
                    alone = evaluate(matcher, pairs, score, 1, progress=False)
                    told = row_of(f"{name}, block {block}, time {timestep}: {score}, once", alone)
                    print(f"{told} {found_again(matcher, pairs):.1f} % found in the source itself", flush=True)
                    if given.joint:
                        joint = evaluate(Concepts(*of_block, score, True, given.lr), pairs, score, 1, progress=False)
                        near = np.concatenate(alone.near(joint.predictions, 0.10)).mean()
                        told = row_of(f"{name}, block {block}, time {timestep}: {score}, joint", joint)
                        print(f"{told} {100 * near:.1f} % within 0.10 of those computed once", flush=True)


def found_again(matcher: Concepts, pairs: ShapesPairs) -> float:
    """Returns how many percent of the source points are found in their own image, within 0.10 of the pair's tolerance base."""
    near = []
    for pair in (pairs[index] for index in range(len(pairs))):
        points = pair.src_kps[:, pair.kps_mask[0]]
        distance = (matcher(pair.src_img, pair.src_img, points).trg_kps - points).norm(dim=-1)
        near.append(distance[0] <= 0.10 * pair.pck_threshold)
    return 100 * torch.cat(near).double().mean().item()


def row_of(name: str, found: Evaluation) -> str:
    """Returns a row of a table: PCK@0.05 and @0.10 per image, the interval of the latter, and seconds a point."""
    report = found.report
    pck, (low, high) = report["pck"]["image"], report["interval@0.10"]
    seconds = report["latency_ms"] * report["n_pairs"] / 1000 / report["n_points"]
    return f"| {name} | {pck['0.05']:.1f} | {pck['0.10']:.1f} | {low:.1f} to {high:.1f} | {seconds:.3f} |"


def main() -> None:
    """Runs what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("autoencoder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[2], help="from 0 on; states that enter block 2 were trained to match"
    )
    parser.add_argument("--timesteps", type=int, nargs="+", default=[50])
    parser.add_argument("--scores", nargs="+", choices=["key", "query", "output"], default=["key", "query", "output"])
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument(
        "--joint", action="store_true", help="also with the image computed anew for each point and step"
    )
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
