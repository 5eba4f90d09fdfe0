"""What the composition of an engine checks before it serves."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.config import ServeConfig
from tsugiki.engine.build import create_engine
from tsugiki.engine.variant_info import VariantInfo
from tsugiki.errors import ConfigError, UnsupportedModel
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.fingerprint import base_fingerprint, derived_from
from tsugiki.variants.store import claim


def test_a_second_server_of_a_directory_is_refused_before_it_loads_a_base(tmp_path: Path) -> None:
    held = claim(tmp_path)
    assert held is not None
    with pytest.raises(ConfigError, match="in use by another server"):
        create_engine(ServeConfig(base=str(tmp_path / "no base is here"), variants=tmp_path))
    held.release()


@pytest.fixture
def rounded(tiny_base: Path, tmp_path: Path) -> Path:
    """A base made from the tiny one, with another norm; it says so."""
    path = tmp_path / "rounded"
    shutil.copytree(tiny_base, path)
    (file,) = path.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    original = base_fingerprint(open_checkpoint(tiny_base), None)
    config = json.loads((path / "config.json").read_text())
    config["tsugiki"] = {"derived_from": original}
    (path / "config.json").write_text(json.dumps(config))
    return path


def served(base: Path, variants: Path, *, accept_derived: bool) -> VariantInfo:
    config = ServeConfig(
        base=str(base),
        variants=variants,
        device="cpu",
        kernels="reference",
        cache_dir=variants.parent / "cache",
        accept_derived=accept_derived,
    )
    engine = create_engine(config)
    (info,) = engine.variants()
    engine._loader.close()
    engine._service.close()
    return info


def test_variants_of_the_original_are_served_on_a_derived_base_only_when_that_is_accepted(
    tiny_base: Path, tiny_tuned: Path, rounded: Path, tmp_path: Path
) -> None:
    variants = tmp_path / "variants"
    variants.mkdir()
    file = variants / "one.safetensors"
    quiet = Progress(quiet=True)
    compress(CompressJob("deltadq", tiny_base, tiny_tuned, file, options={}), quiet)
    refused = served(rounded, variants, accept_derived=False)
    assert refused.state == "failed"
    assert "--accept-derived" in str(refused.error)
    assert served(rounded, variants, accept_derived=True).error is None
    with pytest.raises(ConfigError, match="names no base that it was derived from"):
        served(tiny_base, variants, accept_derived=True)


@pytest.mark.parametrize("stated", ["original", {"derived_from": "sha256:12"}])
def test_a_base_that_names_its_original_wrongly_is_refused(stated: object) -> None:
    with pytest.raises(UnsupportedModel, match="expected 'sha256:' and 64 hex digits"):
        derived_from({"tsugiki": stated})
