"""What a backbone is built from, checked before anything is built."""

import pytest

from distill.core.errors import ConfigError
from student import NearestNeighbour, StudentMatcher


@pytest.mark.parametrize("kind", [StudentMatcher, NearestNeighbour])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scales": ["a"]}, r"scales of the backbone above 0, of at most 1, each once, but got \['a'\]"),
        ({"scales": 0.5}, "scales of the backbone above 0, of at most 1, each once, but got 0.5"),
        ({"scales": [[1.0]]}, "scales of the backbone above 0"),
        ({"scales": [True]}, "scales of the backbone above 0"),
        (
            {"options": 5},
            "student.options as arguments of timm.create_model by name but got 5; write such as {img_size: 64}",
        ),
        ({"options": ["img_size"]}, "student.options as arguments of timm.create_model by name"),
        ({"options": {64: "img_size"}}, "student.options as arguments of timm.create_model by name"),
        (
            {"options": {"patch_size": 0}},
            "options that test_vit takes but got {'patch_size': 0}: .*; correct student.options",
        ),
        ({"strides": 16}, "student.strides as a list of whole numbers but got 16"),
        ({"strides": None}, "student.strides as a list of whole numbers but got None"),
        ({"strides": [[16]]}, r"student.strides as a list of whole numbers but got \[\[16\]\]"),
        ({"strides": "16"}, "student.strides as a list of whole numbers but got '16'"),
        ({"backbone": 5}, "backbone to be a timm model but got 5"),
        ({"backbone": ["test_vit"]}, "backbone to be a timm model but got"),
    ],
    ids=str,
)
def test_arguments_of_another_kind_are_refused_in_words(kind, given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        kind(**{"backbone": "test_vit", "strides": [16], **given})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [5, [2.5], ["a"], [None], [True]], ids=str)
def test_blocks_that_are_no_whole_numbers_are_refused_in_words(layers):
    with pytest.raises(ConfigError, match="student.layers as a list of whole numbers but got"):
        StudentMatcher("test_vit", [16], layers=layers)
