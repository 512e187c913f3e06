"""First phase: prompts whose attention peaks at given points of source images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.geometry import gaussian_heatmap, sample_at
from distill.core.readout import argmax
from teacher.adaptive_batch import AdaptiveBatch
from teacher.attention import Layer
from teacher.crop_attention import CropAttention, CropFeatures, at_draw
from teacher.crop_sampling import WHOLE, generator
from teacher.crops import into_crop
from teacher.cuda_graph import repeat
from teacher.feature_cache import FeatureCache, KeyedImage
from teacher.settings import Settings
from teacher.target_image import TargetImages

WINDOW = 10
"""Steps over which the loss is averaged to see whether it still falls."""

_LOSS_SCALE = 2.0**14  # keeps gradients of maps from vanishing in half precision; Adam is invariant to it


class SourceImages:
    """Source images, at whose points prompts are optimised, those of all images together.

    Args:
        features: of images in the frozen model.
        batch: how many prompts are optimised together.
    """

    def __init__(self, features: FeatureCache, batch: AdaptiveBatch) -> None:
        self.features, self.batch = features, batch
        self.settings, self.side = features.settings, features.model.map_side

    def optimise(self, images: Sequence[KeyedImage], points: Tensor, names: Sequence[tuple]) -> Tensor:
        """Optimises the prompts of G groups of T points each.

        Args:
            images: of the groups.
            points: (G, T, 2) in fractions of the images' sides; token 1 + t of a prompt stands for point t of its group.
            names: of the groups; they decide what is random, so that the other groups of the call do not matter.

        Returns:
            (G, E, L, D), from E random starts each.
        """
        settings, copies = self.settings, self.settings.embeddings
        points = points.to(self.features.model.device)
        starts = self._starts(images, points[:, 0])
        targets = points.repeat_interleave(copies, 0)
        row_images = [image for image in images for _ in range(copies)]
        row_names = [(*name, copy) for name in names for copy in range(copies)]

        def optimise(batch: slice) -> Tensor:
            """Returns the optimised prompts of the rows ``batch``, (R, L, D)."""
            rows = _Rows(row_images[batch], targets[batch], row_names[batch])
            attention = CropAttention(self.features, rows.images, settings.timestep)
            start = starts[batch]
            if settings.start == "query":
                start = self._start_at_query(attention, start, rows)
            prompts = self._descend(attention, start, rows)
            return self._add_negative_token(prompts, rows) if settings.symmetry == "negative_token" else prompts

        return torch.cat(self.batch.run(optimise, len(row_names))).unflatten(0, (len(names), copies))

    def _starts(self, images: Sequence[KeyedImage], points: Tensor) -> Tensor:
        """Returns (G * E, L, D), the random starts at one point (G, 2) of each of G images."""
        shape, host = self.features.model.prompt_shape, points.cpu()
        drawn = [random_prompts(host[g : g + 1], image.key, shape, self.settings)[0] for g, image in enumerate(images)]
        return torch.cat(drawn).to(points)

    @torch.enable_grad()
    def _descend(self, attention: CropAttention, starts: Tensor, rows: "_Rows") -> Tensor:
        """Optimises R prompts (R, L, D) until their tokens 1, 2, ... are attended to at the points of ``rows``."""
        settings, per_step = self.settings, self.settings.crops_per_step
        draws = settings.steps * per_step
        plan = attention.sampler([("crops", name) for name in rows.names], draws, replace=True).plan(rows.points)
        captured = settings.cuda_graph == "auto" and starts.is_cuda and settings.early_stop is None
        descent = Descent(starts, rows.points, settings, self.side, captured)
        for part in attention.parts(settings.steps, per_step):
            descent.show(attention.prepare(plan.part(part), part.start), plan.boxes[part])
            steps = (part.stop - part.start) // per_step
            if settings.early_stop is None:
                with torch.cuda.device_of(starts):  # which need not be the current one, on which steps are captured
                    self._take(descent, steps, captured)
            elif any(descent.step_and_check() for _ in range(steps)):
                break
        return descent.prompts

    def _take(self, descent: "Descent", steps: int, captured: bool) -> None:
        """Takes steps, and counts their passes; a step that is replayed is not called."""
        unet, before = self.features.model.unet, self.features.model.unet.passes
        after: list[int] = []

        def step() -> None:
            """Takes one, and notes the passes up to its end."""
            descent.step()
            after.append(unet.passes)

        repeat(step, steps, captured)
        unet.passes = before + (after[0] - before) * steps

    @torch.no_grad()
    def _start_at_query(self, attention: CropAttention, starts: Tensor, rows: "_Rows") -> Tensor:
        """Replaces random tokens (of R prompts) by tokens that are solved for the features at the points."""
        queries = attention.queries_at(WHOLE, [("start", name) for name in rows.names], starts)
        tokens = token_for(queries, rows.points, self.features.model.unet.layers)
        return torch.cat([starts[:, :1], tokens, starts[:, 1 + tokens.shape[1] :]], dim=1)

    def _add_negative_token(self, prompts: Tensor, rows: "_Rows") -> Tensor:
        """Optimises on, with a second token at the place where the first one is attended to in the flipped image.

        The left part of a symmetric object appears in the flipped image as its right part did. Where the prompt's attention
        peaks in the flipped image is therefore where it would be mistaken. Prompts that peak at the point itself are
        left as they are.
        """
        flipped = TargetImages(self.features, self.batch, self.settings.timestep)
        token = torch.zeros(len(prompts), dtype=torch.int64, device=prompts.device)
        maps = flipped.attention_maps([image.flipped() for image in rows.images], prompts, token)
        negative = argmax(maps.mean(1, keepdim=True), (1, 1))
        negative = torch.cat([1 - negative[..., :1], negative[..., 1:]], dim=-1)
        apart = ((negative - rows.points).norm(dim=-1)[:, 0] > 2 * self.settings.sigma).nonzero()[:, 0].tolist()
        if apart:
            both = torch.cat([rows.points, negative], dim=1)[apart]
            competing = _Rows([rows.images[r] for r in apart], both, [("competing", *rows.names[r]) for r in apart])
            attention = CropAttention(self.features, competing.images, self.settings.timestep)
            prompts[apart] = self._descend(attention, prompts[apart], competing)
        return prompts


class _Rows(NamedTuple):
    """R prompts that are optimised together: image, points (R, T, 2) and name of each."""

    images: list[KeyedImage]
    points: Tensor
    names: list[tuple]


class Descent:
    """Adam on R prompts, whose steps read everything from the device.

    Args:
        starts: (R, L, D).
        points: (R, T, 2) of the images, at which tokens 1, 2, ... shall be attended to.
        settings: of the method.
        side: of the grid on which maps are compared, cells.
        captured: whether a step is to be captured as a CUDA graph.
    """

    def __init__(self, starts: Tensor, points: Tensor, settings: Settings, side: int, captured: bool = False) -> None:
        self.points, self.settings, self.side = points, settings, side
        self._free = starts.clone().requires_grad_()
        fused = starts.device.type in ("cpu", "cuda")  # counts its steps on the device, or not in a tensor that is read
        self._optimizer = torch.optim.Adam([self._free], lr=settings.lr, fused=fused, capturable=captured)
        self._converged = Convergence(starts, settings.early_stop)
        self._scale = _LOSS_SCALE if settings.precision == "fp16" else 1.0
        self._draw = torch.zeros(1, dtype=torch.int64, device=starts.device)

    @property
    def prompts(self) -> Tensor:
        """(R, L, D) as they are, or as they were when they converged."""
        return self._free.detach() if self.settings.early_stop is None else self._converged.prompts

    def show(self, features: CropFeatures, boxes: Tensor) -> None:
        """Says what the crops of the next draws show, and where they lie in the images, (K, R, 3)."""
        self._features, self._boxes = features, boxes
        self._draw.zero_()

    def step(self) -> Tensor:
        """Takes a step; returns the loss (A,) of the prompts that still improve, at the last of its crops."""
        self._free.grad, rows = None, self._converged.rows
        points = self._converged.active(self.points)
        for _ in range(self.settings.crops_per_step):
            boxes = at_draw(self._boxes, self._draw, rows)
            maps = self._features.attend(self._converged.active(self._free), self._draw, rows, points.shape[1])
            loss = attention_loss(maps, into_crop(points, boxes[:, None]), self.settings, self.side)
            (loss.sum() * self._scale).backward()  # a sum, so that no prompt's gradient depends on the others
            self._draw += 1
        assert self._free.grad is not None
        if self._scale != 1:
            self._free.grad /= self._scale
        self._optimizer.step()
        return loss.detach()

    def step_and_check(self) -> bool:
        """Takes a step; returns whether all prompts have converged, which is looked at every ``WINDOW`` steps."""
        loss = self.step()
        return self._converged.update(self._free.detach(), loss)


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
        self.prompts, self.threshold = starts.clone(), threshold
        self.rows: Tensor | None = None
        self._losses: list[Tensor] = []

    def active(self, values: Tensor) -> Tensor:
        """Returns the rows of ``values`` (R, ...) whose prompts still improve."""
        return values if self.rows is None else values[self.rows]

    def update(self, prompts: Tensor, loss: Tensor) -> bool:
        """Takes the prompts after a step, and its loss (A,); returns whether all have converged."""
        self._keep(prompts)
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

    def _keep(self, prompts: Tensor) -> None:
        if self.rows is None:
            self.prompts.copy_(prompts)
        else:
            self.prompts[self.rows] = prompts[self.rows]


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
