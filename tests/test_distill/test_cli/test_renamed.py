"""Old names of settings lead to the new ones."""

import pytest

from distill.cli.config import compose
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


def test_no_new_name_is_an_old_one():
    assert not set(RENAMED) & set(RENAMED.values())
