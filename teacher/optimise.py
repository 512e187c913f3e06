"""First phase: prompts whose attention lights up at given points of the source image."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.geometry import gaussian_heatmap
from teacher.crops import choose_crops, into_crop
from teacher.settings import Settings
from teacher.views import Views, generator


def random_starts(points: Tensor, key: str, shape: tuple[int, int], settings: Settings) -> Tensor:
    """Returns the prompts (N, E, L, D) from N(0, 1) that the optimisation of each point starts from.

    Args:
        points: (N, 2) in fractions of the image's side; they and ``key`` decide the draw, not their company.
        key: of the image.
        shape: L, D.
        settings: E and the seed.
    """
    starts = []
    for x, y in points.tolist():
        random = generator(settings.seed, key, "start", round(x, 4), round(y, 4))
        starts.append(torch.randn(settings.embeddings, *shape, generator=random))
    return torch.stack(starts).to(points)


@torch.enable_grad()
def optimise_prompts(
    views: Views, points: Tensor, starts: Tensor, names: Sequence[Hashable], settings: Settings, map_side: int
) -> Tensor:
    """Moves each prompt until token 1 is attended to at its point.

    Args:
        views: of the source image.
        points: (R, 2) in fractions of the image's side, one for each prompt.
        starts: (R, L, D).
        names: of the R prompts; each prompt's crops are drawn from its name, so that company does not matter.
        settings: of the method.
        map_side: cells a side of the grid on which maps are compared with the Gaussian.

    Returns:
        (R, L, D).
    """
    prompts = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([prompts], lr=settings.lr)
    random = [generator(settings.seed, "crops", name) for name in names]
    for step in range(settings.steps):
        optimizer.zero_grad()
        for look in range(settings.crops_per_step):
            priority = torch.stack([torch.rand(len(views.boxes), generator=g) for g in random]).to(points)
            priority[:, 0] = -torch.inf  # the whole image is no crop
            crop_of = choose_crops(points, views.boxes, priority, settings.crop_margin)
            maps = views.attend(prompts, crop_of, step * settings.crops_per_step + look)
            loss = attention_loss(maps, into_crop(points, views.boxes[crop_of]), settings.sigma, map_side)
            loss.sum().backward()  # a sum, so that no prompt's gradient depends on the others
        optimizer.step()
    return prompts.detach()


def attention_loss(maps: list[Tensor], points: Tensor, sigma: float, side: int) -> Tensor:
    """Returns (R,) the mean squared difference between attention maps and Gaussians of peak 1.

    Args:
        maps: one (R, h, w) a layer; enlarged bilinearly to the common grid.
        points: (R, 2), fractions of the crop's side.
        sigma: fraction of the crop's side.
        side: of the common grid, cells.
    """
    target = gaussian_heatmap(points, (side, side), (1, 1), sigma)
    return torch.stack([(enlarge(m, side) - target).square().mean((-2, -1)) for m in maps]).mean(0)


def enlarge(maps: Tensor, side: int) -> Tensor:
    """Returns maps (R, h, w) resampled bilinearly to (R, side, side)."""
    return F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
