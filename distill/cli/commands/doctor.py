"""Check versions, devices, weights and data sets; each problem comes with its remedy.

Examples:
  python -m distill doctor
  python -m distill doctor model=stable-diffusion-v1-5 data_root=CUB_200_2011
"""

import importlib
from pathlib import Path

from omegaconf import DictConfig

from distill.cli.config import instantiate, shipped
from distill.core.errors import DistillError
from distill.system.environment import describe

PARTS = ("torch", "torchvision", "lightning", "diffusers", "transformers", "timm", "torchmetrics", "onnxruntime")


def run(cfg: DictConfig) -> list[str]:
    """Prints what was found, and returns the problems."""
    for name, value in describe().items():
        print(f"{name:<14} {value}")
    problems = [problem for name in PARTS if (problem := _import_problem(name))]
    checks: list[tuple[str, dict]] = [
        ("teacher's model", {"_target_": "teacher.PromptOptimization", "model": str(cfg.model)})
    ]
    if cfg.data_root is not None:
        checks.append(("data set", {"_target_": "distill.data.datasets.cub.Annotations", "root": Path(cfg.data_root)}))
    for what, config in checks:
        try:
            instantiate(config)
        except DistillError as error:
            problems.append(f"{what}: {error}")
    labels = sorted(shipped("checkpoints/labels").glob("*/*.safetensors"))
    print(f"{'labels':<14} {len(labels)} files come with the project")
    for problem in problems:
        print(f"problem: {problem}")
    print("all is well" if not problems else f"{len(problems)} problems")
    return problems


def _import_problem(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except ImportError as error:
        return f"{name}: {error}; pip install --upgrade {name}"
    return None
