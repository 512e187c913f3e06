"""Semantic correspondence by prompt optimisation (Hedlin et al., NeurIPS 2023, arXiv 2305.15581).

A prompt is optimised until a frozen Stable Diffusion attends with it to the query point of the source image; where the
same prompt's attention peaks in the target image is the match.
"""

import hashlib
from collections.abc import MutableMapping
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.checks import check_images, check_query
from distill.core.errors import ConfigError
from distill.core.geometry import image_size
from distill.core.types import Matches, PairBatch
from teacher import confidence
from teacher.adaptive_batch import AdaptiveBatch
from teacher.feature_cache import FeatureCache
from teacher.localization import aggregate_maps, localize
from teacher.neighbourhood_consensus import ConsensusMaps, NeighbourhoodConsensus
from teacher.pipeline import Pipeline, as_device, check_folder, locate_folder, weights_digest
from teacher.precision import settle_precision
from teacher.prompts import PromptMaker, Prompts
from teacher.readout import read_out
from teacher.settings import Settings
from teacher.text import check_text

VERSION = "2"
"""Raised whenever a change of the code changes answers, so that old labels are refused."""

SECOND_LOOK_POWER = 3.0
"""Of the votes that judge an answer a second time; chosen on 150 training pairs for its calibration."""


class Localization(NamedTuple):
    """What was seen of N points in a target image; points and sides in fractions.

    Attributes:
        points: (1, N, 2).
        heatmap: (1, N, side, side).
        maps: (N, E, side, side), each embedding's attention, averaged over the layers.
        votes: of the points' neighbours, where they were asked.
    """

    points: Tensor
    heatmap: Tensor
    maps: Tensor
    votes: ConsensusMaps | None = None


