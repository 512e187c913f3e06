"""The annotation as a matcher: the upper bound of every figure, and a check of the benchmark."""

import torch
from torch import Tensor

from distill.core.errors import ConfigError
from distill.core.geometry import gaussian_heatmap
from distill.core.types import Matches, PairBatch


class Oracle:
    """Answers with the annotated target points and confidence 1; the heatmap is a Gaussian around each.

    Args:
        heatmap_side: cells a side of the heatmap.
        sigma: standard deviation of the Gaussian, as a fraction of the image's side.

    Raises:
        ConfigError: for a side or a deviation that is not positive.
    """

    depends_on_images = False  # one store of its labels serves every size of images

    def __init__(self, heatmap_side: int = 16, sigma: float = 0.055) -> None:
        if heatmap_side < 1 or sigma <= 0:
            raise ConfigError(f"Expected heatmap_side and sigma to be positive but got {heatmap_side} and {sigma}.")
        self.heatmap_side, self.sigma = heatmap_side, sigma

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """Raises a :class:`ConfigError`: two images and points alone have no annotation to answer with."""
        raise ConfigError(
            "Expected annotated pairs for the oracle but got images and points alone, which have no truth; use it with: "
            "python -m distill evaluate matcher=oracle"
        )

    @torch.no_grad()
    def match_pairs(self, pairs: PairBatch) -> Matches:
        """See :class:`distill.core.protocols.PairMatcher`."""
        height, width = pairs.trg_img.shape[-2:]
        side = (self.heatmap_side, self.heatmap_side)
        heatmap = gaussian_heatmap(pairs.trg_kps, side, (height, width), self.sigma * max(height, width))
        return Matches(pairs.trg_kps, torch.ones_like(pairs.trg_kps[..., 0]), heatmap)

    def fingerprint(self) -> dict[str, str]:
        """See :class:`distill.core.protocols.Fingerprinted`."""
        return {"method": "oracle 1", "heatmap_side": str(self.heatmap_side), "sigma": str(self.sigma)}
