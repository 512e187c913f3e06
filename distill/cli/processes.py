"""Several processes for one command: Lightning starts them, or torchrun or SLURM has started them already.

Lightning starts further processes with the command line of the first, verb included. Hence this works from the command
line only; from Python, start the processes with torchrun.
"""

import atexit
import copy
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Fabric, Trainer
from lightning.fabric.strategies import DDPStrategy
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import distributed

import __main__
from distill.cli.interruption import end_with_started, may_start_others
from distill.core.errors import ConfigError
from distill.system.environment import choose_device

PATIENCE = timedelta(days=30)
"""How long a process that is done waits for the others, whose points may take longer."""


def launch(cfg: DictConfig) -> Fabric:
    """Starts the processes that ``cfg.trainer`` asks for; returns the Fabric that knows this one's number among them.

    Raises:
        ConfigError: when there is no command line to start them with, or the settings do not fit this machine.
    """
    options: dict[str, Any] = OmegaConf.to_container(cfg.trainer, resolve=True)  # type: ignore[assignment]
    options = {name: options[name] for name in ("accelerator", "devices", "num_nodes", "strategy") if name in options}
    options["accelerator"] = str(options["accelerator"]).split(":")[0]  # label names its device there: cuda:1 is a cuda
    if expect_others(cfg):
        options["strategy"] = options["strategy"] if is_started_by_training(cfg) else DDPStrategy(timeout=PATIENCE)
    try:
        fabric = Fabric(**options)
    except (ValueError, TypeError, RuntimeError) as error:  # Lightning's ways to say that a setting does not fit
        raise ConfigError(f"Expected trainer settings that fit this machine but got: {error}") from error
    fabric.launch()
    _watch(fabric.strategy.launcher)
    atexit.register(_disconnect)
    return fabric


def start_others(trainer: Trainer) -> None:
    """Starts the other processes now and not when the training does; Lightning ends them with this one all the same.

    Does nothing where a launcher such as torchrun has started them.
    """
    launcher = trainer.strategy.launcher
    if launcher is not None:
        launcher.launch(lambda: None)
        _watch(launcher)


def _watch(launcher: Any) -> None:
    """Ends this process when one that ``launcher`` started has failed, after it wrote what it made.

    Lightning's own observer, which is given an emptied list here, kills this process within five seconds: the labels that
    are in memory would be lost, and nobody would be told why.
    """
    started = [process for process in getattr(launcher, "procs", ()) if isinstance(process, subprocess.Popen)]
    if started:
        launcher.procs.clear()
        launcher.procs = started
        end_with_started(started)


def expect_others(cfg: DictConfig) -> bool:
    """Returns whether there are several processes; checks that they can be started, and tells those that are who did.

    Raises:
        ConfigError: when there is no command line to start them with, or the average of the weights cannot be sent to them.
    """
    many = is_many(cfg)
    if many:
        strategy = str(cfg.trainer.get("strategy", "auto"))
        if strategy.endswith("spawn") and cfg.get("ema") is not None:
            raise ConfigError(
                f"Expected ema=null with trainer.strategy={strategy}, which cannot send Lightning's average of the weights to "
                f"other processes, but got {cfg.ema}; leave trainer.strategy out."
            )
        check_command_line()
        may_start_others()
    return many


def is_started_by_training(cfg: DictConfig) -> bool:
    """Returns whether ``trainer.strategy`` copies this process when the training starts, and not before."""
    return str(cfg.trainer.get("strategy", "auto")).endswith(("spawn", "fork", "notebook"))


def _disconnect() -> None:
    """Ends the connection to the other processes, whose threads else may abort this one while it ends (gloo, exit code -6)."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


ALL = ("auto", "-1")
"""Values of ``trainer.devices`` for all GPUs."""


def is_many(cfg: DictConfig) -> bool:
    """Returns whether ``cfg.trainer`` asks for more than one process."""
    devices, gpus = str(cfg.trainer.get("devices", 1)), listed_gpus(cfg)
    several = len(gpus) > 1 if gpus else torch.cuda.device_count() > 1 if devices in ALL else devices != "1"
    return several or cfg.trainer.get("num_nodes", 1) != 1


def listed_gpus(cfg: DictConfig) -> list[int]:
    """Returns the GPUs that ``trainer.devices`` names, such as [2,3] or "2,3", in the order of the processes.

    Returns:
        Their numbers; none where it says how many there are, or that it is all, which are taken in order.

    Raises:
        ConfigError: when it says something else, or a GPU twice.
    """
    devices = cfg.trainer.get("devices", 1)
    listed = isinstance(devices, ListConfig) or "," in str(devices)
    parts = devices.split(",") if isinstance(devices, str) else devices if listed else []
    texts = [str(part).strip() for part in parts if str(part).strip()]
    right = all(text.isdecimal() for text in texts) and 0 < len(texts) == len(set(texts))
    if texts == ["-1"] or (not listed and (str(devices) in ALL or str(devices).isdecimal())):
        return []
    if not right:
        raise ConfigError(
            f"Expected trainer.devices as a number of processes, a list of GPUs or -1 but got {devices!r}; such as 2, [2,3]."
        )
    return [int(text) for text in texts]


def on_own_device(cfg: DictConfig) -> DictConfig:
    """Returns a copy of the configuration with this process's device as ``device``, for teacher and data alike.

    Raises:
        ConfigError: when there is no such device.
    """
    own = copy.deepcopy(cfg)
    own.device = choose_device(cfg.device, listed_gpus(cfg))
    return own


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
