"""Ray casting of ellipsoids and boxes, batched over scenes.

Rays are parallel, so everything that a ray needs of a primitive is a polynomial of degree two at most in its (u, v):
one matrix product evaluates it for all primitives and pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.precision import without_autocast
from distill.data.datasets.shapes.scene import Scene

NOTHING = 1e4  # depth where a ray meets nothing


class Rendering(NamedTuple):
    """B images of side S.

    Attributes:
        image: (B, 3, S, S) float in [0, 1].
        depth: (B, S, S) distance along the viewing direction in half image sides; 10,000 in the background.
        mask: (B, S, S) bool, where the object is seen.
    """

    image: Tensor
    depth: Tensor
    mask: Tensor


class _Primitives(NamedTuple):
    """The primitives of B scenes, padded to P; all in the camera frame."""

    box_shaped: Tensor  # (B, P) bool
    exists: Tensor  # (B, P) bool
    is_object: Tensor  # (B, P) bool
    centre: Tensor  # (B, P, 3)
    half: Tensor  # (B, P, 3)
    axes: Tensor  # (B, P, 3, 3), columns are axes
    colour: Tensor  # (B, P, 3)


@torch.no_grad()
def render(scenes: list[Scene], size: int, device: torch.device | str = "cpu") -> Rendering:
    """Renders scenes as square images, in single precision whatever autocast does.

    Args:
        scenes: B scenes.
        size: side in pixels.
        device: where to compute.
    """
    primitives = _Primitives(*(tensor.to(device) for tensor in _pack(scenes)))
    u, v = _pixel_grid(size, device)
    with without_autocast(u):
        depth, winner = _cast(primitives, u, v)
        image = _background(scenes, size, u, v)
        light = torch.as_tensor(np.stack([s.light for s in scenes]), dtype=torch.float32, device=device)
        seen = depth < NOTHING
        which, pixel = seen.nonzero(as_tuple=True)
        surface = torch.stack([u[pixel], v[pixel], depth[seen]], dim=-1)
        image[seen] = _shade(primitives, which, winner[seen], surface, light[which])
    image.clamp_(0, 1)
    mask = seen & primitives.is_object.gather(1, winner)
    shape = (len(scenes), size, size)
    return Rendering(image.view(*shape, 3).permute(0, 3, 1, 2).contiguous(), depth.view(shape), mask.view(shape))


@torch.no_grad()
def cast(scenes: list[Scene], u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what rays at (n,) u and v meet first in each of B scenes.

    Returns:
        (B, n) the depth, as in a rendering, and (B, n) bool whether it is the object.
    """
    primitives = _pack(scenes)
    with without_autocast(u):
        depth, winner = _cast(primitives, u.float(), v.float())
    return depth, (depth < NOTHING) & primitives.is_object.gather(1, winner)


