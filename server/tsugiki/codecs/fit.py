"""Does a variant file belong to this base: fingerprint, names, shapes, vocabulary.

Owns: the checks that need the header and the base's layout alone.
Does not know: tensors, kernels, residency.
"""

from tsugiki.codecs.base import Layout
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
    """Every module names a parameter of this base and has its shape; the parts of a fused linear
    share a codec; added tokens have rows.

    Raises:
        InvalidArtifact: naming the module, its shape and the shape expected.
    """
    for name, module in header.modules.items():
        expected = _expected_shape(name, layout, vocab_size(header, layout))
        if module.shape != expected:
            known = "no such parameter" if expected is None else str(list(expected))
            raise InvalidArtifact(
                f"module {name!r} has shape {list(module.shape)}; this base has {known}"
            )
        _check_mode(name, module)
    _check_fused(header, layout)
    _check_vocabulary(header, layout)
    _check_probe(header, layout)


def _check_fused(header: Header, layout: Layout) -> None:
    """The parts of a fused linear are computed in one call, so they share a codec."""
    first: dict[str, str] = {}  # fused linear -> the first of its parts
    for name in sorted(header.modules.keys() & layout.linears.keys()):
        other = first.setdefault(layout.linears[name].fused, name)
        codec, expected = header.modules[name].codec, header.modules[other].codec
        if codec != expected:
            raise InvalidArtifact(
                f"{other} is stored by {expected!r} and {name} by {codec!r}, but they are one "
                "linear in memory: compress them with the same codec"
            )


def _expected_shape(name: str, layout: Layout, vocab: int) -> tuple[int, ...] | None:
    hidden = layout.embedding_shape[1]
    if name in (layout.embedding + ROWS, LM_HEAD + ROWS):
        return (vocab, hidden)
    if name == layout.embedding:
        return layout.embedding_shape
    if name in layout.linears:
        return layout.linears[name].shape
    if name in layout.vectors:
        return (layout.vectors[name],)
    weight = layout.biases.get(name, name.removesuffix(".bias") + ".weight")
    if name in layout.biases or (name.endswith(".bias") and weight in layout.bias_allowed):
        return layout.linears[weight].shape[:1]
    return None


def _check_mode(name: str, module: Module) -> None:
    """Whole rows where the name says so, differences for matrices, vectors as they are."""
    mode = module.options.get("mode")
    if name.endswith(ROWS) != (mode == "rows"):
        raise InvalidArtifact(
            f"module {name!r} has mode {mode!r}; mode 'rows' goes with names that end in {ROWS!r}"
        )
    if len(module.shape) == 2 and mode == "replace":
        raise InvalidArtifact(f"module {name!r} has mode 'replace'; matrices need 'delta'")
    if len(module.shape) == 1 and module.codec != "dense":
        raise InvalidArtifact(
            f"module {name!r} is a vector stored by {module.codec!r}; vectors are stored by 'dense'"
        )


def vocab_size(header: Header, layout: Layout) -> int:
    """The variant's own vocabulary: what its text side says, else the base's."""
    if header.text is None:
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
        rows = header.modules.get(name + ROWS)
        if rows is None or rows.options["rows"] < size - base:
            raise InvalidArtifact(
                f"the vocabulary is {size}, {size - base} more than the base's, but module "
                f"{name + ROWS!r} does not hold their rows: compress again from the full checkpoint"
            )


def _check_probe(header: Header, layout: Layout) -> None:
    """The probe's tokens are in the variant's vocabulary."""
    if header.probe is None:
        return
    size = vocab_size(header, layout)
    beyond = [i for ids in header.probe.values() for i in ids if i >= size]
    if beyond:
        raise InvalidArtifact(
            f"the probe has token id {beyond[0]}, but the vocabulary is {size}: compress again"
        )
