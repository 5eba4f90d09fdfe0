"""Flags that several commands have, or one of several codecs. Does not know: any codec."""

import argparse
from collections.abc import Mapping

from tsugiki.config import DEVICES
from tsugiki.errors import ConfigError


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, as `tsugiki serve` has it; see tsugiki.model.device.choose_device."""
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="auto: a GPU where torch sees one"
    )


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
