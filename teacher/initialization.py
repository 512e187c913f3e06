"""Where the optimisation of a prompt starts."""

import torch
from torch import Tensor

from distill.core.geometry import sample_at
from teacher.attention import Layer
from teacher.crop_sampling import generator
from teacher.settings import Settings


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


def token_for(queries: list[Tensor], points: Tensor, layers: list[Layer]) -> Tensor:
    """Returns the token whose keys point, in all layers at once, where the features at a point do.

    What all pixels have in common is taken off the features first, since it distinguishes none. The token is the least
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
