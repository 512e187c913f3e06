"""Which precision a device can be asked for."""

import logging

import torch

from distill.core.errors import ConfigError
from teacher.settings import Precision

log = logging.getLogger(__name__)


def settle_precision(asked: Precision, device: torch.device) -> Precision:
    """Returns the precision to compute in.

    That is the one asked for, but bf16 on a processor without instructions for it, where it is slower than fp32 by
    large factors: there it is fp32, with a warning. Labels are stored under what was computed.

    Raises:
        ConfigError: for fp16 on a processor, which has the range of fp16 but not its speed.
    """
    if device.type != "cpu" or asked == "fp32":
        return asked
    if asked == "fp16":
        raise ConfigError("Expected precision=fp32 or bf16 on a CPU but got fp16, which it is slow at; use bf16.")
    if not has_bf16():
        log.warning("This processor has no instructions for bf16 and would be slow at it; computing in fp32.")
        return "fp32"
    return asked


def has_bf16() -> bool:
    """Says whether the processor computes in bf16 by itself (AVX-512 BF16 or AMX on x86, BF16 on Arm)."""
    known = torch.cpu.get_capabilities()
    return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
