"""What a round does, decided before it starts: who asks for which variant when, and which variants
are uploaded, replaced, rolled back and deleted meanwhile.

Pure: the same settings give the same plan. Does not know a server, files, answers.

Arrivals are an open loop (Poisson in time, Zipf over the names): whether a request comes does not
depend on how fast the ones before were answered, so a server that stalls meets the same arrivals.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Kind = Literal[
    "put", "put-inactive", "put-broken", "put-abandoned",
    "activate", "canary", "rollback", "delete", "delete-version",
]  # fmt: skip

LEAVES = 0.04  # share of clients that close the connection in mid-stream
GUEST_SHARE = 0.03  # share of requests for names that exist only for a while
FIXED_SHARE = 0.06  # share of requests for a fixed version, NAME@sha256:...
OTHERS = 2  # spare files that are ever uploaded under one name
GUESTS = 4
USERS = 50
CANARY_PERCENT = 40.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at: float  # seconds since the start of the round
    name: str
    user: str
    question: int  # index into the questions
    leaves_after: int | None = None  # tokens, for a client that goes away
    version: str | None = None  # the stem of a file: only what it holds may answer


@dataclass(frozen=True, slots=True)
class Operation:
    """One call that changes what a name means, or tries to."""

    at: float
    kind: Kind
    name: str
    file: str | None = None  # the stem of the variant file that it is about
    percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What a plan depends on."""

    names: tuple[str, ...]  # served from the start, each the stem of its own file
    spares: tuple[str, ...]  # stems of files for new versions and guests
    seconds: float
    rate: float  # requests a second
    questions: Mapping[str, Sequence[int]]  # which may be asked of a name; of guests by their files
    every: float = 3.0  # seconds between the starts of episodes
    gap: float = 4.0  # seconds between the steps of an episode
    zipf: float = 1.0
    touched: int = 40  # names that episodes happen to, hot and cold ones
    seed: int = 0
    episodes: tuple[str, ...] = (
        "replace", "stage", "canary", "retire", "guest", "prune", "repeat", "broken", "abandon",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """One round. `restore` brings every name back to what it was, once the traffic has ended."""

    arrivals: tuple[Arrival, ...]
    operations: tuple[Operation, ...]
    restore: tuple[Operation, ...]

    def calm(self) -> "Plan":
        """The same arrivals, and nothing else."""
        return Plan(self.arrivals, (), ())


def make_plan(settings: Settings) -> Plan:
    """The plan of these settings."""
    operations = tuple(sorted(_operations(settings), key=lambda operation: operation.at))
    changed = sorted({o.name for o in operations} & set(settings.names))
    restore = [
        Operation(settings.seconds, kind, name, name)
        for name in changed
        for kind in ("delete", "put")
    ]
    return Plan(tuple(_arrivals(settings)), operations, tuple(restore))


def by_popularity(settings: Settings) -> list[str]:
    """The names, the one asked for most first."""
    ranked = list(settings.names)
    random.Random(f"{settings.seed} ranks").shuffle(ranked)
    return ranked


def guests() -> list[str]:
    """Names that nobody serves at the start."""
    return [f"guest-{number}" for number in range(GUESTS)]


def others(settings: Settings, name: str) -> list[str]:
    """The spare files that new versions of a name are made from."""
    count = min(OTHERS, len(settings.spares))
    return random.Random(f"{settings.seed} others of {name}").sample(settings.spares, count)


def _arrivals(settings: Settings) -> Iterator[Arrival]:
    draw = random.Random(f"{settings.seed} arrivals")
    fix = random.Random(f"{settings.seed} versions")
    ranked = by_popularity(settings)
    weights = list(accumulate((rank + 1) ** -settings.zipf for rank in range(len(ranked))))
    at = draw.expovariate(settings.rate)
    while at < settings.seconds:
        guest = draw.random() < GUEST_SHARE
        name = draw.choice(guests()) if guest else draw.choices(ranked, cum_weights=weights)[0]
        question = draw.choice(settings.questions[draw.choice(settings.spares) if guest else name])
        leaves_after = draw.randrange(1, 4) if draw.random() < LEAVES else None
        files = [*others(settings, name), *([] if guest else [name])]
        version = fix.choice(files) if fix.random() < FIXED_SHARE else None
        yield Arrival(at, name, f"user-{draw.randrange(USERS)}", question, leaves_after, version)
        at += draw.expovariate(settings.rate)


Step = tuple[Kind, str | None, float]  # kind, file, percent
# An episode happens to one name, `own` its own file and `other` a spare one; it leaves the name as
# it was. Steps follow each other after `Settings.gap` seconds.
EPISODES: dict[str, Callable[[str, str], list[Step]]] = {
    "replace": lambda own, other: [("put", other, 0), ("rollback", None, 0)],
    "stage": lambda own, other: [
        ("put-inactive", other, 0), ("activate", other, 0), ("rollback", None, 0),
    ],
    "canary": lambda own, other: [
        ("put-inactive", other, 0), ("canary", other, CANARY_PERCENT), ("canary", other, 0),
    ],
    "retire": lambda own, other: [("delete", None, 0), ("put", own, 0)],
    "guest": lambda own, other: [("put", other, 0), ("delete", None, 0)],
    "prune": lambda own, other: [
        ("put", other, 0), ("rollback", None, 0), ("delete-version", other, 0),
    ],
    "repeat": lambda own, other: [("put", own, 0)],
    "broken": lambda own, other: [("put-broken", other, 0)],
    "abandon": lambda own, other: [("put-abandoned", other, 0)],
}  # fmt: skip


def _operations(settings: Settings) -> Iterator[Operation]:
    """Episodes in turn, each on a name that no other episode is busy with."""
    draw = random.Random(f"{settings.seed} operations")
    touched = _spread(by_popularity(settings), settings.touched)
    free_at = dict.fromkeys([*touched, *guests()], 0.0)
    at, number = settings.every / 2, 0
    while at < settings.seconds:
        episode = settings.episodes[number % len(settings.episodes)]
        candidates = guests() if episode == "guest" else touched
        free = [name for name in candidates if free_at[name] <= at]
        if free:
            name = draw.choice(free)
            steps = EPISODES[episode](name, draw.choice(others(settings, name)))
            for index, (kind, file, percent) in enumerate(steps):
                yield Operation(at + index * settings.gap, kind, name, file, percent)
            free_at[name] = at + len(steps) * settings.gap
        at, number = at + settings.every, number + 1


def _spread(ranked: Sequence[str], count: int) -> list[str]:
    """`count` names from all ranks, the most popular one included."""
    stride = max(1, len(ranked) // count)
    return list(ranked[::stride][:count])
