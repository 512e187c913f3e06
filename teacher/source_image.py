"""First phase: prompts whose attention peaks at given points of the source image."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.geometry import gaussian_heatmap, sample_at
from distill.core.readout import argmax
from teacher.attention import Layer
from teacher.crop_attention import crop_attention
from teacher.crop_sampling import WHOLE, generator
from teacher.crops import into_crop
from teacher.feature_cache import FeatureCache, KeyedImage
from teacher.memory import AdaptiveBatch
from teacher.settings import Settings
from teacher.target_image import TargetImage

WINDOW = 10
"""Steps over which the loss is averaged to see whether it still falls."""

_LOSS_SCALE = 2.0**14  # keeps gradients of maps from vanishing in half precision; Adam is invariant to it


class SourceImage:
    """A source image, at whose points prompts are optimised.

    Args:
        features: of images in the frozen model.
        image: the source.
        batch: how many prompts are optimised together.
    """

    def __init__(self, features: FeatureCache, image: KeyedImage, batch: AdaptiveBatch) -> None:
        self.features, self.image, self.batch = features, image, batch
        self.settings, self.side = features.settings, features.model.map_side
        self.attention = crop_attention(features, image, self.settings.timestep)

    def optimise(self, points: Tensor, names: Sequence[tuple]) -> Tensor:
        """Optimises the prompts of G groups of T points each.

        Args:
            points: (G, T, 2) in fractions of the image's sides; token 1 + t of a prompt stands for point t of its group.
            names: of the groups; they decide what is random, so that the other groups of the call do not matter.

        Returns:
            (G, E, L, D), from E random starts each.
        """
        settings, shape = self.settings, self.features.model.prompt_shape
        points = points.to(self.features.model.device)
        starts = random_prompts(points[:, 0], self.image.key, shape, settings).flatten(0, 1)
        targets = points.repeat_interleave(settings.embeddings, 0)
        rows = [(*name, copy) for name in names for copy in range(settings.embeddings)]

        def optimise(batch: slice) -> Tensor:
            """Returns the optimised prompts of the rows ``batch``, (R, L, D)."""
            start, target, row_names = starts[batch], targets[batch], rows[batch]
            if settings.start == "query":
                start = self._start_at_query(start, target, row_names)
            prompts = self._descend(start, target, row_names)
            if settings.symmetry == "negative_token":
                prompts = self._add_negative_token(prompts, target, row_names)
            return prompts

        return torch.cat(self.batch.run(optimise, len(rows))).unflatten(0, (len(names), settings.embeddings))

    @torch.enable_grad()
    def _descend(self, starts: Tensor, points: Tensor, names: Sequence[tuple]) -> Tensor:
        """Optimises R prompts (R, L, D) until their tokens 1, 2, ... are attended to at points (R, T, 2)."""
        settings, draws = self.settings, self.settings.steps * self.settings.crops_per_step
        sampler = self.attention.sampler([("crops", name) for name in names], draws, replace=True)
        self.attention.prefetch((draw, crop) for draw in range(draws) for crop in range(1, settings.crop_pool + 1))
        prompts = starts.clone().requires_grad_()
        optimizer = torch.optim.Adam([prompts], lr=settings.lr)
        converged = Convergence(starts, settings.early_stop)
        scale = _LOSS_SCALE if settings.precision == "fp16" else 1.0
        for step in range(settings.steps):
            optimizer.zero_grad()
            targets = converged.active(points)
            for draw in range(step * settings.crops_per_step, (step + 1) * settings.crops_per_step):
                crops = sampler.at(targets, converged.rows)
                maps = self.attention.attend(converged.active(prompts), crops, draw, points.shape[1])
                loss = attention_loss(maps, into_crop(targets, crops.boxes[:, None]), settings, self.side)
                (loss.sum() * scale).backward()  # a sum, so that no prompt's gradient depends on the others
            assert prompts.grad is not None
            prompts.grad /= scale
            optimizer.step()
            if converged.update(prompts.detach(), loss.detach()):
                break
        return converged.prompts

    @torch.no_grad()
    def _start_at_query(self, starts: Tensor, points: Tensor, names: Sequence[tuple]) -> Tensor:
        """Replaces random tokens (of R prompts) by tokens that are solved for the features at points (R, T, 2)."""
        queries = self.attention.queries_at(WHOLE, [("start", name) for name in names], starts)
        tokens = token_for(queries, points, self.features.model.unet.layers)
        return torch.cat([starts[:, :1], tokens, starts[:, 1 + tokens.shape[1] :]], dim=1)

    def _add_negative_token(self, prompts: Tensor, points: Tensor, names: Sequence[tuple]) -> Tensor:
        """Optimises on, with a second token at the place where the first one is attended to in the flipped image.

        The left part of a symmetric object appears in the flipped image as its right part did. Where the prompt's attention
        peaks in the flipped image is therefore where it would be mistaken. Prompts that peak at the point itself are
        left as they are.
        """
        flipped = TargetImage(self.features, self.image.flipped(), self.batch, self.settings.timestep)
        token = torch.zeros(len(prompts), dtype=torch.int64, device=prompts.device)
        maps = flipped.attention_maps(prompts, token).mean(1, keepdim=True)
        negative = argmax(maps, (1, 1))
        negative = torch.cat([1 - negative[..., :1], negative[..., 1:]], dim=-1)
        apart = ((negative - points).norm(dim=-1)[:, 0] > 2 * self.settings.sigma).nonzero()[:, 0].tolist()
        if apart:
            both = torch.cat([points, negative], dim=1)[apart]
            prompts[apart] = self._descend(prompts[apart], both, [("competing", *names[row]) for row in apart])
        return prompts


class Convergence:
    """The prompts of an optimisation, and which of them still improve.

    Args:
        starts: (R, L, D) the prompts at the start.
        threshold: a prompt is done when ``WINDOW`` steps lower its mean loss by less than this fraction; None takes all
            steps, and then nothing is copied from device to host.

    Attributes:
        prompts: (R, L, D) as they are, or as they were when they converged.
        rows: (A,) int64, the prompts that still improve; None for all.
    """

    def __init__(self, starts: Tensor, threshold: float | None) -> None:
        self.prompts, self.threshold = starts, threshold
        self.rows: Tensor | None = None
        self._losses: list[Tensor] = []

    def active(self, values: Tensor) -> Tensor:
        """Returns the rows of ``values`` (R, ...) whose prompts still improve."""
        return values if self.rows is None else values[self.rows]

    def update(self, prompts: Tensor, loss: Tensor) -> bool:
        """Takes the prompts after a step, and its loss (A,); returns whether all have converged."""
        if self.rows is None:
            self.prompts = prompts.clone() if self.threshold is not None else prompts
        else:
            self.prompts[self.rows] = prompts[self.rows]
        if self.threshold is None:
            return False
        self._losses.append(loss)
        if len(self._losses) < 2 * WINDOW:
            return False
        before, after = (torch.stack(part).mean(0) for part in (self._losses[:WINDOW], self._losses[WINDOW:]))
        falling = after < (1 - self.threshold) * before
        rows = torch.arange(len(self.prompts), device=loss.device) if self.rows is None else self.rows
        self.rows = rows[falling]
        self._losses = [one[falling] for one in self._losses[WINDOW:]]
        return len(self.rows) == 0


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
    enlarged = [F.interpolate(m, (side, side), mode="bilinear", align_corners=False) for m in maps]
    return torch.stack([(m - target).square().mean((-3, -2, -1)) for m in enlarged]).mean(0)


def random_prompts(points: Tensor, key: str, shape: tuple[int, int], settings: Settings) -> Tensor:
    """Returns prompts (N, E, L, D) from N(0, 1), from which the optimisation of each point starts.

    Args:
        points: (N, 2) in fractions of the image's side; each and ``key`` decide the draw, not the other points.
        key: of the image.
        shape: L, D.
        settings: E and the seed.
    """
    starts = []
    for x, y in points.tolist():
        random = generator(settings.seed, key, "start", round(x, 4), round(y, 4))
        starts.append(torch.randn(settings.embeddings, *shape, generator=random))
    return torch.stack(starts).to(points)


def token_for(queries: list[Tensor], points: Tensor, layers: list[Layer]) -> Tensor:
    """Returns the token whose keys point, in all layers at once, where the features at a point do.

    The mean over all pixels, which distinguishes none, is subtracted from the features first. The token is the least
    squares solution through the layers' key projections, brought to the length that tokens from N(0, 1) have.

    Args:
        queries: of the whole image, one (R, heads, h * w, d) a layer.
        points: (R, T, 2) in fractions of the image's side.
        layers: those.

    Returns:
        (R, T, D).
    """
    projections, wanted = [], []
    for query, layer in zip(queries, layers, strict=True):
        side = round(query.shape[-2] ** 0.5)
        features = query.float().transpose(-1, -2).flatten(1, 2).unflatten(-1, (side, side))
        features = features - features.mean((-2, -1), keepdim=True)
        scale = features.norm(dim=1).mean((-2, -1))[:, None, None]  # so that no layer outweighs the others
        wanted.append(sample_at(features, points, (1, 1)) / scale)
        projections.append(layer.attention.to_k.weight.float())
    matrix, right = torch.cat(projections), torch.cat(wanted, dim=-1)
    ridge = 1e-2 * matrix.square().sum() / matrix.shape[1] * torch.eye(matrix.shape[1], device=matrix.device)
    token = torch.linalg.solve(matrix.T @ matrix + ridge, (right @ matrix).flatten(0, 1).T).T.view(
        *points.shape[:2], -1
    )
    return token / token.norm(dim=-1, keepdim=True).clamp_min(1e-12) * token.shape[-1] ** 0.5
