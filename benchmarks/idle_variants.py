"""What do variants cost while nobody asks for them?

Requests for the base on a server that holds 100 resident variants beside the same on a server that
holds none, interleaved (A B B A ...); the one that is not measured is stopped. At least 0.98x is
wanted. About 8 minutes, and once some more to make the variants (benchmarks.churn.variants, kept in
the cache). Run it alone on the machine.

    python -m benchmarks.idle_variants --base demo
"""

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import load
from benchmarks.churn.variants import default_folder, make, mixtures
from benchmarks.interleaved import HEADER, Comparison, Journal, compare, show
from benchmarks.resident import Resident, tsugiki_server
from benchmarks.results import machine, save
from benchmarks.served import placed
from benchmarks.variants import decompressed
from tsugiki.compress.job import open_base
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

TARGET = 0.98


def main() -> int:
    """Entry point; exit code 1 when the target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--fine-tunes", type=Path, nargs="+", help="uncompressed checkpoints")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--work", type=Path, default=default_cache_dir() / "idle_variants")
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    names = placed(mixed_variants(base, args), args.work / "variants")
    (args.work / "none").mkdir(exist_ok=True)
    journal = Journal.open(args.work / f"idle_variants-{machine()['commit']}.json")
    with ExitStack() as servers:
        many = servers.enter_context(
            tsugiki_server(base, args.work / "variants", args.work / "many.log")
        )
        none = servers.enter_context(
            tsugiki_server(base, args.work / "none", args.work / "none.log")
        )
        hold(many, names)
        print(HEADER)
        rows = []
        for slots in (1, 8, 16):
            a, b = (partial(measure, server, base.name, slots) for server in (many, none))
            title = f"base beside {len(names)} resident variants / beside none @{slots}"
            rows.append(compare(Comparison(title, a, b, TARGET, args.pairs), journal))
            show(rows[-1])
    save("idle_variants", rows)
    return int(not all(row["met"] for row in rows))


def mixed_variants(base: Path, args: argparse.Namespace) -> list[Path]:
    """The files of benchmarks.churn.variants, made where the cache lacks them."""
    tuned = args.fine_tunes or decompressed(base, args.variants, args.folder / "fine-tunes")
    wanted = mixtures(args.count, len(tuned), fresh_seeds=0.1)
    folder = args.folder / "variants"
    for file in make(open_base(base), tuned, folder, wanted, default_cache_dir()):
        print(file, flush=True)
    return [folder / f"{mixture.name}.safetensors" for mixture in wanted]


def hold(server: Resident, names: list[str]) -> None:
    """Make the variants resident."""
    with server.awake(), httpx.Client(base_url=server.url, timeout=120) as client:
        for name in names:
            client.post(f"/v1/variants/{name}/load").raise_for_status()


def measure(server: Resident, model: str, slots: int, label: str) -> dict[str, Any]:
    """One cell."""
    with server.awake():
        return load.closed_loop(server.url, [model], slots, label)


if __name__ == "__main__":
    raise SystemExit(main())
