"""The method in plain loops, for measuring the optimisations of the fast implementation.

One prompt and one crop at a time, the whole UNet, every crop encoded anew, no caches: what the released code does, on
current libraries. Given the same settings it draws the same numbers as
:class:`teacher.PromptOptimization` and gives the same answers.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.checks import check_query
from distill.core.errors import ConfigError
from distill.core.geometry import image_size
from distill.core.readout import argmax
from distill.core.types import Matches, PairBatch
from teacher.attention import choose_layers, read_tokens
from teacher.crop_sampling import RandomCropSampler, generator
from teacher.crops import crop_pixels, into_crop
from teacher.pipeline import as_device, check_folder, load_pipeline, locate_folder
from teacher.prompt_optimization import content_hashes
from teacher.settings import Settings
from teacher.source_image import attention_loss, random_prompts
from teacher.target_image import aggregate_maps
from teacher.unet import PromptedUNet

NEEDED = {
    "crop_source": "fresh",
    "crop_edges": "pixels",
    "queries": "conditioned",
    "start": "random",
    "readout": "argmax",
    "early_stop": None,
    "points_per_prompt": 1,
    "crops_per_step": 1,
    "symmetry": "none",
    "consensus": 0.0,
    "map_side": "image",
    "precision": "fp32",
}


class ReferencePromptOptimization:
    """Prompt optimisation in plain loops.

    Args:
        model: a pipeline folder as diffusers saves it, or a hub id.
        image_size: side in px of what the UNet sees; without it, what it was trained at.
        prompt_length: tokens of a prompt; without it, what the tokenizer says.
        device: "auto" takes a GPU where there is one.
        variant: of its weight files, such as "fp16"; without it, the plain files or the only variant there is.
        settings: see :class:`teacher.settings.Settings`; those of the paper, in any number of steps, prompts and crops.

    Raises:
        ConfigError: for settings that only :class:`teacher.PromptOptimization` has.
        WeightsError: for a folder that is not a whole pipeline.
    """

    def __init__(
        self,
        model: str,
        image_size: int | None = None,
        prompt_length: int | None = None,
        device: str = "auto",
        variant: str | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        wrong = [f"{name}={value}" for name, value in NEEDED.items() if getattr(self.settings, name) != value]
        if wrong or not self.settings.starts_at_corners:
            raise ConfigError(
                f"Expected {', '.join(wrong) or 'crops of at least 4 and crop_ratio of at least 0.5'} of the reference implementation; use "
                "teacher=prompt_optimization_paper."
            )
        folder = locate_folder(model, variant)
        check_folder(folder, variant)
        self.device = as_device(device)
        self.pipeline = load_pipeline(str(folder), image_size, prompt_length, device=self.device, variant=variant)
        layers = choose_layers(self.pipeline.unet, self.settings.layers)
        self.unet = PromptedUNet(self.pipeline.unet, layers, self.pipeline.image_size, truncate=False, share=False)

    @property
    def passes(self) -> int:
        """How often a prompt has run through the UNet."""
        return self.unet.passes

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`."""
        check_query(src_img, trg_img, src_kps)
        keys = zip(*map(content_hashes, (src_img, trg_img)), strict=True)
        return self._match(src_img, trg_img, src_kps, list(keys))

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """Matches all points of ``pairs``; of padding it makes points of no meaning."""
        keys = list(zip(pairs.src_hash, pairs.trg_hash, strict=True))
        return self._match(pairs.src_img, pairs.trg_img, pairs.src_kps, keys)

    @torch.inference_mode(False)
    def _match(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor, keys: list[tuple[str, str]]) -> Matches:
        height, width = src_img.shape[-2:]
        maps = []
        for source, target, points, names in zip(src_img, trg_img, src_kps.cpu().float(), keys, strict=True):
            images = (self.pipeline.squash(source)[0], self.pipeline.squash(target)[0])
            maps.append(torch.stack([self._point(images, names, p / torch.tensor([width, height])) for p in points]))
        heatmap = torch.stack(maps)
        best = argmax(heatmap, image_size(trg_img))
        peak = heatmap.amax((-2, -1)) / heatmap.sum((-2, -1))
        return Matches(*(values.to(src_kps.device) for values in (best, peak, heatmap)))

    def _point(self, images: tuple[Tensor, Tensor], keys: tuple[str, str], point: Tensor) -> Tensor:
        """Returns (side, side), the target's map for one point (2,) of the source."""
        settings, pipeline = self.settings, self.pipeline
        x, y = point.tolist()
        shape = (pipeline.prompt_length, pipeline.prompt_width)
        starts = random_prompts(point[None], keys[0], shape, settings)[0].to(self.device)
        maps = []
        for copy, start in enumerate(starts):
            name = (keys[0], round(x, 4), round(y, 4), copy)
            prompt = self._optimise(images[0], keys[0], point.to(self.device), start, name)
            with torch.no_grad():
                maps.append(self._locate(images[1], keys[1], prompt))
        return aggregate_maps(torch.stack(maps)[None], settings.layer_temperature)[0]

    @torch.enable_grad()
    def _optimise(self, image: Tensor, key: str, point: Tensor, start: Tensor, name: tuple) -> Tensor:
        settings = self.settings
        sampler = RandomCropSampler(image.shape[-1], [("crops", name)], settings, self.device, settings.steps)
        prompt = start[None].clone().requires_grad_()
        optimizer = torch.optim.Adam([prompt], lr=settings.lr)
        for step in range(settings.steps):
            box = sampler.at(point[None, None]).boxes
            maps = self._attend(image, key, box, prompt, settings.timestep, (("crops", name), step))
            inside = into_crop(point[None, None], box[:, None])
            loss = attention_loss([m[:, None] for m in maps], inside, settings, self._side)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
        return prompt.detach()

    def _locate(self, image: Tensor, key: str, prompt: Tensor) -> Tensor:
        """Returns (layers, side, side)."""
        settings, side, size = self.settings, self._side, image.shape[-1]
        timestep = settings.timestep if settings.locate_timestep is None else settings.locate_timestep
        sampler = RandomCropSampler(size, [("locate",)], settings, self.device, settings.crops)
        total = torch.zeros(len(self.unet.layers), side, side, device=self.device)
        seen = torch.zeros(side, side, device=self.device)
        for look in range(settings.crops):
            if look < 4:
                box = sampler.numbered(1 + look).boxes
            else:
                box = sampler.at(argmax((total / seen).mean(0)[None, None], (1, 1))).boxes
            left, top, length = (box[0].cpu().double() * side).round().int().tolist()
            part = (..., slice(top, top + length), slice(left, left + length))
            for layer, layer_map in enumerate(self._attend(image, key, box, prompt, timestep, (("locate",), look))):
                enlarged = F.interpolate(layer_map[None], (length, length), mode="bilinear", align_corners=False)
                total[layer][part] += enlarged[0, 0]
            seen[part] += 1
        return total / seen

    def _attend(self, image: Tensor, key: str, box: Tensor, prompt: Tensor, timestep: int, draw: tuple) -> list[Tensor]:
        """Encodes one crop, and returns one (1, h, w) a layer."""
        settings = self.settings
        latent = self.pipeline.encode(crop_pixels(image, box))
        sampler = torch.randn if settings.noise == "gaussian" else torch.rand
        noise = sampler(latent.shape[1:], generator=generator(settings.seed, key, "noise", *draw)).to(latent)
        prefix = self.unet.prefix(self.pipeline.add_noise(latent, noise[None], timestep), timestep)
        recorded = self.unet.record(prefix, torch.zeros(1, dtype=torch.int64, device=self.device), prompt)
        return [
            read_tokens(r.query, r.key, layer.attention.scale, 1, settings.heads == "upper")[:, 0]
            for r, layer in zip(recorded, self.unet.layers, strict=True)
        ]

    @property
    def _side(self) -> int:
        return self.pipeline.image_size
