"""`tsugiki chat`: a conversation in the terminal, streamed.

Owns: the loop and its words. Does not know HTTP: tsugiki_client does.
"""

import argparse
import sys

from tsugiki.commands.variants import add_server_arguments
from tsugiki.errors import UserError
from tsugiki_client import Client, TsugikiClientError

_HELP = "/model NAME changes the model, /models lists them, /new starts over, /quit ends"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Server, model, and a few sampling parameters."""
    add_server_arguments(parser)
    parser.add_argument("--model", help="a variant or the base (default: the base)")
    parser.add_argument("--system", help="a system message")
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--max-tokens", type=int, default=512)


def run(args: argparse.Namespace) -> int:
    """Read lines, print answers as they come, until the input ends.

    Raises:
        UserError: the server refuses, or is not there.
    """
    try:
        with Client(args.url, api_key=args.api_key) as client:
            model = args.model or client.models()[0].id
            Conversation(client, model, args).run()
    except TsugikiClientError as error:
        raise UserError(str(error)) from error
    return 0


class Conversation:
    """Messages so far, and with whom."""

    def __init__(self, client: Client, model: str, args: argparse.Namespace) -> None:
        self._client = client
        self._model = model
        self._args = args
        self._restart()

    def run(self) -> None:
        """Until /quit or the end of input; only a terminal gets prompts."""
        interactive = sys.stdin.isatty()
        if interactive:
            print(f"{self._model}: {_HELP}")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return
            if line == "/quit":
                return
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._answer(line)

    def _command(self, line: str) -> None:
        word, _, argument = line.partition(" ")
        if word == "/new":
            self._restart()
        elif word == "/models":
            print("\n".join(model.id for model in self._client.models()))
        elif word == "/model" and argument:
            self._model = argument.strip()
        else:
            print(_HELP)

    def _answer(self, line: str) -> None:
        self._messages.append({"role": "user", "content": line})
        options = {"max_tokens": self._args.max_tokens, "temperature": self._args.temperature}
        answer = ""
        for piece in self._client.stream_chat(self._model, self._messages, **options):
            answer += piece
            print(piece, end="", flush=True)
        print()
        self._messages.append({"role": "assistant", "content": answer})

    def _restart(self) -> None:
        system = self._args.system
        self._messages = [{"role": "system", "content": system}] if system else []
