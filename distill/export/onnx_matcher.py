"""An exported student as a matcher for torch tensors, run by ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from distill.core.checks import check_query
from distill.core.geometry import image_size, resize_images, resize_points
from distill.core.types import Matches
from distill.export.runtime import CORRELATE, ENCODE, OnnxFile, SplitMatcher


class OnnxMatcher:
    """Matches with what ``export`` wrote. Images of another size than the file's are resized.

    Args:
        file: path of the file, or of a folder with ``encode.onnx`` and ``correlate.onnx``.
        threads: of ONNX Runtime; without it, as many as torch uses.
        providers: of ONNX Runtime, in order of preference; without them, the CPU.

    Raises:
        ConfigError: when no file is given.
        WeightsError: when the file is missing, truncated, or no exported student.
    """

    device = "cpu"  # of its answers, wherever the images are

    def __init__(
        self, file: str | Path | None, threads: int | None = None, providers: Sequence[str] | None = None
    ) -> None:
        threads = threads or torch.get_num_threads()
        self.file: OnnxFile | SplitMatcher
        if file is not None and Path(file).is_dir():
            self.file = SplitMatcher(Path(file, ENCODE), Path(file, CORRELATE), threads, providers)
        else:
            self.file = OnnxFile(file, threads, providers)
        self.size, self.resize = self.file.size, self.file.metadata.get("resize")

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """See :class:`distill.core.protocols.Matcher`; N may be 0. The answers are single precision, where the points are."""
        check_query(src_img, trg_img, src_kps, min_points=0)
        src_size, trg_size = image_size(src_img), image_size(trg_img)
        inside = (self.size, self.size)
        query = (self._resized(src_img), self._resized(trg_img), resize_points(src_kps.float(), src_size, inside))
        fields = self.file.run(*(value.detach().cpu().float().contiguous().numpy() for value in query))
        answer = Matches(*(torch.from_numpy(field).to(src_kps.device) for field in fields))
        return answer._replace(trg_kps=resize_points(answer.trg_kps, inside, trg_size))

    def _resized(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == (self.size, self.size):
            return images
        size = (self.size, self.size)
        return resize_images(images.float(), size)