def _pixel_grid(size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Returns (S * S,) u and v of the pixel centres, row by row."""
    steps = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * (2 / size) - 1
    return steps.repeat(size), steps.repeat_interleave(size)


def _pack(scenes: list[Scene]) -> _Primitives:
    most = max(len(scene.half) for scene in scenes)

    def padded(arrays: list[np.ndarray], fill: float = 0.0) -> Tensor:
        """Returns (B, P, ...): the arrays (P_i, ...), each filled up to the longest."""
        full = np.full((len(arrays), most, *arrays[0].shape[1:]), fill)
        for row, array in zip(full, arrays, strict=True):
            row[: len(array)] = array
        return torch.as_tensor(full)

    numbers = np.arange(most)
    return _Primitives(
        box_shaped=padded([s.box_shaped for s in scenes]).bool(),
        exists=torch.as_tensor(np.stack([numbers < len(s.half) for s in scenes])),
        is_object=torch.as_tensor(np.stack([numbers < s.n_object for s in scenes])),
        centre=padded([s.centre for s in scenes]).float(),
        half=padded([s.half for s in scenes], fill=1.0).float(),
        axes=padded([s.axes for s in scenes], fill=0.5).float(),
        colour=padded([s.colour for s in scenes]).float(),
    )


def _cast(primitives: _Primitives, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (B, pixels) the depth of the nearest surface and the number of the primitive it belongs to."""
    depth = torch.empty(*primitives.exists.shape, len(u), device=u.device)
    boxes, rounds = primitives.exists & primitives.box_shaped, primitives.exists & ~primitives.box_shaped
    depth[~primitives.exists] = NOTHING
    depth[boxes] = _box_depth(primitives.centre[boxes], primitives.half[boxes], primitives.axes[boxes], u, v)
    depth[rounds] = _ellipsoid_depth(primitives.centre[rounds], primitives.half[rounds], primitives.axes[rounds], u, v)
    nearest = depth.min(dim=1)
    return nearest.values, nearest.indices


def _ellipsoid_depth(centre: Tensor, half: Tensor, axes: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Returns (P, pixels): where rays enter ellipsoids, solving q' M q = 1 for the depth.

    With M = A diag(1 / half^2) A', a = M_dd, b and c linear and quadratic in (u, v), the depth is
    c_d - b / a - sqrt(b^2 - a (c - 1)) / a.
    """
    inverse = axes / half[:, None] ** 2
    m = inverse @ axes.transpose(1, 2)
    a, x, y = m[:, 2, 2], centre[:, 0], centre[:, 1]
    bu, bv = m[:, 0, 2] / a, m[:, 1, 2] / a
    quu = bu * bu - m[:, 0, 0] / a
    quv = 2 * (bu * bv - m[:, 0, 1] / a)
    qvv = bv * bv - m[:, 1, 1] / a
    # Expanded around the image's centre, so that one product with (1, u, v, uu, uv, vv) does it.
    constant = quu * x * x + quv * x * y + qvv * y * y + 1 / a
    square = torch.stack([constant, -2 * quu * x - quv * y, -2 * qvv * y - quv * x, quu, quv, qvv], dim=1)
    line = torch.stack([centre[:, 2] + bu * x + bv * y, -bu, -bv], dim=1)
    monomials = torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v])
    inside = square @ monomials
    missed = inside < 0
    return torch.addmm(inside.abs_().sqrt_(), line, monomials[:3], beta=-1).masked_fill_(missed, NOTHING)


def _box_depth(centre: Tensor, half: Tensor, axes: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Returns (P, pixels): where rays enter boxes, as the last of the three slabs that they enter."""
    slope = axes[:, 2]
    slope = torch.where(slope.abs() < 1e-5, torch.full_like(slope, 1e-5), slope)
    # Along axis i a ray's local coordinate is (A' (p - centre))_i = offset_i + slope_i * depth.
    offset = -torch.einsum("pki,pk->pi", axes, centre)
    line = torch.stack([-offset, -axes[:, 0], -axes[:, 1]], dim=-1) / slope[..., None]
    monomials = torch.stack([torch.ones_like(u), u, v])
    middle = line.transpose(0, 1) @ monomials
    reach = (half / slope.abs()).T[..., None]
    enter, leave = (middle - reach).amax(0), (middle + reach).amin(0)
    return enter.masked_fill_(enter >= leave, NOTHING)


def _shade(primitives: _Primitives, scene: Tensor, winner: Tensor, surface: Tensor, light: Tensor) -> Tensor:
    """Returns (n, 3): the colours of n seen surface points under ambient, diffuse and a little specular light.

    Args:
        primitives: of all scenes.
        scene: (n,) which scene a point belongs to.
        winner: (n,) which of its primitives.
        surface: (n, 3) where the point lies.
        light: (n, 3) unit vectors towards the light.
    """
    axes = primitives.axes[scene, winner]
    inverse_half = primitives.half[scene, winner].reciprocal()
    local = ((surface - primitives.centre[scene, winner])[..., None] * axes).sum(-2) * inverse_half
    size = local.abs()
    face = (size >= size.amax(-1, keepdim=True)) * local.sign()
    gradient = torch.where(primitives.box_shaped[scene, winner, None], face, local) * inverse_half
    normal = F.normalize((axes * gradient[..., None, :]).sum(-1), dim=-1)
    diffuse = (normal * light).sum(-1, keepdim=True).clamp_(min=0)
    return primitives.colour[scene, winner] * (0.45 + 0.6 * diffuse) + 0.25 * diffuse**16


def _background(scenes: list[Scene], size: int, u: Tensor, v: Tensor) -> Tensor:
    """Returns (B, pixels, 3): two plains that meet at the horizon, a soft texture, and the object's contact shadow."""
    device = u.device

    def column(values: list[float]) -> Tensor:
        """Returns (B, 1): a value for each scene."""
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    ground = torch.as_tensor(np.stack([s.ground for s in scenes]), dtype=torch.float32, device=device)
    below = ((v - column([s.horizon for s in scenes])) * 12 + 0.5).clamp_(0, 1)[..., None]
    plain = torch.lerp(ground[:, None, 0], ground[:, None, 1], below)
    noise = [np.random.default_rng(s.texture_seed).normal(0, 1, (3, 12, 12)) for s in scenes]
    texture = torch.as_tensor(np.stack(noise), dtype=torch.float32, device=device)
    texture = F.interpolate(texture, size=(size, size), mode="bilinear", align_corners=False)
    x = column([(s.bbox[0] + s.bbox[2]) / 2 for s in scenes])
    y = column([s.bbox[3] for s in scenes])
    width = column([0.45 * (s.bbox[2] - s.bbox[0]) for s in scenes])
    shadow = torch.exp(-(((u - x) / width) ** 2) - ((v - y) / 0.06) ** 2)
    light = (1 + 0.06 * texture.flatten(2).transpose(1, 2)) * (1 - 0.45 * shadow)[..., None]
    return plain * light
