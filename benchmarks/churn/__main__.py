"""Does a server under churn ever answer wrongly, lose a request, leak, or make others wait?

A real server with memory for about 20 of 200 variants (and for 60 packed ones beside them) gets
requests from 32 client tasks: Zipf over the variants, an open loop at a fixed rate. Meanwhile
variants are uploaded, replaced by another version, rolled back, staged and activated, given
canaries, deleted and uploaded again; some uploads are damaged or abandoned, and some clients leave
in mid-stream. Every answer is compared token by token with what its version says alone; which
version that is, is read from the response and must be one that the name meant at the time. The
server and this process, which runs all clients, share the machine's cores.

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
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.churn.answers import Known, chosen, distinct_share
from benchmarks.churn.compare import growth, quantile, waits
from benchmarks.churn.ledger import Ledger
from benchmarks.churn.memory import value_of
from benchmarks.churn.plan import Plan, Settings, by_popularity, make_plan
from benchmarks.churn.round import Round, Target, run_round
from benchmarks.churn.variants import default_folder
from benchmarks.results import save
from benchmarks.server import running_server, server_process
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

SPARE_SHARE = 0.1  # of the files: new versions and guests
WARM_UP_SHARE = 0.2  # of a round's length
HEADROOM = 1.02  # of the measured size of the variants that shall fit
MOST_GROWTH, MOST_WAIT = 1.01, 2.0


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
    stems = sorted(known.digests)
    if len(stems) < 3:
        raise SystemExit(
            f"{args.folder} holds no known answers; python -m benchmarks.churn.answers"
        )
    settings = settings_of(args, stems, known)
    print(described(settings, known, args), flush=True)
    with tempfile.TemporaryDirectory() as name:
        served = Path(name) / "variants"
        served.mkdir()
        for stem in settings.names:
            shutil.copy(args.folder / "variants" / f"{stem}.safetensors", served)
        budgets = budgets_for(base, served, settings, args)
        rounds = run(base, served, settings, known, budgets, args)
    return report(rounds, settings, known, budgets)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--minutes", type=float, default=5.0, help="of one round")
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--resident", type=int, default=20, help="variants that fit in memory")
    parser.add_argument("--host-resident", type=int, default=60, help="that stay packed beside")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between changes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", nargs="+", default=["warm-up", "churn", "calm", "churn"])
    parser.add_argument("--again", action="store_true", help="forget the rounds of a cut run")
    return parser.parse_args()


def settings_of(args: argparse.Namespace, stems: Sequence[str], known: Known) -> Settings:
    """All files but the last tenth are served from the start."""
    spare = max(1, round(len(stems) * SPARE_SHARE))
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
    """The plan of a round of this kind."""
    if kind == "warm-up":
        return make_plan(replace(settings, seconds=WARM_UP_SHARE * settings.seconds))
    plan = make_plan(settings)
    return plan.calm() if kind == "calm" else plan


HEAD = (
    f"{'round':<8}{'answered':>9}{'404':>5}{'429':>5}{'left':>6}{'lost':>6}{'wrong':>7}"
    f"{'changes':>9}{'hot TTFT p50':>14}{'p99 ms':>8}{'cold p50':>10}{'RSS MB':>9}{'anon MB':>9}"
    f"{'fit':>5}{'late s':>8}"
)


def row(found: Round) -> str:
    """One line of the table."""
    hot, requests = list(found.ttft.values()) or [0.0], found.requests
    cold = found.cold_ttft or [0.0]
    return (
        f"{found.kind:<8}{requests.get('answered', 0):>9}{requests.get('not-found', 0):>5}"
        f"{requests.get('overloaded', 0):>5}{requests.get('left', 0):>6}{len(found.lost):>6}"
        f"{len(found.wrong):>7}{sum(found.operations['done'].values()):>9}"
        f"{1000 * quantile(hot, 0.5):>14.0f}{1000 * quantile(hot, 0.99):>8.0f}"
        f"{1000 * quantile(cold, 0.5):>10.0f}{found.memory['rss'] / 1e6:>9.0f}"
        f"{found.memory['anonymous'] / 1e6:>9.0f}{found.resident_variants:>5}{found.late:>8.1f}"
    )


def report(rounds: Sequence[Round], settings: Settings, known: Known, budgets: Budgets) -> int:
    """Print what the rounds say together and save it; 1 when something is not as it must be."""
    print("\n" + HEAD + "\n" + "\n".join(map(row, rounds)))
    problems = [p for r in rounds for p in (*r.wrong, *r.lost, *r.operations["surprises"])]
    for problem in problems[:20]:
        print("  " + problem)
    grown, waited = growth(rounds), waits(rounds)
    print(f"operations: {rounds[-1].operations['done']}")
    print(f"memory after the last churn round / the one before: {shown(grown)}")
    print(f"TTFT p99 of hot variants, churn / calm: {shown(waited)}")
    pairs, request = distinct_share(known.of((*settings.names, *settings.spares)))
    save(
        "churn",
        {
            "variants": len(settings.names),
            "spare_versions": len(settings.spares),
            "pairs_distinct": pairs,
            "told_apart_by_one_request": request,
            "budgets": asdict(budgets),
            "rate": settings.rate,
            "seconds": settings.seconds,
            "memory_growth": grown,
            "ttft_p99": waited,
            "rounds": [brief(r) for r in rounds],
        },
    )
    too_large = grown is not None and grown["rss"] > MOST_GROWTH
    too_slow = waited is not None and waited["ratio"] > MOST_WAIT
    return int(bool(problems) or too_large or too_slow)


def brief(found: Round) -> dict[str, Any]:
    """A round for the results: quantiles instead of every wait."""
    content = asdict(found)
    for name, values in (("ttft", list(found.ttft.values())), ("cold_ttft", found.cold_ttft)):
        content[name] = {f"p{q:g}": quantile(values, q / 100) for q in (50, 95, 99) if values}
    return content


def shown(values: dict[str, Any] | None) -> str:
    """A small table on one line."""
    if values is None:
        return "not measured (it needs two rounds of one server)"
    texts = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in values.items()}
    return "  ".join(f"{key} {text}" for key, text in texts.items())


if __name__ == "__main__":
    raise SystemExit(main())
