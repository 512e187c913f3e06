"""Semantic correspondence by prompt optimisation (Hedlin et al., NeurIPS 2023, arXiv 2305.15581).

A prompt is optimised until a frozen Stable Diffusion attends with it to the query point of the source image; where the
same prompt's attention peaks in the target image is the match.
"""

import hashlib
from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.checks import check_images, check_query
from distill.core.consensus import NeighbourhoodConsensus
from distill.core.geometry import image_size
from distill.core.precision import without_autocast
from distill.core.tensor_cache import GIB, TensorCache
from distill.core.types import Matches, PairBatch
from teacher import confidence
from teacher.adaptive_batch import AdaptiveBatch
from teacher.feature_cache import FeatureCache, KeyedImage
from teacher.frozen_model import FrozenModel, settle_precision
from teacher.neighbourhood_consensus import ConsensusMaps, consensus_maps, flipped_consensus_maps
from teacher.pipeline import Pipeline, as_device, check_folder, locate_folder, weights_digest
from teacher.pipeline_checks import check_sizes
from teacher.prompts import CachedPrompts, Prompts
from teacher.settings import Settings
from teacher.target_image import TargetImages, aggregate_maps, read_out
from teacher.text import check_text, prompt_fingerprint, settle_null_prompt

VERSION = "5"
"""Raised whenever a change of the code changes answers, so that old labels are refused."""

CONSENSUS_REPEATS = 0.5
"""How far a strength of 1 of the consensus repeats what the map says, which makes the map overconfident; chosen on 200 training
pairs for the calibration of ``peak_mass``."""

FLIP_CONSISTENCY_POWER = 3.0
"""Of the consensus that judges an answer again; chosen on 150 training pairs for its calibration."""


MAPS_GIB = 0.5
"""Attention maps of all prompts that are held at once, at most, unless those of a single pair are more."""


class PointQuery(NamedTuple):
    """A pair of images, and points of the source.

    Attributes:
        src: the source.
        trg: the target.
        points: (N, 2) in fractions of the source's sides.
    """

    src: KeyedImage
    trg: KeyedImage
    points: Tensor


class Localization(NamedTuple):
    """N points in a target image, in fractions of its sides.

    Attributes:
        points: (1, N, 2).
        heatmap: (1, N, side, side).
        maps: (N, E, side, side), each embedding's attention, averaged over the layers.
        consensus: on the points, where the settings ask for it.
    """

    points: Tensor
    heatmap: Tensor
    maps: Tensor
    consensus: ConsensusMaps | None = None


