"""`tsugiki variants`: the variants of a running server.

Owns: the command line and its tables. Does not know HTTP: tsugiki_client does.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from tsugiki.config import client_defaults
from tsugiki.errors import UserError
from tsugiki_client import Client, TsugikiClientError, Variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """ls, push FILE [NAME], and one word plus NAME for the rest."""
    add_server_arguments(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("ls", help="every version: state, size, ratio")
    push = actions.add_parser("push", help="upload a variant file")
    push.add_argument("file", type=Path)
    push.add_argument("name", nargs="?", help="default: the file's name without .safetensors")
    push.add_argument("--pin", action="store_true", help="keep it in memory")
    push.add_argument(
        "--no-activate", action="store_true", help="add the version, keep serving the present one"
    )
    for action, summary in _SUMMARIES.items():
        actions.add_parser(action, help=summary).add_argument("name")


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """--url and --api-key, with their defaults from the environment."""
    url, api_key = client_defaults()
    parser.add_argument("--url", default=url, help=f"the server (default {url})")
    parser.add_argument(
        "--api-key", default=api_key, help="or TSUGIKI_API_KEY, which other users cannot see"
    )


def run(args: argparse.Namespace) -> int:
    """Do one action; prints what the server says.

    Raises:
        UserError: the server refuses, or is not there.
    """
    try:
        with Client(args.url, api_key=args.api_key) as client:
            _ACTIONS[args.action](client, args)
    except TsugikiClientError as error:
        raise UserError(str(error)) from error
    return 0


def _list(client: Client, args: argparse.Namespace) -> None:
    versions = client.variants()
    width = max((len(version.name) for version in versions), default=4)
    print(f"{'NAME':{width}}  {'DIGEST':19}  {'CODEC':9}  {'BYTES':>11}  {'RATIO':>7}  STATE")
    for version in versions:
        print(_row(version, width))


def _row(version: Variant, width: int) -> str:
    marks = [version.state]
    marks += ["active"] if version.active else []
    marks += ["pinned"] if version.pinned else []
    return (
        f"{version.name:{width}}  {version.digest[:19]}  {version.codec:9}  "
        f"{version.bytes:11,}  {version.ratio:6.1f}x  {', '.join(marks)}"
    )


def _push(client: Client, args: argparse.Namespace) -> None:
    name = args.name or args.file.name.removesuffix(".safetensors")
    version, new = client.push(name, args.file, pin=args.pin, activate=not args.no_activate)
    print(f"{'pushed' if new else 'already there:'} {version.name}@{version.digest}")


def _remove(client: Client, args: argparse.Namespace) -> None:
    print(f"removed {args.name}: {client.delete(args.name):,} bytes freed")


def _operate(client: Client, args: argparse.Namespace) -> None:
    version: Variant = getattr(client, args.action)(args.name)
    label = f"{version.name}@{version.digest}"
    print(f"{label}: {version.state}, {version.resident_bytes:,} resident bytes")


_SUMMARIES = {
    "rm": "remove a variant and its files",
    "load": "make it resident",
    "unload": "drop it from memory",
    "pin": "keep it in memory",
    "unpin": "let it be evicted when idle",
    "rollback": "serve the previous version again",
}
_ACTIONS: dict[str, Callable[[Client, argparse.Namespace], None]] = {
    "ls": _list,
    "push": _push,
    "rm": _remove,
    **dict.fromkeys(("load", "unload", "pin", "unpin", "rollback"), _operate),
}
