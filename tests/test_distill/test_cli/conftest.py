"""Photographs without annotation."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for number in range(8):
        file = tmp_path / "photos" / "cat" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(file)
    return tmp_path / "photos"
