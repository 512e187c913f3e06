from pathlib import Path

import pytest

from distill.__main__ import main

VERB = """
# Counts pairs.
defaults:
  - data: shapes
  - _self_
_target_: own_verb_of_a_test.run
least: 1  # points of a pair that counts
"""
MODULE = '''
"""Count pairs with points."""
from distill.cli.config import instantiate


def run(cfg):
    pairs = instantiate(cfg.data)
    print("pairs:", sum(int(pairs[i].kps_mask.sum()) >= cfg.least for i in range(len(pairs))))
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "count.yaml").write_text(VERB)
    (tmp_path / "own_verb_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_users_verb_runs_with_the_configuration_of_its_file(own, capsys):
    assert main(["count", "--config-dir", str(own), "data.n_pairs=4", "data.size=32", "least=99"]) == 0
    assert "pairs: 0" in capsys.readouterr().out


def test_its_help_and_its_errors_are_those_of_any_verb(own, capsys):
    assert main(["count", "--config-dir", str(own), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Count pairs with points.") and "least: 1  # points" in shown and "n_pairs" in shown
    assert main(["count", "--config-dir", str(own), "leats=2"]) == 2
    assert "did you mean 'least'" in capsys.readouterr().err


def test_a_verb_without_a_file_or_a_function_is_an_error(own, capsys):
    assert main(["cuont", "--config-dir", str(own)]) == 2
    assert "Expected a verb but got 'cuont'" in capsys.readouterr().err
    (own / "count.yaml").write_text(VERB.replace("own_verb_of_a_test.run", "own_verb_of_a_test.rnu"))
    assert main(["count", "--config-dir", str(own)]) == 2
    assert "own_verb_of_a_test.rnu cannot be imported" in capsys.readouterr().err
    (own / "count.yaml").write_text("least: 1\n")
    assert main(["count", "--config-dir", str(own)]) == 2
    assert "to name the function of the verb count but got None" in capsys.readouterr().err


def test_a_verb_whose_function_does_not_take_the_configuration_is_an_error(own, capsys):
    (own / "own_verb_of_nothing.py").write_text(MODULE.replace("run(cfg)", "run()"))
    (own / "count.yaml").write_text(VERB.replace("own_verb_of_a_test", "own_verb_of_nothing"))
    assert main(["count", "--config-dir", str(own)]) == 2
    assert "of the verb count that takes the configuration but too many positional arguments" in capsys.readouterr().err
