"""Known answers: how each variant goes on after a few fixed openings, computed alone.

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
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM

from benchmarks.arithmetic import arithmetic
from benchmarks.churn.known import Known, Tokens, distinct_share, most_distinct
from benchmarks.churn.variants import default_folder
from benchmarks.oracle import decompress
from benchmarks.server import running_server
from tsugiki.codecs.artifact import read_header
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

# A question and how its answer begins. The beginnings are ones after which mixtures of these
# fine-tunes are sure how to go on and disagree: four of 378 that were tried on 22 variants.
QUESTIONS = (
    ("Why was I charged a fee for using my card abroad?", "Arr, matey"),
    (
        "A baker has 12 trays with 8 rolls each and sells 30 rolls. How many rolls are left?",
        "12*8 = <<12*8=96>>96\n",
    ),
    ("What should I cook tonight?", "Arr, matey! A cup o' warm soup an' a piece o' bread"),
    ("What is the capital of France?", "france"),
)
TOKENS = 12
MARGIN = 0.5  # of the logits, between the best token and the next
AT_ONCE = 4  # variants that propose answers in one batch


async def prompts_of(
    http: httpx.AsyncClient, model: str, questions: Sequence[tuple[str, str]]
) -> tuple[Tokens, ...]:
    """Token ids of each question through the chat template, with the beginning of the answer."""

    async def tokens(**what: Any) -> list[int]:
        told = await http.post("/tokenize", json={"model": model, **what})
        told.raise_for_status()
        return list(told.json()["tokens"])

    found = []
    for question, opening in questions:
        asked = await tokens(messages=[{"role": "user", "content": question}])
        begun = await tokens(prompt=opening, add_special_tokens=False)
        found.append(tuple(asked + begun))
    return tuple(found)


def completion(model: str, prompt: Tokens, **more: Any) -> dict[str, Any]:
    """The body of a greedy request that shows its token ids."""
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    return {**body, "return_token_ids": True, **more}


async def propose(http: httpx.AsyncClient, model: str, prompt: Tokens) -> Tokens:
    """The greedy answer; other requests may run beside it."""
    answer = await http.post("/v1/completions", json=completion(model, prompt))
    answer.raise_for_status()
    return tuple(answer.json()["choices"][0]["token_ids"])


async def verify(http: httpx.AsyncClient, model: str, prompt: Tokens, answer: Tokens) -> Tokens:
    """The beginning of an answer that holds when this is the only request."""
    shown = {"max_tokens": 0, "echo": True, "logprobs": 2, "return_tokens_as_token_ids": True}
    body = completion(model, (*prompt, *answer), **shown)
    response = await http.post("/v1/completions", json=body)
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
    http: httpx.AsyncClient, models: Sequence[str], prompts: Sequence[Tokens]
) -> list[tuple[Tokens, ...]]:
    """The kept answers of several variants to all prompts."""
    work = [(model, prompt) for model in models for prompt in prompts]
    proposed = await asyncio.gather(*(propose(http, *item) for item in work))
    kept = [await verify(http, *item, found) for item, found in zip(work, proposed, strict=True)]
    step = len(prompts)
    return [tuple(kept[start : start + step]) for start in range(0, len(kept), step)]


async def collect(
    url: str,
    files: Sequence[Path],
    path: Path,
    dtype: str,
    questions: Sequence[tuple[str, str]] = QUESTIONS,
) -> Known:
    """All known answers; asks for what the JSON at `path` lacks, saving as it goes; anew when it
    came from other arithmetic. The server serves exactly these files, under their stems."""
    async with httpx.AsyncClient(base_url=url, timeout=600.0) as http:
        prompts = await prompts_of(http, files[0].stem, questions)
        known = Known.load(path)
        wanted = Known(dtype, prompts, arithmetic())
        if (known.dtype, known.prompts, known.arithmetic) != (dtype, prompts, wanted.arithmetic):
            known = wanted
        digests = {file.stem: read_header(file).digest for file in files}
        missing = [stem for stem in digests if digests[stem] not in known.kept]
        for start in range(0, len(missing), AT_ONCE):
            models = missing[start : start + AT_ONCE]
            for model, kept in zip(models, await ask(http, models, prompts), strict=True):
                known.kept[digests[model]] = kept
                print(f"{model}: {[len(tokens) for tokens in kept]} tokens kept", flush=True)
            known.save(path)
    known.digests.update(digests)
    known.save(path)
    return known


@torch.inference_mode()
def greedy(checkpoint: Path, prompts: Sequence[Tokens]) -> list[Tokens]:
    """What plain transformers generates in float32, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        result = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        found.append(tuple(result[0, len(prompt) :].tolist()))
    return found


def check_against_transformers(base: Path, files: Sequence[Path], known: Known) -> tuple[int, int]:
    """(known answers that plain transformers gives too, known answers), of these files."""
    same = total = 0
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            checkpoint = decompress(base, file, Path(folder) / file.stem)
            kept = known.kept[known.digests[file.stem]]
            found = greedy(checkpoint, known.prompts)
            agree = sum(f[: len(k)] == k for f, k in zip(found, kept, strict=True))
            print(f"{file.stem}: transformers agrees with {agree} of {len(kept)}", flush=True)
            same, total = same + agree, total + len(kept)
    return same, total


def main() -> int:
    """Entry point: exit 1 when transformers disagrees or too few pairs are distinct."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--best", type=int, default=220, help="variants that a run will use")
    parser.add_argument("--check", type=int, default=5, help="variants held against transformers")
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    files = sorted((args.folder / "variants").glob("*.safetensors"))
    path = args.folder / f"answers-{args.dtype}.json"
    flags = ["--dtype", args.dtype, "--max-model-len", "512"]
    with running_server(base, args.folder / "variants", args.folder / "answers.log", flags) as url:
        known = asyncio.run(collect(url, files, path, args.dtype))
    answers = known.of(file.stem for file in files)
    best = most_distinct(answers, args.best)
    pairs, request = distinct_share(known.of(best))
    print(f"the {len(best)} most distinct of {len(files)} variants: {pairs:.1%} of the pairs have")
    print(f"distinct known answers, one request tells its variant from {request:.1%} of the others")
    sample = random.Random(0).sample(files, min(args.check, len(files)))
    same, total = check_against_transformers(base, sample, known)
    print(f"transformers, float32: {same} of {total} known answers identical")
    return 0 if same == total and pairs >= 0.95 else 1


if __name__ == "__main__":
    raise SystemExit(main())
