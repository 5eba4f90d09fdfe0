"""`tsugiki bench`: load on any OpenAI-compatible server, and what came of it.

Owns: flags and their checks. Does not know how load is made: tsugiki.bench does.
"""

import argparse
import asyncio
import json
from pathlib import Path

import httpx

from tsugiki.bench.arrivals import ClosedLoop, OpenLoop
from tsugiki.bench.client import LoadClient
from tsugiki.bench.report import table, write_json
from tsugiki.bench.session import Measurement, measure
from tsugiki.bench.statistics import Slo, summarise
from tsugiki.bench.workload import (
    DISTRIBUTIONS,
    GivenPrompts,
    TokenPrompts,
    WordPrompts,
    Workload,
)
from tsugiki.commands.variants import add_server_arguments
from tsugiki.errors import UserError

TURNS = 4  # requests of each slot when neither --requests nor --seconds says otherwise


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Server, load, prompts, and what to report."""
    add_server_arguments(parser)
    _add_load(parser.add_argument_group("load"))
    _add_requests(parser.add_argument_group("requests"))
    report = parser.add_argument_group("report")
    report.add_argument("--slo-ttft-ms", type=_positive, help="goodput: longest first token")
    report.add_argument("--slo-itl-ms", type=_positive, help="goodput: longest mean inter-token")
    report.add_argument("--json", type=Path, metavar="FILE", help="write options and numbers")


def _add_load(group: "argparse._ArgumentGroup") -> None:
    loop = group.add_mutually_exclusive_group(required=True)
    loop.add_argument("--concurrency", type=_whole, metavar="N", help="closed loop: N slots")
    loop.add_argument(
        "--rate", type=_positive, metavar="R", help="open loop: R requests/s, Poisson"
    )
    group.add_argument("--requests", type=_whole, help=f"in all (default {TURNS} for each slot)")
    group.add_argument("--seconds", type=_positive, help="send for so long instead")
    group.add_argument(
        "--warm-up", type=int, metavar="N", help="requests before (default: each slot, each model)"
    )
    group.add_argument("--timeout", type=_positive, default=600.0, help="seconds of one request")
    group.add_argument(
        "--disconnect", type=_share, default=0.0, metavar="SHARE", help="clients that hang up"
    )
    group.add_argument("--seed", type=int, default=0)


def _add_requests(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--model", nargs="+", action="extend", metavar="NAME",
        help="one or more, the most popular first (default: the server's first)",
    )  # fmt: skip
    group.add_argument(
        "--distribution", choices=DISTRIBUTIONS, default="distinct",
        help="over the models; distinct: slot i asks model i (default)",
    )  # fmt: skip
    group.add_argument("--zipf-alpha", type=_positive, default=1.0)
    group.add_argument(
        "--chat", action="store_true", help="/v1/chat/completions, with text; not token ids"
    )
    group.add_argument("--text", action="store_true", help="random words instead of token ids")
    group.add_argument("--prompts", type=Path, metavar="FILE", help='JSONL of {"prompt": text}')
    group.add_argument(
        "--prompt-tokens", type=_range, default=(128, 128), metavar="N|LOW:HIGH",
        help="length of a prompt behind the shared prefix (default 128)",
    )  # fmt: skip
    group.add_argument(
        "--shared-prefix-tokens", type=int, default=0, metavar="N", help="the same for everyone"
    )
    group.add_argument(
        "--vocabulary", type=_range, default=(100, 40000), metavar="LOW:HIGH",
        help="range of the random token ids (default 100:40000)",
    )  # fmt: skip
    group.add_argument("--max-tokens", type=_whole, default=64)
    group.add_argument(
        "--ignore-eos", action=argparse.BooleanOptionalAction, default=True,
        help="insist on --max-tokens (default)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure and report; exit code 1 when a request failed.

    Raises:
        UserError: flags that contradict each other, a server that is not there or refuses.
    """
    models = args.model or [_first_model(args)]
    workload = _workload(args, models)
    arrivals = _arrivals(args)
    print(f"{args.url}: {_describe(args, models)}")
    measurement = asyncio.run(_measure(args, workload, arrivals))
    summary = summarise(measurement, _slo(args))
    print(table(summary))
    if args.json is not None:
        options = {name: value for name, value in vars(args).items() if name != "api_key"}
        write_json(args.json, {**options, "model": models}, summary)
    return int(summary.failed > 0)