class PromptOptimization:
    """The teacher: a matcher that needs no training and no annotation, and much time.

    What is random depends on the seed, the image and the point only: an answer is the same whatever else is asked in
    the same call, unless several points share a prompt. The prompts of a source point are kept and serve all targets.
    Source and target need not show the same kind of thing. Weights are loaded at the first use.

    Args:
        model: a pipeline folder as diffusers saves it, or a hub id.
        variant: of its weight files, such as "fp16"; without it, the plain files or the only variant there is.
        image_size: side in px of what the UNet sees; without it, what it was trained at.
        prompt_length: tokens of a prompt; without it, what the tokenizer says.
        device: "auto" takes a GPU where there is one.
        chunk: prompts that run through the UNet together; bounds the memory, does not change the answers. It is halved
            whenever the memory does not suffice.
        prompt_cache_size: how many source points' prompts are kept in memory.
        feature_cache_size: how many images' encoded crops are kept in memory.
        truncate: whether the UNet stops after the last layer that is read; for measuring what that brings.
        share: whether prompts share what the UNet computes before they enter; for measuring what that brings.
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
        prompt_cache_size: int = 4096,
        feature_cache_size: int = 64,
        truncate: bool = True,
        share: bool = True,
        variant: str | None = None,
        **settings: Any,
    ) -> None:
        if chunk < 1:
            raise ConfigError(f"Expected chunk, the prompts that run together, to be at least 1 but got {chunk}.")
        self.device = as_device(device)
        asked = Settings.of(**settings)
        self.settings = replace(asked, precision=settle_precision(asked.precision, self.device))
        self.model, self.image_size, self.prompt_length = model, image_size, prompt_length
        self.variant, self.folder = variant, locate_folder(model, variant)
        check_folder(self.folder, variant)
        if self._reads_text:
            check_text(self.folder, variant)
        self.scenes = FeatureCache(
            self.folder,
            self.settings,
            self.device,
            image_size,
            prompt_length,
            chunk,
            feature_cache_size,
            truncate,
            share,
            variant,
        )
        self.chunks = AdaptiveBatch(chunk)
        self.maker = PromptMaker(self.scenes, self.settings, self.chunks, prompt_cache_size)
        self.neighbours = NeighbourhoodConsensus(
            self.scenes, self.settings.consensus_reach, self.settings.consensus_mirror, feature_cache_size
        )

    def fingerprint(self) -> dict[str, str]:
        """Returns all that decides an answer besides images and points, by field name."""
        fields = {name: str(value) for name, value in asdict(self.settings).items()}
        return fields | {
            "method": f"prompt_optimization {VERSION}",
            "weights": weights_digest(self.folder, self._reads_text, self.variant),
            "image_size": str(self.image_size or "the model's"),
            "prompt_length": str(self.prompt_length or "the model's"),
        }

    @property
    def _reads_text(self) -> bool:
        """Whether the pipeline's own text encoder decides answers too."""
        return self.settings.needs_null_prompt and self.settings.null_prompt == "empty"

    @property
    def pipeline(self) -> Pipeline:
        """The frozen model, loaded at the first use."""
        return self.scenes.pipeline

    @property
    def size(self) -> int:
        """Side of the images that it is best given, px."""
        return self.pipeline.image_size

    @property
    def passes(self) -> int:
        """How often a prompt has run through the UNet, for the source and for targets."""
        return self.scenes.unet.passes

    @property
    def n_parameters(self) -> int:
        """How many numbers the frozen model has, without its text side, which is not used."""
        parts = (self.pipeline.unet, self.pipeline.vae.encoder)
        return sum(value.numel() for part in parts for value in part.parameters())

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`.

        Raises:
            DataError: for images or points that are not as the contract says.
        """
        check_query(src_img, trg_img, src_kps)
        everything = torch.ones(src_kps.shape[:2], dtype=torch.bool)
        return self._match(src_img, trg_img, src_kps, everything, *map(content_hashes, (src_img, trg_img)))

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """Matches all points of ``pairs``, which name their images' content."""
        check_images(pairs.src_img, "src_img")
        check_images(pairs.trg_img, "trg_img")
        return self._match(
            pairs.src_img, pairs.trg_img, pairs.src_kps, pairs.kps_mask.cpu(), pairs.src_hash, pairs.trg_hash
        )

    def use_prompt_cache(self, cache: MutableMapping[Any, Any]) -> None:
        """Keeps prompts in ``cache``, see :class:`distill.core.protocols.UsesPromptCache`."""
        self.maker.kept = cache

    @torch.inference_mode(False)  # whoever asks may be in it, and the optimisation needs gradients
    @torch.no_grad()
    def _match(
        self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor, mask: Tensor, src_keys: list[str], trg_keys: list[str]
    ) -> Matches:
        height, width = src_img.shape[-2:]
        fractions = src_kps.cpu().float() / torch.tensor([width, height])
        answers = {}
        for row in mask.any(1).nonzero()[:, 0].tolist():
            source, target = (src_img[row], src_keys[row]), (trg_img[row], trg_keys[row])
            answers[row] = self._answer(source, target, fractions[row, mask[row]])
        return _padded(answers, mask, src_kps, image_size(trg_img))

    def _answer(self, source: tuple[Tensor, str], target: tuple[Tensor, str], points: Tensor) -> Matches:
        """Matches points (N, 2) of one pair of images, each with its name; all in fractions of the sides."""
        prompts = self.maker.prompts_for(*source, points)
        found = self._find_match(source, target, points, prompts)
        side = self.settings.heatmap_side or max(1, self.scenes.map_side // 2)
        found = found._replace(heatmap=F.adaptive_avg_pool2d(found.heatmap, side))
        sure = confidence.joint([self._judge(kind, source, target, points, prompts, found) for kind in self._kinds])
        return Matches(found.points, sure[None], found.heatmap)

    def _find_match(
        self, source: tuple[Tensor, str], target: tuple[Tensor, str], points: Tensor, prompts: Prompts
    ) -> Localization:
        """Finds what the points' prompts light up in the target, and what the points' neighbours make of it."""
        if not self.settings.consensus:
            return self.find(*target, prompts)
        votes = self.neighbours.vote(source, target, points)
        found = self.find(*target, prompts, votes.mirrored)
        maps = F.interpolate(votes.maps[None], found.heatmap.shape[-2:], mode="bilinear", align_corners=False)
        weighed = found.heatmap * (maps / maps.amax((-2, -1), keepdim=True)) ** self.settings.consensus
        return Localization(read_out(weighed, self.settings), weighed, found.maps, votes)

    def find(self, image: Tensor, key: str, prompts: Prompts, mirrored: bool = False) -> Localization:
        """Returns where prompts light up in ``image`` (3, H, W), or in its mirror image, mirrored back."""
        maps = self._maps(image, key, prompts, mirrored)
        contrast = self._maps(image, key, prompts, not mirrored) if self.settings.sides == "mirror" else None
        heatmap = aggregate_maps(maps, self.settings.layer_temperature, contrast)[None]
        return Localization(read_out(heatmap, self.settings), heatmap, maps.mean(2))

    def _maps(self, image: Tensor, key: str, prompts: Prompts, mirrored: bool) -> Tensor:
        """Returns (N, E, layers, side, side)."""
        settings = self.settings
        timestep = settings.timestep if settings.locate_timestep is None else settings.locate_timestep
        views = self.scenes.views(image, key, timestep, mirrored)
        rows = prompts.embedding.flatten(0, 1)
        token = prompts.token.to(rows.device).repeat_interleave(settings.embeddings)
        found = self.chunks.run(
            lambda chunk: localize(views, rows[chunk], token[chunk], settings, self.scenes.map_side), len(rows)
        )
        maps = torch.cat(found).unflatten(0, prompts.embedding.shape[:2])
        return maps.flip(-1) if mirrored else maps

    def _judge(
        self,
        kind: str,
        source: tuple[Tensor, str],
        target: tuple[Tensor, str],
        points: Tensor,
        prompts: Prompts,
        found: Localization,
    ) -> Tensor:
        """Returns (N,) in [0, 1], the confidence of one kind; see :mod:`teacher.confidence`."""
        if kind == "peak_mass":
            return confidence.peak_mass(found.heatmap, found.points, 2 / (1 + self.settings.consensus))[0]
        if kind == "peak":
            return found.maps.mean(1).amax((-2, -1))
        if kind == "entropy":
            return confidence.concentration(found.maps.mean(1))
        if kind == "spread":
            return confidence.unanimity(found.maps)
        if kind == "second_look":
            assert found.votes is not None  # settings see to it
            again = self.neighbours.vote_again(source, target, points, found.votes.mirrored)
            both, side = (found.votes.maps * again).sqrt()[None], self.scenes.map_side
            maps = F.interpolate(both, (side, side), mode="bilinear", align_corners=False)
            return confidence.peak_mass(maps, found.points, SECOND_LOOK_POWER)[0]
        if kind == "mirror":
            other = self.find(*target, prompts, mirrored=True).points
            return confidence.closeness((other - found.points).norm(dim=-1)[0])
        there = found.points[0].clamp(0, 1).cpu()
        back = self._find_match(target, source, there, self.maker.prompts_for(*target, there)).points[0]
        return confidence.closeness((back - points.to(back)).norm(dim=-1))

    @property
    def _kinds(self) -> tuple[str, ...]:
        return tuple(self.settings.confidence)


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


def content_hashes(images: Tensor) -> list[str]:
    """Returns a name for the content of each of ``images`` (B, 3, H, W), at eight bits a channel."""
    pixels = (images.detach().cpu() * 255).round().to(torch.uint8).numpy()
    return [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in pixels]
