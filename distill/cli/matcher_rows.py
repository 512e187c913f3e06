"""A table that compares settings of a matcher on the same pairs, for suites of ``ablate`` that train nothing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from distill.cli.commands import evaluate
from distill.cli.config import compose
from distill.cli.run_folder import RunFolder, check_same
from distill.core.errors import ConfigError
from distill.evaluation.settings_table import NOTE, cells, columns, markdown, summary
from distill.system.tables import print_table

Settings = dict[str, Any]


def run(cfg: DictConfig) -> list[dict[str, Any]]:
    """Measures the rows that are missing, writes and prints the table, and returns its rows.

    Raises:
        ConfigError: for a suite without values, and for settings that ``evaluate`` does not take; before anything is measured.
    """
    suite: dict[str, Any] = OmegaConf.to_container(cfg.suite, resolve=True)  # type: ignore[assignment]
    folder, same = Path(cfg.run.dir), tuple(suite.get("same_prompts", ()))
    rows = list(combinations(suite["matcher"], suite.get("without_effect") or {}, same))
    plan = [
        compose("evaluate", [*suite.get("base", []), *cfg.base, *_overrides(row), f"run.dir={folder}/{number:02d}"])
        for number, row in enumerate(rows, start=1)
    ]  # all of them before the first is measured: a mistyped setting is found now
    reports: list[dict[str, Any]] = []
    for _, numbers in groupby(range(len(rows)), key=lambda number: _without(rows[number], same)):
        prompts: dict[Any, Any] = {}
        reports += [report_of(plan[number], prompts) for number in numbers]
    table = summary(rows, reports)
    RunFolder(folder).write_json("ablation.json", {"rows": table})
    RunFolder(folder).write_text("ablation.md", markdown(table))
    print_table(columns(table), cells(table), "percent", keys=len(rows[0]))
    print(f"note: {NOTE}\n{folder / 'ablation.md'}")
    return table


def combinations(
    values: Mapping[str, Sequence[Any]], without_effect: Mapping[str, str], last: Sequence[str]
) -> Iterator[Settings]:
    """Yields every combination of the matcher's settings once.

    Args:
        values: of each setting.
        without_effect: settings that are not read where another is 0, and that other; they are None there.
        last: settings that vary fastest.

    Raises:
        ConfigError: for a setting without values, or with something else than a list.
    """
    if not isinstance(values, Mapping) or not values or any(not isinstance(v, list) or not v for v in values.values()):
        raise ConfigError(f"Expected a list of values for each setting in suite.matcher but got {values!r}.")
    names = sorted(values, key=lambda name: name in last)  # stable, so that the order is kept otherwise
    seen: list[Settings] = []
    for chosen in product(*(values[name] for name in names)):
        row = dict(zip(names, chosen, strict=True))
        row |= {name: None for name, other in without_effect.items() if name in row and row.get(other) == 0}
        if row not in seen:
            seen.append(row)
            yield row


def report_of(cfg: DictConfig, prompts: dict[Any, Any]) -> dict[str, Any]:
    """Returns the ``metrics.json`` of an evaluation, which is made if it is not finished.

    Args:
        cfg: of ``evaluate``.
        prompts: where the matcher keeps the prompts of source points, if it has any.

    Raises:
        ConfigError: when the folder holds an evaluation with another configuration.
    """
    finished, written = Path(cfg.run.dir) / "metrics.json", Path(cfg.run.dir) / "config.yaml"
    if written.exists() or finished.exists():
        check_same(cfg, "evaluation", "table")
    if not finished.is_file():
        written.unlink(missing_ok=True)  # of an evaluation that was interrupted
        evaluate.run(cfg, prompts)
    return json.loads(finished.read_text(encoding="utf-8"))


def _overrides(row: Settings) -> list[str]:
    return [f"matcher.{name}={json.dumps(value)}" for name, value in row.items() if value is not None]


def _without(row: Settings, names: Sequence[str]) -> Settings:
    return {name: value for name, value in row.items() if name not in names}