async def _measure(
    args: argparse.Namespace, workload: Workload, arrivals: ClosedLoop | OpenLoop
) -> Measurement:
    slots = args.concurrency or 0
    warm_up = max(slots, len(workload.models)) if args.warm_up is None else args.warm_up
    async with LoadClient(
        args.url,
        api_key=args.api_key,
        chat=args.chat,
        ignore_eos=args.ignore_eos,
        timeout=args.timeout,
    ) as client:
        return await measure(client, workload, arrivals, warm_up)


def _first_model(args: argparse.Namespace) -> str:
    """Of any OpenAI-compatible server: our own client would insist on our own fields."""
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    try:
        answer = httpx.get(f"{args.url.rstrip('/')}/v1/models", headers=headers).raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{args.url} does not list its models ({error}); give --model") from error


def _workload(args: argparse.Namespace, models: list[str]) -> Workload:
    return Workload(
        models=models,
        prompts=_prompts(args),
        max_tokens=args.max_tokens,
        distribution=args.distribution,
        zipf_alpha=args.zipf_alpha,
        disconnect=args.disconnect,
        seed=args.seed,
    )


def _prompts(args: argparse.Namespace) -> TokenPrompts | WordPrompts | GivenPrompts:
    if args.prompts is not None:
        return GivenPrompts(_read_prompts(args.prompts))
    if args.chat or args.text:
        return WordPrompts(args.prompt_tokens, args.shared_prefix_tokens, args.seed)
    prefix = args.shared_prefix_tokens
    return TokenPrompts(args.prompt_tokens, args.vocabulary, prefix, args.seed)


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{path}: every line must be a JSON object with "prompt"; {error}'
        ) from error
    if not texts:
        raise UserError(f"{path} holds no prompts")
    return texts


def _arrivals(args: argparse.Namespace) -> ClosedLoop | OpenLoop:
    if args.rate is not None:
        requests = args.requests or (None if args.seconds else 100)
        return OpenLoop(args.rate, requests, args.seconds, args.seed)
    slots = args.concurrency
    if args.requests is not None and args.requests % slots:
        raise UserError(
            f"--requests {args.requests} is not a multiple of --concurrency {slots}; "
            f"try {slots * max(args.requests // slots, 1)}"
        )
    turns = args.requests // slots if args.requests else (None if args.seconds else TURNS)
    return ClosedLoop(slots, turns, args.seconds)


def _slo(args: argparse.Namespace) -> Slo | None:
    slo = Slo(args.slo_ttft_ms, args.slo_itl_ms)
    return None if slo == Slo() else slo


def _describe(args: argparse.Namespace, models: list[str]) -> str:
    loop = f"{args.concurrency} slots" if args.rate is None else f"{args.rate:g} requests/s"
    names = models[0] if len(models) == 1 else f"{len(models)} models ({args.distribution})"
    low, high = args.prompt_tokens
    length = f"{low}" if low == high else f"{low} to {high}"
    shared = f"{args.shared_prefix_tokens} shared + " if args.shared_prefix_tokens else ""
    prompts = "given prompts" if args.prompts else f"{shared}{length} random tokens"
    return f"{loop}, {names}, {prompts} + {args.max_tokens}"


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    bounds = int(low), int(high or low)
    if not 0 < bounds[0] <= bounds[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not N or LOW:HIGH with 0 < LOW <= HIGH")
    return bounds


def _whole(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
