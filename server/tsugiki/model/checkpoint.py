"""A Hugging Face directory with safetensors, read one tensor at a time.

Owns: finding the weight files (single or sharded), canonical names, lazy reading, clear refusals.
Does not know: model families (architecture.py), fusing (loader.py), variants.

Canonical names are Hugging Face's own ("model.layers.0.self_attn.q_proj.weight"), less what is
stored twice: `lm_head.weight` of a checkpoint with tied embeddings, and rotary frequencies, which
old checkpoints keep although they follow from config.json. A compressed base (stored_form.py)
stores several tensors for a linear; here it has the one that they stand for.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsugiki.errors import UnsupportedModel
from tsugiki.model.caldera import caldera_settings
from tsugiki.model.saten import saten_settings
from tsugiki.model.sketched import sketch_settings
from tsugiki.model.stored_form import Read, StoredForm

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
LM_HEAD = "lm_head.weight"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
TIED_BY_DEFAULT = frozenset({"gemma3", "gemma3_text"})

DTYPES = MappingProxyType(
    {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
)


class Checkpoint:
    """The tensors of one model directory by canonical name; nothing is read before it is asked for.

    Files are memory-mapped, so walking all tensors needs the memory of one.
    """

    def __init__(self, path: Path, config: dict[str, Any], files: dict[str, Path]) -> None:
        self.path = path
        self.config = config
        self._files = files
        self._open: dict[Path, Any] = {}
        self.form = stored_form(config)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, sorted."""
        return tuple(sorted(set(self._files.values())))

    @property
    def tied(self) -> bool:
        """Whether lm_head reads the input embedding."""
        return tied_embeddings(self.config)

    def names(self) -> list[str]:
        """All canonical names, sorted."""
        if self.form is None:
            return sorted(self._files)
        return sorted({self._dense_name(name, self.form) for name in self._files})

    def stored_names(self) -> list[str]:
        """The names of what is stored, sorted."""
        return sorted(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files or self.is_compressed(name)

    def is_compressed(self, name: object) -> bool:
        """Whether the tensors of a compressed form stand for this parameter."""
        return self.form is not None and f"{name}{self.form.marker}" in self._files

    def reader(self, name: str) -> Read:
        """The stored tensors of a compressed parameter by their suffix; an absent one is refused
        when it is read."""
        return lambda suffix: self._stored(name + suffix)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        if self.form is not None and self.is_compressed(name):
            return self.form.shape(self.shape(name + self.form.marker), self.reader(name))
        return tuple(self._handle(name).get_slice(name).get_shape())

    def matrix_shape(self, name: str) -> tuple[int, int]:
        """The shape of a linear.

        Raises:
            UnsupportedModel: it has not two lengths.
        """
        shape = self.shape(name)
        if len(shape) != 2:
            raise UnsupportedModel(f"{self.path}: {name} has shape {list(shape)}, no linear's")
        return shape[0], shape[1]

    def stored_dtype(self, name: str) -> str:
        """The dtype as safetensors writes it: "BF16", "F32" ...; of a compressed parameter that of
        the weight that it stands for."""
        if self.form is not None and self.is_compressed(name):
            return self.form.dense_dtype
        return str(self._handle(name).get_slice(name).get_dtype())

    def dtype(self, name: str) -> torch.dtype:
        """The stored dtype.

        Raises:
            UnsupportedModel: a dtype that torch cannot hold.
        """
        stored = self.stored_dtype(name)
        if stored not in DTYPES:
            raise UnsupportedModel(
                f"{self.path}: {name} has dtype {stored}; convert the checkpoint to bfloat16"
            )
        return DTYPES[stored]

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored dtype, on the CPU. It may be a view of the mapped file: copy it
        before writing to it."""
        if self.form is not None and self.is_compressed(name):
            return self.form.dense(self._shown(name), self.matrix_shape(name), self.reader(name))
        return self._stored(name)

    def backbone(self, name: str) -> Tensor:
        """What variants of role `parameters` are added to: as `tensor`, less what they replace."""
        if self.form is not None and self.is_compressed(name):
            return self.form.backbone(self._shown(name), self.matrix_shape(name), self.reader(name))
        return self._stored(name)

    def require(self, names: list[str]) -> None:
        """Check that these names exist.

        Raises:
            UnsupportedModel: naming the missing ones.
        """
        missing = [name for name in names if name not in self]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
            raise UnsupportedModel(f"{self.path}: the checkpoint lacks {shown}")

    def _shown(self, name: str) -> str:
        return f"{self.path}: {name}"

    def _stored(self, name: str) -> Tensor:
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor

    def _dense_name(self, name: str, form: StoredForm) -> str:
        """The parameter that a stored tensor belongs to."""
        head, dot, suffix = name.rpartition(".")
        return head if dot + suffix in form.suffixes and head + form.marker in self._files else name

    def _handle(self, name: str) -> Any:
        self.require([name])
        file = self._files[name]
        if file not in self._open:
            self._open[file] = _open_file(file)
        return self._open[file]


def stored_form(config: Mapping[str, Any]) -> StoredForm | None:
    """The form of a compressed base by its config.json; None: an ordinary checkpoint.

    Raises:
        UnsupportedModel: config.json says something else.
    """
    found: tuple[StoredForm | None, ...] = (
        sketch_settings(config),
        caldera_settings(config),
        saten_settings(config),
    )
    return next((form for form in found if form is not None), None)


def tied_embeddings(config: dict[str, Any]) -> bool:
    """What `tie_word_embeddings` means in a raw config.json, family defaults included."""
    default = config.get("model_type") in TIED_BY_DEFAULT
    value = config.get("tie_word_embeddings")
    return default if value is None else bool(value)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model directory.

    Raises:
        UnsupportedModel: no such directory, no config.json, no safetensors, a shard or a tensor of
            the index missing, a damaged file.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise UnsupportedModel(f"{directory}: no such model directory")
    config = _read_json(directory / "config.json", "a Hugging Face model directory has one")
    checkpoint = Checkpoint(directory, config, _stored_files(directory))
    if checkpoint.tied and LM_HEAD in checkpoint:
        _drop_tied_duplicate(checkpoint)
    return checkpoint


def _stored_files(directory: Path) -> dict[str, Path]:
    """Tensor name -> file."""
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file():
        files = dict.fromkeys(_open_file(single).keys(), single)
    elif index.is_file():
        files = _indexed_files(directory, index)
    else:
        raise UnsupportedModel(_why_no_weights(directory))
    return {name: file for name, file in files.items() if not name.endswith("rotary_emb.inv_freq")}


def _indexed_files(directory: Path, index: Path) -> dict[str, Path]:
    weight_map = _read_json(index, "it lists the shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedModel(f"{index}: no weight_map; save the checkpoint again")
    files: dict[str, Path] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(str(shard)).name != shard:
            raise UnsupportedModel(f"{index}: shard name {shard!r} leaves the directory")
        if not (directory / shard).is_file():
            raise UnsupportedModel(f"{directory}: shard {shard} is missing; download it again")
        files |= dict.fromkeys(_open_file(directory / shard).keys(), directory / shard)
    missing = sorted(set(weight_map) - set(files))
    if missing:
        raise UnsupportedModel(f"{directory}: {missing[0]} is in the index but in no shard")
    return files


def _why_no_weights(directory: Path) -> str:
    pickles = [f.name for f in sorted(directory.iterdir()) if f.suffix in PICKLE_SUFFIXES]
    if pickles:
        return (
            f"{directory}: only {pickles[0]}, which is a pickle and is never loaded; "
            "convert to safetensors with save_pretrained"
        )
    return f"{directory}: neither {SINGLE_FILE} nor {INDEX_FILE}"


def _drop_tied_duplicate(checkpoint: Checkpoint) -> None:
    checkpoint.require([EMBEDDING])
    if not torch.equal(checkpoint.tensor(LM_HEAD), checkpoint.tensor(EMBEDDING)):
        raise UnsupportedModel(
            f"{checkpoint.path}: config.json ties lm_head to the embedding, but the stored tensors "
            "differ; set tie_word_embeddings to false"
        )
    del checkpoint._files[LM_HEAD]


def _open_file(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise UnsupportedModel(f"{file}: not a readable safetensors file ({error})") from error


def _read_json(file: Path, purpose: str) -> dict[str, Any]:
    if not file.is_file():
        raise UnsupportedModel(f"{file.parent}: no {file.name} ({purpose})")
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnsupportedModel(f"{file}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{file}: a JSON object is expected, found {type(value).__name__}")
    return value
