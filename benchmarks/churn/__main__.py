"""Does a server under churn ever answer wrongly, lose a request, leak, or make others wait?

A real server with memory for about 20 of 200 variants (and for 60 packed ones beside them) gets
requests from 32 client tasks: Zipf over the variants, an open loop at a fixed rate. Meanwhile
variants are uploaded, replaced by another version, rolled back, staged and activated, given
canaries, deleted (whole names and single versions) and uploaded again; some uploads are damaged or
abandoned, some clients leave in mid-stream, and some ask for a fixed version, NAME@sha256:... Every
answer is compared token by token with what its version says alone; which version that is, is read
from the response and must be one that was meant at the time. The server and this process, which
runs all clients, share the machine's cores.

Rounds: a warm-up, one with changes, the same arrivals without changes, the first one again. The
rate is to leave the server idle at times: at saturation the time to the first token is that of the
queue, with or without changes, and says nothing about them.

    python -m benchmarks.churn.variants && python -m benchmarks.churn.answers
    python -m benchmarks.churn --minutes 5

A run that was cut short goes on after its last whole round.
"""

import argparse
import asyncio
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import httpx

from benchmarks.arithmetic import arithmetic
from benchmarks.churn.known import Known, chosen, distinct_share, most_distinct
from benchmarks.churn.ledger import Ledger
from benchmarks.churn.memory import value_of
from benchmarks.churn.plan import Plan, Settings, by_popularity, make_plan
from benchmarks.churn.report import report, row
from benchmarks.churn.round import Round, Target, run_round
from benchmarks.churn.variants import default_folder
from benchmarks.served import placed
from benchmarks.server import running_server, server_process
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

LEAST_VARIANTS = 20  # variants below which the run means nothing
HEADROOM = 1.02  # of the measured size of the variants that shall fit


@dataclass(frozen=True, slots=True)
class Budgets:
    """Bytes of variants in each tier."""

    device: int
    host: int

    def flags(self) -> list[str]:
        """For `tsugiki serve`."""
        return ["--variant-memory", str(self.device), "--host-variant-memory", str(self.host)]


def main() -> int:
    """Entry point: prints tables; exit 1 when an answer was wrong or lost, or a limit missed."""
    args = arguments()
    base = resolve_base(args.base, default_cache_dir())
    known = Known.load(args.folder / f"answers-{args.dtype}.json")
    if len(known.digests) < LEAST_VARIANTS or known.arithmetic != arithmetic():
        raise SystemExit(
            f"too few known answers in {args.folder} by this arithmetic; "
            "run benchmarks.churn.answers"
        )
    settings = settings_of(args, known)
    print(described(settings, known, args), flush=True)
    with tempfile.TemporaryDirectory() as name:
        served = Path(name) / "variants"
        files = (args.folder / "variants" / f"{stem}.safetensors" for stem in settings.names)
        placed(files, served)
        budgets = budgets_for(base, served, settings, args)
        rounds = run(base, served, settings, known, budgets, args)
    return report(rounds, settings, known, asdict(budgets))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one round")
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--variants", type=int, default=200, help="served from the start")
    parser.add_argument("--spares", type=int, default=20, help="files for other versions of them")
    parser.add_argument("--resident", type=int, default=20, help="variants that fit in memory")
    parser.add_argument("--host-resident", type=int, default=60, help="that stay packed beside")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", nargs="+", default=["warm-up", "churn", "calm", "churn"])
    parser.add_argument("--again", action="store_true", help="forget the rounds of a cut run")
    return parser.parse_args()


def settings_of(args: argparse.Namespace, known: Known) -> Settings:
    """The files whose known answers differ most from the others'; the last ones in name order are
    spare versions, the rest is served from the start."""
    wanted = args.variants + args.spares
    stems = most_distinct(known.of(known.digests), wanted)
    spare = round(len(stems) * args.spares / wanted)
    return Settings(
        names=tuple(stems[:-spare]),
        spares=tuple(stems[-spare:]),
        seconds=60 * args.minutes,
        rate=args.rate,
        questions=chosen(known.of(stems)),
        every=args.every,
        seed=args.seed,
    )


