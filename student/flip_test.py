"""The flip test: an image and its horizontal flip are described, and their similarities averaged.

A network answers a little differently for the flipped image, and the mean of both answers is better (Newell et al., "Stacked
hourglass networks for human pose estimation", ECCV 2016, who average heatmaps). Here both descriptors of a cell are joined
to one: the cosine of joined descriptors is the mean of both cosines. The joined map of the flipped image has the same
numbers in another order, so that it need not be computed.
"""

import math

import torch
from torch import Tensor


def join(maps: Tensor, flipped_maps: Tensor) -> Tensor:
    """Returns joined descriptors of length 1, (B, 2C, h, w), of images.

    Args:
        maps: (B, C, h, w) descriptors of length 1 of the images.
        flipped_maps: (B, C, h, w) of the flipped images.
    """
    return torch.cat([maps, flipped_maps.flip(-1)], 1) / math.sqrt(2)


def of_flipped(joined: Tensor) -> Tensor:
    """Returns the joined descriptors of the flipped images, given those of the images, (B, 2C, h, w)."""
    own, others = joined.chunk(2, 1)
    return torch.cat([others, own], 1).flip(-1)


def of_images(joined: Tensor) -> Tensor:
    """Returns the descriptors (B, C, h, w), of length 1, that the images alone have."""
    return joined.chunk(2, 1)[0] * math.sqrt(2)
