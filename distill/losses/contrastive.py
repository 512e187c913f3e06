"""Contrastive loss (InfoNCE) on descriptors."""

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.errors import ConfigError
from distill.core.geometry import sample_at
from distill.losses.base import Example, dense_parts, weighted_mean


class Contrastive:
    """InfoNCE (van den Oord et al., 2018) between descriptors at source points and at the labelled target points.

    The negatives of a point are the labelled target points of the same pair's other points, and those of pairs of other
    categories. Pairs of the same category are left out, because they may show the same part, and so are target points
    near the positive.

    Args:
        temperature: divides the cosines.
        margin: how near a place must be to the positive to be left out, as a fraction of the image's longer side.

    Raises:
        ConfigError: for a temperature that is not positive or a negative margin.
    """

    dense = True

    def __init__(self, temperature: float = 0.07, margin: float = 0.1) -> None:
        if temperature <= 0 or margin < 0:
            raise ConfigError(
                f"Expected Contrastive with temperature > 0 and margin >= 0 but got {temperature} and {margin}."
            )
        self.temperature, self.margin = temperature, margin

    def __call__(self, example: Example) -> Tensor:
        """See :class:`distill.losses.base.Loss`."""
        _, src_map, trg_map = dense_parts(example)
        mask, places = example.pairs.kps_mask, example.label.trg_kps
        queries = F.normalize(sample_at(src_map, example.pairs.src_kps, example.src_size), dim=-1)
        keys = F.normalize(sample_at(trg_map, places, example.trg_size), dim=-1)
        logits = torch.einsum("bnc,amc->bnam", queries, keys) / self.temperature
        b, n = mask.shape
        logits = logits.masked_fill(~self._compared(example), float("-inf")).view(b, n, b * n)
        own = torch.arange(b * n, device=logits.device).view(b, n)
        loss = logits.logsumexp(-1) - logits.gather(-1, own[..., None])[..., 0]
        return weighted_mean(loss, example.label.confidence, mask)

    def _compared(self, example: Example) -> Tensor:
        """Returns (B, N, B, N) bool: whether a point's query is compared with the other's place; always with its own."""
        mask, places = example.pairs.kps_mask, example.label.trg_kps
        b, n = mask.shape
        names = example.pairs.category
        strange = torch.tensor([[first != second for second in names] for first in names], device=mask.device)
        distance = torch.cdist(places.float(), places.float()) / max(example.trg_size)
        compared = strange[:, None, :, None] & mask[None, None]
        compared = compared.expand(b, n, b, n).clone()
        rows = torch.arange(b, device=mask.device)
        compared[rows, :, rows, :] = (distance > self.margin) & mask[:, None, :]
        return compared | torch.eye(b * n, dtype=torch.bool, device=mask.device).view(b, n, b, n)
