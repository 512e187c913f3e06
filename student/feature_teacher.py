"""A teacher that needs no diffusion model: nearest neighbours that their neighbourhood and their mirror image confirm."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.consensus import refine_scores
from distill.errors import ConfigError
from distill.geometry import sample_at
from distill.readout import windowed_soft_argmax
from distill.types import Matches, PairBatch


class Answer(NamedTuple):
    """What one look at a pair of images says.

    Attributes:
        logits: (N, h, w) over target cells.
        points: (N, 2) x, y, px of the target.
        back: (N, 2) x, y, px of the source: where those points lead back to.
    """

    logits: Tensor
    points: Tensor
    back: Tensor


class FeatureTeacher:
    """Matches by dense features of any network that describes images.

    The scores between all cells of both images are corrected by their neighbours' votes, for the target as it is and
    for its mirror image; the one that agrees better with the source is believed, so that a bird that looks left meets
    one that looks right. The same is then asked of both images mirrored, and the two answers are averaged.

    The confidence is the product of two: how close a point leads back to where it came from (the relaxed cycle), and how
    close the two answers lie to each other (mirror agreement), exp(-d^2 / (2 tolerance^2)) each, with d the distance.

    Args:
        model: has ``describe(images) -> (B, C, h, w)``, descriptors of length 1; the nearest neighbour's or a student.
        temperature: divides the cosines.
        side: cells a side at which images are compared; finer maps are averaged, coarser ones left as they are.
        sigma_cells: how far neighbours vote, see :mod:`distill.consensus`.
        strength: of the votes; 0 for plain nearest neighbours.
        mirror: whether the target may be looked at in the mirror.
        cycle_tolerance: of the relaxed cycle, as a fraction of the image's side; None leaves it out.
        mirror_tolerance: of the agreement with the mirrored images; None leaves it out, and halves the work.
        radius_cells: of the window of the soft-argmax.
        remember: how many images' descriptors are kept in memory.

    Raises:
        ConfigError: for amounts that must be positive and are not.
    """

    def __init__(
        self,
        model: nn.Module,
        temperature: float = 0.05,
        side: int = 20,
        sigma_cells: float = 3.0,
        strength: float = 3.0,
        mirror: bool = True,
        cycle_tolerance: float | None = 0.1,
        mirror_tolerance: float | None = 0.1,
        radius_cells: float = 2.0,
        remember: int = 1024,
    ) -> None:
        amounts = {"temperature": temperature, "side": side, "sigma_cells": sigma_cells, "remember": remember}
        amounts |= {"cycle_tolerance": cycle_tolerance or 1, "mirror_tolerance": mirror_tolerance or 1}
        wrong = {name: value for name, value in amounts.items() if value <= 0}
        if wrong or strength < 0:
            wrong = wrong or {"strength": strength}
            raise ConfigError(
                f"Expected positive amounts in the feature teacher but got {wrong}; correct teacher.<name>."
            )
        self.model = model.eval().requires_grad_(False)
        self.temperature, self.side, self.sigma_cells, self.strength = temperature, side, sigma_cells, strength
        self.mirror, self.cycle_tolerance, self.mirror_tolerance = mirror, cycle_tolerance, mirror_tolerance
        self.radius_cells, self.remember = radius_cells, remember
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def n_parameters(self) -> int:
        """Of the network."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def fingerprint(self) -> dict[str, str]:
        """See :class:`distill.protocols.Fingerprinted`."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        settings = ("temperature", "side", "sigma_cells", "strength", "mirror", "cycle_tolerance", "mirror_tolerance")
        named = {name: str(getattr(self, name)) for name in (*settings, "radius_cells")}
        return {"method": "features 2", "model": type(self.model).__name__, "weights": digest.hexdigest(), **named}

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """See :class:`distill.protocols.Matcher`."""
        return self._match(self.describe(src_img), self.describe(trg_img), src_kps, src_img, trg_img)

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.protocols.PairMatcher`; each image is described once, known by its fingerprint."""
        src = self._remembered(pairs.src_hash, pairs.src_img)
        trg = self._remembered(pairs.trg_hash, pairs.trg_img)
        return self._match(src, trg, pairs.src_kps, pairs.src_img, pairs.trg_img)

    def describe(self, images: Tensor) -> Tensor:
        """Returns (B, 2, C, h, w): descriptors of length 1 of the images (B, 3, H, W) and of their mirror images."""
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != images.device:
            self.model.to(images.device)
        with torch.no_grad():
            maps = self.model.describe(torch.cat([images, images.flip(-1)]))  # type: ignore[operator]
        if maps.shape[-1] > self.side:
            maps = F.adaptive_avg_pool2d(maps, self.side)
        return F.normalize(maps, dim=1).unflatten(0, (2, -1)).transpose(0, 1)

    def _remembered(self, hashes: Sequence[str], images: Tensor) -> Tensor:
        new = {key: row for row, key in enumerate(hashes) if key not in self._known}
        if new:
            for key, maps in zip(new, self.describe(images[list(new.values())]).half().cpu(), strict=True):
                self._known[key] = maps
        found = torch.stack([self._known[key] for key in hashes]).to(images)
        while len(self._known) > self.remember:
            self._known.popitem(last=False)
        return found

    def _match(self, src: Tensor, trg: Tensor, points: Tensor, src_img: Tensor, trg_img: Tensor) -> Matches:
        src_size, trg_size = ((image.shape[-2], image.shape[-1]) for image in (src_img, trg_img))
        rows = [self._match_one(*pair, src_size, trg_size) for pair in zip(src, trg, points, strict=True)]
        return Matches(*(torch.stack(field) for field in zip(*rows, strict=True)))

    def _match_one(
        self, src: Tensor, trg: Tensor, points: Tensor, src_size: tuple[int, int], trg_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Matches one pair; ``src`` and ``trg`` are (2, C, h, w), ``points`` (N, 2)."""
        looks = [self._scores(src[0], trg[way]) for way in ((0, 1) if self.mirror else (0,))]
        way = max(range(len(looks)), key=lambda n: float(looks[n][1]))
        first = _unmirror(self._answer(looks[way][0], points, src_size, trg_size), way == 1, False, src_size, trg_size)
        logits, confidence = first.logits, torch.ones_like(points[:, 0])
        if self.cycle_tolerance is not None:
            confidence = confidence * _closeness(first.back, points, src_size, self.cycle_tolerance)
        if self.mirror_tolerance is not None:
            mirrored = _mirror_points(points, src_size)
            scores, _ = self._scores(src[1], trg[1 - way])
            other = self._answer(scores, mirrored, src_size, trg_size)
            second = _unmirror(other, way == 0, True, src_size, trg_size)
            confidence = confidence * _closeness(first.points, second.points, trg_size, self.mirror_tolerance)
            logits = (logits + second.logits) / 2
        answer = windowed_soft_argmax(logits[None], trg_size, radius_cells=self.radius_cells)[0]
        return answer, confidence, logits.flatten(1).softmax(-1).view_as(logits)

    def _scores(self, src: Tensor, trg: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits (h, w, h', w') between all cells, and how well the images agree."""
        scores = torch.einsum("chw,cyx->hwyx", src, trg)[None] / self.temperature
        refined, agreement = refine_scores(scores, self.sigma_cells, self.strength)
        return refined[0], agreement[0]

    def _answer(self, scores: Tensor, points: Tensor, src_size: tuple[int, int], trg_size: tuple[int, int]) -> Answer:
        logits = self._at(scores, points, src_size)
        there = windowed_soft_argmax(logits[None], trg_size, radius_cells=self.radius_cells)[0]
        returned = self._at(scores.permute(2, 3, 0, 1), there, trg_size)
        back = windowed_soft_argmax(returned[None], src_size, radius_cells=self.radius_cells)[0]
        return Answer(logits, there, back)

    def _at(self, scores: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns (N, h', w') the scores (h, w, h', w') at points (N, 2) between the source cells."""
        maps = scores.flatten(2).permute(2, 0, 1)[None]
        return sample_at(maps, points[None], size)[0].unflatten(1, scores.shape[2:])


def _unmirror(
    answer: Answer, target: bool, source: bool, src_size: tuple[int, int], trg_size: tuple[int, int]
) -> Answer:
    """Takes an answer about mirrored images to the images as they are; the maps are scores over mirrored cells."""
    logits, points, back = answer
    if target:
        logits, points = logits.flip(-1), _mirror_points(points, trg_size)
    return Answer(logits, points, _mirror_points(back, src_size) if source else back)


def _mirror_points(points: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.stack([size[1] - points[..., 0], points[..., 1]], -1)


def _closeness(first: Tensor, second: Tensor, size: tuple[int, int], tolerance: float) -> Tensor:
    squared = ((first - second) / max(size)).square().sum(-1)
    return torch.exp(-squared / (2 * tolerance**2))
