"""Old names of settings lead to the new ones."""

import pytest

from distill.__main__ import VERBS
from distill.cli.config import compose, defaults, options
from distill.cli.keys import keys
from distill.cli.renamed import RENAMED, new_name
from distill.core.errors import ConfigError


@pytest.fixture
def renamed(monkeypatch):
    monkeypatch.setitem(RENAMED, "data.count", "data.n_pairs")
    monkeypatch.setitem(RENAMED, "data.count=all", "data.n_pairs=null")
    monkeypatch.setitem(RENAMED, "filter=sure", "filter=confidence")


def test_an_old_key_is_refused_with_its_new_name(renamed):
    with pytest.raises(ConfigError, match=r"got data\.count; data\.count is now data\.n_pairs\."):
        compose("evaluate", ["matcher=oracle", "data.count=5"])


def test_an_old_value_of_an_old_key_is_translated_too(renamed):
    with pytest.raises(ConfigError, match=r"data\.count is now data\.n_pairs=null\."):
        compose("evaluate", ["matcher=oracle", "data.count=all"])


def test_an_old_choice_is_refused_with_its_new_name(renamed):
    with pytest.raises(ConfigError, match=r"filter=sure is now filter=confidence\."):
        compose("fit", ["filter=sure"])


def test_a_row_serves_every_section_that_has_the_new_key():
    assert new_name("paper.chunk", 4, lambda key: key == "paper.batch_size") == "paper.batch_size"
    assert new_name("paper.chunk", 4, lambda key: False) is None
    assert new_name("chunk", 4, lambda key: True) is None


def known_keys() -> set[str]:
    """Returns the keys and sections of all verbs, and of the choices that rows are about."""
    choices = [
        ("fit", ["data=folder", "data.root=x", "teacher=nearest_neighbour"]),
        ("fit", ["filter=flip_agreement"]),
        ("fit", ["filter=peak_mass"]),
        ("evaluate", ["matcher=rescored", "ckpt=x"]),
        ("evaluate", ["matcher=dift"]),
    ]
    configs = [defaults(verb)[0] for verb in VERBS] + [compose(verb, given) for verb, given in choices]
    found: set[str] = set()
    for config in configs:
        for key in keys(config):
            parts = key.split(".")
            found.update(".".join(parts[: length + 1]) for length in range(len(parts)))
    return found


def test_every_row_leads_to_a_key_or_a_choice_that_exists():
    known = known_keys()
    for old, new in RENAMED.items():
        key, _, choice = new.partition("=")
        assert key in known or options(key), f"{old} -> {new}"
        assert not choice or not options(key) or choice in options(key), f"{old} -> {new}"
        if "=" not in old and not options(old):
            assert old not in known, f"{old} is still a key"


def test_no_new_name_is_an_old_one():
    assert not set(RENAMED) & set(RENAMED.values())
