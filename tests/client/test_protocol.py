"""The pure protocol, and what the package exports."""

import json

import pytest

import tsugiki.errors
import tsugiki_client
from tsugiki_client import AsyncClient, Client, protocol
from tsugiki_client.errors import error_from
from tsugiki_client.protocol import Answer

# With these a server does not start, so no client meets them.
BEFORE_SERVING = (tsugiki.errors.UnsupportedModel, tsugiki.errors.ConfigError)


def all_errors(kind: type[tsugiki.errors.TsugikiError]) -> list[type[tsugiki.errors.TsugikiError]]:
    if kind in BEFORE_SERVING:
        return []
    return [kind, *(error for child in kind.__subclasses__() for error in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors(tsugiki.errors.UserError))
def test_every_user_error_of_the_server_has_its_class(
    kind: type[tsugiki.errors.TsugikiError],
) -> None:
    error = error_from({"error": {"message": "m", "code": kind.code}}, status=kind.status)
    assert type(error) is not tsugiki_client.ServerError


def test_an_unknown_code_or_body_is_a_server_error() -> None:
    for body in ({"error": {"message": "m", "code": "new"}}, None, [], {"detail": "x"}):
        assert type(error_from(body, status=500)) is tsugiki_client.ServerError


def test_a_stream_is_read_line_by_line() -> None:
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    second = {"choices": [{"index": 0, "delta": {"content": "a"}}]}
    other = {"choices": [{"index": 1, "delta": {"content": "other"}}]}
    usage = {"choices": [], "usage": {}}
    text = {"choices": [{"index": 0, "text": "b"}]}
    lines = [": ping", "", *(f"data: {json.dumps(e)}" for e in (first, second, other, usage, text))]
    assert list(protocol.stream_text([*lines, "data: [DONE]"])) == ["a", "b"]


def test_an_error_event_is_raised() -> None:
    event = {"error": {"message": "the step raised", "code": "engine_failure"}}
    with pytest.raises(tsugiki_client.ServerError, match="the step raised"):
        list(protocol.stream_text([f"data: {json.dumps(event)}"]))


def test_an_answer_of_something_else_is_an_error() -> None:
    with pytest.raises(tsugiki_client.TsugikiClientError, match="no tsugiki server"):
        protocol.models().parse(Answer(200, {}, b"<html>"))


def test_names_are_quoted_in_paths() -> None:
    assert protocol.operate("../x y", "load").path == "/v1/variants/..%2Fx%20y/load"


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)


def test_everything_exported_exists() -> None:
    assert all(hasattr(tsugiki_client, name) for name in tsugiki_client.__all__)
