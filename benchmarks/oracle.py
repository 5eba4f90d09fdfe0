"""Does the server compute what plain transformers computes on the decompressed weights?

For the base and every variant: `tsugiki decompress` (float32) -> transformers. Against it, a
float32 server: prompt log-probabilities (largest difference) and greedy tokens of many prompts, all
models in one mixed batch, three times: as it is, with prefill cut in small chunks, and with a KV
cache so small that requests are preempted.

    python -m benchmarks.oracle --base demo --variants examples/variants
"""

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.results import save
from benchmarks.served import placed
from benchmarks.server import running_server
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

PROMPTS = (
    "I lost my card on the train, what now?",
    "Why was I charged a fee for using my card abroad?",
    "How do I change my PIN?",
    "My transfer has not arrived yet.",
    "Can I get a second card for my daughter?",
    "A baker has 12 trays with 8 rolls each and sells 30 rolls. How many are left?",
    "Tom buys 4 pens at $3 each. How much does he pay?",
    "A train travels 60 miles an hour for 3 hours. How far does it go?",
    "Lina reads 15 pages a day for 6 days. How many pages does she read?",
    "There are 24 eggs in a box and 7 break. How many are whole?",
    "How do I keep bread fresh?",
    "What is a good name for a cat?",
    "Tell me about the moon.",
    "How can I learn to swim?",
    "What should I cook tonight?",
    "What is the capital of France?",
    "Write a sentence about the sea.",
    "Explain photosynthesis to a child.",
    "List three colours.",
    "Who wrote Romeo and Juliet?",
)
CONFIGURATIONS: dict[str, list[str]] = {
    "one mixed batch": [],
    "chunked prefill": ["--max-num-batched-tokens", "96"],
    "forced preemption": ["--kv-memory", "96MiB"],
}


@dataclass(frozen=True)
class Truth:
    """What transformers says of one prompt under one model."""

    prompt_ids: list[int]
    prompt_logprobs: list[float]  # of prompt tokens 1..
    greedy_ids: list[int]
    margin: float  # smallest top-2 logit gap along the greedy path


def decompress(base: Path, variant: Path, out: Path) -> Path:
    """`tsugiki decompress` in float32."""
    command = [sys.executable, "-m", "tsugiki", "decompress", str(variant)]
    subprocess.run([*command, "--base", str(base), "--out", str(out)], check=True)
    return out


@torch.inference_mode()
def truths(checkpoint: Path, tokens: int, prompts: tuple[str, ...]) -> list[Truth]:
    """Teacher-forced prompt log-probabilities and greedy continuations, one sequence at a time."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        result = model.generate(
            ids,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        gaps = [float(step[0].topk(2).values.diff().abs()) for step in result.logits]
        greedy = result.sequences[0, ids.shape[1] :].tolist()
        found.append(Truth(ids[0].tolist(), chosen.tolist(), greedy, min(gaps)))
    return found


async def complete(client: httpx.AsyncClient, model: str, truth: Truth, tokens: int) -> Any:
    """The server's greedy tokens (through log-probabilities) and prompt log-probabilities."""
    body = {
        "model": model, "prompt": truth.prompt_ids, "max_tokens": tokens, "temperature": 0,
        "echo": True, "logprobs": 1, "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    return answer.json()["choices"][0]


def compare(truth: Truth, choice: Any) -> tuple[float, bool]:
    """(largest |Δ prompt log-probability|, greedy tokens identical)."""
    served = choice["logprobs"]["token_logprobs"][1 : len(truth.prompt_ids)]
    worst = max(abs(a - b) for a, b in zip(served, truth.prompt_logprobs, strict=True))
    return worst, choice["token_ids"] == truth.greedy_ids


async def ask(url: str, truth: dict[str, list[Truth]], tokens: int) -> dict[str, Any]:
    """Every prompt of every model at once; the comparison by model."""
    async with httpx.AsyncClient(base_url=url, timeout=1800.0) as client:
        work = [(model, t) for model, found in truth.items() for t in found]
        choices = await asyncio.gather(*(complete(client, m, t, tokens) for m, t in work))
        metrics = (await client.get("/metrics")).text
    rows: dict[str, Any] = {}
    for (model, expected), choice in zip(work, choices, strict=True):
        worst, same = compare(expected, choice)
        row = rows.setdefault(model, {"max_abs_logprob": 0.0, "identical": 0, "prompts": 0})
        row["max_abs_logprob"] = max(row["max_abs_logprob"], worst)
        row["identical"] += same
        row["prompts"] += 1
    rows["preemptions"] = preemptions(metrics)
    return rows


def preemptions(metrics: str) -> int:
    """The counter of /metrics."""
    for line in metrics.splitlines():
        if line.startswith("tsugiki_preemptions_total"):
            return int(float(line.split()[-1]))
    raise RuntimeError("no tsugiki_preemptions_total in /metrics")


def collect(base: Path, variants: Path, folder: Path, tokens: int, count: int) -> dict[str, Any]:
    """Truths of the base and of each variant file."""
    prompts = PROMPTS[:count]
    found = {"": truths(base, tokens, prompts)}
    for file in sorted(variants.glob("*.safetensors")):
        checkpoint = decompress(base, file, folder / file.stem)
        found[file.stem] = truths(checkpoint, tokens, prompts)
        shutil.rmtree(checkpoint)
        print(f"transformers on {file.stem}: done", flush=True)
    return found


def main() -> int:
    """Entry point: prints a table; exit 1 when a token or a log-probability is off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--variants", type=Path, default=Path("examples/variants"))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu", help="the server's; transformers is on the CPU")
    args = parser.parse_args()
    base = resolve_base(args.base, default_cache_dir())
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth = collect(base, args.variants, folder, args.tokens, args.prompts)
        placed(args.variants.glob("*.safetensors"), folder / "served")
        for title, flags in CONFIGURATIONS.items():
            flags = ["--dtype", "float32", "--max-model-len", "1024", *flags]
            flags += ["--device", args.device]
            with running_server(base, folder / "served", folder / "log", flags) as url:
                models = httpx.get(f"{url}/v1/models").json()["data"]
                base_id = next(m["id"] for m in models if m["parent"] is None)
                named = {name or base_id: found for name, found in truth.items()}
                results[title] = asyncio.run(ask(url, named, args.tokens))
    bad = report(results, args.tolerance)
    margins = {name or "base": min(t.margin for t in found) for name, found in truth.items()}
    save(
        "oracle" if args.device == "cpu" else f"oracle-{args.device}",
        {"results": results, "smallest_top2_margin": margins},
    )
    return 1 if bad else 0


def report(results: dict[str, Any], tolerance: float) -> int:
    """Print the table; the number of rows that are off."""
    bad = 0
    print(f"{'configuration':<20}{'model':<26}{'max |Δlogprob|':>15}{'greedy identical':>18}")
    for title, rows in results.items():
        for model, row in rows.items():
            if model == "preemptions":
                continue
            worst, same = row["max_abs_logprob"], row["identical"] == row["prompts"]
            bad += worst > tolerance or not same
            print(f"{title:<20}{model:<26}{worst:>15.2e}{row['identical']:>12}/{row['prompts']}")
        print(f"{title:<20}preemptions: {rows['preemptions']}")
    return bad


if __name__ == "__main__":
    raise SystemExit(main())
