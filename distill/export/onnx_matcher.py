"""An exported student, run by ONNX Runtime: no torch module, no timm."""

import os
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.core.checks import check_query
from distill.core.errors import ConfigError, WeightsError
from distill.core.geometry import image_size, resize_points
from distill.core.types import Matches
from distill.export.onnx import INPUTS, OUTPUTS


class OnnxMatcher:
    """Matches with an ONNX file that ``export`` wrote. Images of another size than the file's are resized.

    Args:
        file: path of the file.
        threads: of ONNX Runtime; without it, as many as torch uses.

    Raises:
        ConfigError: when no file is given.
        WeightsError: when the file is missing, truncated, or no exported student.
    """

    def __init__(self, file: str | Path | None, threads: int | None = None) -> None:
        if file is None:
            raise ConfigError("Expected an ONNX file but got none; add file=<student.onnx>.")
        if not os.path.isfile(file):
            raise WeightsError(
                f"Expected an ONNX file but there is none at {file}; write it with: python -m distill export."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises classes of its own that share no base but this
            raise WeightsError(
                f"Expected a whole ONNX file at {file} but it cannot be read; export it again."
            ) from error
        names = tuple(i.name for i in self.session.get_inputs()), tuple(o.name for o in self.session.get_outputs())
        size = self.session.get_modelmeta().custom_metadata_map.get("size", "")
        if names != (INPUTS, OUTPUTS) or not size.isdigit():
            raise WeightsError(
                f"Expected a student that distill exported at {file} but its inputs and outputs are {names}."
            )
        self.size = int(size)

    def __call__(self, src_img: Tensor, trg_img: Tensor, src_kps: Tensor) -> Matches:
        """See :class:`distill.core.protocols.Matcher`."""
        check_query(src_img, trg_img, src_kps)
        src_size, trg_size = image_size(src_img), image_size(trg_img)
        inside = (self.size, self.size)
        query = (self._resized(src_img), self._resized(trg_img), resize_points(src_kps, src_size, inside))
        feed = {name: value.detach().cpu().float().numpy() for name, value in zip(INPUTS, query, strict=True)}
        answer = Matches(*(torch.from_numpy(field).to(src_kps) for field in self.session.run(list(OUTPUTS), feed)))
        return answer._replace(trg_kps=resize_points(answer.trg_kps, inside, trg_size))

    def _resized(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == (self.size, self.size):
            return images
        size = (self.size, self.size)
        return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)
