"""How many warps of a kernel fit on a multiprocessor at once, by CUDA's published limits.

CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability", and the
allocation units of NVIDIA's occupancy calculator.
"""

from dataclasses import dataclass

REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # a warp's registers are a multiple of it
PARTITIONS = 4  # of a multiprocessor; each has a quarter of the registers


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """What blocks share."""

    warps: int
    blocks: int
    shared_bytes: int
    reserved_bytes: int  # of shared memory, for each block
    shared_unit: int


def _since_ampere(warps: int, blocks: int, kibibytes: int) -> Multiprocessor:
    return Multiprocessor(warps, blocks, kibibytes << 10, 1024, 128)


MULTIPROCESSORS = {
    "sm_75": Multiprocessor(32, 16, 64 << 10, 0, 256),
    "sm_80": _since_ampere(64, 32, 164),
    "sm_86": _since_ampere(48, 16, 100),
    "sm_89": _since_ampere(48, 24, 100),
    "sm_90": _since_ampere(64, 32, 228),
    "sm_100": _since_ampere(64, 32, 228),
    "sm_120": _since_ampere(48, 24, 100),
}


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def resident_blocks(architecture: str, registers: int, shared_bytes: int, threads: int) -> int:
    """Blocks of `threads` that run at once on one multiprocessor.

    registers: of a thread. shared_bytes: of a block, static and dynamic.
    """
    limits = MULTIPROCESSORS[architecture]
    warps = _up(threads, 32) // 32
    of_partition = REGISTERS // PARTITIONS // _up(max(registers, 1) * 32, REGISTER_UNIT)
    shared = _up(shared_bytes + limits.reserved_bytes, limits.shared_unit)
    return min(
        limits.blocks,
        limits.warps // warps,
        of_partition * PARTITIONS // warps,
        limits.shared_bytes // shared if shared else limits.blocks,
    )


def occupancy(architecture: str, registers: int, shared_bytes: int, threads: int) -> float:
    """Resident warps as a share of the most there can be, 0 .. 1."""
    blocks = resident_blocks(architecture, registers, shared_bytes, threads)
    return blocks * (_up(threads, 32) // 32) / MULTIPROCESSORS[architecture].warps
