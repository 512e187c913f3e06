"""A pipeline's folder that a test may change."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def folder(sd1_folder, tmp_path) -> Path:
    return Path(shutil.copytree(sd1_folder, tmp_path / "pipeline"))
