"""The `tsugiki` command: a subcommand is a module of tsugiki.commands, imported when it is called.

Owns: the list of subcommands, exit codes (0 done, 1 failed, 2 wrong usage), how errors are shown.
Does not know what any command does; importing this module imports nothing heavy.
"""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol, cast

from tsugiki import __version__
from tsugiki.errors import TsugikiError


class CommandModule(Protocol):
    """What every module of tsugiki.commands offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare flags and positions."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


COMMANDS = {
    "serve": "serve a base and its variants over HTTP",
    "compress": "write a fine-tune as a small variant file",
    "compress-base": "write a base that is served in less memory",
    "decompress": "write a variant file as an ordinary checkpoint",
    "inspect": "show what a variant file holds",
    "eval": "compare a variant with its fine-tune",
    "tune": "train a variant in the compressed space of its base",
    "tune-base": "train a sketched base to predict what its original predicts",
    "repair": "train a variant file to answer like its fine-tune",
    "distill": "train a LoRA variant on what a teacher expects",
    "prune": "write a shallower student of the same tokenizer",
    "variants": "list, push, load and remove variants on a server",
    "chat": "talk to a model of a server",
    "bench": "put load on an OpenAI-compatible server and report",
    "kernels": "build kernels ahead of time",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(argv).parse_args(argv)
    try:
        code = _module(args.command).run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _failed("interrupted", args.debug)
    except BrokenPipeError:
        # The reader of our output (head, less) has enough; do not let the exit flush complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (TsugikiError, OSError) as error:
        return _failed(str(error), args.debug)
    except Exception as error:
        hint = "" if args.debug else " (a bug; --debug shows where)"
        return _failed(f"{type(error).__name__}: {error}{hint}", args.debug)
    return code


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands, with the arguments of the one that is called."""
    parser = argparse.ArgumentParser(
        prog="tsugiki",
        description="One base language model in memory, hundreds of compressed fine-tunes on it.",
    )
    parser.add_argument("--version", action="version", version=f"tsugiki {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    called = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
        command.add_argument("--debug", action="store_true", help="a traceback when it fails")
        if name == called:
            _module(name).add_arguments(command)
    return parser


def _module(command: str) -> CommandModule:
    return cast(
        CommandModule, importlib.import_module(f"tsugiki.commands.{command.replace('-', '_')}")
    )


def _failed(message: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"tsugiki: {' '.join(message.split())}", file=sys.stderr)
    return 1
