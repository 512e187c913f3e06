"""Versions, processor and accelerator of the machine, for reports and the choice of a device."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from distill.core.devices import has_bf16, own_gpu
from distill.core.errors import ConfigError, nearest
from distill.core.version import __version__

PACKAGES = ("torch", "torchvision", "lightning", "diffusers", "transformers", "timm", "torchmetrics", "onnxruntime")
DEVICES = ("auto", "cpu", "cuda", "mps")


def describe() -> dict[str, str]:
    """Returns versions, processor, threads and accelerator, by name; "missing" for a package that is not there."""
    versions = {name: _version(name) for name in PACKAGES}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "distill": __version__,
        "python": platform.python_version(),
        **versions,
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": gpu,
    }


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fast_precision(accelerator: str) -> str:
    """Returns Lightning's name of the arithmetic that trains a student fastest: "bf16-mixed" or "32-true".

    GPUs get "32-true": a small student does not fill them.

    Args:
        accelerator: Lightning's; "auto" is the processor where there is no GPU.
    """
    return "bf16-mixed" if _is_cpu(accelerator) and has_bf16() else "32-true"


def _is_cpu(accelerator: str) -> bool:
    return accelerator == "cpu" or (accelerator == "auto" and choose_device("auto") == "cpu")


def check_workers(asked: int) -> None:
    """Raises a :class:`ConfigError` for more processes that load data than a machine can use.

    Each is a Python process with torch, of a quarter of a GiB or more. Several a core may serve where files are slow to read.
    """
    most = max(32, 4 * available_cores())
    if asked > most:
        raise ConfigError(
            f"Expected num_workers of at most {most} on a machine of {available_cores()} cores but got {asked}; null chooses."
        )


def choose_device(name: str, gpus: Sequence[int] = ()) -> str:
    """Returns the device to work on: a GPU if there is one, or "cpu", for "auto", and other names as they are.

    Where several processes share a machine, "auto" and "cuda" name the GPU of this one, see :func:`own_gpu`.

    Args:
        name: auto, cpu, cuda, cuda:<number> or mps.
        gpus: the GPUs of the processes of this machine, in the order of their numbers; without them all of it.

    Raises:
        ConfigError: when there is no such device, or no GPU of one of these numbers.
    """
    kind, colon, number = str(name).partition(":")
    if kind not in DEVICES or (colon and not (kind == "cuda" and number.isdigit())):
        hint = "did you mean 'cuda'? valid names: " + ", ".join(DEVICES) if kind == "gpu" else nearest(kind, DEVICES)
        raise ConfigError(f"Expected device to name a device but got {name!r}; {hint}.")
    if kind == "auto" and not torch.cuda.is_available():
        return "cpu"
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Expected the GPU that device={name} names but torch {torch.__version__} finds {torch.cuda.device_count()}; "
            "set device=auto or device=cpu, or install a driver and a torch that fits it."
        )
    if name in ("auto", "cuda"):
        missing = [gpu for gpu in gpus if gpu >= torch.cuda.device_count()]
        if missing:
            raise ConfigError(
                f"Expected the GPUs that trainer.devices={list(gpus)} names but torch finds {torch.cuda.device_count()}; "
                f"leave {missing} out."
            )
        return own_gpu(gpus)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("Expected an Apple GPU for device=mps but torch finds none; set device=auto or device=cpu.")
    return str(name)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
