"""The teacher against the method written out plainly: loops, one prompt at a time, nothing shared with the package.

The plain version is given what is random (starts, crops, noise), and works out everything else from a pipeline's folder
with diffusers' modules and an attention processor of its own.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn import functional as F

from distill.cli.config import compose
from teacher import PromptOptimization, source_image
from teacher.crop_attention import CropAttention
from teacher.feature_cache import FeatureCache, KeyedImage
from teacher.settings import Settings

BETA_START, BETA_END = 0.00085, 0.012
STEPS, SIZE, LENGTH = 10, 64, 7


class Keep:
    """Attention as in the textbook, head by head, that keeps the probabilities of every head."""

    def __init__(self) -> None:
        self.heads: list[torch.Tensor] = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **ignored):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states)[0], attn.to_k(context)[0], attn.to_v(context)[0]
        width = query.shape[-1] // attn.heads
        self.heads, outputs = [], []
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.exp(query[:, part] @ key[:, part].T / math.sqrt(width))
            self.heads.append(scores / scores.sum(1, keepdim=True))
            outputs.append(self.heads[-1] @ value[:, part])
        return attn.to_out[0](torch.cat(outputs, dim=1))[None]


class Plain:
    """The method on one pipeline folder, for one set of settings."""

    def __init__(self, folder, settings: dict) -> None:
        self.settings = settings
        self.unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval().requires_grad_(False)
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").eval().requires_grad_(False)
        quarter = [block.transformer_blocks[0].attn2 for block in self.unet.up_blocks[1].attentions]
        half = [block.transformer_blocks[0].attn2 for block in self.unet.up_blocks[2].attentions]
        self.read = {"paper": quarter + half[:1], "default": half}[settings["name"]]
        self.keepers = [Keep() for _ in self.read]
        for attention, keeper in zip(self.read, self.keepers, strict=True):
            attention.set_processor(keeper)
        betas = np.linspace(BETA_START**0.5, BETA_END**0.5, 1000) ** 2
        self.signal = np.cumprod(1 - betas)

    def maps(self, image, box, noise, timestep: int, prompt) -> list[torch.Tensor]:
        """One square map a layer, of the prompt's second token."""
        seen = self.cut(image, box)
        with torch.no_grad():
            latent = self.vae.encode(seen[None] * 2 - 1).latent_dist.mean * self.vae.config.scaling_factor
        signal = float(self.signal[timestep])
        self.unet(math.sqrt(signal) * latent + math.sqrt(1 - signal) * noise[None], timestep, prompt[None])
        maps = []
        for keeper in self.keepers:
            heads = keeper.heads[len(keeper.heads) // 2 :] if self.settings["heads"] == "upper" else keeper.heads
            mean = sum(head[:, 1] for head in heads) / len(heads)
            side = math.isqrt(len(mean))
            maps.append(mean.reshape(side, side))
        return maps

    def cut(self, image, box):
        left, top, length = (float(value) * SIZE for value in box)
        if self.settings["crop_edges"] == "pixels":
            left, top, length = round(left), round(top), round(length)
            piece = image[:, top : top + length, left : left + length]
            return F.interpolate(piece[None], size=(SIZE, SIZE), mode="bilinear", align_corners=False)[0]
        places = [(i + 0.5) * length / SIZE - 0.5 for i in range(SIZE)]
        return bilinear(image, [top + p for p in places], [left + p for p in places])

    def loss(self, maps, point, box, side: int):
        inside = [(float(p) - float(o)) / float(box[2]) * side for p, o in zip(point, box[:2], strict=True)]
        shift = 0.0 if self.settings["target_cells"] == "corners" else 0.5
        target = torch.zeros(side, side)
        for row in range(side):
            for column in range(side):
                squared = (column + shift - inside[0]) ** 2 + (row + shift - inside[1]) ** 2
                target[row, column] = math.exp(-squared / (2 * (self.settings["sigma"] * side) ** 2))
        enlarged = [
            F.interpolate(m[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0] for m in maps
        ]
        return sum(((e - target) ** 2).mean() for e in enlarged) / len(enlarged)

    def optimise(self, image, point, start, looks, side: int):
        """Adam, by hand; returns the prompt, the first loss and the first gradient."""
        prompt, lr = start.clone(), self.settings["lr"]
        mean, square = torch.zeros_like(prompt), torch.zeros_like(prompt)
        first = None
        for step, (box, noise) in enumerate(looks, start=1):
            free = prompt.clone().requires_grad_()
            loss = self.loss(self.maps(image, box, noise, self.settings["timestep"], free), point, box, side)
            (gradient,) = torch.autograd.grad(loss, free)
            first = first or (float(loss.detach()), gradient)
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.999 * square + 0.001 * gradient**2
            prompt = prompt - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        return prompt, *first

    @torch.no_grad()
    def locate(self, image, prompt, looks, side: int):
        """(layers, side, side), and where the maximum was before each look, in cells."""
        total, count, maxima = np.zeros((len(self.read), side, side)), np.zeros((side, side)), []
        timestep = self.settings["locate_timestep"] or self.settings["timestep"]
        for box, noise in looks:
            if count.min() > 0:
                best = int((total / count).mean(0).argmax())
                maxima.append((best % side + 0.5, best // side + 0.5))
            left, top, length = (float(value) * side for value in box)
            rows = [r for r in range(side) if top - 1e-4 <= r + 0.5 <= top + length + 1e-4]
            columns = [c for c in range(side) if left - 1e-4 <= c + 0.5 <= left + length + 1e-4]
            for layer, seen in enumerate(self.maps(image, box, noise, timestep, prompt)):
                scale = len(seen) / length
                places = ([(c + 0.5 - o) * scale - 0.5 for c in cells] for cells, o in ((rows, top), (columns, left)))
                total[layer][np.ix_(rows, columns)] += bilinear(seen[None], *places)[0].numpy()
            count[np.ix_(rows, columns)] += 1
        return total / count, maxima


def bilinear(image, rows, columns):
    """Reads (C, h, w) between its pixels' centres, whose indices are whole; beyond the border it stays as it is."""
    weights = []
    for places, size in ((rows, image.shape[1]), (columns, image.shape[2])):
        matrix = torch.zeros(len(places), size)
        for i, place in enumerate(places):
            place = min(max(place, 0.0), size - 1.0)
            low = min(int(place), size - 2)
            matrix[i, low], matrix[i, low + 1] = 1 - (place - low), place - low
        weights.append(matrix)
    return torch.einsum("rh,chw,sw->crs", weights[0], image, weights[1])


def final(maps, temperature):
    """(layers, side, side), averaged over the embeddings, to one map."""
    if temperature is None:
        return maps.mean(0)
    softened = [np.exp(m / temperature) / np.exp(m / temperature).sum() for m in maps]
    return np.mean(softened, axis=0)


def windowed(heatmap, relative: float):
    """The mean place, in fractions, in a window of a sixteenth of the side around the maximum."""
    side = len(heatmap)
    best = int(heatmap.argmax())
    total, x, y = 0.0, 0.0, 0.0
    for row in range(side):
        for column in range(side):
            if max(abs(row - best // side), abs(column - best % side)) <= side / 16:
                weight = math.exp((heatmap[row, column] / heatmap.max() - 1) / relative)
                total, x, y = total + weight, x + weight * (column + 0.5), y + weight * (row + 0.5)
    return x / total / side, y / total / side


@pytest.fixture
def record(monkeypatch):
    """Takes down the box and the noise of every prompt at every step: [step][prompt] -> (box, noise)."""
    steps, drawn = [], {}
    noise_of, prepare = FeatureCache.noise, CropAttention.prepare

    def noise(self, shape, *seeds):
        drawn[seeds] = noise_of(self, shape, *seeds)
        return drawn[seeds]

    def take_down(self, plan, first=0):
        answer, (image,) = prepare(self, plan, first), self.images
        held = self.settings.noise_draws
        for place, boxes in enumerate(plan.boxes):
            number = (first + place) % held if held else first + place
            if plan.crop_of is None:
                rows = [drawn[image.key, "noise", name, number] for name in plan.names]
            else:
                rows = [drawn[image.key, "noise", number][crop] for crop in plan.crop_of[place]]
            steps.append(list(zip(boxes, rows, strict=True)))
        return answer

    monkeypatch.setattr(FeatureCache, "noise", noise)
    monkeypatch.setattr(CropAttention, "prepare", take_down)
    return steps


@pytest.fixture
def optimisation(monkeypatch):
    """Takes down what the optimisation starts from, its losses, and its gradients."""
    seen = Optimisation([], [], [])
    descend, loss_of = source_image.SourceImages._descend, source_image.attention_loss

    def watched_descend(self, attention, starts, rows):
        seen.starts.append(starts.clone())
        return descend(self, attention, starts, rows)

    def attention_loss(*arguments):
        loss = loss_of(*arguments)
        seen.losses.append(loss.detach().tolist())
        return loss

    class Adam(torch.optim.Adam):
        def step(self, *arguments):
            seen.gradients.append(self.param_groups[0]["params"][0].grad.clone())
            return super().step(*arguments)

    monkeypatch.setattr(source_image.SourceImages, "_descend", watched_descend)
    monkeypatch.setattr(source_image, "attention_loss", attention_loss)
    monkeypatch.setattr(torch.optim, "Adam", Adam)
    return seen


class Optimisation(NamedTuple):
    starts: list[torch.Tensor]
    losses: list[list[float]]
    gradients: list[torch.Tensor]


@pytest.mark.parametrize(("name", "side"), [("paper", 64), ("default", 16)])
def test_the_teacher_does_what_the_method_says(sd1_folder, make_pairs, record, optimisation, name, side):
    variant = "prompt_optimization_paper" if name == "paper" else "prompt_optimization"
    config = compose("evaluate", [f"matcher={variant}"]).matcher
    settings = {key: value for key, value in config.items() if key in Settings.model_fields}
    settings |= {"steps": STEPS, "crops": 6 if name == "paper" else config.crops, "embeddings": 2}
    if name == "default":  # whose queries, layers and consensus are those that suit the small model
        settings |= {"queries": "conditioned", "layers": ["up@1/2"], "consensus": 0.0}
    teacher = PromptOptimization(str(sd1_folder), prompt_length=LENGTH, device="cpu", **settings)
    plain = Plain(sd1_folder, {**settings, "name": name})
    pair = make_pairs(1, size=SIZE)
    point = pair.src_kps[0] / SIZE
    made = teacher.prompts.at(KeyedImage(pair.src_img[0], pair.src_hash[0]), point)
    maps = teacher.attention_maps(KeyedImage(pair.trg_img[0], pair.trg_hash[0]), made)[0]
    assert len(record) == STEPS + settings["crops"] and teacher.features.model.map_side == side
    every = []
    for row in range(2):
        looks = [look[row] for look in record]
        start = optimisation.starts[0][row]
        found, loss, gradient = plain.optimise(pair.src_img[0], point[0], start, looks[:STEPS], side)
        assert optimisation.losses[0][row] == pytest.approx(loss, rel=1e-4)
        assert relative(optimisation.gradients[0][row], gradient) < 1e-4
        assert relative(made.embedding[0, row] - start, found - start) < 1e-3
        wanted, maxima = plain.locate(pair.trg_img[0], found, looks[STEPS:], side)
        np.testing.assert_allclose(maps[row].numpy(), wanted, atol=1e-5)
        every.append(wanted)
        if name == "paper":
            check_places(maxima, looks[STEPS:], side)
    heatmap = final(np.mean(every, axis=0), settings["layer_temperature"])
    best = int(heatmap.argmax())
    place = (best % side + 0.5) / side, (best // side + 0.5) / side
    if name == "default":
        place = windowed(heatmap, settings["readout_temperature"])
    np.testing.assert_allclose(teacher.match_pairs(pair).trg_kps[0, 0] / SIZE, place, atol=1e-4)


def relative(found, wanted) -> float:
    return float((found - wanted).norm() / wanted.norm())


def check_places(maxima, looks, side: int):
    """The released code's rule for where a crop may start, around the maximum found so far."""
    length = int(SIZE * 0.9316549294381423)
    margin = int(length * 0.15)
    assert len(maxima) >= 2
    for (x, y), (box, _) in zip(maxima, looks[-len(maxima) :], strict=True):
        for place, start in ((x, box[0]), (y, box[1])):
            pixel, first = place * SIZE / side, round(float(start) * SIZE)
            low = int(min(max(0, pixel - length + margin), SIZE - length))
            high = int(min(max(0, pixel - margin), SIZE - length))
            assert low <= first <= high
