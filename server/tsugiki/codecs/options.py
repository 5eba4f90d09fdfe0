"""Reading the options of a packed module: typed, ranged, refused by name.

Owns: the checks and the float32 rule. Does not know: which options a codec has.

Floats. A stored number is the shortest decimal that rounds to the intended float32; a reader takes
it as a float64 and rounds it to float32. So a file says 0.001 and not 0.0010000000474974513.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from tsugiki.errors import InvalidArtifact, UserError

MISSING = object()
LARGEST_FLOAT32 = 3.4028235e38
LARGEST_FLOAT16 = 65504.0


def integer(
    options: Mapping[str, Any],
    key: str,
    low: int,
    high: int,
    error: type[UserError] = InvalidArtifact,
) -> int:
    """options[key] as an int in low..high.

    Raises:
        error: naming the key, the value and the range.
    """
    value = options.get(key, MISSING)
    if type(value) is not int or not low <= value <= high:
        raise error(f"option {key!r} is {_shown(value)}; expected an integer in {low}..{high}")
    return value


def is_float32(value: float) -> bool:
    """Whether a number is finite and not beyond the largest float32."""
    return abs(value) <= LARGEST_FLOAT32


def products_stay_finite(gain: float, level: float = 1.0) -> bool:
    """Whether float16 values times `gain`, and that times up to `level`, cannot leave float32."""
    return abs(gain) * LARGEST_FLOAT16 * max(abs(level), 1.0) < LARGEST_FLOAT32 / 2


def number(
    options: Mapping[str, Any], key: str, error: type[UserError] = InvalidArtifact
) -> np.float32:
    """options[key] as a finite float32.

    Raises:
        error: naming the key and the value.
    """
    value = options.get(key, MISSING)
    if type(value) not in (int, float) or not is_float32(value):
        raise error(f"option {key!r} is {_shown(value)}; expected a finite float32")
    return np.float32(value)


def choice(
    options: Mapping[str, Any],
    key: str,
    known: Collection[str],
    error: type[UserError] = InvalidArtifact,
) -> str:
    """options[key] as one of the known names.

    Raises:
        error: naming the key, the value and the choices.
    """
    value = options.get(key, MISSING)
    if not isinstance(value, str) or value not in known:
        raise error(f"option {key!r} is {_shown(value)}; expected one of {', '.join(known)}")
    return value


def only(
    options: Mapping[str, Any], known: Collection[str], error: type[UserError] = InvalidArtifact
) -> None:
    """Refuse options that the codec does not have.

    Raises:
        error: naming them.
    """
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise error(f"options {unknown} are not known; this codec has {', '.join(sorted(known))}")


def bias_bits(options: Mapping[str, Any], error: type[UserError] = InvalidArtifact) -> int:
    """options["bias_bits"]: 0 (no bias correction) or 2..8.

    Raises:
        error: naming the value.
    """
    bits = integer(options, "bias_bits", 0, 8, error)
    if bits == 1:
        raise error("option 'bias_bits' is 1; expected 0 (no bias correction) or 2..8")
    return bits


def decimal(value: float) -> float:
    """The shortest decimal that rounds to float32(value), as the float that JSON will show."""
    return float(str(np.float32(value)))


def _shown(value: Any) -> str:
    return "missing" if value is MISSING else repr(value)
