"""First phase: prompts whose attention lights up at given points of the source image."""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.geometry import gaussian_heatmap
from teacher.crop_attention import CropAttention
from teacher.crops import into_crop
from teacher.settings import Settings

WINDOW = 10
"""Steps over which the loss is averaged to see whether it still falls."""

_LOSS_SCALE = 2.0**14  # keeps gradients of maps from vanishing in half precision; Adam does not mind


@torch.enable_grad()
def optimise_prompts(
    views: CropAttention, points: Tensor, starts: Tensor, names: list[tuple], settings: Settings, map_side: int
) -> Tensor:
    """Moves each prompt until its tokens 1, 2, ... are attended to at its points.

    Args:
        views: of the source image.
        points: (R, T, 2) in fractions of the image's side, the points of each prompt's first T tokens after the start.
        starts: (R, L, D).
        names: of the R prompts; each prompt's crops are drawn from its name, so that company does not matter.
        settings: of the method.
        map_side: cells a side of the grid on which maps are compared with the Gaussian.

    Returns:
        (R, L, D).
    """
    prompts = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([prompts], lr=settings.lr)
    looks = views.looks([("crops", name) for name in names], once=False)
    done = starts.clone()
    watch = Convergence(len(points), settings.early_stop)
    scale = _LOSS_SCALE if settings.precision == "fp16" else 1.0
    for step in range(settings.steps):
        rows = watch.rows
        optimizer.zero_grad()
        for look in range(settings.crops_per_step):
            aim = looks.at(points[rows], rows)
            maps = views.attend(prompts[rows], aim, step * settings.crops_per_step + look, points.shape[1])
            loss = attention_loss(maps, into_crop(points[rows], aim.boxes[:, None]), settings, map_side)
            (loss.sum() * scale).backward()  # a sum, so that no prompt's gradient depends on the others
        assert prompts.grad is not None
        prompts.grad /= scale
        optimizer.step()
        done[rows] = prompts.detach()[rows]
        watch.add(loss.detach())
        if not watch.rows:
            break
    return done


class Convergence:
    """Which prompts are still getting better.

    Args:
        count: how many prompts there are.
        share: a prompt is done when ``WINDOW`` steps lower its mean loss by less than this share; None for never.
    """

    def __init__(self, count: int, share: float | None) -> None:
        self.rows, self.share = list(range(count)), share
        self._losses: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Takes note of a step's loss, one value for each of ``rows``, and shortens ``rows`` where it has settled."""
        if self.share is None:
            return
        self._losses.append(loss)
        if len(self._losses) < 2 * WINDOW:
            return
        before, after = (torch.stack(part).mean(0) for part in (self._losses[:WINDOW], self._losses[WINDOW:]))
        falling = after < (1 - self.share) * before
        self.rows = [row for row, go in zip(self.rows, falling.tolist(), strict=True) if go]
        self._losses = [one[falling] for one in self._losses[WINDOW:]]


def attention_loss(maps: list[Tensor], points: Tensor, settings: Settings, side: int) -> Tensor:
    """Returns (R,) the mean squared difference between attention maps and Gaussians of peak 1.

    Args:
        maps: one (R, T, h, w) a layer; enlarged bilinearly to the common grid.
        points: (R, T, 2), fractions of the crop's side.
        settings: the Gaussian's width, and where its cells lie.
        side: of the common grid, cells.
    """
    if settings.target_cells == "corners":
        points = points + 0.5 / side  # cells at j instead of j + 0.5: the same as a point half a cell further on
    target = gaussian_heatmap(points, (side, side), (1, 1), settings.sigma)
    return torch.stack([(enlarge(m, side) - target).square().mean((-3, -2, -1)) for m in maps]).mean(0)


def enlarge(maps: Tensor, side: int) -> Tensor:
    """Returns maps (R, T, h, w) resampled bilinearly to (R, T, side, side)."""
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
