"""Checks of what a backbone is built from."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.core.errors import ConfigError
from distill.core.numbers import is_number, is_whole

LOWEST = {"mean": 0.0, "std": 1e-3}
"""The smallest possible mean and standard deviation of a colour channel of images in [0, 1]; 1/255 is that of images in bytes."""


def check_whole(key: str, values: Any) -> None:
    """Raises a :class:`ConfigError` unless ``values``, of the setting ``key``, are a list of whole numbers."""
    if not _listed(values) or not all(map(is_whole, values)):
        raise ConfigError(
            f"Expected student.{key} as a list of whole numbers but got {values!r:.80}; write such as [8, 16]."
        )


def check_scales(scales: Any) -> None:
    """Raises a :class:`ConfigError` unless ``scales`` are different numbers above 0, of at most 1."""
    numbers = _listed(scales) and all(is_number(scale) and 0 < scale <= 1 for scale in scales)
    if not numbers or not scales or len(set(scales)) < len(scales):
        raise ConfigError(
            f"Expected scales of the backbone above 0, of at most 1, each once, but got {scales!r:.80}; [1.0] is usual."
        )


def check_options(options: Any) -> None:
    """Raises a :class:`ConfigError` unless ``options`` are a mapping of arguments, or none."""
    if options is not None and not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise ConfigError(
            f"Expected student.options as arguments of timm.create_model by name but got {options!r:.80}; write such as "
            "{img_size: 64}, or leave it out."
        )


def check_colours(key: str, values: Any) -> None:
    """Checks what images are normalised with.

    Args:
        key: "mean" or "std".
        values: of the colour channels, on the scale of images in [0, 1].

    Raises:
        ConfigError: unless they are three numbers, a mean in [0, 1] or a standard deviation in [0.001, 1].
    """
    low = LOWEST[key]
    listed = list(values) if _listed(values) else [values]
    if len(listed) != 3 or not all(is_number(value) and low <= value <= 1 for value in listed):
        raise ConfigError(
            f"Expected {key} of the backbone to be three numbers in [{low:g}, 1], of images in [0, 1], but got {listed}; divide values of "
            f"0 to 255 by 255, or leave {key} out for what timm says of the network."
        )


def _listed(values: Any) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)
