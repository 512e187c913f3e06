"""The GPU of each process where several share a machine, and what its processor can compute."""

import os
from collections.abc import Sequence
from typing import Any

import torch

RANKS = ("LOCAL_RANK", "SLURM_LOCALID")
"""Environment variables in which Lightning, torchrun and SLURM number the processes of one machine from 0 on."""


def own_gpu(gpus: Sequence[int] = ()) -> str:
    """Returns "cuda", or where a launcher started several processes the GPU of this one, such as "cuda:1".

    Processes take turns where there are fewer GPUs than processes.

    Args:
        gpus: those of the processes, in the order of their numbers; without them all of the machine.
    """
    rank = next((os.environ[name] for name in RANKS if os.environ.get(name)), None)
    if gpus:
        return f"cuda:{gpus[int(rank or 0) % len(gpus)]}"
    count = torch.cuda.device_count()
    return "cuda" if rank is None or count < 2 else f"cuda:{int(rank) % count}"


def has_bf16() -> bool:
    """Returns whether the processor has instructions for bf16 (AVX-512 BF16 or AMX on x86, BF16 on Arm), as far as torch says so."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
