"""Train variants of a fit with several seeds, and make one table of what each change gains; or compare settings of a matcher.

Each training is a fit of its own in a folder of its own, <run.dir>/<variant>/<seed>; those that are finished are not made
again, so that a long ablation can be interrupted and started anew. The table is in ablation.md, its figures in
ablation.json, with the spread over seeds. A suite with values of a matcher's settings (suite=consensus) trains nothing: each
combination is evaluated on the same pairs, prompts are optimised once for all rows that they serve.

Examples:
  python -m distill ablate
  python -m distill ablate suite=cub "base=['data.root=CUB','student.weights=mobilenetv2_100.safetensors']"
  python -m distill ablate suite=consensus "base=['matcher.model=<pipeline folder>','data=spair71k','data.root=SPair-71k']"
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.cli import matcher_rows
from distill.cli.commands import fit
from distill.cli.config import compose
from distill.cli.datasets import has_truth, pairs_of
from distill.cli.fit_parts import settle
from distill.cli.run_folder import RunFolder, check_same
from distill.core.errors import ConfigError, in_one_line
from distill.evaluation.ablation import HEADER, NOTE, cells, markdown, summary
from distill.system.tables import print_table

LABELS = "labels"
"""The folder of the labels that the variants share, in ``run.dir``."""


def run(cfg: DictConfig) -> list[dict[str, Any]]:
    """Trains what is missing, writes and prints the table, and returns its rows.

    Raises:
        ConfigError: without variants or seeds, for a seed that comes twice, for a variant that cannot be composed, and for one
            that is not compared with its teacher; before anything is trained.
    """
    if "matcher" in cfg.suite:
        return matcher_rows.run(cfg)
    variants: dict[str, Any] = OmegaConf.to_container(cfg.suite.variants)  # type: ignore[assignment]  # fit resolves it
    seeds = list(cfg.seeds)
    if not variants or not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"Expected variants and seeds, each once, but got {list(variants)} and {seeds}.")
    for name in variants:
        check_name(name)
    for name, changes in (*variants.items(), ("base", list(cfg.base))):
        if not isinstance(changes, list) or not all(isinstance(change, str) for change in changes):
            raise ConfigError(
                f"Expected a list of settings of fit for {name} but got {changes!r}; write ['lr=1e-3'], each quoted."
            )
    folder = Path(cfg.run.dir)
    common = [*cfg.suite.base, *cfg.base, f"labels.dir={folder}/{LABELS}"]
    plan = {
        name: [composed(name, [*common, *changes, f"seed={seed}", f"run.dir={folder}/{name}/{seed}"]) for seed in seeds]
        for name, changes in variants.items()
    }  # every variant is composed before the first is trained: a mistyped key is found now
    check_compared([fitted for configs in plan.values() for fitted in configs])
    reports = {name: [report_of(fitted) for fitted in configs] for name, configs in plan.items()}
    rows = summary(reports)
    RunFolder(folder).write_json("ablation.json", {"rows": rows, "variants": variants, "seeds": seeds})
    RunFolder(folder).write_text("ablation.md", markdown(rows))
    print_summary(rows)
    print(folder / "ablation.md")
    return rows


def check_name(name: Any) -> None:
    """Checks that ``name`` can be the folder of a variant's trainings, beside that of their labels.

    Raises:
        ConfigError: when it cannot; YAML reads ``no`` and ``on`` as false and true, and ``1`` as a number.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+=, -]{0,59}", name) or name == LABELS:
        raise ConfigError(
            f"Expected variants of suite named by at most 60 letters, digits, spaces and . + - _ = , and other than {LABELS} but "
            f"got {name!r}; rename it, in quotes."
        )


def composed(name: str, settings: Sequence[str]) -> DictConfig:
    """Returns the configuration of a variant's fit.

    Raises:
        ConfigError: when its settings cannot be composed; it names the variant.
    """
    try:
        return compose("fit", settings)
    except (ConfigError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"Expected settings of fit for {name} that go together but got: {in_one_line(error, None)}"
        ) from error


def print_summary(rows: list[dict[str, Any]]) -> None:
    """Prints the table, and what its columns are."""
    print_table([name.replace("@", " @") for name in HEADER], cells(rows), "percent")
    for sentence in NOTE.split(". "):
        print(f"note: {sentence.rstrip('.')}")


def check_compared(fits: Sequence[DictConfig]) -> None:
    """Checks that each fit that is to be trained has annotated test pairs, of which the table is made.

    Raises:
        ConfigError: when one has none.
        DataError: when test pairs cannot be read.
    """
    for cfg in {f"{cfg.data} {cfg.test}": cfg for cfg in fits if not _report_file(cfg).is_file()}.values():
        if cfg.test.n_pairs == 0 or not has_truth(pairs_of(cfg.data, "test", cfg.test)):
            found = "test.n_pairs=0" if cfg.test.n_pairs == 0 else "none"
            raise ConfigError(
                f"Expected test pairs with annotated points, on which ablate compares students and teachers, but got {found}; "
                "add base=['test.n_pairs=600'], or annotate some photographs."
            )


def _report_file(cfg: DictConfig) -> Path:
    return Path(cfg.run.dir) / "metrics.json"


def report_of(cfg: DictConfig) -> dict[str, Any]:
    """Returns the ``metrics.json`` of a fit, which is trained if it is not finished.

    Raises:
        ConfigError: when the folder holds a fit with another configuration.
    """
    settle(cfg)
    finished, written = _report_file(cfg), Path(cfg.run.dir) / "config.yaml"
    if not finished.is_file():
        cfg.run.resume = written.is_file()
        fit.run(cfg)
    else:
        check_same(cfg, "fit", "ablation")
    return json.loads(finished.read_text(encoding="utf-8"))
