"""Peak memory of a part of a program."""

import re
import resource
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """A context that measures it: of a CUDA device what torch allocates there, otherwise of the whole process.

    Linux forgets the process's earlier peak on entering. Where that cannot be done the earlier peak counts too.

    Args:
        device: that does the work.

    Attributes:
        mib: the peak, after leaving.
    """

    mib: float

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with suppress(OSError):  # another system, or a container that forbids it
            _CLEAR.write_text("5")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.mib = round(torch.cuda.max_memory_allocated(self.device) / 2**20, 1)
            return
        self.mib = process_peak_mib()


def device_of(matcher: object, otherwise: str | torch.device) -> torch.device:
    """Returns the device that a matcher works on: its ``device``, or that of its parameters.

    Args:
        matcher: or what holds one as its ``teacher``, ``matcher`` or ``model``.
        otherwise: the device of a matcher that says nothing, where its images are.
    """
    named = getattr(matcher, "device", None)
    if isinstance(named, str | torch.device):
        return torch.device(named)
    if isinstance(matcher, nn.Module):
        return next((value.device for value in matcher.parameters()), torch.device(otherwise))
    inner = next((found for name in ("teacher", "matcher", "model") if (found := getattr(matcher, name, None))), None)
    return torch.device(otherwise) if inner is None or isinstance(inner, str) else device_of(inner, otherwise)


def process_peak_mib() -> float:
    """Returns the most main memory that this process has taken so far, or since a :class:`PeakMemory` was entered, MiB."""
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.is_file() else None
    kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / 1024, 1)
