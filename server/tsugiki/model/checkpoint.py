"""A Hugging Face directory with safetensors, read one tensor at a time.

Owns: finding the weight files (single or sharded), canonical names, lazy reading, clear refusals.
Does not know: model families (architecture.py), fusing (loader.py), variants.

Canonical names are Hugging Face's own ("model.layers.0.self_attn.q_proj.weight"), less what is
stored twice: `lm_head.weight` of a checkpoint with tied embeddings, and rotary frequencies, which
old checkpoints keep although they follow from config.json. A sketched base (sketched.py) stores two
tensors for a linear; here it has the one that they stand for.
"""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsugiki.errors import UnsupportedModel
from tsugiki.model.sketched import CODEBOOKS, INDEX, checked, sketch_settings
from tsugiki_kernels.codebooks import CodebookWeight, looked_up

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
        self.sketch = sketch_settings(config)

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
        if self.sketch is None:
            return sorted(self._files)
        kept = {name for name in self._files if not name.endswith(CODEBOOKS)}
        return sorted(name.removesuffix(INDEX) for name in kept)

    def stored_names(self) -> list[str]:
        """The names of what is stored, sorted."""
        return sorted(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files or self.is_sketched(name)

    def is_sketched(self, name: object) -> bool:
        """Whether an index map and codebooks stand for this parameter."""
        return self.sketch is not None and f"{name}{INDEX}" in self._files

    def sketched(self, name: str) -> CodebookWeight:
        """A parameter that is stored as index map and codebooks.

        Raises:
            UnsupportedModel: it is not, or the two do not fit together.
        """
        self.require([name + INDEX, name + CODEBOOKS])
        if self.sketch is None or len(self.shape(name)) != 2:
            raise UnsupportedModel(f"{self.path}: {name} is no sketched linear")
        rows, columns = self.shape(name)
        index = self.sketch.index_of((rows, columns), self.tensor(name + INDEX))
        return checked(f"{self.path}: {name}", index, self.tensor(name + CODEBOOKS))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, without reading the tensor."""
        if self.sketch is not None and self.is_sketched(name):
            rows, width = self.shape(name + INDEX)
            return rows, width * 8 // self.sketch.bits
        return tuple(self._handle(name).get_slice(name).get_shape())

    def stored_dtype(self, name: str) -> str:
        """The dtype as safetensors writes it: "BF16", "F32" ...; of sketched ones the codebooks'"""
        if self.is_sketched(name):
            return self.stored_dtype(name + CODEBOOKS)
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
        if self.is_sketched(name):
            weight = self.sketched(name)
            return looked_up(weight.index, weight.codebooks).half()
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor

    def require(self, names: list[str]) -> None:
        """Check that these names exist.

        Raises:
            UnsupportedModel: naming the missing ones.
        """
        missing = [name for name in names if name not in self]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
            raise UnsupportedModel(f"{self.path}: the checkpoint lacks {shown}")

    def _handle(self, name: str) -> Any:
        self.require([name])
        file = self._files[name]
        if file not in self._open:
            self._open[file] = _open_file(file)
        return self._open[file]


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
