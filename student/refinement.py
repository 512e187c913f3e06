"""Local refinement of an answer by features of stride 4."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.core.geometry import image_size, resize_images, sample_at
from distill.core.precision import in_single, without_autocast
from student.backbone import whole_cells

STRIDE = 4
"""px per cell of the features."""


class Refinement(nn.Module):
    """Moves each answer within a window around it, by comparing features of a shallow network with stride 4.

    The window is sampled at fixed offsets, without data-dependent shapes, so that it exports to ONNX. Its cost does not
    depend on the image size.

    Args:
        width: channels of the descriptors.
        radius_cells: half the window's side, in cells of 4 px.
        temperature: divides the cosines; the initial value, it is learned.
    """

    offsets: Tensor

    def __init__(self, width: int, radius_cells: float = 3.0, temperature: float = 0.1) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.log_temperature = nn.Parameter(torch.tensor(float(temperature)).log())
        self.gain = nn.Parameter(torch.zeros(()))  # of the displacement: an untrained refinement changes nothing
        reach = torch.arange(-int(radius_cells), int(radius_cells) + 1, dtype=torch.float32) * STRIDE
        offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).flatten(0, 1)
        self.register_buffer("offsets", offsets)

    def forward(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor, trg_kps: Tensor) -> Tensor:
        """Returns the refined answers (B, N, 2), x, y px.

        Args:
            src_img: (B, 3, H, W) in [0, 1].
            trg_img: the same.
            src_kps: (B, N, 2) x, y, px.
            trg_kps: (B, N, 2) x, y, px: the answers to refine.
        """
        src_size, trg_size = image_size(src_img), image_size(trg_img)
        dtype, offsets = self.gain.dtype, in_single(self.offsets)
        src_map, trg_map = (self._describe(images.to(dtype)) for images in (src_img, trg_img))
        queries = F.normalize(sample_at(src_map, src_kps, src_size), dim=-1)
        window = trg_kps[:, :, None] + offsets  # (B, N, K, 2)
        around = sample_at(trg_map, window.flatten(1, 2), trg_size).unflatten(1, (-1, len(offsets)))
        with without_autocast(queries):
            # A product of matrices, not an einsum: an exported einsum over no points ends ONNX Runtime 1.32.
            cosines = (F.normalize(around, dim=-1) @ queries[..., None])[..., 0]
            scores = cosines / in_single(self.log_temperature).exp()
            move = torch.einsum("bnk,kd->bnd", scores.softmax(-1), offsets)
        height, width = trg_size
        moved = trg_kps + in_single(self.gain) * move
        return torch.stack([moved[..., 0].clamp(0, width), moved[..., 1].clamp(0, height)], dim=-1)

    def _describe(self, images: Tensor) -> Tensor:
        """Returns features (B, C, h, w) of images (B, 3, H, W), resized to whole cells as in :class:`student.backbone.Backbone`."""
        whole: Tensor = self.network(resize_images(images, whole_cells(image_size(images), 1, STRIDE)) * 2 - 1)
        return whole
