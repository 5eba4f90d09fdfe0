"""How much of its base a variant really changes, counted from what it stores.

Owns: `Coverage`, the parts of a model that it is told by, and the refusal of a file that changes
nothing or less than its report declares. Does not know: bases, bytes, how a codec stores.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tsugiki.codecs import CODECS
from tsugiki.codecs.base import Packed
from tsugiki.errors import InvalidArtifact

REPORT_KEY = "coverage"  # in the header's report: what the writer counted
COUNTS = ("modules", "parameters")
PARTS = (  # the first whose word stands in a parameter's name; some norms lie within attention
    ("lm_head", "lm_head"),
    ("embed", "embedding"),
    ("norm", "norms"),
    ("attn", "attention"),
    ("mlp", "mlp"),
)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What a file declares, and what of that is more than zeros.

    A module changes the base when `Codec.changes` says so; all its parameters count then, replaced
    and added rows row by row.
    """

    modules: int  # that change
    parameters: int  # of these modules
    modules_declared: int
    parameters_declared: int
    by_codec: Mapping[str, int]  # codec -> parameters that change
    by_part: Mapping[str, int]  # attention, mlp, norms, embedding, lm_head, other -> the same


def coverage(modules: Mapping[str, Packed]) -> Coverage:
    """Count over validated modules; one or two reductions of a small tensor for each."""
    sizes = {name: _parameters(packed) for name, packed in modules.items()}
    changed = {n: size for n, size in sizes.items() if CODECS[modules[n].codec].changes(modules[n])}
    by_codec: Counter[str] = Counter()
    by_part: Counter[str] = Counter()
    for name, size in changed.items():
        by_codec[modules[name].codec] += size
        by_part[part_of(name)] += size
    return Coverage(
        modules=len(changed),
        parameters=sum(changed.values()),
        modules_declared=len(sizes),
        parameters_declared=sum(sizes.values()),
        by_codec=dict(by_codec),
        by_part=dict(by_part),
    )


def part_of(name: str) -> str:
    """Which part of a model a parameter belongs to, by its canonical name."""
    return next((part for word, part in PARTS if word in name), "other")


def declared(found: Coverage) -> dict[str, int]:
    """What a writer puts into the report under REPORT_KEY."""
    return {"modules": found.modules, "parameters": found.parameters}


def check_coverage(report: Mapping[str, Any], found: Coverage) -> None:
    """A file must change something, and no less than its report declares.

    Raises:
        InvalidArtifact: naming both counts.
    """
    if not found.parameters:
        raise InvalidArtifact(
            f"the file changes no parameter of the base: {found.modules_declared} modules, all "
            "zero; it would serve the base under another name. Compress the fine-tune again"
        )
    if REPORT_KEY not in report:
        return
    said = report[REPORT_KEY]
    if not isinstance(said, dict) or not all(type(said.get(key)) is int for key in COUNTS):
        raise InvalidArtifact(f"report.coverage is {said!r}; expected counts {', '.join(COUNTS)}")
    if found.modules < said["modules"] or found.parameters < said["parameters"]:
        raise InvalidArtifact(
            f"the report declares {said['modules']} changed modules with {said['parameters']} "
            f"parameters, but the file changes {found.modules} with {found.parameters}: part of "
            "it is zero; compress the fine-tune again"
        )


def _parameters(packed: Packed) -> int:
    mode = packed.options.get("mode")
    if mode == "none":
        return 0
    rows = int(packed.options["rows"]) if mode == "rows" else packed.shape[0]
    return rows * (packed.shape[1] if len(packed.shape) == 2 else 1)
