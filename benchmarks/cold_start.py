"""How long from a file to a variant that requests can use, and what do running requests feel of it?

Idle: read, verify and stage in this process, as the server's loader does it, over rounds: with the
file in the page cache, with the cache dropped (posix_fadvise after fsync; beside it a bare read of
the file, dropped too), and with a mask seed that no resident variant shares. Busy: a server decodes
eight streams of one variant while others are unloaded and loaded again, one load a second; windows
with and without loads alternate (A B B A ...), and the gaps between tokens are the clients'. Run it
alone on the machine.

    python -m benchmarks.cold_start [--rounds 30] [--pairs 7]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.load_traffic import windows
from benchmarks.results import median_interval, save
from benchmarks.server import running_server
from tsugiki.codecs.artifact import read_header
from tsugiki.codecs.base import ResidentVariant
from tsugiki.codecs.masks import MaskCache, drawn_by
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.commands.serve import keep_what_was_imported
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.loader import BaseModel, load_base
from tsugiki.variants.arena import Arena
from tsugiki.variants.loader import LoadTimings, read_packed
from tsugiki_kernels.select import backend

Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Idle:
    """A base to load onto, in this process."""

    base: BaseModel
    arena: Arena

    def load(
        self, path: Path, digest: str, masks: MaskCache
    ) -> tuple[ResidentVariant, LoadTimings]:
        """What the server's loader does for one file."""
        base, kernels = self.base, self.base.decoder.kernels
        packed, spent = read_packed(path, digest, self.arena.allocate)
        place = Destination(
            base.layout, base.vector, base.dtype, kernels, masks, self.arena.allocate
        )
        begin = time.perf_counter()
        variant = stage_variant(packed.content, place)
        stage = (time.perf_counter() - begin) * 1000
        return variant, LoadTimings(spent.read, spent.verify, stage)

    def rounds(self, path: Path, rounds: int) -> dict[str, Row]:
        """Each condition in turn within every round, so that noise meets all of them."""
        draw = drawn_by(self.base.decoder.kernels)
        digest, masks = read_header(path).digest, MaskCache(draw)
        holder, _ = self.load(path, digest, masks)  # its masks stay as long as it does
        found: dict[str, list[Row]] = {}
        for _ in range(rounds):
            found.setdefault("warm", []).append(row(self.load(path, digest, masks)[1]))
            fresh = self.load(path, digest, MaskCache(draw))[1]
            found.setdefault("fresh seed", []).append(row(fresh))
            bare = dropped(path, lambda: path.read_bytes())
            drop_cache(path)
            spent = self.load(path, digest, masks)[1]
            found.setdefault("dropped", []).append({**row(spent), "bare read": bare})
        del holder
        return {condition: summary(rows) for condition, rows in found.items()}


def row(spent: LoadTimings) -> Row:
    """Milliseconds of one load."""
    parts = asdict(spent)
    return {**parts, "verify+stage": spent.verify + spent.stage, "total": sum(parts.values())}


def summary(rows: list[Row]) -> Row:
    """Median and 95th percentile of each part."""
    found = {}
    for part in rows[0]:
        values = sorted(r[part] for r in rows)
        found[part] = statistics.median(values)
        found[f"{part} p95"] = percentile(values, 0.95)
    return found


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def drop_cache(path: Path) -> None:
    """Ask the kernel to forget the file's pages; dirty ones are written first."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def dropped(path: Path, action: Callable[[], object]) -> float:
    """Milliseconds of an action that begins with the file out of the page cache."""
    drop_cache(path)
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


def idle(base: Path, files: list[Path], rounds: int) -> dict[str, dict[str, Row]]:
    """Every file under every condition, with a printed table."""
    kernels = backend("auto", cache_dir=default_cache_dir() / "kernels")
    loaded = load_base(base, torch.device("cpu"), "bfloat16", kernels, default_cache_dir())
    bench = Idle(loaded, Arena())
    keep_what_was_imported()  # as a server does
    parts = ("read", "verify", "stage", "verify+stage", "total")
    print(f"{'idle, milliseconds (p95)':<26}" + "".join(f"{part:>15}" for part in parts))
    results = {}
    for file in files:
        results[file.stem] = bench.rounds(file, rounds)
        for condition, found in results[file.stem].items():
            cells = "".join(f"{found[p]:>8.1f} ({found[f'{p} p95']:4.1f})" for p in parts)
            bare = f"   bare read {found['bare read']:.1f}" if "bare read" in found else ""
            print(f"{file.stem + ', ' + condition:<26}{cells}{bare}", flush=True)
    return results


def busy(url: str, streamed: str, loaded: str, args: argparse.Namespace) -> dict[str, Any]:
    """Loads of one variant beside streams of another, interleaved with windows without loads."""
    pairs = windows(url, streamed, loaded, pairs=args.pairs, tokens=args.tokens)
    quiet, loading = ([p[side] for p in pairs] for side in (0, 1))
    ratio = median_interval([b.p99 / a.p99 for a, b in pairs])
    spent = [spent for window in loading for spent in window.loads]
    found = {
        "gap p99 quiet": statistics.median(w.p99 for w in quiet),
        "gap p99 loading": statistics.median(w.p99 for w in loading),
        "ratio": ratio[0],
        "interval": ratio[1:],
        "loads": summary([row(LoadTimings(**s)) for s in spent]),
        "pairs": [(a.p99, b.p99) for a, b in pairs],
    }
    show(streamed, loaded, found, len(spent))
    return found


def show(streamed: str, loaded: str, found: dict[str, Any], loads: int) -> None:
    """Two lines of one busy comparison."""
    spent, (low, high) = found["loads"], found["interval"]
    print(
        f"{loads} loads of {loaded} beside 8 streams of {streamed}: verify+stage "
        f"{spent['verify+stage']:.1f} ms (p95 {spent['verify+stage p95']:.1f}), total "
        f"{spent['total']:.1f} ms (p95 {spent['total p95']:.1f})\n"
        f"    inter-token p99 {found['gap p99 quiet']:.1f} ms without loads, with them "
        f"{found['gap p99 loading']:.1f} ms: ratio {found['ratio']:.2f} [{low:.2f}, {high:.2f}]",
        flush=True,
    )


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=200, help="of each stream in a window")
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    files = sorted(args.variants.glob("*.safetensors"))
    results: dict[str, Any] = {"idle": idle(base, files, args.rounds), "busy": {}}
    streamed, *others = (file.stem for file in reversed(files))
    with (
        tempfile.TemporaryDirectory() as work,
        running_server(base, args.variants, Path(work) / "server.log") as url,
    ):
        for loaded in others:
            results["busy"][loaded] = busy(url, streamed, loaded, args)
    print(save("cold_start", results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
