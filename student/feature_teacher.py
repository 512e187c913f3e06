"""A teacher that needs no diffusion model: nearest neighbours that their neighbourhood and their mirror image confirm."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import flip_points, gaussian_weight, image_size, sample_at
from distill.core.readout import window_mass, windowed_soft_argmax
from distill.core.types import Matches, PairBatch
from student.neighbourhood_consensus import NeighbourhoodConsensus, pooled

Size = tuple[int, int]
"""H, W, px."""


class FeatureTeacher:
    """Matches by dense features of any network that describes images.

    What the descriptor of a point says is corrected by its neighbours' votes (:mod:`student.votes`), in the target as it is
    or in its mirror image, whichever agrees better with the source, so that a bird that looks left meets one that looks
    right. The same is then asked of both images mirrored, and the two answers are averaged.

    The confidence is the product of three: the probability of the window around the answer, as a student's; how close the
    point leads back to where it came from (the relaxed cycle), and how close the two answers lie to each other (mirror
    agreement), exp(-d^2 / (2 tolerance^2)) each, with d the distance.

    Args:
        model: has ``describe(images) -> (B, C, h, w)``, descriptors of length 1; the nearest neighbour's or a student.
        temperature: divides the cosines.
        side: cells a side, at most, that vote; finer maps are averaged, coarser ones left as they are.
        target_side: cells a side, at most, that are voted for; the fineness of the answer.
        sigma_cells: how far neighbours vote, in cells that vote.
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
        target_side: int = 40,
        sigma_cells: float = 3.0,
        strength: float = 3.0,
        mirror: bool = True,
        cycle_tolerance: float | None = 0.1,
        mirror_tolerance: float | None = 0.1,
        radius_cells: float = 2.0,
        remember: int = 1024,
    ) -> None:
        amounts = {"remember": remember, "radius_cells": radius_cells}
        amounts |= {"cycle_tolerance": cycle_tolerance or 1, "mirror_tolerance": mirror_tolerance or 1}
        wrong = {name: value for name, value in amounts.items() if value <= 0}
        if wrong:
            raise ConfigError(
                f"Expected positive amounts in the feature teacher but got {wrong}; correct teacher.<name>."
            )
        self.model = model.eval().requires_grad_(False)
        self.votes = NeighbourhoodConsensus(strength, side, target_side, sigma_cells, temperature)
        self.mirror, self.cycle_tolerance, self.mirror_tolerance = mirror, cycle_tolerance, mirror_tolerance
        self.radius_cells, self.remember = radius_cells, remember
        self._known: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def n_parameters(self) -> int:
        """Of the network."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def fingerprint(self) -> dict[str, str]:
        """See :class:`distill.core.protocols.Fingerprinted`."""
        digest = hashlib.blake2b(digest_size=16)
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        settings = {name: str(value) for name, value in sorted(vars(self.votes).items())}
        settings |= {name: str(getattr(self, name)) for name in ("mirror", "cycle_tolerance", "mirror_tolerance")}
        settings |= {"radius_cells": str(self.radius_cells), "weights": digest.hexdigest()}
        return {"method": "features 3", "model": type(self.model).__name__, **settings}

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """See :class:`distill.core.protocols.Matcher`."""
        src, trg = self.describe(src_img), self.describe(trg_img)
        return self._match(src, trg, src_kps, image_size(src_img), image_size(trg_img))

    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`; each image is described once, known by its fingerprint."""
        src = self._remembered(pairs.src_hash, pairs.src_img)
        trg = self._remembered(pairs.trg_hash, pairs.trg_img)
        return self._match(src, trg, pairs.src_kps, image_size(pairs.src_img), image_size(pairs.trg_img))

    def describe(self, images: Tensor) -> Tensor:
        """Returns (B, 2, C, h, w): descriptors of length 1 of the images (B, 3, H, W) and of their mirror images."""
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != images.device:
            self.model.to(images.device)
        with torch.no_grad():
            maps = self.model.describe(torch.cat([images, images.flip(-1)]))  # type: ignore[operator]
        return pooled(maps, self.votes.target_side).unflatten(0, (2, -1)).transpose(0, 1)

    def _remembered(self, hashes: Sequence[str], images: Tensor) -> Tensor:
        new = {key: row for row, key in enumerate(hashes) if key not in self._known}
        if new:
            for key, maps in zip(new, self.describe(images[list(new.values())]).half().cpu(), strict=True):
                self._known[key] = maps
        found = torch.stack([self._known[key] for key in hashes]).to(images)
        while len(self._known) > self.remember:
            self._known.popitem(last=False)
        return found

    def _match(self, src: Tensor, trg: Tensor, points: Tensor, src_size: Size, trg_size: Size) -> Matches:
        """Matches pairs; ``src`` and ``trg`` are (B, 2, C, h, w), ``points`` (B, N, 2)."""
        (here, here_mirrored), (as_is, mirrored) = src.unbind(1), trg.unbind(1)
        turned = here.new_zeros(len(here), 1, 1, 1, dtype=torch.bool)
        if self.mirror:
            turned = self.votes.turned(here, as_is, mirrored)[:, None, None, None]
        there, confirmed = torch.where(turned, mirrored, as_is), torch.ones_like(points[..., 0])
        logits = self._logits(here, there, points, src_size)
        first = self._read_out(logits, trg_size)
        if self.cycle_tolerance is not None:
            back = self._read_out(self._logits(there, here, first, trg_size), src_size)
            confirmed = confirmed * gaussian_weight(back, points, src_size, self.cycle_tolerance)
        logits = torch.where(turned, logits.flip(-1), logits)
        first = torch.where(turned[..., 0], flip_points(first, trg_size), first)
        if self.mirror_tolerance is not None:
            there = torch.where(turned, as_is, mirrored)
            second = self._logits(here_mirrored, there, flip_points(points, src_size), src_size)
            second = torch.where(turned, second, second.flip(-1))
            confirmed = confirmed * gaussian_weight(
                first, self._read_out(second, trg_size), trg_size, self.mirror_tolerance
            )
            logits = (logits + second) / 2
        found, softened = self._read_out(logits, trg_size), logits / self.votes.read_out_temperature
        confidence = confirmed * window_mass(softened, found, trg_size, self.radius_cells)
        return Matches(found, confidence, logits.flatten(2).softmax(-1).view_as(logits))

    def _logits(self, src: Tensor, trg: Tensor, points: Tensor, size: Size) -> Tensor:
        """Returns (B, N, h, w): what points' own descriptors and their neighbours say about target cells."""
        queries = F.normalize(sample_at(src, points, size), dim=-1)
        scores = torch.einsum("bnc,bchw->bnhw", queries, trg) / self.votes.temperature
        return self.votes.add(scores, src, trg, points, size) if self.votes.strength else scores

    def _read_out(self, logits: Tensor, size: Size) -> Tensor:
        return windowed_soft_argmax(logits, size, radius_cells=self.radius_cells)
