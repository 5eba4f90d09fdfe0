"""Which kind of linear costs a sketched base how much? KL from the base with one kind sketched.

The base as plain transformers, in bfloat16, on the first tokens of a text; the linears of one kind
are replaced by those of the sketched base, all others stay. The kinds do not add up exactly.

    python -m benchmarks.sketch_kinds --base demo --sketched SKETCHED --text test.txt
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress.hf_model import load_model, refill
from tsugiki.compress.job import open_base
from tsugiki.compress.tokenizer_check import load_tokenizer
from tsugiki.compress_base.text import sequences
from tsugiki.config import default_cache_dir
from tsugiki.model.checkpoint import Checkpoint
from tsugiki.model.demo_base import resolve_base


@contextmanager
def replaced(
    model: Any, names: Sequence[str], base: Checkpoint, sketched: Checkpoint
) -> Iterator[None]:
    """The model with these weights of the sketched base."""
    refill(model, ((name, sketched.tensor(name)) for name in names))
    yield
    refill(model, ((name, base.tensor(name)) for name in names))


@torch.inference_mode()
def log_probabilities(model: Any, windows: Tensor) -> Tensor:
    """Of every token but each window's first; bfloat16 [tokens, vocab]."""
    rows = [model(window[None], use_cache=False).logits[0, :-1] for window in windows]
    return torch.cat([row.float().log_softmax(-1).bfloat16() for row in rows])


def divergence(expected: Tensor, found: Tensor) -> float:
    """Mean KL, in nats a token."""
    pairs = zip(torch.split(expected, 512), torch.split(found, 512), strict=True)
    total = sum(float((p.float().exp() * (p.float() - q.float())).sum()) for p, q in pairs)
    return total / len(expected)


def loss(found: Tensor, windows: Tensor) -> float:
    """Mean negative log likelihood of the text, in nats a token."""
    return -float(found.gather(1, windows[:, 1:].reshape(-1, 1)).float().mean())


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--sketched", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=6, help="of 512 tokens")
    arguments = parser.parse_args()
    directory = resolve_base(arguments.base, default_cache_dir())
    base, sketched = (open_base(path).checkpoint for path in (directory, arguments.sketched))
    windows = sequences(arguments.text, load_tokenizer(directory), arguments.windows, 512)
    model = load_model(directory, torch.bfloat16)
    expected = log_probabilities(model, windows)
    names = [name for name in sketched.names() if sketched.is_compressed(name)]
    print("| sketched | KL | loss above the base |\n|---|---|---|")
    for kind in ("", *sorted({name.split(".")[-2] for name in names})):
        with replaced(model, [name for name in names if kind in name], base, sketched):
            found = log_probabilities(model, windows)
        above = loss(found, windows) - loss(expected, windows)
        print(f"| {kind or 'all'} | {divergence(expected, found):.4f} | {above:+.4f} |", flush=True)


if __name__ == "__main__":
    main()
