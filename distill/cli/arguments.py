"""Parsing of what follows a verb on the command line: options with dashes, and overrides."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from distill.core.errors import ConfigError

HYDRA_SWITCHES = ("--multirun", "-m", "--resolve", "--info", "-i")
HYDRA_OPTIONS = ("--cfg", "-c", "--package", "-p")
"""Options of Hydra that take a value."""
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""What ``--info`` may be followed by."""
DIRECTORY = ("--config-dir", "-cd")


@dataclass(frozen=True)
class CommandLine:
    """The arguments of one verb.

    Attributes:
        overrides: ``key=value``.
        config_dir: a folder of the user's own with further configurations.
        wants_help: whether ``--help`` is among them.
        hydra_flags: Hydra's own options, as written.
    """

    overrides: list[str] = field(default_factory=list)
    config_dir: str | None = None
    wants_help: bool = False
    hydra_flags: list[str] = field(default_factory=list)

    @property
    def sweeps(self) -> bool:
        """Whether an override may list several values, each of which is run (``--multirun``)."""
        return "--multirun" in self.hydra_flags or "-m" in self.hydra_flags


def split(arguments: Sequence[str]) -> CommandLine:
    """Separates options from overrides.

    Raises:
        ConfigError: for an unknown option, or one without its value.
    """
    overrides: list[str] = []
    flags: list[str] = []
    config_dir, wants_help = None, False
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if argument in ("-h", "--help"):
            wants_help = True
        elif name in DIRECTORY:
            config_dir = value if equals else _value(name, "folder", rest)
        elif name in HYDRA_OPTIONS:
            flags += [name, value if equals else _value(name, "value", rest)]
        elif name in HYDRA_SWITCHES:
            if name in ("--info", "-i") and not equals:  # with its word behind "=", as an override may follow
                argument = f"--info={rest.pop(0) if rest and rest[0] in INFO else INFO[0]}"
            flags.append(argument)
        elif argument.startswith("-"):
            raise ConfigError(
                f"Expected key=value but got {argument!r}; settings are written without dashes, and Hydra's options are "
                "--cfg, --resolve, --package, --info and --multirun."
            )
        else:
            overrides.append(argument)
    if "--resolve" in flags and not {"--cfg", "-c"} & set(flags):
        raise ConfigError(
            "Expected --resolve beside --cfg job, whose references it resolves, but got it alone; add --cfg job."
        )
    return CommandLine(overrides, config_dir, wants_help, flags)


def _value(option: str, kind: str, rest: list[str]) -> str:
    if not rest:
        raise ConfigError(f"Expected a {kind} after {option} but got nothing; name one.")
    return rest.pop(0)
