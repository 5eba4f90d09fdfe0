"""`tsugiki kernels build`: kernels ahead of time, so that an image needs no compiler.

Owns: the command line of it. Does not know how kernels are built.
"""

import argparse
import sys
from pathlib import Path

from tsugiki.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One action for now: build."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    build = actions.add_parser(
        "build", help="compile the kernels for every CPU, and for GPUs where CuPy is installed"
    )
    build.add_argument(
        "--out", type=Path, metavar="DIR", help="where to put them (default: where they are found)"
    )
    build.add_argument(
        "--arch", metavar="sm_80,...", help="GPU architectures (default: all); needs CuPy, no GPU"
    )


def run(args: argparse.Namespace) -> int:
    """Build; prints one path a line.

    Raises:
        UserError: no compiler, or it fails.
    """
    from tsugiki_kernels.errors import BackendUnavailable

    try:
        for path in [*build_cpu(args.out), *build_cuda(args.out, args.arch)]:
            print(path)
    except BackendUnavailable as error:
        raise UserError(str(error)) from error
    return 0


def build_cpu(out: Path | None) -> list[Path]:
    """A library for each instruction set."""
    from tsugiki_kernels.cpu.build import PREBUILT, build_all

    return build_all(out or PREBUILT)


def build_cuda(out: Path | None, architectures: str | None) -> list[Path]:
    """A fatbin for each source. Without CuPy: nothing, unless architectures were asked for."""
    from tsugiki_kernels.cuda import build
    from tsugiki_kernels.cuda.availability import find_nvrtc
    from tsugiki_kernels.cuda.requirements import ARCHITECTURES
    from tsugiki_kernels.errors import BackendUnavailable

    chosen = ARCHITECTURES if architectures is None else build.parse_architectures(architectures)
    try:
        compiler = find_nvrtc()
    except BackendUnavailable as error:
        if architectures is not None:
            raise
        print(f"CUDA kernels are not built: {error}", file=sys.stderr)
        return []
    return build.build_all(out or build.PREBUILT, compiler, chosen)
