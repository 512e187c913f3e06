"""Several processes for one command: Lightning starts them, or torchrun or SLURM has started them already.

Lightning starts further processes with the command line of the first, verb included. Hence this works from the command
line only; from Python, start the processes with torchrun.
"""

import atexit
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import distributed

import __main__
from distill.cli.interruption import may_start_others
from distill.core.errors import ConfigError

PATIENCE = timedelta(days=30)
"""How long a process that is done waits for the others, whose points may take longer."""


def launch(cfg: DictConfig) -> Fabric:
    """Starts the processes that ``cfg.trainer`` asks for; returns the Fabric that knows this one's number among them.

    Raises:
        ConfigError: when there is no command line to start them with, or the settings do not fit this machine.
    """
    options: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    if is_many(cfg):
        check_command_line()
        may_start_others()
        if options["strategy"] == "auto":
            options["strategy"] = DDPStrategy(timeout=PATIENCE)
    try:
        fabric = Fabric(**options)
    except (ValueError, TypeError, RuntimeError) as error:  # Lightning's ways to say that a setting does not fit
        raise ConfigError(f"Expected trainer settings that fit this machine but got: {error}") from error
    fabric.launch()
    atexit.register(_disconnect)
    return fabric


def _disconnect() -> None:
    """Ends the connection to the other processes, whose threads else may abort this one while it ends (gloo, exit code -6)."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def is_many(cfg: DictConfig) -> bool:
    """Returns whether ``cfg.trainer`` asks for more than one process."""
    return cfg.trainer.get("devices", 1) not in (1, "1") or cfg.trainer.get("num_nodes", 1) != 1


def check_command_line() -> None:
    """Raises a :class:`ConfigError` when this process was not started by our command line or by a launcher."""
    spec = getattr(__main__, "__spec__", None)
    ours = spec.name in ("distill", "distill.__main__") if spec else Path(sys.argv[0]).stem == "distill"
    if not ours and "LOCAL_RANK" not in os.environ and "SLURM_PROCID" not in os.environ:
        raise ConfigError(
            "Expected to start several processes from the command line but was called from Python; "
            "use python -m distill, torchrun, or trainer.devices=1."
        )


def is_first_process() -> bool:
    """Returns whether this process is the first of its job, the only one to write; known before Lightning starts others."""
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK") or 0) == 0
