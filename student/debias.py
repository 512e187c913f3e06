"""Removal of what a vision transformer's features say about the position in the image."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.errors import ConfigError

BLANK_CELLS = 28
"""Cells a side of the blank image."""


class PositionalDebias(nn.Module):
    """Projects the main directions of a blank image's features out of all features.

    A blank image has the same content everywhere, so its features differ by their position only. Their first principal
    components span the directions that are removed. Two 1 x 1 convolutions do it, which export like any other.

    Args:
        channels: C of the features.
        components: how many directions are removed.

    Raises:
        ConfigError: when there are not so many directions.
    """

    basis: Tensor

    def __init__(self, channels: int, components: int) -> None:
        super().__init__()
        if not 0 < components < min(channels, BLANK_CELLS**2):
            raise ConfigError(
                f"Expected debias between 1 and {min(channels, BLANK_CELLS**2) - 1} directions for features of {channels} channels "
                f"but got {components}; 0 leaves it out, 20 is usual for DINOv3."
            )
        self.register_buffer("basis", torch.zeros(channels, components))

    @torch.no_grad()
    def fit(self, blank: Tensor) -> None:
        """Takes the principal components of the features (1, C, h, w) of a blank image."""
        cells = blank[0].flatten(1).T.cpu().double()
        _, _, directions = torch.linalg.svd(cells - cells.mean(0), full_matrices=False)
        self.basis.copy_(directions[: self.basis.shape[1]].T)

    def forward(self, features: Tensor) -> Tensor:
        """Returns features (B, C, h, w) without their share in the removed directions."""
        basis = self.basis.to(features.dtype)
        shares = F.conv2d(features, basis.T[:, :, None, None])
        return features - F.conv2d(shares, basis[:, :, None, None])
