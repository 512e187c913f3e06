"""Hydra's own command line for a verb: ``--cfg``, ``--info``, and the sweeps and launchers of ``--multirun``."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from distill.cli.arguments import CommandLine
from distill.cli.config import check_complete, compose, defaults, expand_home, shipped
from distill.cli.overrides import plain
from distill.cli.verbs import run_verb

SWEEPS = "runs/multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"


def run_hydra(verb: str, line: CommandLine) -> None:
    """Runs ``verb`` by Hydra's rules, after the checks that every command line goes through.

    In a sweep each job gets a run folder of its own, ``<run.dir>/<number of the job>``, unless run.dir has several values or
    an interpolation. Hydra's own files of a sweep, its overrides and a log of each job, are in :data:`SWEEPS`, unless
    hydra.sweep.dir is given.

    Raises:
        ConfigError: see :func:`distill.cli.config.compose`.
    """
    overrides = [plain(text, line.sweeps) for text in line.overrides]
    compose(verb, overrides, line.config_dir, sweeps=line.sweeps, complete=False)
    config, _ = defaults(verb, line.config_dir)
    if line.sweeps and "run" in config:
        overrides = numbered_folders(overrides, config.run.dir)
    if line.sweeps and not any(text.startswith("hydra.sweep.dir=") for text in overrides):
        overrides.append(f"hydra.sweep.dir={SWEEPS}")
    directory = ["--config-dir", line.config_dir] if line.config_dir is not None else []
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us, who print them on one line
    arguments, sys.argv = sys.argv, ["distill", *line.hydra_flags, *directory, *overrides]
    try:
        hydra.main(str(shipped("configs")), config_name=verb, version_base="1.3")(job)()
    finally:
        sys.argv = arguments


def numbered_folders(overrides: list[str], default: str) -> list[str]:
    """Returns ``overrides`` with a run folder for each job of a sweep; those of the user's that tell jobs apart are kept."""
    given = [text for text in overrides if text.startswith("run.dir=")]
    folder = default
    if given:
        override = OverridesParser.create().parse_override(given[-1])
        if override.is_sweep_override() or "${" in str(override.value()):
            return overrides
        folder = str(override.value())
    rest = [text for text in overrides if text not in given]
    return [*rest, plain(f"run.dir={folder}/${{hydra:job.num}}", sweeps=True)]


def job(cfg: DictConfig) -> None:
    """Runs the verb that the configuration is named after; launchers call it in processes of their own."""
    expand_home(cfg)
    check_complete(cfg)
    hydra_config = HydraConfig.get()
    folders = [source.path for source in hydra_config.runtime.config_sources if source.provider == "command-line"]
    run_verb(str(hydra_config.job.config_name), cfg, folders[0] if folders else None)
