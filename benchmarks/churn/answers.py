"""Known answers: what each variant says to a few fixed questions, computed alone.

Greedy, in the dtype of the run, by a server that does nothing else. To be quick the answers are
first proposed by a mixed batch, and then each is verified alone: question and proposal in one
forward pass of one request, keeping the tokens that are the best ones there, up to the first whose
top-2 logit margin is below 0.5. (In 16 bits a smaller margin may fall the other way in another
batch: the solo law.) By induction the kept tokens are what greedy decoding alone gives. A sample
is held against plain transformers in float32 on the decompressed checkpoint, which shares no code
with the server.

Resumable: kept in one JSON file beside the variants, by digest.

    python -m benchmarks.churn.answers --folder ~/.cache/tsugiki/churn
"""

import argparse
import asyncio
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
AT_ONCE = 4  # variants that propose answers in one batch
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


def chat(model: str, question: str, **more: Any) -> dict[str, Any]:
    """The body of a greedy chat request that shows its token ids."""
    messages = [{"role": "user", "content": question}]
    body = {"model": model, "messages": messages, "max_tokens": TOKENS, "temperature": 0}
    return {**body, "return_token_ids": True, **more}


async def propose(http: httpx.AsyncClient, model: str, question: str) -> tuple[Tokens, Tokens]:
    """(prompt, greedy answer) in token ids; other requests may run beside it."""
    body = chat(model, question)
    told = await http.post("/tokenize", json={"model": model, "messages": body["messages"]})
    answer = await http.post("/v1/chat/completions", json=body)
    told.raise_for_status()
    answer.raise_for_status()
    return tuple(told.json()["tokens"]), tuple(answer.json()["choices"][0]["token_ids"])


async def verify(http: httpx.AsyncClient, model: str, prompt: Tokens, answer: Tokens) -> Tokens:
    """The beginning of an answer that holds when this is the only request."""
    body = {"model": model, "prompt": [*prompt, *answer], "max_tokens": 0, "temperature": 0}
    shown = {"echo": True, "logprobs": 2, "return_tokens_as_token_ids": True}
    response = await http.post("/v1/completions", json={**body, **shown})
    response.raise_for_status()
    alternatives = response.json()["choices"][0]["logprobs"]["top_logprobs"][len(prompt) :]
    return sure_tokens(answer, alternatives)


def sure_tokens(answer: Tokens, alternatives: Sequence[Mapping[str, float]]) -> Tokens:
    """The tokens that are the best of their alternatives ("token_id:7": log-probability) by at
    least MARGIN, up to the first that is not. Differences of log-probabilities are those of
    logits."""
    kept = []
    for token, found in zip(answer, alternatives, strict=True):
        own = found[f"token_id:{token}"]
        others = [value for name, value in found.items() if name != f"token_id:{token}"]
        if own - max(others) < MARGIN:
            break
        kept.append(token)
    return tuple(kept)


async def ask(
    http: httpx.AsyncClient, models: Sequence[str], questions: Sequence[str]
) -> list[tuple[Tokens, ...]]:
    """The kept answers of several variants to all questions."""
    work = [(model, question) for model in models for question in questions]
    proposed = await asyncio.gather(*(propose(http, *item) for item in work))
    kept = [
        await verify(http, model, *found) for (model, _), found in zip(work, proposed, strict=True)
    ]
    step = len(questions)
    return [tuple(kept[start : start + step]) for start in range(0, len(kept), step)]


async def collect(url: str, files: Sequence[Path], known: Known, path: Path) -> None:
    """Ask for what `known` lacks, saving as it goes. The server serves exactly these files."""
    known.digests.update({file.stem: read_header(file).digest for file in files})
    missing = [file.stem for file in files if known.digests[file.stem] not in known.kept]
    async with httpx.AsyncClient(base_url=url, timeout=600.0) as http:
        for start in range(0, len(missing), AT_ONCE):
            models = missing[start : start + AT_ONCE]
            for model, kept in zip(models, await ask(http, models, known.questions), strict=True):
                known.kept[known.digests[model]] = kept
                print(f"{model}: {[len(tokens) for tokens in kept]} tokens kept", flush=True)
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
        asyncio.run(collect(url, files, known, path))
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
