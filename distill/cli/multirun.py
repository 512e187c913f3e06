"""Hydra's own command line, for its sweeps and launchers; a verb is written ``--config-name``.

An array of SLURM jobs, each of which labels its share (pip install "distill[slurm]"):

  python -m distill.cli.multirun --multirun --config-name label hydra/launcher=slurm \
      labels.dir=labels label.shard=0/4,1/4,2/4,3/4
"""

import importlib

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from distill.cli.config import shipped


@hydra.main(str(shipped("configs")), config_name=None, version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Runs the verb that the configuration is named after."""
    importlib.import_module(f"distill.cli.commands.{HydraConfig.get().job.config_name}").run(cfg)


if __name__ == "__main__":
    main()
