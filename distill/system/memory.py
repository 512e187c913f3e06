"""Peak memory of a part of a program."""

import re
import resource
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch

_CLEAR, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class PeakMemory:
    """A context that measures it: of the accelerator if there is one, otherwise of the whole process.

    Linux forgets the process's earlier peak on entering. Where that cannot be done the earlier peak counts too.

    Attributes:
        mib: the peak, after leaving.
    """

    mib: float

    def __enter__(self) -> "PeakMemory":
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):  # another system, or a container that forbids it
            _CLEAR.write_text("5")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if torch.cuda.is_available():
            self.mib = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            return
        self.mib = process_peak_mib()


def process_peak_mib() -> float:
    """Returns the most main memory that this process has taken so far, or since a :class:`PeakMemory` was entered, MiB."""
    found = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text()) if _STATUS.is_file() else None
    kib = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib / 1024, 1)