class PromptOptimization:
    """The teacher: matches by prompt optimisation, without training or annotation.

    Random numbers depend on the seed, the image and the point only, so that an answer does not depend on the other points
    and pairs of a call, unless several points share a prompt. The prompts of a source point are kept and serve all targets.
    Source and target need not show the same kind of thing. Weights are loaded at the first use.

    Args:
        model: a pipeline folder as diffusers saves it, or a hub id.
        image_size: side in px of what the UNet sees; None for what it was trained at.
        prompt_length: tokens of a prompt; None for what the tokenizer says.
        device: "auto" takes a GPU where there is one.
        variant: of its weight files, such as "fp16"; None for the plain files or the only variant there is.
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
        variant: str | None = None,
        **settings: Any,
    ) -> None:
        self.device = as_device(device)
        asked = Settings(**settings)
        self.settings = asked.model_copy(update={"precision": settle_precision(asked.precision, self.device)})
        self.model, self.image_size, self.prompt_length = model, image_size, prompt_length
        self.variant, self.folder = variant, locate_folder(model, variant)
        check_folder(self.folder, variant)
        if self.settings.reads_text:
            self.settings = settle_null_prompt(self.settings, self.folder)
        timesteps = (asked.timestep, asked.locate_timestep)
        check_sizes(self.folder, image_size, prompt_length, timesteps, asked.point_tokens)
        if self.settings.reads_text:
            check_text(self.folder, variant, prompt_length)
        frozen = FrozenModel(self.folder, self.settings, self.device, image_size, prompt_length, variant)
        self.features = FeatureCache(frozen, self.settings)
        prompt_cache = TensorCache(self.settings.prompt_cache_size)
        self.batch = AdaptiveBatch(self.settings.batch_size, (self.features.cache, prompt_cache))
        self.prompts = CachedPrompts(self.features, self.batch, prompt_cache)

    def fingerprint(self) -> dict[str, str]:
        """Returns all that decides an answer besides images and points, by field name."""
        told = self.settings.fingerprint() | {
            "method": f"prompt_optimization {VERSION}",
            "weights": weights_digest(self.folder, self.settings.reads_text, self.variant),
            "image_size": str(self.image_size or "the model's"),
        }
        told |= prompt_fingerprint(self.folder, self.prompt_length, self.settings.reads_text)
        # Settings whose answers have changed since this version; all others keep their labels.
        if self.image_size and self.settings.map_side is None:
            told["map_side"] = "twice the latents'"
        if self.settings.consensus and "flip_agreement" in self.settings.confidence:
            told["flip_agreement"] = "of the other orientation"
        return told

    @property
    def pipeline(self) -> Pipeline:
        """The frozen model, loaded at the first use."""
        return self.features.model.pipeline

    @property
    def size(self) -> int:
        """Side of the square images that the model sees, px; images of other sizes are resized to it."""
        return self.pipeline.image_size

    @property
    def passes(self) -> int:
        """How often a prompt has run through the UNet, for the source and for targets."""
        return self.features.model.unet.passes

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the frozen UNet and the VAE's encoder; the text encoder is not used."""
        parts = (self.pipeline.unet, self.pipeline.vae.encoder)
        return sum(value.numel() for part in parts for value in part.parameters())

    def use_prompt_cache(self, cache: MutableMapping[Any, Any]) -> None:
        """Keeps prompts in ``cache``, see :class:`distill.core.protocols.UsesPromptCache`."""
        self.prompts.cache = cache

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Matches B pairs at N points each; see :class:`distill.core.protocols.Matcher`.

        Raises:
            DataError: for images or points that are not as the contract says.
        """
        check_query(src_img, trg_img, src_kps)
        mask = torch.ones(src_kps.shape[:2], dtype=torch.bool)
        return self._match(src_img, trg_img, src_kps, mask, *map(content_hashes, (src_img, trg_img)))

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
        points = src_kps.cpu().float() / torch.tensor([width, height])
        answers: dict[int, Matches] = {}
        with without_autocast(torch.empty(0, device=self.device)):  # precision= decides; points and maps are in fp32
            for rows in self._together(mask):
                queries = [
                    PointQuery(
                        KeyedImage(src_img[r], src_keys[r]), KeyedImage(trg_img[r], trg_keys[r]), points[r, mask[r]]
                    )
                    for r in rows
                ]
                answers |= dict(zip(rows, self._match_queries(queries), strict=True))
        return _padded(answers, mask, src_kps.device, image_size(trg_img))

    def _together(self, mask: Tensor) -> list[list[int]]:
        """Returns the pairs that have points, in groups whose attention maps of all prompts take at most ``MAPS_GIB``."""
        counts = mask.sum(1).tolist()
        model, points = self.features.model, 0.0
        if any(counts):
            points = MAPS_GIB * GIB / (4 * model.map_side**2 * self.settings.embeddings * len(model.unet.layers))
        groups: list[list[int]] = []
        room = 0.0
        for row, count in enumerate(counts):
            if count and count > room:
                groups.append([])
                room = points
            if count:
                groups[-1].append(row)
                room -= count
        return groups

    def _match_queries(self, queries: Sequence[PointQuery]) -> list[Matches]:
        """Matches the points of several pairs of images; an answer does not depend on the other pairs."""
        prompts = self.prompts.at_all([(query.src, query.points) for query in queries])
        found = self._localize_with_consensus(queries, prompts)
        side = self.settings.heatmap_side or max(1, self.features.model.map_side // 4)
        found = [one._replace(heatmap=_peak_one(F.adaptive_avg_pool2d(one.heatmap, side))) for one in found]
        of_kinds = [self._confidence(kind, queries, prompts, found) for kind in self.settings.confidence]
        joint = [confidence.joint(list(of_query)) for of_query in zip(*of_kinds, strict=True)]
        return [Matches(one.points, value[None], one.heatmap) for one, value in zip(found, joint, strict=True)]

    def _localize_with_consensus(self, queries: Sequence[PointQuery], prompts: Sequence[Prompts]) -> list[Localization]:
        """Localises prompts in the targets, and weighs their maps by the consensus of neighbouring matches."""
        if not self.settings.consensus:
            return self._localize([query.trg for query in queries], prompts)
        images = [image for query in queries for image in (query.src, query.trg)]
        self.features.describe(images + [query.trg.flipped() for query in queries if self.settings.consensus_flip])
        consensus = [consensus_maps(self.features, *query) for query in queries]
        localized = self._localize([query.trg for query in queries], prompts, [one.flipped for one in consensus])
        multiply, weighed = NeighbourhoodConsensus(self.settings.consensus).multiply, []
        for one, agreed in zip(localized, consensus, strict=True):
            heatmap = multiply(one.heatmap, agreed.maps)
            weighed.append(Localization(read_out(heatmap, self.settings), heatmap, one.maps, agreed))
        return weighed

    def localize(self, trg: KeyedImage, prompts: Prompts, flipped: bool = False) -> Localization:
        """Returns where the attention of prompts peaks in the target, or in its flipped image, flipped back."""
        return self._localize([trg], [prompts], [flipped])[0]

    def _localize(
        self, targets: Sequence[KeyedImage], prompts: Sequence[Prompts], flipped: Sequence[bool] | None = None
    ) -> list[Localization]:
        """Does the same for the prompts of several targets together."""
        flips = [False] * len(targets) if flipped is None else list(flipped)
        maps = self._attention_maps(targets, prompts, flips)
        contrasts: Sequence[Tensor | None] = [None] * len(targets)
        if self.settings.symmetry == "flip_contrast":
            contrasts = self._attention_maps(targets, prompts, [not flip for flip in flips])
        found = []
        for one, contrast in zip(maps, contrasts, strict=True):
            heatmap = aggregate_maps(one, self.settings.layer_temperature, contrast)[None]
            found.append(Localization(read_out(heatmap, self.settings), heatmap, one.mean(2)))
        return found

    def attention_maps(self, trg: KeyedImage, prompts: Prompts, flipped: bool = False) -> Tensor:
        """Returns the attention of N points' prompts (N, E, layers, side, side); arguments as for :meth:`localize`."""
        return self._attention_maps([trg], [prompts], [flipped])[0]

    def _attention_maps(
        self, targets: Sequence[KeyedImage], prompts: Sequence[Prompts], flips: Sequence[bool]
    ) -> list[Tensor]:
        """Does the same for the prompts of several targets together."""
        copies, images = self.settings.embeddings, []
        for trg, of_points, flip in zip(targets, prompts, flips, strict=True):
            images += [trg.flipped() if flip else trg] * (copies * len(of_points.token))
        rows = torch.cat([of_points.embedding.flatten(0, 1) for of_points in prompts])
        token = torch.cat([of_points.token for of_points in prompts]).repeat_interleave(copies)
        maps = TargetImages(self.features, self.batch).attention_maps(images, rows, token)
        parts = maps.unflatten(0, (-1, copies)).split([len(of_points.token) for of_points in prompts])
        return [part.flip(-1) if flip else part for part, flip in zip(parts, flips, strict=True)]

    def _confidence(
        self, kind: str, queries: Sequence[PointQuery], prompts: Sequence[Prompts], found: Sequence[Localization]
    ) -> list[Tensor]:
        """Returns for each pair (N,) in [0, 1], the confidence of one kind; see :mod:`teacher.confidence`."""
        if kind == "peak_mass":
            power = 2 / (1 + CONSENSUS_REPEATS * self.settings.consensus)
            return [confidence.peak_mass(one.heatmap, one.points, power)[0] for one in found]
        if kind == "peak":
            return [one.maps.mean(1).amax((-2, -1)) for one in found]
        if kind == "entropy":
            return [confidence.relative_negentropy(one.maps.mean(1)) for one in found]
        if kind == "prompt_agreement":
            return [confidence.prompt_agreement(one.maps) for one in found]
        if kind == "flip_consistency":
            return [self._flip_consistency(*both) for both in zip(queries, found, strict=True)]
        if kind == "flip_agreement":
            flips = [one.consensus is None or not one.consensus.flipped for one in found]
            others = self._localize([query.trg for query in queries], prompts, flips)
            moved = [(other.points - one.points)[0] for other, one in zip(others, found, strict=True)]
        else:
            assert kind == "cycle", kind
            moved = self._cycle_errors(queries, found)
        return [confidence.exponential_weight(distance.norm(dim=-1)) for distance in moved]

    def _cycle_errors(self, queries: Sequence[PointQuery], found: Sequence[Localization]) -> list[Tensor]:
        """Returns for each pair (N, 2), by how much the way back from the answers misses the points."""
        answers = [one.points[0].clamp(0, 1).cpu() for one in found]
        ways = [PointQuery(q.trg, q.src, answer) for q, answer in zip(queries, answers, strict=True)]
        back = self._localize_with_consensus(ways, self.prompts.at_all([(way.src, way.points) for way in ways]))
        return [one.points[0] - query.points.to(one.points) for one, query in zip(back, queries, strict=True)]

    def _flip_consistency(self, query: PointQuery, found: Localization) -> Tensor:
        assert found.consensus is not None  # the settings see to it
        flipped = flipped_consensus_maps(self.features, *query, found.consensus.flipped)
        both, side = (found.consensus.maps * flipped).sqrt(), self.features.model.map_side
        maps = F.interpolate(both, (side, side), mode="bilinear", align_corners=False)
        return confidence.peak_mass(maps, found.points, FLIP_CONSISTENCY_POWER)[0]


