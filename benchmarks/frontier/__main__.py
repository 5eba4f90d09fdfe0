"""Measure one fine-tune: every codec, size and seed that the result file does not hold yet.

    python -m benchmarks.frontier --base demo --tuned ft/banking77 --data banking77.test.jsonl \\
        --calibration banking77.calibration.jsonl --out rows.jsonl

Linears and changed embeddings are approximated; norms stay the fine-tune's. Bits are those of the
matrices' tensors, headers left out for all codecs alike. KL is to the uncompressed fine-tune per
answer token, teacher-forced on the test file's answers and, with --own, on the fine-tune's own
answers of 200 tokens; accuracy is exact match of the whole answer.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.frontier.approximation import Asked, Method
from benchmarks.frontier.codecs import ONCE, PEERS, SIZES, methods
from benchmarks.frontier.rows import Key, Row, append, read
from benchmarks.frontier.subject import GOLD, OWN, Subject, Texts
from benchmarks.results import machine
from tsugiki.compress.reference import MAX_ANSWER_TOKENS
from tsugiki.config import DEVICES, default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.device import CPU, choose_device


def cases(
    fine_tune: str, codecs: Sequence[str], sizes: Sequence[float], seeds: int, texts: Texts
) -> Iterator[Key]:
    """What identifies each row; a codec without randomness is measured once."""
    for size, codec in product(sizes, codecs):
        for seed in range(1 if codec in ONCE else seeds):
            yield Key(fine_tune, codec, size, seed, texts.gold, texts.own, texts.tokens)


def measure(subject: Subject, method: Method, case: Key) -> Row:
    """Approximate every matrix, put the result in place, compare."""
    started = time.monotonic()
    bits = nominal = 0.0
    for pair in subject.deltas():
        asked = Asked(
            name := pair.change.name,
            pair.base,
            pair.tuned,
            case.size,
            case.seed,
            subject.stats.get(name),
            subject.grams.of(name),
            subject.shares[name],
        )
        found = method(asked.on(subject.device if case.codec in PEERS else CPU))
        if found is None:
            return _without(case, time.monotonic() - started)
        bits, nominal = bits + found.bits, nominal + found.nominal_bits
        subject.put(pair.change, pair.base, found)
    compared = {kind: asdict(found) for kind, found in subject.compare().items()}
    return Row(
        **case._asdict(),
        bits=bits / subject.parameters,
        nominal_bits=nominal / subject.parameters,
        gold=compared[GOLD],
        own=compared.get(OWN),
        seconds=time.monotonic() - started,
        machine=machine(),
    )


def _without(case: Key, seconds: float) -> Row:
    """A size that the codec has no setting for."""
    nothing: dict[str, Any] = {"bits": 0.0, "nominal_bits": 0.0, "gold": None, "own": None}
    return Row(**case._asdict(), **nothing, seconds=seconds, machine=machine())


def parse_arguments() -> argparse.Namespace:
    """Describe and read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", default="demo", help="Hugging Face directory, or 'demo'")
    parser.add_argument("--tuned", type=Path, required=True, help="the fine-tune's directory")
    parser.add_argument("--data", type=Path, required=True, help="test JSONL")
    parser.add_argument("--calibration", type=Path, required=True, help="training JSONL")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; is continued")
    parser.add_argument("--codecs", nargs="+", choices=list(methods()), default=list(methods()))
    parser.add_argument("--sizes", nargs="+", type=float, default=list(SIZES), metavar="B/P")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=300, help="test examples")
    parser.add_argument("--own", type=int, default=0, help="of them, those answered at length")
    parser.add_argument(
        "--tokens", type=int, default=MAX_ANSWER_TOKENS, help="of answers compared, at most"
    )
    parser.add_argument("--device", choices=DEVICES, default="auto")
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, one line at a time."""
    arguments = parse_arguments()
    name = arguments.tuned.resolve().name
    texts = Texts(arguments.limit, arguments.own, tokens=arguments.tokens)
    known = {row.key for row in read(arguments.out)}
    everything = cases(name, arguments.codecs, arguments.sizes, arguments.seeds, texts)
    wanted = [case for case in everything if case not in known]
    if not wanted:
        return
    base = resolve_base(arguments.base, default_cache_dir())
    paths = (base, arguments.tuned, arguments.data, arguments.calibration)
    subject = Subject(*paths, texts, choose_device(arguments.device))
    available = methods()
    for case in wanted:
        row = measure(subject, available[case.codec], case)
        append(arguments.out, row)
        shown = "no setting" if row.kl is None else f"KL {row.kl:.5f}"
        print(f"{case}: {row.bits:.4f} b/p, {shown}, {row.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
