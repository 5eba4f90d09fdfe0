"""The table of all kernels: where each is defined, what it takes, how it is started.

Owns: names, parameters, grids, blocks and dynamic shared memory, as pure functions of the sizes of
a call. Operations start their kernels by it (`start`), so there is no second opinion. Knows nothing
of what a kernel computes: the operations check and order its arguments.

Kernels that walk a list of items have a persistent grid, the same for every call, so that a
captured graph serves any list.
"""

import ctypes
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tsugiki_kernels.cuda.launcher import Argument, Float32, Int32, Int64, Launcher
from tsugiki_kernels.errors import BadArgument

Extents = tuple[int, ...]
Parameter = type["ctypes._SimpleCData[Any]"]

BLOCKS_PER_MULTIPROCESSOR = 4  # of a persistent grid
LANES = 32
DTYPES = ("f16", "bf16", "f32")
OUT_DTYPES = (*DTYPES, "f16_f32", "bf16_f32")  # "x_out" where out, or a weight, is of another one


class Geometry(NamedTuple):
    """How a kernel is started for some sizes."""

    grid: Extents
    block: Extents
    shared_bytes: int = 0  # dynamic shared memory of a block


@dataclass(frozen=True, slots=True)
class Kernel:
    """One `extern "C"` entry of a source."""

    name: str
    source: str  # file in src/
    parameters: tuple[Parameter, ...]  # c_void_p: a pointer to device memory
    geometry: Callable[..., Geometry]  # of the sizes, given by name

    @property
    def sizes(self) -> tuple[str, ...]:
        """The sizes that shape a launch."""
        return tuple(inspect.signature(self.geometry).parameters)

    def grid(self, **sizes: int) -> Extents:
        """Blocks of a launch, one to three extents."""
        return self.geometry(**sizes).grid

    def block(self, **sizes: int) -> Extents:
        """Threads of a block, one to three extents."""
        return self.geometry(**sizes).block

    def shared_bytes(self, **sizes: int) -> int:
        """Dynamic shared memory of a block."""
        return self.geometry(**sizes).shared_bytes


def start(launcher: Launcher, name: str, args: Sequence[Argument], **sizes: int) -> None:
    """Launch a kernel as the table says for these sizes.

    Raises:
        BadArgument: no such kernel, arguments of other types than it takes; see Launcher.launch.
    """
    kernel = kernel_of(name)
    given = tuple(map(_type_of, args))
    if given != kernel.parameters:
        raise BadArgument(f"{name}: takes {_words(kernel.parameters)}, was given {_words(given)}")
    grid, block, shared_bytes = kernel.geometry(**sizes)
    launcher.launch(name, grid, block, args, shared_bytes)


def kernel_of(name: str) -> Kernel:
    """The row of a kernel.

    Raises:
        BadArgument: there is none.
    """
    kernel = KERNELS.get(name)
    if kernel is None:
        raise BadArgument(f"{name}: no kernel of this name")
    return kernel


def _type_of(argument: Argument) -> Parameter:
    match argument:
        case Int32():
            return ctypes.c_int32
        case Int64():
            return ctypes.c_int64
        case Float32():
            return ctypes.c_float
        case _:
            return ctypes.c_void_p


def _words(parameters: Sequence[Parameter]) -> str:
    return ", ".join(parameter.__name__ for parameter in parameters)


def _rows_and_heads(rows: int, heads: int) -> Geometry:
    return Geometry((rows, heads), (128,))


def _rows_of_128(rows: int) -> Geometry:
    return Geometry((rows,), (128,))


def _rows_of_256(rows: int) -> Geometry:
    return Geometry((rows,), (256,))


def _rows_of_512(rows: int) -> Geometry:
    return Geometry((rows,), (512,))


