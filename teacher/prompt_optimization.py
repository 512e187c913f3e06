"""Semantic correspondence by prompt optimisation (Hedlin et al., NeurIPS 2023, arXiv 2305.15581).

A prompt is optimised until a frozen Stable Diffusion attends with it to the query point of the source image; where the
same prompt's attention peaks in the target image is the match.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import asdict
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.checks import check_images, check_query
from distill.errors import ConfigError
from distill.geometry import cell_centres
from distill.readout import argmax, windowed_soft_argmax
from distill.types import Matches, PairBatch
from teacher.attention import choose_layers
from teacher.locate import combine, locate
from teacher.optimise import optimise_prompts, random_starts
from teacher.pipeline import Pipeline, check_folder, load_pipeline, locate_folder, weights_digest
from teacher.settings import Settings
from teacher.text import encode_text
from teacher.unet import PromptedUNet
from teacher.views import ConditionedViews, FrozenViews, NoisyCrops, Views

Value = TypeVar("Value")
VERSION = "1"
"""Raised whenever a change of the code changes answers, so that old labels are refused."""

CONFIDENCE_RADIUS = 0.1
FROZEN_DRAWS = 4


class PromptOptimization:
    """The teacher: a matcher that needs no training and no annotation, and much time.

    What is random depends on the seed, the image and the point only: an answer is the same whatever else is asked in
    the same call. The prompts of a source point are kept and serve all targets. Weights are loaded at the first use.

    Args:
        model: a pipeline folder as diffusers saves it, or a hub id.
        image_size: side in px of what the UNet sees; without it, what it was trained at.
        prompt_length: tokens of a prompt; without it, what the tokenizer says.
        device: "auto" takes a GPU where there is one.
        chunk: prompts that run through the UNet together; bounds the memory, does not change the answers.
        kept_points: how many source points' prompts are kept in memory.
        kept_images: how many images' encoded crops are kept in memory.
        settings: see :class:`teacher.settings.Settings`.

    Raises:
        ConfigError: for settings that cannot work, before weights are read.
        WeightsError: for a folder that is not a whole pipeline, before weights are read.
    """

    def __init__(
        self,
        model: str,
        image_size: int | None = None,
        prompt_length: int | None = None,
        device: str = "auto",
        chunk: int = 32,
        kept_points: int = 4096,
        kept_images: int = 64,
        **settings: Any,
    ) -> None:
        if chunk < 1:
            raise ConfigError(f"Expected chunk, the prompts that run together, to be at least 1 but got {chunk}.")
        self.settings = Settings.of(**settings)
        self.model, self.image_size, self.prompt_length, self.chunk = model, image_size, prompt_length, chunk
        self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        self.folder = locate_folder(model)
        check_folder(self.folder)
        self._prompts: Recent[Tensor] = Recent(kept_points)
        self._views: Recent[Views] = Recent(kept_images)

    def fingerprint(self) -> dict[str, str]:
        """Returns all that decides an answer besides images and points, by field name."""
        fields = {name: str(value) for name, value in asdict(self.settings).items()}
        return fields | {
            "method": f"prompt_optimization {VERSION}",
            "weights": weights_digest(self.folder),
            "image_size": str(self.image_size or "the model's"),
            "prompt_length": str(self.prompt_length or "the model's"),
        }

    @property
    def n_parameters(self) -> int:
        """How many numbers the frozen model has, without its text side, which is not used."""
        parts = (self.pipeline.unet, self.pipeline.vae.encoder)
        return sum(value.numel() for part in parts for value in part.parameters())

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.protocols.Matcher`.

        Raises:
            DataError: for images or points that are not as the contract says.
        """
        check_query(src_img, trg_img, src_kps)
        everything = torch.ones(src_kps.shape[:2], dtype=torch.bool)
        return self._match(src_img, trg_img, src_kps, everything, *map(_content_hashes, (src_img, trg_img)))

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """Matches all points of ``pairs``, which name their images' content."""
        check_images(pairs.src_img, "src_img")
        check_images(pairs.trg_img, "trg_img")
        return self._match(
            pairs.src_img, pairs.trg_img, pairs.src_kps, pairs.kps_mask.cpu(), pairs.src_hash, pairs.trg_hash
        )

    @torch.inference_mode(False)  # whoever asks may be in it, and the optimisation needs gradients
    @torch.no_grad()
    def _match(
        self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor, mask: Tensor, src_keys: list[str], trg_keys: list[str]
    ) -> Matches:
        height, width = src_img.shape[-2:]
        fractions = (src_kps.cpu().float() / torch.tensor([width, height])).double()
        answers = {}
        for row in mask.any(1).nonzero()[:, 0].tolist():
            prompts = self.prompts_for(src_img[row], src_keys[row], fractions[row, mask[row]].float())
            answers[row] = self.find(trg_img[row], trg_keys[row], prompts)
        return _padded(answers, mask, src_kps, (trg_img.shape[-2], trg_img.shape[-1]))

    def prompts_for(self, image: Tensor, key: str, points: Tensor) -> Tensor:
        """Returns the prompts (N, E, L, D) of points (N, 2), x, y in fractions of the sides of ``image`` (3, H, W)."""
        names = [(key, round(x, 4), round(y, 4)) for x, y in points.tolist()]
        missing = [i for i, name in enumerate(names) if name not in self._prompts]
        known = {name: self._prompts[name] for name in names if name in self._prompts}
        if missing:
            known |= dict(zip((names[i] for i in missing), self._optimise(image, key, points[missing]), strict=True))
        for name, prompts in known.items():
            self._prompts[name] = prompts
        return torch.stack([known[name] for name in names])

    def find(self, image: Tensor, key: str, prompts: Tensor) -> Matches:
        """Returns where prompts (N, E, L, D) light up in ``image`` (3, H, W): one pair of N points, in fractions."""
        settings, side = self.settings, self._map_side
        views = self._views_of(
            image, key, settings.timestep if settings.locate_timestep is None else settings.locate_timestep
        )
        rows = prompts.flatten(0, 1).split(self.chunk)
        maps = torch.cat([locate(views, chunk, settings, side) for chunk in rows])
        heatmap = combine(maps.unflatten(0, prompts.shape[:2]), settings.layer_temperature)[None]
        if settings.readout == "argmax":
            points = argmax(heatmap, (1, 1))
        else:
            temperature = settings.readout_temperature * heatmap.amax((-2, -1), keepdim=True).flatten(2)
            points = windowed_soft_argmax(heatmap, (1, 1), temperature, radius_cells=side / 16)
        small = settings.heatmap_side or side // 2
        return Matches(points, peak_mass(heatmap, points), F.adaptive_avg_pool2d(heatmap, small))

    def _optimise(self, image: Tensor, key: str, points: Tensor) -> Tensor:
        views = self._views_of(image, key, self.settings.timestep)
        shape = (self.pipeline.prompt_length, self.pipeline.prompt_width)
        points, copies = points.to(self.device), self.settings.embeddings
        starts = random_starts(points, key, shape, self.settings)
        names = [(key, round(x, 4), round(y, 4), copy) for x, y in points.tolist() for copy in range(copies)]
        targets, rows = points.repeat_interleave(copies, 0), starts.flatten(0, 1)
        chunks = [slice(first, first + self.chunk) for first in range(0, len(names), self.chunk)]
        prompts = [
            optimise_prompts(views, targets[c], rows[c], names[c], self.settings, self._map_side) for c in chunks
        ]
        return torch.cat(prompts).unflatten(0, starts.shape[:2])

    def _views_of(self, image: Tensor, key: str, timestep: int) -> Views:
        def look() -> Views:
            size = self.pipeline.image_size
            resized = image[None].to(self.device, torch.float32)
            if resized.shape[-2:] != (size, size):
                resized = F.interpolate(resized, (size, size), mode="bilinear", antialias=True, align_corners=False)
            crops = NoisyCrops(self.pipeline, self.settings, resized[0].clamp(0, 1), key, timestep)
            if self.settings.queries == "conditioned":
                return ConditionedViews(self._unet, crops)
            return FrozenViews(self._unet, crops, self._null_prompt, self.settings.noise_draws or FROZEN_DRAWS)

        if (key, timestep) not in self._views:
            self._views[key, timestep] = look()
        return self._views[key, timestep]

    @cached_property
    def pipeline(self) -> Pipeline:
        """The frozen model, loaded at the first use."""
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        pipeline = load_pipeline(str(self.folder), self.image_size, self.prompt_length, dtype)
        pipeline.vae.to(self.device)
        pipeline.unet.to(self.device)
        return pipeline

    @cached_property
    def _unet(self) -> PromptedUNet:
        layers = choose_layers(self.pipeline.unet, self.settings.layers)
        return PromptedUNet(self.pipeline.unet, layers, self.pipeline.image_size)

    @cached_property
    def _null_prompt(self) -> Tensor:
        length, width = self.pipeline.prompt_length, self.pipeline.prompt_width
        if self.settings.null_prompt == "zeros":
            return torch.zeros(length, width, device=self.device)
        return encode_text(self.folder, "", length).to(self.device)

    @property
    def _map_side(self) -> int:
        return self.settings.map_side or 2 * int(self.pipeline.unet.config.sample_size)


