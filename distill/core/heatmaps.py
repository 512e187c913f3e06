"""Heatmaps between an original image and a letterboxed one."""

import torch
from torch import Tensor
from torch.nn import functional as F


def recover(heatmaps: Tensor, from_box: Tensor, to_box: Tensor) -> Tensor:
    """Returns heatmaps with as many cells that cover another box, read bilinearly; zero outside the old box.

    Args:
        heatmaps: (R, h, w) over ``from_box``.
        from_box: (R, 4) x0, y0, x1, y1, px.
        to_box: (R, 4) in the same pixels.
    """
    rows, (height, width) = len(heatmaps), heatmaps.shape[-2:]
    unit = torch.eye(2, 3, device=heatmaps.device).expand(rows, 2, 3)
    centres = F.affine_grid(unit, [rows, 1, height, width], align_corners=False)  # of the new cells, in [-1, 1]
    places = to_box[:, None, None, :2] + (centres + 1) / 2 * (to_box[:, 2:] - to_box[:, :2])[:, None, None]
    inside = (places - from_box[:, None, None, :2]) / (from_box[:, 2:] - from_box[:, :2])[:, None, None]
    read = F.grid_sample(heatmaps[:, None], inside * 2 - 1, padding_mode="border", align_corners=False)[:, 0]
    return read * ((inside >= 0) & (inside <= 1)).all(-1)
