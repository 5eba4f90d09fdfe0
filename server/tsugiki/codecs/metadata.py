"""What the metadata of a variant file says, and which of it is legal.

Owns: `Header` and its parts, the translation to and from the JSON object of docs/format.md.
Does not know: bytes and places in the file (container.py), tensors (artifact.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tsugiki.codecs.base import Options, Role
from tsugiki.codecs.container import Blob
from tsugiki.codecs.coverage import Coverage
from tsugiki.errors import InvalidArtifact

FORMAT = "tsugiki.variant/1"
ROLES: tuple[Role, ...] = ("delta", "parameters")
PROBE_LIMITS = {"prompt_ids": 512, "greedy_ids": 64}  # most ids of each list, at least one
KEYS = (
    "format",
    "codec",
    "role",
    "options",
    "base",
    "modules",
    "text",
    "probe",
    "created_by",
    "provenance",
    "report",
    "digest",
)


@dataclass(frozen=True, slots=True)
class BaseRef:
    """The base a variant was made from."""

    id: str
    architecture: str  # of config.json, for example "LlamaForCausalLM"
    fingerprint: str  # "sha256:<64 hex>", see model.fingerprint


@dataclass(frozen=True, slots=True)
class Module:
    """One packed module as the header describes it; `options` are complete (defaults merged)."""

    codec: str
    shape: tuple[int, ...]
    options: Options


@dataclass(frozen=True, slots=True)
class Section:
    """A stretch of the file, for inspection: the sections of a file sum to its size."""

    name: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything about a variant file but its tensors."""

    codec: str  # of the linears; single modules may differ
    role: Role
    options: Options  # shared by all modules of `codec`
    base: BaseRef
    modules: Mapping[str, Module]
    text: Mapping[str, Any] | None  # None: the base's
    probe: Mapping[str, Any] | None
    created_by: str
    provenance: Mapping[str, Any]
    report: Mapping[str, Any]
    digest: str  # "sha256:<64 hex>"; read_header does not verify it, read does
    file_bytes: int
    header_bytes: int  # length field and padding included
    padding: int
    tensors: tuple[Blob, ...]  # in file order
    format: str = FORMAT
    coverage: Coverage | None = None  # counted when the content was verified against a base

    def sections(self) -> tuple[Section, ...]:
        """Header, padding and every tensor; their bytes sum to `file_bytes`."""
        head = (
            Section("header", self.header_bytes - self.padding),
            Section("padding", self.padding),
        )
        return head + tuple(Section(blob.name, blob.nbytes) for blob in self.tensors)


def to_json(module: Module, shared: Options) -> dict[str, Any]:
    """One entry of `modules`, without the options that the file stores once."""
    own = {key: value for key, value in module.options.items() if key not in shared}
    return {"codec": module.codec, "shape": list(module.shape), "options": own}


def shared_options(codec: str, modules: Mapping[str, Module]) -> dict[str, Any]:
    """The options that all modules of `codec` hold with the same value: stored once."""
    of_codec = [module.options for module in modules.values() if module.codec == codec]
    if not of_codec:
        return {}
    first, *rest = of_codec
    return {key: value for key, value in first.items() if all(_has(o, key, value) for o in rest)}