class Recent(OrderedDict[Hashable, Value]):
    """A dictionary that forgets what was not used for longest.

    Args:
        capacity: how many values are kept.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = max(1, capacity)

    def __getitem__(self, name: Hashable) -> Value:
        self.move_to_end(name)
        return super().__getitem__(name)

    def __setitem__(self, name: Hashable, value: Value) -> None:
        super().__setitem__(name, value)
        self.move_to_end(name)
        if len(self) > self.capacity:
            self.popitem(last=False)


def peak_mass(heatmap: Tensor, points: Tensor) -> Tensor:
    """Returns (B, N) in [0, 1]: how much of the squared heatmap lies around the answer.

    Args:
        heatmap: (B, N, h, w), non-negative.
        points: (B, N, 2) in fractions of the sides.
    """
    centres = cell_centres((heatmap.shape[-2], heatmap.shape[-1]), (1, 1), heatmap)
    near = (centres - points[..., None, None, :]).norm(dim=-1) <= CONFIDENCE_RADIUS
    mass = heatmap.square()
    return (mass * near).sum((-2, -1)) / mass.sum((-2, -1)).clamp_min(1e-12)


def _padded(answers: dict[int, Matches], mask: Tensor, like: Tensor, size: tuple[int, int]) -> Matches:
    """Spreads the answers of rows over the points where ``mask`` is true, and turns fractions into target pixels."""
    height, width = size
    h, w = next((answer.heatmap.shape[-2:] for answer in answers.values()), (1, 1))
    points = torch.zeros(*mask.shape, 2)
    confidence, heatmap = torch.zeros(mask.shape), torch.zeros(*mask.shape, h, w)
    for row, answer in answers.items():
        points[row, mask[row]] = answer.trg_kps[0].float().cpu() * torch.tensor([width, height])
        confidence[row, mask[row]] = answer.confidence[0].float().cpu()
        heatmap[row, mask[row]] = answer.heatmap[0].float().cpu()
    return Matches(points.to(like), confidence.to(like), heatmap.to(like))


def _content_hashes(images: Tensor) -> list[str]:
    pixels = (images.detach().cpu() * 255).round().to(torch.uint8).numpy()
    return [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in pixels]
