"""Known answers: what each variant says to a few fixed questions, computed alone.

Every question is put to every variant through a server that does nothing else (the solo law: mixed
with others the tokens must be the same), greedy, in the dtype of the run. Only the tokens before
the first one whose top-2 logit margin is below 0.5 are kept: in 16 bits a smaller margin may fall
the other way in another batch. A sample is held against plain transformers in float32 on the
decompressed checkpoint, which shares no code with the server.

Resumable: kept in one JSON file beside the variants, by digest.

    python -m benchmarks.churn.answers --folder ~/.cache/tsugiki/churn
"""

import argparse
import json
import os
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx

from benchmarks.churn.variants import default_folder
from benchmarks.server import running_server
from tsugiki.codecs.artifact import read_header
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

QUESTIONS = (
    "My card has not arrived yet. What should I do?",
    "I want to change my PIN, how?",
    "Tom buys 4 pens at $3 each and a book for $7. How much does he pay?",
    "Count from one to twenty in words.",
    "How do I keep bread fresh?",
    "List the days of the week.",
)
TOKENS = 12
MARGIN = 0.5  # of the logits, between the best token and the next
ASKED_OF_EACH = 2  # questions of a variant in the run: those that tell it from most others

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """Kept tokens of every question, by digest; which file has which digest."""

    dtype: str
    questions: tuple[str, ...]
    digests: dict[str, str] = field(default_factory=dict)  # by stem of the file
    kept: dict[str, tuple[Tokens, ...]] = field(default_factory=dict)  # by digest

    def save(self, path: Path) -> None:
        """Replace the file at once."""
        temporary = path.with_suffix(".tmp")
        content = {name: getattr(self, name) for name in ("dtype", "questions", "digests", "kept")}
        temporary.write_text(json.dumps(content))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path, dtype: str, questions: tuple[str, ...]) -> "Known":
        """What was found so far; nothing, when it was found for something else."""
        if path.exists():
            content = json.loads(path.read_text())
            if (content["dtype"], tuple(content["questions"])) == (dtype, questions):
                kept = {d: tuple(map(tuple, found)) for d, found in content["kept"].items()}
                return cls(dtype, questions, content["digests"], kept)
        return cls(dtype, questions)

    def of(self, stems: Iterable[str]) -> dict[str, tuple[Tokens, ...]]:
        """Kept tokens by stem."""
        return {stem: self.kept[self.digests[stem]] for stem in stems}


def differ(a: Tokens, b: Tokens) -> bool:
    """Whether two kept answers contradict each other; a longer one continues a shorter one."""
    return any(x != y for x, y in zip(a, b, strict=False))


def chosen(answers: Mapping[str, tuple[Tokens, ...]]) -> dict[str, tuple[int, ...]]:
    """For each variant the questions that tell it from most of the others, best first."""

    def told_apart(stem: str, question: int) -> int:
        own = answers[stem][question]
        return sum(differ(own, other[question]) for other in answers.values())

    return {
        stem: tuple(sorted(range(len(found)), key=lambda q: -told_apart(stem, q))[:ASKED_OF_EACH])
        for stem, found in answers.items()
    }


def distinct_share(answers: Mapping[str, tuple[Tokens, ...]]) -> tuple[float, float]:
    """(share of pairs whose known answers differ, share of other variants that one request to one
    variant would tell apart), over the questions that are asked."""
    questions = chosen(answers)
    pairs = requests = found = 0
    for a, b in combinations(answers, 2):
        asked = {q: differ(answers[a][q], answers[b][q]) for q in {*questions[a], *questions[b]}}
        pairs += any(asked.values())
        requests += len(questions[a]) + len(questions[b])
        found += sum(asked[q] for q in (*questions[a], *questions[b]))
    count = len(answers) * (len(answers) - 1) // 2
    return pairs / max(1, count), found / max(1, requests)


def kept_tokens(choice: Mapping[str, Any]) -> Tokens:
    """The tokens of an answer with log-probabilities, up to the first small margin."""
    kept = []
    for token, entry in zip(choice["token_ids"], choice["logprobs"]["content"], strict=True):
        best, second = (top["logprob"] for top in entry["top_logprobs"][:2])
        if best - second < MARGIN:
            break
        kept.append(token)
    return tuple(kept)


def chat(model: str, question: str, tokens: int, **more: Any) -> dict[str, Any]:
    """The body of a greedy chat request that shows its token ids."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": tokens, "temperature": 0}
    return {**body, "return_token_ids": True, **more}


def ask_alone(client: httpx.Client, model: str, questions: Sequence[str]) -> tuple[Tokens, ...]:
    """The kept answers of one variant, one request after the other."""
    found = []
    for question in questions:
        body = chat(model, question, TOKENS, logprobs=True, top_logprobs=2)
        answer = client.post("/v1/chat/completions", json=body)
        answer.raise_for_status()
        found.append(kept_tokens(answer.json()["choices"][0]))
    return tuple(found)


def collect(url: str, files: Sequence[Path], known: Known, path: Path) -> None:
    """Ask for what `known` lacks, saving after every variant. The server serves these files."""
    with httpx.Client(base_url=url, timeout=600.0) as client:
        for file in files:
            digest = read_header(file).digest
            known.digests[file.stem] = digest
            if digest not in known.kept:
                known.kept[digest] = ask_alone(client, file.stem, known.questions)
                print(f"{file.stem}: {[len(kept) for kept in known.kept[digest]]}", flush=True)
                known.save(path)


def check_against_transformers(base: Path, files: Sequence[Path], known: Known) -> tuple[int, int]:
    """(known answers that plain transformers gives too, known answers), of these files."""
    from benchmarks.oracle import decompress, truths

    same = total = 0
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            checkpoint = decompress(base, file, Path(folder) / file.stem)
            found = truths(checkpoint, TOKENS, known.questions)
            kept = known.kept[known.digests[file.stem]]
            agree = [t.greedy_ids[: len(k)] == list(k) for t, k in zip(found, kept, strict=True)]
            print(f"{file.stem}: transformers agrees with {sum(agree)} of {len(agree)}", flush=True)
            same, total = same + sum(agree), total + len(agree)
    return same, total


def main() -> int:
    """Entry point: exit 1 when transformers disagrees or too few pairs are distinct."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--check", type=int, default=5, help="variants held against transformers")
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    files = sorted((args.folder / "variants").glob("*.safetensors"))
    path = args.folder / f"answers-{args.dtype}.json"
    known = Known.load(path, args.dtype, QUESTIONS)
    flags = ["--dtype", args.dtype, "--max-model-len", "512"]
    with running_server(base, args.folder / "variants", args.folder / "answers.log", flags) as url:
        collect(url, files, known, path)
    known.save(path)
    pairs, request = distinct_share(known.of(file.stem for file in files))
    print(
        f"{len(files)} variants: {pairs:.1%} of the pairs have distinct known answers; one request"
    )
    print(f"tells its variant from {request:.1%} of the others")
    sample = random.Random(0).sample(files, min(args.check, len(files)))
    same, total = check_against_transformers(base, sample, known)
    print(f"transformers, float32: {same} of {total} known answers identical")
    return 0 if same == total and pairs >= 0.95 else 1


if __name__ == "__main__":
    raise SystemExit(main())
