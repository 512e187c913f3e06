"""What ``import distill`` offers, and what it costs."""

import subprocess
import sys

import pytest

import distill


def test_importing_distill_imports_no_heavy_library():
    code = "import sys, distill; print([m for m in ('torch', 'numpy', 'onnx', 'hydra') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in distill.__all__ if name != "__version__"])
def test_every_public_name_is_found_where_it_is_defined(name):
    value = getattr(distill, name)
    assert value.__name__ == name
    assert name in dir(distill)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'load_studnet'"):
        _ = distill.load_studnet