def _rows_and_columns(rows: int, width: int) -> Geometry:
    """A thread takes eight columns."""
    return Geometry((rows, -(-width // (8 * 256))), (256,))


def _items_of_128(multiprocessors: int) -> Geometry:
    return Geometry((multiprocessors * BLOCKS_PER_MULTIPROCESSOR,), (128,))


def _items_of_256(multiprocessors: int) -> Geometry:
    return Geometry((multiprocessors * BLOCKS_PER_MULTIPROCESSOR,), (256,))


def _sparse_tiles(multiprocessors: int, window: int) -> Geometry:
    """window: columns of x in shared memory, 16 bytes each; a place is left out after each eight,
    and one more for each lane follows."""
    grid = (multiprocessors * BLOCKS_PER_MULTIPROCESSOR,)
    return Geometry(grid, (256,), (window + window // 8 + LANES) * 16)


def _sparse_rows(multiprocessors: int) -> Geometry:
    """A window is up to 128 columns for each lane, 8 bytes each, and one more."""
    grid = (multiprocessors * BLOCKS_PER_MULTIPROCESSOR,)
    return Geometry(grid, (256,), (128 + 1) * LANES * 8)


def _sparse_draw(tiles: int, groups: int) -> Geometry:
    """A warp draws one group of columns of one tile."""
    return Geometry((tiles, -(-groups // 8)), (256,))


def _low_rank_rebuild(outputs: int, inputs: int) -> Geometry:
    """A block rebuilds 256 rows by 128 columns."""
    return Geometry((-(-inputs // 128), -(-outputs // 256)), (128,))


def _rotated_bytes(width: int) -> int:
    """A row in shared memory as src/hadamard.cuh places it."""
    return (width + width // 64 * 8) * 4


def _lattice_rotate(rows: int, width: int) -> Geometry:
    return Geometry((rows,), (256,), _rotated_bytes(width))


def _lattice_rebuild(outputs: int, width: int) -> Geometry:
    return Geometry((outputs,), (256,), _rotated_bytes(width))


def _lattice_linear_8(outputs: int, rows: int) -> Geometry:
    """A block takes 32 outputs of eight rows."""
    return Geometry((-(-outputs // 32), -(-rows // 8)), (256,))


def _lattice_linear_32(outputs: int, rows: int) -> Geometry:
    """The same of 32 rows."""
    return Geometry((-(-outputs // 32), -(-rows // 32)), (256,))


def _rebuild_of(rows: int) -> Callable[[int], Geometry]:
    """A block rebuilds so many rows."""

    def geometry(outputs: int) -> Geometry:
        return Geometry((-(-outputs // rows),), (256,))

    return geometry


class _Family(NamedTuple):
    """Kernels that differ in their dtypes: tsugiki_NAME_SUFFIX."""

    name: str
    source: str
    suffixes: Sequence[str]
    parameters: str  # p: pointer, l: int64, i: int32, f: float
    geometry: Callable[..., Geometry]


_LETTERS: dict[str, Parameter] = {
    "p": ctypes.c_void_p,
    "l": ctypes.c_int64,
    "i": ctypes.c_int32,
    "f": ctypes.c_float,
}
_TILES = ("f16", "bf16")  # tensor cores
_LATTICE = "ppppppp pl iiii f"
_ATTENTION = tuple(f"{dtype}_{dim}" for dtype in DTYPES for dim in (64, 128))

_FAMILIES = (
    _Family("rms_norm", "elementwise.cu", OUT_DTYPES, "pll pl pll ppif", _rows_and_heads),
    _Family("rotate", "elementwise.cu", DTYPES, "pll pii", _rows_of_256),
    _Family("gate", "elementwise.cu", DTYPES, "pl pl ii", _rows_and_columns),
    _Family("gather", "elementwise.cu", DTYPES, "pl ppi", _rows_and_columns),
    _Family("write_kv", "write_kv.cu", DTYPES, "pll pll pl p iii", _rows_of_128),
    _Family("attention", "attention.cu", _ATTENTION, "pll pl pp pl p iiiiiii f", _items_of_128),
    _Family("attention_finish", "attention_finish.cu", DTYPES, "ppp pll iiiiii", _rows_of_128),
    _Family("sample", "sampling.cu", DTYPES, "pli p pppppp", _rows_of_512),
    _Family("logprobs", "logprobs.cu", DTYPES, "pli pp i pppp", _rows_of_512),
    _Family("low_rank_shrink", "low_rank.cu", DTYPES, "pl p pi", _items_of_128),
    _Family("low_rank_expand", "low_rank.cu", OUT_DTYPES, "p pl pi", _items_of_128),
    _Family("low_rank_rebuild", "low_rank_rebuild.cu", DTYPES, "ppl", _low_rank_rebuild),
    _Family("sign_apply", "sign.cu", OUT_DTYPES, "pl pl pi", _items_of_128),
    _Family("sign_rebuild", "sign_rebuild.cu", DTYPES, "ppl", _rebuild_of(8)),
    _Family("codebook_apply", "codebooks.cu", OUT_DTYPES, "pl pl pi", _items_of_256),
    _Family("codebook_rebuild", "codebooks.cu", DTYPES, "ppl", _rebuild_of(8)),
    _Family("tensor_train_lead", "tensor_train.cu", DTYPES, "pl p pi", _items_of_128),
    _Family("tensor_train_add", "tensor_train.cu", OUT_DTYPES, "pl p pl pi", _items_of_256),
    _Family("tensor_train_rebuild", "tensor_train_rebuild.cu", DTYPES, "ppl", _rebuild_of(8)),
    _Family("lattice_rotate", "lattice_rotate.cu", DTYPES, "pl pp pp iii f", _lattice_rotate),
    _Family("lattice_linear_8", "lattice.cu", DTYPES, _LATTICE, _lattice_linear_8),
    _Family("lattice_linear_32", "lattice.cu", DTYPES, _LATTICE, _lattice_linear_32),
    _Family("lattice_rebuild", "lattice_rebuild.cu", DTYPES, "ppppppp iiii ff", _lattice_rebuild),
    _Family("sparse_tiles", "sparse_tiles.cu", _TILES, "pl pl i pi i", _sparse_tiles),
    _Family(
        "sparse_tiles_scalar",
        "sparse_tiles_scalar.cu",
        ("bf16", "f32"),
        "pl pl i pi i",
        _sparse_tiles,
    ),
    _Family("sparse_rows", "sparse_rows.cu", DTYPES, "pl pl i pi", _sparse_rows),
    _Family("sparse_rebuild_tiles", "sparse_rebuild.cu", DTYPES, "ppl", _rebuild_of(16)),
    _Family("sparse_rebuild_rows", "sparse_rebuild.cu", ("f16", "bf16"), "ppl", _rebuild_of(4)),
    _Family("sparse_rebuild_rows", "sparse_rebuild.cu", ("f32",), "ppl", _rebuild_of(2)),
    _Family("sparse_draw_columns", "sparse_columns.cu", ("",), "pll iiii", _sparse_draw),
)


def _rows(families: Sequence[_Family]) -> Iterator[Kernel]:
    for name, source, suffixes, letters, geometry in families:
        parameters = tuple(_LETTERS[letter] for letter in letters.replace(" ", ""))
        for suffix in suffixes:
            full = "_".join(filter(None, ("tsugiki", name, suffix)))
            yield Kernel(full, source, parameters, geometry)


KERNELS = {kernel.name: kernel for kernel in _rows(_FAMILIES)}
