"""Flags that belong to one of several codecs. Does not know: any codec."""

import argparse
from collections.abc import Mapping

from tsugiki.errors import ConfigError


def refuse_foreign_flags(args: argparse.Namespace, flags: Mapping[str, tuple[str, ...]]) -> None:
    """`flags`: the options of each codec, None when they were not given.

    Raises:
        ConfigError: one of another codec than `args.codec` was given.
    """
    own = flags[args.codec]
    for codec, names in flags.items():
        for name in names:
            if name not in own and getattr(args, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag} belongs to {codec}; {args.codec} has no such option")
