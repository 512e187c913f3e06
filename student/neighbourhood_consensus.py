"""A second opinion on an answer that descriptors give: that of the cells around the query point.

Descriptors see little of the object, and a symmetric one has two places for a point. Each cell votes for the offset that
its own match has, and neighbours share their votes (:mod:`distill.core.consensus`); the target is looked at as it is and in
the mirror, and the look that agrees better is taken. Nothing is learned, and training does without: the descriptors are
to find the point by themselves.
"""

from torch import Tensor
from torch.nn import functional as F

from distill.core.consensus import FEWEST, agreement, consensus_at, mutual_probability
from distill.core.errors import ConfigError
from distill.core.geometry import resize_maps


class NeighbourhoodConsensus:
    """Adds neighbours' votes to heatmaps.

    Args:
        strength: of the votes' logarithm, relative to the scores; 0 for none.
        side: cells a side, at most, that vote, and that images are compared by: comparing takes the fourth power of it.
        target_side: cells a side, at most, that are voted for: as fine as the answer is to be.
        sigma_cells: how far neighbours vote, in cells that vote; see :mod:`distill.core.consensus`.
        temperature: divides the cosines of cells.

    Raises:
        ConfigError: for a strength that is negative, or another amount that is not positive.
    """

    def __init__(
        self,
        strength: float,
        side: int = 20,
        target_side: int = 40,
        sigma_cells: float = 3.0,
        temperature: float = 0.05,
    ) -> None:
        amounts = {"side": side, "target_side": target_side, "sigma_cells": sigma_cells, "temperature": temperature}
        wrong = {name: value for name, value in amounts.items() if value <= 0}
        if wrong or strength < 0:
            wrong = wrong or {"strength": strength}
            raise ConfigError(
                "Expected a strength of at least 0 of the votes, and positive amounts otherwise, but got "
                f"{wrong}; correct student.consensus, or what is given to the feature teacher."
            )
        self.strength, self.side, self.target_side = strength, side, target_side
        self.sigma_cells, self.temperature = sigma_cells, temperature

    @property
    def read_out_temperature(self) -> float:
        """Divides the voted scores before they are read as probabilities.

        The votes repeat what the scores say, and the sum would be too sure of itself: with it the calibration error on
        validation pairs of the procedural world is 0.02, without it 0.15.
        """
        return 1 + self.strength / 2

    def turned(self, src_map: Tensor, trg_map: Tensor, mirrored: Tensor) -> Tensor:
        """Returns (B,) bool: whether the targets' mirror images agree with the sources better than the targets do.

        Args:
            src_map: (B, C, h, w) descriptors of length 1.
            trg_map: the same of the targets.
            mirrored: the same of the targets' mirror images.
        """
        return self._agreement(src_map, mirrored) > self._agreement(src_map, trg_map)

    def add(self, heatmap: Tensor, src_map: Tensor, trg_map: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
        """Returns (B, N, h, w): the votes for points, and what their own descriptors say.

        Args:
            heatmap: (B, N, h, w) scores of the points by themselves.
            src_map: (B, C, h, w) descriptors of length 1.
            trg_map: the same of the targets.
            points: (B, N, 2) x, y, px of the sources.
            size: (H, W) of the sources, px.
        """
        probability = self._probability(pooled(src_map, self.side), pooled(trg_map, self.target_side))
        votes = consensus_at(probability, points / points.new_tensor([size[1], size[0]]), self.sigma_cells)
        finer = resize_maps(votes.clamp_min(FEWEST).log(), (heatmap.shape[-2], heatmap.shape[-1]))
        return heatmap + self.strength * finer

    def _agreement(self, here: Tensor, there: Tensor) -> Tensor:
        return agreement(self._probability(pooled(here, self.side), pooled(there, self.side)), self.sigma_cells)

    def _probability(self, here: Tensor, there: Tensor) -> Tensor:
        cosines = here.flatten(2).transpose(1, 2) @ there.flatten(2)
        shape = (*here.shape[-2:], *there.shape[-2:])
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
