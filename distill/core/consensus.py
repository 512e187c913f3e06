"""Neighbourhood consensus: agreement among neighbouring matches.

All functions work on the scores between all cells of a source and all cells of a target, (B, h, w, h', w'). Points next
to each other in one image lie next to each other in the other, so a match that its neighbours share, moved by the same
offset, is likelier than one that they do not (Rocco et al., "Neighbourhood consensus networks", NeurIPS 2018; Min et
al., "Hyperpixel flow", ICCV 2019, who accumulate offsets over the whole image). Nothing is learned here.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import resize_maps, sample_at
from distill.core.precision import in_single, without_autocast

LEAST = 1e-9
"""Consensus is taken to be at least this before its logarithm is taken."""

CELLS_PER_TOLERANCE = 1.6
"""Target cells that a standard deviation of tolerance spans, about, where the descriptors are fine enough."""

NARROWEST = 1e-3
"""Least standard deviation of a Gaussian, in cells: below it a cell has no neighbour in its mean, and its square would be 0."""


@dataclass(frozen=True)
class NeighbourhoodConsensus:
    """Weighs scores of target cells by the consensus of neighbouring matches.

    Images are compared by maps of descriptors of length 1, in single precision whatever autocast does. At most ``side``
    cells a side are compared, because comparing takes the fourth power of it.

    Attributes:
        strength: power to which the consensus is raised before it multiplies a map (:meth:`multiply`). To logits its
            logarithm is added ``strength`` times (:meth:`add_to_logits`), which multiplies their softmax by the same
            power. 0 leaves maps as they are.
        side: largest number of source cells a side.
        target_side: largest number of target cells a side, which limits how fine the consensus is; see :attr:`compared_side`.
        sigma_cells: standard deviation of a neighbour's weight by its distance, in source cells.
        temperature: divides the cosines of cells.
        orientation_sigma: fraction of ``sigma_cells`` with which an image is compared with another and its flip; near
            neighbours are what differs between the two.
        orientation_tolerance: the tolerance of that comparison. With 0.08 the teacher prefers the right orientation in 98.5 % of
            400 training pairs of the procedural data, with exact offsets in 95 %.
        carry: whether neighbours' matches are carried to points between cells exactly, or the consensus of the four
            surrounding cells is interpolated.
        tolerance: standard deviation of the places that a neighbour's match speaks for, around the one that it has by
            its offset, as a fraction of the target's sides. An object that is turned, or another individual, has other distances
            between its parts; 0 for exact offsets.

    Raises:
        ConfigError: for a negative strength or tolerance, or another amount that is not positive, or one that is not finite.
    """

    strength: float
    side: int = 20
    target_side: int = 40
    sigma_cells: float = 3.0
    temperature: float = 0.05
    orientation_sigma: float = 0.5
    orientation_tolerance: float = 0.08
    carry: bool = True
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        names = ("side", "target_side", "sigma_cells", "temperature", "orientation_sigma")
        wrong = {name: getattr(self, name) for name in names if not 0 < getattr(self, name) < math.inf}
        either = ("strength", "tolerance", "orientation_tolerance")
        wrong |= {name: getattr(self, name) for name in either if not 0 <= getattr(self, name) < math.inf}
        if wrong:
            raise ConfigError(
                "Expected a strength of neighbourhood consensus of at least 0, such tolerances, and positive finite amounts otherwise, "
                f"but got {wrong}; correct the consensus of student or teacher."
            )

    @property
    def compared_side(self) -> int:
        """Largest number of target cells a side that are compared: with a tolerance, no finer ones than it leaves to be seen.

        On 200 validation pairs of the procedural data 16 and 32 cells with a tolerance of 0.1 score the same within 0.1. Without
        ``carry`` cells of source and target are of one size, and stay so.
        """
        if not (self.tolerance and self.carry):
            return self.target_side
        return math.ceil(min(self.target_side, CELLS_PER_TOLERANCE / self.tolerance))

    @property
    def confidence_temperature(self) -> float:
        """Divides logits with consensus before they are read as probabilities.

        The consensus repeats what the scores say, and their sum would be overconfident. On validation pairs of the procedural
        data the calibration error is 0.02 with this temperature and 0.15 without. Consensus with tolerance is flatter: there it is
        0.03, and 0.09 with the temperature of exact offsets.
        """
        return 1 + self.strength / (3 if self.tolerance else 2)

    def prefers_flipped(self, src_map: Tensor, trg_map: Tensor, flipped_map: Tensor) -> Tensor:
        """Returns (B,) bool: whether the flipped targets agree with the sources better than the targets do.

        Args:
            src_map: (B, C, h, w) descriptors of length 1.
            trg_map: the same of the targets.
            flipped_map: the same of the flipped targets.
        """
        with without_autocast(src_map):
            return self._agreement(src_map, flipped_map) > self._agreement(src_map, trg_map)

    def maps(self, src_map: Tensor, trg_map: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns (B, N, h, w), positive: the consensus on the target cells of points.

        Args:
            src_map: (B, C, h, w) descriptors of length 1.
            trg_map: the same of the targets.
            points: (B, N, 2) x, y, px of the sources.
            size: (H, W) of the sources, px.
        """
        with without_autocast(src_map):
            probability = self._probability(src_map, trg_map, self.compared_side)
            fractions = points.to(probability) / probability.new_tensor([size[1], size[0]])
            if self.carry:
                return blurred(consensus_at(probability, fractions, self.sigma_cells), self.tolerance)
            consensus = neighbourhood_consensus(probability, self.sigma_cells)
            (h, w), cells = consensus.shape[3:], consensus.flatten(3).permute(0, 3, 1, 2)
            return blurred(sample_at(cells, fractions, (1, 1)).unflatten(2, (h, w)), self.tolerance)

    def oriented_maps(
        self,
        src_map: Tensor,
        trg_map: Tensor,
        flipped_map: Tensor,
        flipped: Tensor,
        points: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """Returns :meth:`maps`, over the cells of the targets as they are, taken from the flipped ones where told.

        Args:
            src_map: see :meth:`maps`.
            trg_map: see there.
            flipped_map: the descriptors of the flipped targets.
            flipped: (B,) bool, such as :meth:`prefers_flipped` returns.
            points: see :meth:`maps`.
            size: see there.
        """
        flipped = flipped[:, None, None, None]
        maps = self.maps(src_map, torch.where(flipped, flipped_map, trg_map), points, size)
        return torch.where(flipped, maps.flip(-1), maps)

    def multiply(self, heatmap: Tensor, consensus: Tensor) -> Tensor:
        """Returns a non-negative ``heatmap`` (B, N, h, w) times the power of the consensus of :meth:`maps`, peak 1."""
        finer = resize_maps(consensus, (heatmap.shape[-2], heatmap.shape[-1]))
        return heatmap * (finer / finer.amax((-2, -1), keepdim=True)) ** self.strength

    def add_to_logits(self, logits: Tensor, consensus: Tensor) -> Tensor:
        """Returns ``logits`` (B, N, h, w) plus ``strength`` times the logarithm of the consensus of :meth:`maps`."""
        log = resize_maps(consensus.clamp_min(LEAST).log(), (logits.shape[-2], logits.shape[-1]))
        return logits + self.strength * log

    def _agreement(self, src_map: Tensor, trg_map: Tensor) -> Tensor:
        probability = self._probability(src_map, trg_map, self.side)
        return agreement(probability, self.orientation_sigma * self.sigma_cells, self.orientation_tolerance)

    def _probability(self, src_map: Tensor, trg_map: Tensor, target_side: int) -> Tensor:
        """Returns (B, h, w, h', w') of maps that are averaged to ``side`` and ``target_side`` cells, in fp32."""
        src, trg = pooled(in_single(src_map), self.side), pooled(in_single(trg_map), target_side)
        cosines = src.flatten(2).transpose(1, 2) @ trg.flatten(2)
        shape = (*src.shape[-2:], *trg.shape[-2:])
        return mutual_probability(cosines.unflatten(2, shape[2:]).unflatten(1, shape[:2]) / self.temperature)


def pooled(maps: Tensor, cells: int) -> Tensor:
    """Averages descriptors (B, C, h, w) until at most ``cells`` are left a side; of length 1 again.

    The cells left are of one size, but for a share that sides which they do not divide overlap by.
    """
    factor = -(-max(maps.shape[-2:]) // cells)
    if factor == 1:
        return maps
    h, w = (-(-side // factor) for side in maps.shape[-2:])
    return F.normalize(F.adaptive_avg_pool2d(maps, (h, w)), dim=1)


def blurred(maps: Tensor, sigma: float) -> Tensor:
    """Returns maps (B, N, h, w) as means over the cells around each, weighted by a Gaussian.

    Args:
        maps: of any values.
        sigma: of the Gaussian, as a fraction of the sides; 0 leaves the maps as they are.
    """
    if not sigma:
        return maps
    rows, columns = (_blur(cells, sigma * cells, maps) for cells in maps.shape[-2:])
    return rows @ maps @ columns.T


def mutual_probability(scores: Tensor) -> Tensor:
    """Returns (B, h, w, h', w'): the geometric mean of a softmax over target cells and one over source cells.

    Args:
        scores: (B, h, w, h', w'), logits.
    """
    flat = scores.flatten(3).flatten(1, 2)
    return (flat.softmax(2) * flat.softmax(1)).sqrt().view_as(scores)


def neighbourhood_consensus(probability: Tensor, sigma_cells: float) -> Tensor:
    """Sums each match's probability with those of the matches of neighbouring cells that share its offset.

    Args:
        probability: (B, h, w, h', w').
        sigma_cells: of the Gaussian weight of a neighbour by its distance, in cells; it is cut off at 1.7 sigma.

    Returns:
        (B, h, w, h', w').
    """
    return _along(_along(probability, 1, sigma_cells), 2, sigma_cells)


def consensus_at(probability: Tensor, points: Tensor, sigma_cells: float) -> Tensor:
    """Returns the consensus on points that may lie between the cells, and in a target that may have finer cells.

    At the centres of cells, and with targets as fine as sources, they are those of :func:`neighbourhood_consensus`; a point
    beside a centre moves each neighbour's matches by its own distance from it. Only the points are paid for.

    Args:
        probability: (B, h, w, h', w').
        points: (B, N, 2) x, y, as fractions of the source's sides.
        sigma_cells: see :func:`neighbourhood_consensus`, in cells of the source.

    Returns:
        (B, N, h', w').
    """
    (h, w), (rows, columns) = probability.shape[1:3], probability.shape[3:]
    down = _carry(points[..., 1], h, rows, sigma_cells)
    across = _carry(points[..., 0], w, columns, sigma_cells)
    summed = torch.einsum("bniyv,bijvu->bnyju", down, probability)
    # A product of matrices, not an einsum: an exported einsum over no points ends ONNX Runtime 1.32.
    return summed.flatten(3) @ across.transpose(3, 4).flatten(2, 3)


def agreement(probability: Tensor, sigma_cells: float, tolerance: float = 0.0) -> Tensor:
    """Returns (B,) how well two images agree: the mean over source cells of the highest consensus.

    Args:
        probability: (B, h, w, h', w').
        sigma_cells: see :func:`neighbourhood_consensus`.
        tolerance: see :class:`NeighbourhoodConsensus`.
    """
    consensus = neighbourhood_consensus(probability, sigma_cells).flatten(1, 2)
    return blurred(consensus, tolerance).flatten(2).amax(-1).mean(1)


def _carry(at: Tensor, cells: int, target_cells: int, sigma: float) -> Tensor:
    """Returns (B, N, cells, to, from): how one axis of the target is carried along from each source cell to a point.

    Args:
        at: (B, N) places along the axis, in [0, 1].
        cells: of the source.
        target_cells: of the target.
        sigma: in cells of the source.
    """
    centres = (torch.arange(cells, dtype=at.dtype, device=at.device) + 0.5) / cells
    distance = at[..., None] - centres
    weights = _weights(distance * cells, sigma)
    steps = torch.arange(target_cells, dtype=at.dtype, device=at.device)
    steps = steps[:, None] - steps - (distance * target_cells)[..., None, None]
    return weights[..., None, None] * (1 - steps.abs()).clamp_min(0)


def _weights(cells: Tensor, sigma: float) -> Tensor:
    """Returns how much neighbours count that are so many cells away."""
    reach = max(1, round(1.7 * sigma))
    return torch.exp(-cells.square() / (2 * sigma**2)) * (cells.abs() < reach + 0.5)


def _blur(cells: int, sigma: float, like: Tensor) -> Tensor:
    """Returns (cells, cells): the weights of a line's cells, in columns, for the mean around each, in rows."""
    places = torch.arange(cells, dtype=like.dtype, device=like.device)
    weights = torch.exp(-(places[:, None] - places).square() / (2 * max(sigma, NARROWEST) ** 2))
    return weights / weights.sum(1, keepdim=True)


def _along(values: Tensor, axis: int, sigma: float) -> Tensor:
    """Sums over equal steps along one axis of the source and the same axis of the target, which is two axes further.

    Matches of one offset stand on a diagonal of these two axes. The diagonals are brought into columns, where the weighted
    sum is one product of matrices: many times faster than a convolution, and as easy to export.
    """
    planes = values.movedim((axis, axis + 2), (-2, -1))
    (rows, columns), length = planes.shape[-2:], planes.shape[-2] + planes.shape[-1]
    # Cut into rows that are one cell shorter, each row slides one cell to the right of the one above it.
    laid = F.pad(planes.flip(-2), (0, rows)).flatten(-2)[..., : rows * (length - 1)]
    steps = torch.arange(rows, dtype=values.dtype, device=values.device)
    summed = _weights(steps - steps[:, None], sigma) @ laid.unflatten(-1, (rows, length - 1))
    back = F.pad(summed.flatten(-2), (0, rows)).unflatten(-1, (rows, length))
    return back[..., :columns].flip(-2).movedim((-2, -1), (axis, axis + 2))