def _peak_one(heatmap: Tensor) -> Tensor:
    """Scales heatmaps (..., h, w) to a maximum of 1, as half floats, in which labels are stored, keep no small ones."""
    return heatmap / heatmap.amax((-2, -1), keepdim=True).clamp_min(1e-30)


def _padded(answers: dict[int, Matches], mask: Tensor, device: torch.device, size: tuple[int, int]) -> Matches:
    """Spreads the answers of rows over the points where ``mask`` is true, and turns fractions into target pixels."""
    height, width = size
    h, w = next((answer.heatmap.shape[-2:] for answer in answers.values()), (1, 1))
    points = torch.zeros(*mask.shape, 2)
    confidence, heatmap = torch.zeros(mask.shape), torch.zeros(*mask.shape, h, w)
    for row, answer in answers.items():
        points[row, mask[row]] = answer.trg_kps[0].float().cpu() * torch.tensor([width, height])
        confidence[row, mask[row]] = answer.confidence[0].float().cpu()
        heatmap[row, mask[row]] = answer.heatmap[0].float().cpu()
    return Matches(points.to(device), confidence.to(device), heatmap.to(device))


def content_hashes(images: Tensor) -> list[str]:
    """Returns a name for the content of each of ``images`` (B, 3, H, W), at eight bits a channel."""
    pixels = (images.detach().cpu() * 255).round().to(torch.uint8).numpy()
    return [hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest() for image in pixels]
