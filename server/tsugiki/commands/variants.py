"""`tsugiki variants`: the variants of a running server.

Owns: the command line and its tables. Does not know HTTP: tsugiki_client does.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tsugiki.config import client_defaults
from tsugiki.errors import UserError
from tsugiki_client import Client, TsugikiClientError, Variant, VariantEvent

_DIGEST_HELP = "sha256: and 12 to 64 hex digits, see ls"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """ls, push FILE [NAME], NAME DIGEST for what is about a version, NAME for the rest."""
    add_server_arguments(parser)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("ls", help="every version: state, size, ratio")
    _add_push(actions.add_parser("push", help="upload a variant file; resumed when it breaks off"))
    remove = actions.add_parser("rm", help="remove a variant and its files, or one version")
    remove.add_argument("name")
    remove.add_argument("--digest", help="only this version, which must not be the active one")
    for action in ("activate", "alias"):
        activate = actions.add_parser(action, help="let the name mean this version")
        activate.add_argument("name")
        activate.add_argument("digest", help=_DIGEST_HELP)
    canary = actions.add_parser("canary", help="let a share of the users get this version")
    canary.add_argument("name")
    canary.add_argument("digest", help=_DIGEST_HELP)
    canary.add_argument("percent", type=float, help="of the users; 0 ends it")
    events = actions.add_parser("events", help="what happens to variants, until Ctrl-C")
    events.add_argument("--after", type=int, help="begin behind this sequence number")
    for action, summary in _SUMMARIES.items():
        actions.add_parser(action, help=summary).add_argument("name")


def _add_push(push: argparse.ArgumentParser) -> None:
    push.add_argument("file", type=Path)
    push.add_argument("name", nargs="?", help="default: the file's name without .safetensors")
    push.add_argument("--pin", action="store_true", help="keep it in memory")
    push.add_argument(
        "--no-activate", action="store_true", help="add the version, keep serving the present one"
    )
    push.add_argument("--signature", metavar="BASE64", help="ed25519 over the file's digest string")


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


def _print_now(line: str) -> None:
    """For a stream that somebody may pipe somewhere."""
    print(line)
    sys.stdout.flush()


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
    marks += [f"canary {version.canary_percent:g} %"] if version.canary_percent else []
    marks += [f"signed by {version.signed_by}"] if version.signed_by else []
    return (
        f"{version.name:{width}}  {version.digest[:19]}  {version.codec:9}  "
        f"{version.bytes:11,}  {version.ratio:6.1f}x  {', '.join(marks)}"
    )


def _push(client: Client, args: argparse.Namespace) -> None:
    name = args.name or args.file.name.removesuffix(".safetensors")
    version, new = client.push(
        name,
        args.file,
        pin=args.pin,
        activate=not args.no_activate,
        signature=args.signature,
    )
    print(f"{'pushed' if new else 'already there:'} {version.name}@{version.digest}")


def _remove(client: Client, args: argparse.Namespace) -> None:
    freed = client.delete(args.name, args.digest)
    label = args.name if args.digest is None else f"{args.name}@{args.digest}"
    print(f"removed {label}: {freed:,} bytes freed")


def _activate(client: Client, args: argparse.Namespace) -> None:
    version = client.activate(args.name, args.digest)
    print(f"{version.name} is {version.digest}")


def _canary(client: Client, args: argparse.Namespace) -> None:
    version = client.canary(args.name, args.digest, args.percent)
    share = f"{version.canary_percent:g} % of the users" if version.canary_percent else "nobody"
    print(f"{version.name}@{version.digest} answers {share}")


def _history(client: Client, args: argparse.Namespace) -> None:
    for entry in client.history(args.name):
        share = "" if entry.percent is None else f"  {entry.percent:g} %"
        print(f"{_time(entry.at)}  {entry.action:12}  {entry.digest}{share}")


def _events(client: Client, args: argparse.Namespace) -> None:
    for event in client.events(args.after):
        _print_now(_event_line(event))


def _event_line(event: VariantEvent) -> str:
    line = f"{event.sequence}  {_time(event.at)}  {event.kind:12}  {event.name}@{event.digest[:19]}"
    return line if event.detail is None else f"{line}  {event.detail}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _operate(client: Client, args: argparse.Namespace) -> None:
    version: Variant = getattr(client, args.action)(args.name)
    label = f"{version.name}@{version.digest}"
    print(f"{label}: {version.state}, {version.resident_bytes:,} resident bytes")


_SUMMARIES = {
    "load": "make it resident",
    "unload": "drop it from memory",
    "pin": "keep it in memory",
    "unpin": "let it be evicted when idle",
    "rollback": "undo the last activation or canary",
    "history": "what was done to it",
}
_ACTIONS: dict[str, Callable[[Client, argparse.Namespace], None]] = {
    "ls": _list,
    "push": _push,
    "rm": _remove,
    "activate": _activate,
    "alias": _activate,
    "canary": _canary,
    "history": _history,
    "events": _events,
    **dict.fromkeys(("load", "unload", "pin", "unpin", "rollback"), _operate),
}
