"""How photographs are read and scored: the settings that all data sets of photographs share."""

from dataclasses import dataclass, fields
from typing import TypedDict

from distill.core.errors import ConfigError, nearest


class ImageOptions(TypedDict, total=False):
    """Arguments that every data set of photographs takes by name; :class:`ImageConfig` has their meanings and defaults."""

    size: int
    resize: str
    convention: str
    on_error: str
    cache_mib: int


@dataclass(frozen=True)
class ImageConfig:
    """How photographs are read and scored; the settings that all benchmarks share.

    Attributes:
        size: side that images are brought to, px.
        resize: "squash" or "letterbox".
        convention: "canonical" scores in the target's own pixels; "paper" does what the teacher's released code does.
        on_error: what a broken file does: "raise" an error, or "skip" its pairs, which is counted and named.
        cache_mib: how much memory the decoded photographs may take.

    Raises:
        ConfigError: for a convention or an ``on_error`` that is none of these.
    """

    size: int = 128
    resize: str = "squash"
    convention: str = "canonical"
    on_error: str = "raise"
    cache_mib: int = 2048

    def __post_init__(self) -> None:
        """Checks what is chosen among names; size, resize and cache_mib are checked by the reader of photographs."""
        for key, value, choices in (
            ("convention", self.convention, ("canonical", "paper")),
            ("on_error", self.on_error, ("raise", "skip")),
        ):
            if value not in choices:
                raise ConfigError(
                    f"Expected data.{key} to be one of these but got {value!r}; {nearest(value, choices)}."
                )

    @classmethod
    def of(cls, options: ImageOptions) -> "ImageConfig":
        """Returns the settings that ``options`` name, and the defaults of the others.

        Raises:
            ConfigError: for a name that is no setting, and for None.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        for name, value in options.items():
            if name not in defaults:
                raise ConfigError(f"Expected an argument of a data set but got {name!r}; {nearest(name, defaults)}.")
            if value is None:
                raise ConfigError(f"Expected a value for data.{name} but got null; the default is {defaults[name]}.")
        return cls(**options)
