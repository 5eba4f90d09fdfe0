"""The limits that kernels must keep, from a file in the repository, and what goes beyond them."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.cuda_resources.resources import Resources

LIMITS = Path(__file__).parents[2] / "tests/kernels/cuda/limits.json"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the kernels whose names match, on every architecture. Nothing may ever spill."""

    kernels: str  # a pattern: "tsugiki_gate_*"
    registers: int  # at most
    static_shared_bytes: int  # at most
    occupancy: float  # at least, with the dynamic shared memory
    wide_loads: int = 0  # 16-byte loads, at least
    mma: int = 0  # tensor-core instructions, at least; not of bf16 on sm_75, which has none
    dynamic_shared_bytes: int = 0  # of a launch on 4096 inputs

    def concerns(self, one: Resources) -> bool:
        """Whether these limits are this kernel's."""
        return fnmatch(one.kernel, self.kernels)

    def exceeded(self, one: Resources) -> Iterator[str]:
        """A line for each limit that the kernel does not keep."""
        most = (
            ("spilled bytes", one.spill_bytes, 0),
            ("instructions that spill", one.spill_instructions, 0),
            ("registers", one.registers, self.registers),
            ("bytes of static shared memory", one.static_shared_bytes, self.static_shared_bytes),
        )
        turing_bf16 = one.architecture == "sm_75" and "_bf16" in one.kernel
        least = (
            ("of all warps resident", one.occupancy(self.dynamic_shared_bytes), self.occupancy),
            ("16-byte loads", one.wide_loads, self.wide_loads),
            ("tensor-core instructions", one.mma, 0 if turing_bf16 else self.mma),
        )
        where = f"{one.kernel} on {one.architecture}"
        for what, found, limit in most:
            if found > limit:
                yield f"{where}: {found} {what}, at most {limit} are allowed"
        for what, share, limit in least:
            if share < limit:
                yield f"{where}: {share:g} {what}, at least {limit:g} are wanted"


def load_limits(path: Path = LIMITS) -> list[Limits]:
    """The file's list of objects, one per `Limits`."""
    return [Limits(**entry) for entry in json.loads(path.read_text())]


def violations(found: Iterable[Resources], limits: Iterable[Limits]) -> list[str]:
    """What exceeds its limits, and what has none."""
    limits = list(limits)
    lines = []
    for one in found:
        mine = [each for each in limits if each.concerns(one)]
        if not mine:
            lines.append(f"{one.kernel}: no limits in {LIMITS.name}")
        lines += [line for each in mine for line in each.exceeded(one)]
    return lines
