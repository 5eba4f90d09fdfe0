"""The limits that kernels must keep, from a file in the repository, and what goes beyond them.

A limit is a number for all architectures, or one for each in the order of `ARCHITECTURES` (why they
differ: docs/cuda.md). Limits are what was read, without slack; `tightened` takes what is read now.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.cuda_resources.resources import Resources
from tsugiki_kernels.cuda.kernels import KERNELS
from tsugiki_kernels.cuda.requirements import ARCHITECTURES
from tsugiki_kernels.cuda.sparse import largest_window

LIMITS = Path(__file__).parents[2] / "tests/kernels/cuda/limits.json"
Limit = float | list[float]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the kernels whose names match. Nothing may ever spill."""

    kernels: str  # a pattern: "tsugiki_gate_*"
    registers: Limit  # at most
    static_shared_bytes: Limit  # at most
    occupancy: Limit  # at least, with the dynamic shared memory; in hundredths, rounded down
    wide_loads: Limit = 0  # 16-byte loads, at least
    mma: Limit = 0  # tensor-core instructions, at least

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
        least = (
            ("of all warps resident", _occupancy(one), self.occupancy),
            ("16-byte loads", one.wide_loads, self.wide_loads),
            ("tensor-core instructions", one.mma, self.mma),
        )
        where = f"{one.kernel} on {one.architecture}"
        for what, found, limits in most:
            if found > (limit := _of(limits, one)):
                yield f"{where}: {found} {what}, at most {limit} are allowed"
        for what, share, limits in least:
            if share < (limit := _of(limits, one)):
                yield f"{where}: {share:g} {what}, at least {limit:g} are wanted"

    def tightened(self, found: Iterable[Resources]) -> "Limits":
        """The same with what the kernels that it concerns take now."""
        mine = [one for one in found if self.concerns(one)]
        return replace(
            self,
            registers=_measured(mine, max, lambda one: one.registers),
            static_shared_bytes=_measured(mine, max, lambda one: one.static_shared_bytes),
            occupancy=_measured(mine, min, _occupancy),
            wide_loads=_measured(mine, min, lambda one: one.wide_loads),
            mma=_measured(mine, min, lambda one: one.mma),
        )


def dynamic_shared_bytes(one: Resources) -> int:
    """Of a launch on as many inputs as a window holds; 0 for a kernel that no table names."""
    kernel = KERNELS.get(one.kernel)
    if kernel is None:
        return 0
    capability = divmod(int(one.architecture.removeprefix("sm_")), 10)
    window = largest_window(capability)
    return kernel.shared_bytes(**dict.fromkeys(kernel.sizes, window))


def _occupancy(one: Resources) -> float:
    return int(100 * one.occupancy(dynamic_shared_bytes(one))) / 100


def _of(limit: Limit, one: Resources) -> float:
    return limit[ARCHITECTURES.index(one.architecture)] if isinstance(limit, list) else limit


def _measured(
    found: Iterable[Resources],
    worst: Callable[[list[float]], float],
    read: Callable[[Resources], float],
) -> Limit:
    """The worst on each architecture; one number where all agree."""
    by_name: dict[str, list[float]] = {name: [] for name in ARCHITECTURES}
    for one in found:
        by_name[one.architecture].append(read(one))
    limits = [worst(values) for values in by_name.values()]
    return limits if len(set(limits)) > 1 else limits[0]


def load_limits(path: Path = LIMITS) -> list[Limits]:
    """The file's list of objects, one per `Limits`."""
    return [Limits(**entry) for entry in json.loads(path.read_text())]


def tightened(limits: Iterable[Limits], found: Iterable[Resources]) -> list[Limits]:
    """Every limit as measured; kernels that had none get one, those that are gone lose it."""
    found, kept = list(found), []
    for each in limits:
        if any(each.concerns(one) for one in found):
            kept.append(each.tightened(found))
    named = {one.kernel for one in found if not any(each.concerns(one) for each in kept)}
    kept += [Limits(name, 0, 0, 0).tightened(found) for name in named]
    return sorted(kept, key=lambda each: each.kernels)


def save_limits(limits: Iterable[Limits], path: Path = LIMITS) -> None:
    """An object to a line; what is left at its default is left out."""
    plain = Limits("", 0, 0, 0)
    kept = [
        {
            name: value
            for name, value in asdict(each).items()
            if name in ("kernels", "registers", "static_shared_bytes", "occupancy")
            or value != getattr(plain, name)
        }
        for each in limits
    ]
    path.write_text("[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in kept) + "\n]\n")


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
