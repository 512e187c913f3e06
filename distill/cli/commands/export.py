"""Write a student as an ONNX file, verified against torch.

The number of pairs and of points is free; the side of the images is the one that the student was trained on.

Examples:
  python -m distill export ckpt=runs/fit/student.safetensors file=student.onnx
"""

from omegaconf import DictConfig

from distill.export.onnx import Deviation, export_student
from distill.export.student_file import load_student, read_student_file


def run(cfg: DictConfig) -> Deviation:
    """Exports, verifies, and prints how far the file is from torch."""
    config, _ = read_student_file(cfg.ckpt)
    print(f"{cfg.file}: is written and compared with torch, which takes up to a minute", flush=True)
    deviation = export_student(load_student(cfg.ckpt, cfg.trust), cfg.file, config["size"], config, cfg.precision)
    print(
        f"{cfg.file}: points within {deviation.points_px:.2g} px of torch ({deviation.ties:.1%} ties), confidence within "
        f"{deviation.confidence:.2g}, heatmap within {deviation.heatmap:.2g} of its range"
    )
    return deviation