def _has(options: Options, key: str, value: Any) -> bool:
    return key in options and options[key] == value and type(options[key]) is type(value)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a header stood in its file: what the metadata itself cannot know."""

    file_bytes: int
    header_bytes: int
    padding: int
    tensors: tuple[Blob, ...]


def from_json(value: Any, place: Place) -> Header:
    """The header of a parsed metadata object, every field checked for type and presence.

    Raises:
        InvalidArtifact: naming the field, the value found and the value expected.
    """
    fields = _object(value, "metadata")
    if fields.get("format") != FORMAT:
        raise InvalidArtifact(
            f"format {fields.get('format')!r} is not known; this server reads {FORMAT!r}: "
            "compress again with this version, or upgrade the server"
        )
    if set(fields) != set(KEYS):
        raise InvalidArtifact(
            f"metadata keys differ from {FORMAT}: missing {sorted(set(KEYS) - set(fields))}, "
            f"unknown {sorted(set(fields) - set(KEYS))}"
        )
    codec = _text(fields["codec"], "codec")
    options = _object(fields["options"], "options")
    modules = _object(fields["modules"], "modules")
    return Header(
        codec=codec,
        role=_role(fields["role"]),
        options=options,
        base=_base(fields["base"]),
        modules={name: _module(name, m, codec, options) for name, m in modules.items()},
        text=None if fields["text"] is None else check_text(fields["text"]),
        probe=None if fields["probe"] is None else check_probe(fields["probe"]),
        created_by=_text(fields["created_by"], "created_by"),
        provenance=_object(fields["provenance"], "provenance"),
        report=_object(fields["report"], "report"),
        digest=_digest(fields["digest"], "digest"),
        file_bytes=place.file_bytes,
        header_bytes=place.header_bytes,
        padding=place.padding,
        tensors=place.tensors,
    )


def _role(value: Any) -> Role:
    for role in ROLES:
        if value == role:
            return role
    raise InvalidArtifact(f"role {value!r} is not known; expected one of {ROLES}")


def _base(value: Any) -> BaseRef:
    fields = _keys(value, ("id", "architecture", "fingerprint"), "base")
    return BaseRef(
        _text(fields["id"], "base.id"),
        _text(fields["architecture"], "base.architecture"),
        _digest(fields["fingerprint"], "base.fingerprint"),
    )


def _module(name: str, value: Any, codec: str, shared: Options) -> Module:
    fields = _keys(value, ("codec", "shape", "options"), f"modules[{name!r}]")
    shape = fields["shape"]
    if not isinstance(shape, list) or len(shape) not in (1, 2):
        raise InvalidArtifact(f"module {name!r} has shape {shape!r}; expected one or two lengths")
    if not all(type(n) is int and 0 < n < 2**31 for n in shape):
        raise InvalidArtifact(f"module {name!r} has shape {shape!r}; expected lengths in 1..2^31-1")
    own_codec = _text(fields["codec"], f"modules[{name!r}].codec")
    own = _object(fields["options"], f"modules[{name!r}].options")
    return Module(own_codec, tuple(shape), {**shared, **own} if own_codec == codec else own)


def check_text(value: Any) -> dict[str, Any]:
    """The text side of a variant.

    Raises:
        InvalidArtifact: a missing or unknown key, a wrong type, ids that are no ids.
    """
    keys = ("chat_template", "eos_token_ids", "generation_defaults", "added_tokens", "vocab_size")
    fields = _keys(value, keys, "text")
    if fields["chat_template"] is not None:
        _text(fields["chat_template"], "text.chat_template")
    _ids(fields["eos_token_ids"], "text.eos_token_ids")
    _object(fields["generation_defaults"], "text.generation_defaults")
    _integer(fields["vocab_size"], "text.vocab_size")
    if not isinstance(fields["added_tokens"], list):
        raise InvalidArtifact(f"text.added_tokens is {fields['added_tokens']!r}; expected a list")
    for token in fields["added_tokens"]:
        entry = _keys(token, ("id", "content", "special"), "text.added_tokens")
        _integer(entry["id"], "text.added_tokens.id")
        _text(entry["content"], "text.added_tokens.content")
        if not isinstance(entry["special"], bool):
            raise InvalidArtifact(f"text.added_tokens.special is {entry['special']!r}; not a bool")
    return fields


def check_probe(value: Any) -> dict[str, Any]:
    """A prompt and the ids that greedy decoding must produce after it.

    Raises:
        InvalidArtifact: a missing or unknown key, or lists that do not hold token ids, none or too
            many.
    """
    fields = _keys(value, tuple(PROBE_LIMITS), "probe")
    for key, most in PROBE_LIMITS.items():
        _ids(fields[key], f"probe.{key}")
        if not 1 <= len(fields[key]) <= most:
            raise InvalidArtifact(f"probe.{key} holds {len(fields[key])} ids; expected 1..{most}")
    return fields


def _keys(value: Any, keys: tuple[str, ...], where: str) -> dict[str, Any]:
    fields = _object(value, where)
    if set(fields) != set(keys):
        raise InvalidArtifact(f"{where} has keys {sorted(fields)}; expected {sorted(keys)}")
    return fields


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArtifact(f"{where} is {value!r}; expected an object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidArtifact(f"{where} is {value!r}; expected a string")
    return value


def _integer(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise InvalidArtifact(f"{where} is {value!r}; expected an integer in 0..2^31-1")
    return value


def _ids(value: Any, where: str) -> None:
    if not isinstance(value, list):
        raise InvalidArtifact(f"{where} is {value!r}; expected a list of token ids")
    for item in value:
        _integer(item, where)


def _digest(value: Any, where: str) -> str:
    text = _text(value, where)
    prefix, _, digits = text.partition(":")
    if prefix != "sha256" or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise InvalidArtifact(f"{where} is {value!r}; expected 'sha256:' and 64 hex digits")
    return text
