"""Where a number was measured."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import distill

PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "transformers", "timm", "torchmetrics", "onnxruntime")


def describe() -> dict[str, str]:
    """Returns versions, processor, threads and accelerator, by name; "missing" for a package that is not there."""
    versions = {name: _version(name) for name in PACKAGES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "distill": distill.__version__,
        "python": platform.python_version(),
        **versions,
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
    }


def choose_device(name: str) -> str:
    """Returns "cuda" or "cpu" for "auto", and other names as they are."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