def described(settings: Settings, known: Known, args: argparse.Namespace) -> str:
    """What is about to be run."""
    pairs, request = distinct_share(known.of((*settings.names, *settings.spares)))
    return (
        f"{len(settings.names)} variants and {len(settings.spares)} spare versions; {pairs:.1%} of "
        f"the pairs have distinct known answers,\none request tells its variant from {request:.1%} "
        f"of the others; {args.clients} clients, {settings.rate:g} requests/s, "
        f"{settings.seconds:g} s a round"
    )


def serve_flags(args: argparse.Namespace) -> list[str]:
    """Of every server of this benchmark."""
    return ["--dtype", args.dtype, "--max-model-len", "512"]


def budgets_for(base: Path, served: Path, settings: Settings, args: argparse.Namespace) -> Budgets:
    """Bytes for so many of the most popular variants, measured on a server with room for all."""
    names = by_popularity(settings)[: args.resident]
    with running_server(base, served, args.folder / "sizing.log", serve_flags(args)) as url:
        for name in names:
            httpx.post(f"{url}/v1/variants/{name}/load", timeout=120.0).raise_for_status()
        metrics = httpx.get(f"{url}/metrics").text
    held = {
        tier: value_of(metrics, f'tsugiki_variant_tier_bytes{{tier="{tier}"}}')
        for tier in ("device", "host")
    }
    return Budgets(
        device=int(HEADROOM * held["device"]),
        host=int(HEADROOM * held["host"] * args.host_resident / len(names)),
    )


def run(
    base: Path,
    served: Path,
    settings: Settings,
    known: Known,
    budgets: Budgets,
    args: argparse.Namespace,
) -> list[Round]:
    """All rounds on one server; those of an earlier, cut run are not repeated."""
    path = args.folder / "rounds.json"
    key = json.dumps([asdict(settings), asdict(budgets), args.rounds, args.dtype], sort_keys=True)
    done = [] if args.again else load(path, key)
    flags = [*serve_flags(args), *budgets.flags()]
    log = args.folder / "server.log"
    with server_process(base, served, log, flags) as (url, pid):
        target = Target(url, pid, args.folder / "variants", known, args.clients)
        ledger = Ledger.of({name: known.digests[name] for name in settings.names})
        for kind in args.rounds[len(done) :]:
            plan = plan_of(kind, with_routes_of(url, settings))
            found = asyncio.run(run_round(kind, plan, target, ledger))
            ledger = ledger.rest()
            done.append(found)
            path.write_text(json.dumps({"key": key, "rounds": [asdict(r) for r in done]}))
            print(row(found), flush=True)
    return done


def load(path: Path, key: str) -> list[Round]:
    """The rounds that a cut run of the same settings has finished."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    return [Round(**found) for found in content["rounds"]] if content["key"] == key else []


def with_routes_of(url: str, settings: Settings) -> Settings:
    """Without the episodes that this server has no routes for."""
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    routes = {"stage": "activate", "canary": "canary"}
    able = tuple(
        e
        for e in settings.episodes
        if e not in routes or f"/v1/variants/{{name}}/{routes[e]}" in paths
    )
    return replace(settings, episodes=able)


def plan_of(kind: str, settings: Settings) -> Plan:
    """The plan of a round of this kind. A warm-up sends as fast as its clients can: the tiers are
    full and memory has seen the largest batches before it is measured."""
    plan = make_plan(settings)
    if kind == "warm-up":
        return replace(plan, arrivals=tuple(replace(a, at=0.0) for a in plan.arrivals))
    return plan.calm() if kind == "calm" else plan


if __name__ == "__main__":
    raise SystemExit(main())
