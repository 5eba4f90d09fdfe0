"""Golden files: version 1 of the format means today what it meant when they were made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.codecs.decoder_from_page import File, Refused, kept_columns, philox
from tests.codecs.make_golden import Q, files, meaning
from tsugiki.codecs.artifact import ArtifactSpec, read, write

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.safetensors") if "expected" not in path.name)


def expected(name: str) -> tuple[dict[str, torch.Tensor], str]:
    path = GOLDEN / f"{name}.expected.safetensors"
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()["digest"]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


def test_every_golden_file_is_there():
    assert sorted(files()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_project_reads_what_was_meant_bit_for_bit(name):
    wanted, digest = expected(name)
    found = read(GOLDEN / f"{name}.safetensors")
    assert found.header.digest == digest
    decoded = {k: t for packed in found.modules.values() for k, t in meaning(packed).items()}
    assert decoded.keys() == wanted.keys()
    assert all(bits(decoded[key]) == bits(tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_decoder_written_from_the_page_agrees_bit_for_bit(name):
    wanted, digest = expected(name)
    file = File((GOLDEN / f"{name}.safetensors").read_bytes())
    assert file.digest == digest
    decoded = {
        f"{module}#{label}": values
        for module, parts in file.decode().items()
        for label, values in parts.items()
    }
    assert decoded.keys() == wanted.keys()
    for key, tensor in wanted.items():
        assert decoded[key].astype(tensor.numpy().dtype).tobytes() == bits(tensor)


@pytest.mark.parametrize("name", NAMES)
def test_the_writer_gives_the_same_bytes_as_then(name, tmp_path):
    path = GOLDEN / f"{name}.safetensors"
    found = read(path)
    h = found.header
    spec = ArtifactSpec(
        codec=h.codec,
        base=h.base,
        text=h.text,
        probe=h.probe,
        created_by=h.created_by,
        provenance=h.provenance,
        report=h.report,
    )
    write(tmp_path / "again.safetensors", spec, found.modules)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_the_decoder_from_the_page_refuses_an_altered_file():
    data = bytearray((GOLDEN / "bitdelta.safetensors").read_bytes())
    data[-1] ^= 1
    with pytest.raises(Refused, match="digest"):
        File(bytes(data))


def test_the_test_vectors_of_the_page_hold():
    identity = 0x2211FFE7C71EA125
    key = [0x89ABCDEF, 0x01234567]
    counter = [12, 2, identity & 0xFFFFFFFF, identity >> 32]
    assert philox(counter, key) == [0xA012FFFB, 0xFE3C1FB4, 0xE615D9A4, 0xB237DC5D]
    options = {"seed": 0x0123456789ABCDEF, "alpha": 5, "group_size": 16}
    assert kept_columns(Q, 1, 52, options) == [2, 6, 10, 24, 27, 31, 32, 38, 39, 48]
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    for tile in range(3):
        shown = " ".join(str(c) for c in kept_columns(Q, tile, 52, options))
        assert f"tile {tile} keeps {shown}\n" in page
    first = [w for c in (0, 1) for w in philox([c, 0, *counter[2:]], key)]
    assert " ".join(f"{w:08x}" for w in first) in page


def test_golden_values_are_no_accident():
    wanted, _ = expected("deltadq-tile")
    values = wanted[f"{Q}#values"].numpy()
    assert np.count_nonzero(values) == 40 * 13
    assert len(np.unique(np.abs(values[:16]))) == 2  # zero and one step: 1 bit
