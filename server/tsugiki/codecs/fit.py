"""Does a variant file belong to this base: fingerprint, names, shapes, vocabulary.

Owns: the checks that need the header and the base's layout alone, and the coverage report.
Does not know: tensors, kernels, residency.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from tsugiki.codecs.base import Layout, Packed
from tsugiki.codecs.metadata import Header, Module
from tsugiki.errors import InvalidArtifact, WrongBase

ROWS = ":rows"  # suffix of the module that holds replaced or added rows
LM_HEAD = "lm_head.weight"


def check_base(
    header: Header, fingerprint: str, layout: Layout, accept_derived: str | None = None
) -> None:
    """The file was made from this base, and every module fits it.

    `accept_derived`: the fingerprint of the base that this (compressed) base was made from, when
    its variants are to be accepted.

    Raises:
        WrongBase: another fingerprint, naming both.
        InvalidArtifact: see `check_modules`.
    """
    wanted = header.base.fingerprint
    if wanted not in (fingerprint, accept_derived):
        raise WrongBase(
            f"this variant was made from base {header.base.id!r} ({wanted}), but the base here is "
            f"{fingerprint}: serve it on its own base, compress the fine-tune again, or, where the "
            "base here is a compressed form of its base, pass --accept-derived"
        )
    check_modules(header, layout)


def check_modules(header: Header, layout: Layout) -> None:
    """Every module names a parameter of this base and has its shape; added tokens have rows.

    Raises:
        InvalidArtifact: naming the module, its shape and the shape expected.
    """
    for name, module in header.modules.items():
        rows = module.options.get("mode") == "rows"
        expected = _expected_shapes(name, rows, layout, vocab_size(header, layout))
        if module.shape not in expected:
            raise InvalidArtifact(
                f"module {name!r} has shape {list(module.shape)}; this base has "
                + (" or ".join(str(list(shape)) for shape in expected) or "no such parameter")
            )
        _check_mode(name, module, layout)
    _check_vocabulary(header, layout)


def _expected_shapes(name: str, rows: bool, layout: Layout, vocab: int) -> list[tuple[int, ...]]:
    hidden = layout.embedding_shape[1]
    if name.removesuffix(ROWS) in (layout.embedding, LM_HEAD):
        return [(vocab, hidden)] if rows else [layout.embedding_shape]
    if name in layout.linears:
        return [layout.linears[name].shape]
    if name in layout.vectors:
        return [(layout.vectors[name],)]
    weight = layout.biases.get(name, name.removesuffix(".bias") + ".weight")
    if name in layout.biases or (name.endswith(".bias") and weight in layout.bias_allowed):
        return [layout.linears[weight].shape[:1]]
    return []


def _check_mode(name: str, module: Module, layout: Layout) -> None:
    """Whole rows for tables alone, differences for the other matrices."""
    mode = module.options.get("mode")
    tables = (layout.embedding, LM_HEAD)
    if mode == "rows" and name.removesuffix(ROWS) not in tables:
        raise InvalidArtifact(f"module {name!r} has mode 'rows'; only {' and '.join(tables)} can")
    if name.endswith(ROWS) and mode != "rows":
        raise InvalidArtifact(f"module {name!r} has mode {mode!r}; its name asks for 'rows'")
    if len(module.shape) == 2 and mode == "replace":
        raise InvalidArtifact(f"module {name!r} has mode 'replace'; matrices need 'delta'")
    if len(module.shape) == 1 and module.codec != "dense":
        raise InvalidArtifact(
            f"module {name!r} is a vector stored by {module.codec!r}; vectors are stored by 'dense'"
        )


Stored = TypeVar("Stored", Module, Packed)


def rows_of(table: str, modules: Mapping[str, Stored]) -> Stored | None:
    """The module with whole rows of an embedding or lm_head, if the file has one."""
    for name in (table + ROWS, table):
        if name in modules and modules[name].options.get("mode") == "rows":
            return modules[name]
    return None


def change_of(table: str, modules: Mapping[str, Stored]) -> Stored | None:
    """The module with a compressed change of the base's rows, if the file has one."""
    found = modules.get(table)
    return None if found is None or found.options.get("mode") == "rows" else found


def vocab_size(header: Header, layout: Layout) -> int:
    """The variant's own vocabulary: what its text side says, else the base's."""
    if header.text is None or header.text["vocab_size"] is None:
        return layout.embedding_shape[0]
    size: int = header.text["vocab_size"]
    return size


def _check_vocabulary(header: Header, layout: Layout) -> None:
    """A vocabulary beyond the base's needs rows for the new ids on both sides."""
    size, base = vocab_size(header, layout), layout.embedding_shape[0]
    if size <= base:
        return
    own_head = not layout.tied or {LM_HEAD, LM_HEAD + ROWS} & header.modules.keys()
    for name in (layout.embedding, LM_HEAD) if own_head else (layout.embedding,):
        rows = rows_of(name, header.modules)
        if rows is None or rows.options["rows"] < size - base:
            raise InvalidArtifact(
                f"the vocabulary is {size}, {size - base} more than the base's, but module "
                f"{name!r} does not hold their rows: compress again from the full checkpoint"
            )


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a base a variant changes."""

    modules: int
    parameters: int  # of the base's parameters that the file changes
    by_codec: Mapping[str, int]  # codec -> parameters


def coverage(header: Header) -> Coverage:
    """Count the parameters that a file changes; replaced and added rows count row by row."""
    by_codec: dict[str, int] = {}
    for module in header.modules.values():
        by_codec[module.codec] = by_codec.get(module.codec, 0) + _parameters(module)
    return Coverage(len(header.modules), sum(by_codec.values()), by_codec)


def _parameters(module: Module) -> int:
    if module.options.get("mode") == "rows":
        return int(module.options["rows"]) * module.shape[1]
    return module.shape[0] * (module.shape[1] if len(module.shape) == 2 else 1)
