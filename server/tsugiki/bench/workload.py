"""What is asked: which model, which prompt, how many tokens. The same for the same seed.

Owns: `Ask`, the ways to choose a model and the ways to make a prompt. Does not know when a request
is sent, nor how.
"""

import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

Distribution = Literal["distinct", "uniform", "zipf"]
DISTRIBUTIONS: tuple[Distribution, ...] = ("distinct", "uniform", "zipf")

_TEXT = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an
they which one you were all her she there would their we him been has when who will no more if out
so up said what its about than into them can only other time new some could these two may then do
"""
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `prompt` is token ids, or text; `leave_after`: hang up after so many tokens."""

    model: str
    prompt: Sequence[int] | str
    max_tokens: int
    leave_after: int | None = None


@dataclass(frozen=True, slots=True)
class TokenPrompts:
    """Random token ids: every prompt another one behind a prefix that all share.

    Attributes:
        length: fewest and most tokens behind the prefix, both included.
        vocabulary: smallest and largest id; keep special tokens out of it.
        prefix: tokens at the start that every prompt shares, drawn from `seed`.
    """

    length: tuple[int, int] = (128, 128)
    vocabulary: tuple[int, int] = (100, 40_000)
    prefix: int = 0
    seed: int = 0

    def draw(self, generator: random.Random) -> list[int]:
        """Token ids of one prompt."""
        low, high = self.vocabulary
        ids = range(low, high + 1)
        shared = random.Random(f"prefix {self.seed}").choices(ids, k=self.prefix)
        return shared + generator.choices(ids, k=generator.randint(*self.length))


@dataclass(frozen=True, slots=True)
class WordPrompts:
    """Random common English words, for routes that take text alone: about one token a word."""

    length: tuple[int, int] = (128, 128)
    prefix: int = 0
    seed: int = 0

    def draw(self, generator: random.Random) -> str:
        """Text of one prompt."""
        shared = random.Random(f"prefix {self.seed}").choices(_WORDS, k=self.prefix)
        return " ".join(shared + generator.choices(_WORDS, k=generator.randint(*self.length)))


@dataclass(frozen=True, slots=True)
class GivenPrompts:
    """Texts out of a file, picked at random."""

    texts: Sequence[str]

    def draw(self, generator: random.Random) -> str:
        """Text of one prompt."""
        return generator.choice(self.texts)


@dataclass(frozen=True, slots=True)
class Workload:
    """A reproducible sequence of requests.

    Attributes:
        models: names for the `model` field.
        prompts: how a prompt is made.
        max_tokens: tokens to generate.
        distribution: "distinct": slot i always asks model i (modulo their number); "uniform";
            "zipf": the k-th model with weight 1 / k ** zipf_alpha.
        disconnect: share of requests whose client hangs up somewhere in the answer.
    """

    models: Sequence[str]
    prompts: TokenPrompts | WordPrompts | GivenPrompts = field(default_factory=TokenPrompts)
    max_tokens: int = 64
    distribution: Distribution = "distinct"
    zipf_alpha: float = 1.0
    disconnect: float = 0.0
    seed: int = 0

    def ask(self, slot: int, turn: int) -> Ask:
        """The `turn`-th request of a slot (of arrival `slot`, with turn 0, in an open loop)."""
        generator = random.Random(f"{self.seed} {slot} {turn}")
        leaves = generator.random() < self.disconnect
        return Ask(
            self._model(slot, generator),
            self.prompts.draw(generator),
            self.max_tokens,
            generator.randint(1, self.max_tokens) if leaves else None,
        )

    def warm(self, slot: int) -> Ask:
        """A request to warm up with: models in turn, prompts that `ask` never draws."""
        generator = random.Random(f"{self.seed} warm {slot}")
        model = self.models[slot % len(self.models)]
        return Ask(model, self.prompts.draw(generator), self.max_tokens)

    def _model(self, slot: int, generator: random.Random) -> str:
        if self.distribution == "distinct":
            return self.models[slot % len(self.models)]
        if self.distribution == "uniform":
            return generator.choice(self.models)
        bounds = list(accumulate(1 / k**self.zipf_alpha for k in range(1, len(self.models) + 1)))
        return self.models[bisect(bounds, generator.random() * bounds[-1])]
