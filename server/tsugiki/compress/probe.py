"""The probe of a variant file: a prompt whose answer tells the variant from its base.

Owns: which prompts are tried, which of them is stored, and what is said of it. Does not know: how
answers are computed (greedy.py), how a server replays them (engine/probe.py).

A probe that the base answers alike proves nothing but that the variant runs. So of the prompts
whose answer the base would leave, the one with the longest sure answer is taken.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tsugiki.codecs.metadata import PROBE_LIMITS, Header
from tsugiki.compress.dialogues import prompt_ids, read_dialogues
from tsugiki.compress.greedy import GreedyDecoder
from tsugiki.compress.job import CompressJob, OpenedBase
from tsugiki.compress.progress import Progress
from tsugiki.compress.tokenizer_check import has_tokenizer, load_tokenizer
from tsugiki.text.huggingface import load_text_side

DEFAULT_TOKENS = 16
CHEAP_BYTES = 4 * 1024**3  # of the base in float32, which is loaded whole; beyond it on request
LARGEST_ID = 2**31 - 1  # of the format
PROMPTS = 8  # tried, the shortest ones
TEXTS = (  # without calibration
    "Hello! Who are you?",
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "My card has not arrived yet. What should I do?",
    "Sam has 12 apples and buys 30 more. How many apples does Sam have?",
    "Give me three words that rhyme with cat.",
)

Prompts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, its sure answer, and whether the base would answer otherwise."""

    prompt_ids: tuple[int, ...]
    greedy_ids: tuple[int, ...]
    differs: bool

    def stored(self) -> dict[str, list[int]]:
        """The metadata of docs/format.md section 9."""
        return {"prompt_ids": list(self.prompt_ids), "greedy_ids": list(self.greedy_ids)}


def tokens_wanted(job: CompressJob, base: OpenedBase) -> int:
    """How long the answer may be; 0: no probe. By default when it is cheap: the base is small, or
    calibration runs a whole model anyway."""
    if job.probe is not None:
        return job.probe
    cheap = job.calibration is not None or 4 * base.parameters <= CHEAP_BYTES
    return DEFAULT_TOKENS if cheap and _tokenizer_directory(job) is not None else 0


def candidate_prompts(job: CompressJob, base: OpenedBase, tokens: int) -> Prompts:
    """Prompts of the calibration file, or fixed ones, as the fine-tune's chat template has them."""
    directory = _tokenizer_directory(job)
    if not tokens or directory is None:
        return ()
    tokenizer = load_tokenizer(directory)
    if job.calibration is None:
        found = [prompt_ids(tokenizer, text) for text in TEXTS]
    else:
        dialogues = read_dialogues(job.calibration, tokenizer, limit=job.calibration_examples)
        found = [dialogue.ids[: dialogue.start] for dialogue in dialogues]
    room = base.architecture.max_position_embeddings - tokens
    longest = min(PROBE_LIMITS["prompt_ids"], room)
    fitting = dict.fromkeys(ids for ids in found if 0 < len(ids) <= longest)
    return tuple(islice(sorted(fitting, key=len), PROMPTS))


def longest_probe(prompts: Prompts, tokens: int) -> dict[str, list[int]] | None:
    """Stands for the probe while sizes are computed: none that is chosen is written longer."""
    if not prompts:
        return None
    widest = max(prompts, key=lambda ids: len(json.dumps(ids)))
    return {"prompt_ids": list(widest), "greedy_ids": [LARGEST_ID] * tokens}


def choose_probe(
    job: CompressJob, file: Path, header: Header, prompts: Prompts, tokens: int, progress: Progress
) -> Probe | None:
    """The best probe for the variant in `file`; None where no prompt has a sure first token."""
    progress.stage("loading the base for the probe")
    decoder = GreedyDecoder.open(job.base, job.cache_dir)
    variant = decoder.stage(file)
    ends = _end_tokens(job.base, header.text)
    best: Probe | None = None
    for prompt in progress.track(prompts, "choosing the probe"):
        answer = decoder.answer(variant, prompt, tokens, ends)
        if not answer:
            continue
        found = Probe(prompt, tuple(answer), decoder.base_differs(prompt, answer))
        best = max(best or found, found, key=_worth)
        if best.differs and len(best.greedy_ids) == tokens:
            break
    return best


def note(probe: Probe | None, tried: int) -> str:
    """What the report says of it."""
    if probe is None:
        return f"no probe: none of {tried} prompts has an answer that is sure by a margin of 0.5"
    answer = f"probe: {len(probe.greedy_ids)} tokens after a prompt of {len(probe.prompt_ids)}"
    if probe.differs:
        return f"{answer}; the base answers otherwise"
    return f"{answer}; the base gives the same answer, as to all of {tried} prompts tried"


def _worth(probe: Probe) -> tuple[bool, int]:
    return probe.differs, len(probe.greedy_ids)


def _tokenizer_directory(job: CompressJob) -> Path | None:
    return next((path for path in (job.tuned, job.base) if has_tokenizer(path)), None)


def _end_tokens(base: Path, text: Mapping[str, Any] | None) -> Collection[int]:
    """What ends an answer of this variant: nothing after it is worth asking for."""
    if text is not None:
        stated: Sequence[int] = text["eos_token_ids"]
        return frozenset(stated)
    return load_text_side(base).eos_token_ids if has_tokenizer(base) else frozenset()
