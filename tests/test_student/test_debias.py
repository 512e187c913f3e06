"""Positional debiasing of a vision transformer."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from distill.core.errors import ConfigError
from student import NearestNeighbour
from student.backbone import Backbone

VIT = {"name": "test_vit", "strides": [16]}
BLANK = 28 * 16


@pytest.fixture(scope="module")
def backbones():
    torch.manual_seed(0)
    plain = Backbone(**VIT).eval()
    torch.manual_seed(0)
    return plain, Backbone(**VIT, debias=5).eval()


def test_the_main_directions_of_a_blank_image_are_projected_out(backbones):
    plain, debiased = backbones
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    blank = plain.mean.expand(1, 3, BLANK, BLANK)
    with torch.no_grad():
        cells = plain(blank)[0][0].flatten(1).T.double().numpy()
        before, after = plain(image)[0].double().numpy(), debiased(image)[0].numpy()
    centred = cells - cells.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)  # ascending
    removed = vectors[:, -5:]
    expected = before - np.einsum("cd,bdhw->bchw", removed @ removed.T, before)
    np.testing.assert_allclose(after, expected, atol=2e-4)
    assert values[-5:].sum() > 0.2 * values.sum(), "the directions matter"


def test_directions_are_part_of_the_weights_and_the_network_is_otherwise_untouched(backbones):
    plain, debiased = backbones
    own, other = plain.state_dict(), debiased.state_dict()
    assert set(other) - set(own) == {"debias.0.basis"} and other["debias.0.basis"].shape == (64, 5)
    assert all(torch.equal(own[key], other[key]) for key in own) and Backbone(**VIT, debias=5).training
    fingerprints = [NearestNeighbour("test_vit", [16], debias=n).fingerprint() for n in (0, 5)]
    assert fingerprints[0] != fingerprints[1]


def test_it_exports_as_two_convolutions(backbones, tmp_path):
    debias, features = backbones[1].debias[0], torch.rand(1, 64, 4, 5)
    program = torch.onnx.export(debias, (features,), dynamo=True, verbose=False)
    program.save(tmp_path / "debias.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "debias.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: features.numpy()})
    np.testing.assert_allclose(found, debias(features).numpy(), atol=1e-5)
    assert [node.op_type for node in onnx.load(tmp_path / "debias.onnx").graph.node].count("Conv") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "test_resnet", "strides": [16], "debias": 3}, "debias=0 for test_resnet, which is no plain vision"),
        ({**VIT, "debias": 64}, "debias between 1 and 63 directions for features of 64 channels but got 64"),
        ({**VIT, "debias": -1}, "debias between 1 and 63"),
    ],
)
def test_a_network_or_number_that_it_does_not_suit_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Backbone(**options)
