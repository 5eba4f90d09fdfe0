"""`tsugiki kernels build`: kernels ahead of time, so that an image needs no compiler.

Owns: the command line of it. Does not know how kernels are built.
"""

import argparse
from pathlib import Path

from tsugiki.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One action for now: build."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="compile every CPU variant of the kernels")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to put them")


def run(args: argparse.Namespace) -> int:
    """Build; prints one path a line.

    Raises:
        UserError: no compiler, or it fails.
    """
    from tsugiki_kernels.cpu.build import build_all
    from tsugiki_kernels.errors import BackendUnavailable

    try:
        for path in build_all(args.out):
            print(path)
    except BackendUnavailable as error:
        raise UserError(str(error)) from error
    return 0
