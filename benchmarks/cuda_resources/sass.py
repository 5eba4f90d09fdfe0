"""Machine code of NVIDIA GPUs (SASS) as a list of instructions, with its loops.

Owns: reading what nvdisasm prints. Knows nothing of our kernels. No instruction is executed here;
counts are of the text, and a loop's are of one turn.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LINE = re.compile(
    r"^\s+/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d]+\s+)?"
    r"(?P<opcode>[A-Z][A-Z0-9_.]*)(?P<operands>[^;]*);"
)
_LABEL = re.compile(r"^(\.L_\w+):")
_KERNEL = re.compile(r"^\.text\.(\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")

# Which unit an instruction occupies beside the slot it is issued in: sm_80 and newer, by base
# opcode. What is not named here is "alu" (integers, logic, moves, predicates).
_UNITS = {
    "fma": ("FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2", "IMAD", "FFMA2"),
    "tensor": ("HMMA", "IMMA", "DMMA", "QMMA", "BMMA"),
    "shared": ("LDS", "STS", "LDSM", "STSM", "SHFL", "ATOMS"),
    "global": ("LDG", "STG", "LD", "ST", "LDGSTS", "RED", "ATOM", "ATOMG"),
    "local": ("LDL", "STL"),
    "conversion": ("MUFU", "I2F", "F2I", "F2F", "POPC", "FLO", "BREV"),
    "control": (
        *("BRA", "EXIT", "BAR", "BSSY", "BSYNC", "NOP", "WARPSYNC", "BREAK", "RET", "CALL"),
        *("YIELD", "DEPBAR", "LDGDEPBAR", "BMOV", "MEMBAR", "ERRBAR", "KILL", "BPT"),
    ),
}
UNITS = (*_UNITS, "uniform", "alu")
_UNIT_OF = {opcode: unit for unit, opcodes in _UNITS.items() for opcode in opcodes}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction; its predicate is dropped."""

    opcode: str  # with modifiers: LDG.E.128.CONSTANT
    operands: str
    block: int = 0  # number of the straight piece of code that it is in

    @property
    def base(self) -> str:
        """Without modifiers: LDG."""
        return self.opcode.partition(".")[0]

    @property
    def unit(self) -> str:
        """One of `UNITS`."""
        if self.base in _UNIT_OF:
            return _UNIT_OF[self.base]
        return "uniform" if self.base.startswith(("U", "R2UR", "S2UR")) else "alu"


@dataclass(frozen=True, slots=True)
class Listing:
    """The code of one kernel."""

    name: str
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # index of the instruction that follows

    def loops(self) -> list[tuple[Instruction, ...]]:
        """The innermost loops: what lies between a label and a branch back to it."""
        spans = self._spans()
        inner = [s for s in spans if not any(_within(other, s) for other in spans)]
        return [self.instructions[start : end + 1] for start, end in sorted(inner)]

    def _spans(self) -> set[tuple[int, int]]:
        spans = set()
        for end, instruction in enumerate(self.instructions):
            target = _TARGET.search(instruction.operands)
            if instruction.base == "BRA" and target is not None:
                start = self.labels[target.group(1)]
                if start < end:
                    spans.add((start, end))
        return spans

    def around(self, loop: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
        """The smallest loop that holds this one and more than its branch back; all, if none."""
        bodies = (self.instructions[start : end + 1] for start, end in self._spans())
        holders = [body for body in bodies if body[0] != loop[0] and set(loop) < set(body)]
        return min(holders, key=len, default=self.instructions)

    def loop_with_most(self, *bases: str) -> tuple[Instruction, ...]:
        """The innermost loop with the most instructions of these base opcodes.

        Raises:
            ValueError: no loop has any.
        """
        best = max(self.loops(), key=lambda loop: count(loop, *bases), default=())
        if count(best, *bases) == 0:
            raise ValueError(f"{self.name}: no loop with {' or '.join(bases)}")
        return best


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def count(instructions: Iterable[Instruction], *bases: str, modifier: str = "") -> int:
    """How many have one of the base opcodes, and this modifier where one is given ("128")."""
    return sum(
        i.base in bases and (not modifier or modifier in i.opcode.split(".")[1:])
        for i in instructions
    )


def aligned_path(instructions: Iterable[Instruction]) -> list[Instruction]:
    """Without the straight pieces that load or store 16-bit values one by one: where rows are
    aligned and whole, these are branched over."""
    code = list(instructions)
    narrow = {
        i.block for i in code if i.base in ("LDG", "STG") and "U16" in i.opcode.split(".")[1:]
    }
    return [i for i in code if i.block not in narrow]


def by_unit(instructions: Iterable[Instruction]) -> Counter[str]:
    """How many occupy each unit."""
    return Counter(instruction.unit for instruction in instructions)


def parse(text: str) -> Iterator[Listing]:
    """The kernels in what `nvdisasm -c` printed."""
    for part in re.split(r"(?m)^(?=\.text\.\w+:)", text)[1:]:
        lines = part.splitlines()
        named = _KERNEL.match(lines[0])
        if named is not None:
            yield _listing(named.group(1), lines[1:])


def _listing(name: str, lines: Iterable[str]) -> Listing:
    instructions: list[Instruction] = []
    labels = {}
    block = 0
    for line in lines:
        if label := _LABEL.match(line):
            labels[label.group(1)] = len(instructions)
            block += 1
        elif found := _LINE.match(line):
            one = Instruction(found["opcode"], found["operands"].strip(), block)
            instructions.append(one)
            block += one.base == "BRA"
    return Listing(name, tuple(instructions), labels)
