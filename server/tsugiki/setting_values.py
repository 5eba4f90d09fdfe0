"""What the value of a setting means, written in a flag, a TOML file or the environment.

Owns: the kinds of values, and the refusal of what is none. Every parser takes what any of the three
sources gives and raises ConfigError with the value. Does not know which settings there are.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

from tsugiki.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(value: object) -> int:
    """Bytes of 512, "512MiB", "4GiB" or "1.5GB" (MiB = 2**20, MB = 10**6).

    Raises:
        ConfigError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(value).strip())
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{value!r} is not a size; write bytes or a unit, such as 512MiB or 4GiB")
    return int(float(match[1]) * unit)


def parse_integer(value: object) -> int:
    """A whole number, in digits."""
    if isinstance(value, bool) or not re.fullmatch(r"-?\d+", str(value)):
        raise ConfigError(f"{value!r} is not a whole number")
    return int(str(value))


def parse_number(value: object) -> float:
    """Any number."""
    try:
        return float(str(value))
    except ValueError:
        raise ConfigError(f"{value!r} is not a number") from None


def parse_boolean(value: object) -> bool:
    """true or false, yes or no, 1 or 0."""
    word = str(value).lower()
    if word not in ("true", "false", "1", "0", "yes", "no"):
        raise ConfigError(f"{value!r} is neither true nor false")
    return word in ("true", "1", "yes")


def parse_path(value: object) -> Path:
    """A path; ~ is the home directory."""
    return Path(str(value)).expanduser()


def parse_paths(value: object) -> tuple[Path, ...]:
    """A list of paths, or one text with the separator of PATH between them."""
    items = value if isinstance(value, list | tuple) else str(value).split(os.pathsep)
    return tuple(parse_path(item) for item in items if str(item))


def check_parent(flag: str, path: Path) -> None:
    """A command is to write `path`, which its `flag` names: the directory it lies in is there.

    Raises:
        ConfigError: it is not.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{flag} {path}: the directory {path.parent} does not exist")


def one_of(*allowed: str) -> Callable[[object], str]:
    """A parser of one of these words."""

    def parse(value: object) -> str:
        if value not in allowed:
            raise ConfigError(f"{value!r} is not one of {', '.join(allowed)}")
        return str(value)

    return parse
