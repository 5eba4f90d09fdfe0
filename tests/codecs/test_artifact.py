"""The variant file: what is written is read, and nothing else is."""

import json
import os
import pickle
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tsugiki.codecs import CODECS, artifact, container
from tsugiki.codecs.artifact import file_bytes, read, read_header, write
from tsugiki.errors import CorruptArtifact, InvalidArtifact

TEXT = {
    "chat_template": "{{ messages }} ü",
    "eos_token_ids": [2, 7],
    "generation_defaults": {"temperature": 0.7},
    "added_tokens": [{"id": 512, "content": "<cal>", "special": True}],
    "vocab_size": 513,
}


def rewrite(path: Path, change) -> None:
    """Apply `change` to the metadata object and write the file again with a matching digest."""
    with open(path, "rb") as file:
        table = container.read_table(file)
        data = path.read_bytes()[table.data_start :]
    metadata = json.loads(table.metadata)
    change(metadata)
    metadata.pop("digest", None)
    by_name = sorted(table.blobs, key=lambda blob: blob.name)
    contents = (data[b.begin : b.begin + b.nbytes] for b in by_name)
    digest = container.digest(container.canonical_json(metadata), table.blobs, contents)
    text = container.canonical_json({**metadata, "digest": digest})
    path.write_bytes(container.encode_header(text, table.blobs)[0] + data)


def test_what_is_written_is_read_back(recipe, example, spec, tmp_path):
    packed = example(recipe).packed
    header = write(tmp_path / "v.safetensors", spec(packed.codec, text=TEXT), {"m.weight": packed})
    found = read(tmp_path / "v.safetensors")
    assert found.header == header
    assert header.text == TEXT
    module = found.modules["m.weight"]
    assert (module.codec, module.shape, module.name) == (packed.codec, packed.shape, "m.weight")
    assert module.options == packed.options
    assert module.tensors.keys() == packed.tensors.keys()
    assert all(torch.equal(module.tensors[p], t) for p, t in packed.tensors.items())


def test_the_same_modules_in_any_order_give_the_same_bytes(small_modules, spec, tmp_path):
    write(tmp_path / "1", spec(), small_modules)
    write(tmp_path / "2", spec(), dict(reversed(small_modules.items())))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


def test_the_sections_sum_to_the_file_and_its_size_is_known_before(
    recipe, example, small_modules, spec, tmp_path
):
    modules = {**small_modules, "m.weight": example(recipe).packed}
    header = write(tmp_path / "v", spec(text=TEXT), modules)
    size = (tmp_path / "v").stat().st_size
    assert sum(section.nbytes for section in header.sections()) == size == header.file_bytes
    assert file_bytes(spec(text=TEXT), modules) == size
    tensors = sum(packed.nbytes for packed in modules.values())
    assert tensors == sum(s.nbytes for s in header.sections()[2:])


def test_the_stock_library_reads_the_file(small_file):
    with safe_open(small_file, framework="pt") as file:
        names = sorted(file.keys())
        metadata = json.loads(file.metadata()["tsugiki"])
    assert "deltadq.codes.u8" in names
    assert metadata["format"] == "tsugiki.variant/1"
    assert sorted(metadata["modules"]) == ["a.weight", "b.weight", "norm.weight"]


def test_shared_options_are_stored_once(small_file):
    with safe_open(small_file, framework="pt") as file:
        metadata = json.loads(file.metadata()["tsugiki"])
    assert metadata["options"]["alpha"] == 4
    assert "alpha" not in metadata["modules"]["a.weight"]["options"]
    assert metadata["modules"]["norm.weight"]["options"] == {"mode": "replace", "dtype": "float32"}


def same_content(path: Path, original: artifact.Artifact) -> bool:
    found = read(path)
    return found.header == original.header and all(
        torch.equal(found.modules[n].tensors[p], t)
        for n, module in original.modules.items()
        for p, t in module.tensors.items()
    )


def test_a_flipped_byte_is_refused_or_changes_nothing(small_file, tmp_path):
    flips = (0x01, 0x20, 0x80, 0xFF)
    original = read(small_file)
    data = small_file.read_bytes()
    header = original.header.header_bytes
    accepted = []
    altered = tmp_path / "altered"
    for place in [*range(header), *range(header, len(data), 7), len(data) - 1]:
        broken = bytearray(data)
        broken[place] ^= flips[place % len(flips)]
        altered.write_bytes(broken)
        try:
            accepted.append((place, same_content(altered, original)))
        except InvalidArtifact:
            continue
    assert all(unchanged for _, unchanged in accepted)
    assert accepted == []  # stronger than the promise: a file has one legal encoding


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused_by_both_readers(small_file, keep):
    small_file.write_bytes(small_file.read_bytes()[:keep])
    for reader in (read_header, read):
        with pytest.raises(CorruptArtifact, match=str(small_file)):
            reader(small_file)


def test_an_appended_byte_is_refused(small_file):
    small_file.write_bytes(small_file.read_bytes() + b"\0")
    with pytest.raises(CorruptArtifact, match="bytes appended"):
        read_header(small_file)


def test_altered_tensors_pass_the_header_but_are_not_read(small_file):
    data = bytearray(small_file.read_bytes())
    data[-1] ^= 1
    small_file.write_bytes(data)
    read_header(small_file)
    with pytest.raises(CorruptArtifact, match="digest"):
        read(small_file)


def hostile(path: Path, header: str, data: bytes = b"") -> None:
    raw = header.encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


ENTRY = '{"dtype":"U8","shape":[%s],"data_offsets":[%s,%s]}'
META = '"__metadata__":{"tsugiki":"{}"}'


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        "{}",
        "{" * 100_000,
        "[" * 100_000,
        '{"a":' * 50_000,
        '{"__metadata__":{"tsugiki":5}}',
        '{"__metadata__":{"tsugiki":"{}","pt":"x"}}',
        '{"__metadata__":{"tsugiki":"\\ud800"}}',
        f'{{{META},"a":{ENTRY % (1, -1, 0)}}}',
        f'{{{META},"a":{ENTRY % (-4, 0, 4)}}}',
        f'{{{META},"a":{ENTRY % (2**64, 0, 2**64)}}}',
        f'{{{META},"a":{ENTRY % ("1e400", 0, 1)}}}',
        f'{{{META},"a":{ENTRY % ("9" * 5000, 0, 1)}}}',
        f'{{{META},"a":{ENTRY % ("NaN", 0, 1)}}}',
        f'{{{META},"a":{ENTRY % ("true", 0, 1)}}}',
        f'{{{META},"a":{ENTRY % (4, 0, 4)},"b":{ENTRY % (4, 2, 6)}}}',
        f'{{{META},"a":{ENTRY % (4, 2, 6)}}}',
        f'{{{META},"a":{ENTRY % (2, 0, 2)},"a":{ENTRY % (4, 0, 4)}}}',
        '{"__metadata__":{"tsugiki":"{}"},"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}}',
        '{"__metadata__":{"tsugiki":"{}"},"a":null}',
    ],
    ids=lambda header: header[:40],
)
def test_hostile_headers_are_refused(tmp_path, header):
    path = tmp_path / "hostile.safetensors"
    hostile(path, header, b"\0" * 8)
    with pytest.raises(CorruptArtifact):
        read(path)


def test_a_huge_header_length_allocates_nothing(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(CorruptArtifact, match=str(2**63)):
        read(path)


def test_a_pickle_under_the_right_name_is_refused(tmp_path):
    path = tmp_path / "variant.safetensors"
    path.write_bytes(pickle.dumps({"weights": list(range(1000))}))
    with pytest.raises(CorruptArtifact, match="not a safetensors file"):
        read(path)
    torch.save({"a": torch.zeros(50)}, path)
    with pytest.raises(CorruptArtifact, match="not a safetensors file"):
        read(path)


def test_an_ordinary_safetensors_file_is_no_variant(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(4)}, tmp_path / "a.safetensors")
    with pytest.raises(CorruptArtifact, match="tsugiki compress"):
        read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="tsugiki.variant/2"), "tsugiki.variant/2"),
        (lambda m: m.update(codec="zipzap"), "zipzap"),
        (lambda m: m["modules"]["norm.weight"].update(codec="zipzap"), "zipzap"),
        (lambda m: m.update(role="boss"), "boss"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.pop("probe"), "probe"),
        (lambda m: m["base"].update(fingerprint="md5:12"), "md5:12"),
        (lambda m: m["modules"]["a.weight"].update(shape=[0, 52]), "a.weight"),
        (lambda m: m["modules"]["a.weight"].update(shape=[40]), "a.weight"),
        (lambda m: m["modules"]["a.weight"].update(shape=[2**31 - 1, 52]), "the modules need"),
        (lambda m: m["modules"]["a.weight"]["options"].update(gain="1"), "gain"),
        (lambda m: m["modules"]["a.weight"]["options"].update(gain=1e39), "gain"),
        (lambda m: m["modules"]["a.weight"]["options"].update(colour=1), "colour"),
        (lambda m: m["modules"].pop("a.weight"), "the modules need"),
        (lambda m: m["options"].update(bits=2), "the modules need"),
        (lambda m: m["options"].update(bits=9), "9"),
        (lambda m: m["options"].update(bits=True), "bits"),
        (lambda m: m["options"].update(alpha=53), "53"),
        (lambda m: m["options"].update(seed=2**64), str(2**64)),
        (lambda m: m["options"].pop("alpha"), "missing"),
        (lambda m: m.update(text={"vocab_size": 4}), "text"),
        (lambda m: m.update(text={**TEXT, "eos_token_ids": [-1]}), "-1"),
        (lambda m: m.update(probe={"prompt_ids": [1], "greedy_ids": ["a"]}), "greedy_ids"),
    ],
)
def test_metadata_without_sense_is_refused_by_name(small_file, change, message):
    rewrite(small_file, change)
    with pytest.raises(InvalidArtifact, match=message):
        read(small_file)


@pytest.mark.parametrize(
    ("option", "value"),
    [("bits", True), ("alpha", 4.0), ("gain", 10**400), ("gain", "1"), ("grid", 1), ("seed", [0])],
)
def test_an_option_of_one_module_is_checked_although_others_like_it_were(small_file, option, value):
    def change(metadata):
        metadata["modules"]["b.weight"]["options"][option] = value

    rewrite(small_file, change)
    with pytest.raises(InvalidArtifact, match=rf"b\.weight.*{option}"):
        read(small_file)


def test_a_finite_step_that_makes_infinite_weights_is_refused(small_file):
    def change(metadata):
        metadata["options"]["zero"] = 1000
        metadata["modules"]["a.weight"]["options"]["gain"] = 3e38

    rewrite(small_file, change)
    with pytest.raises(InvalidArtifact, match="step times code"):
        read(small_file)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_neither_written_nor_read(
    small_modules, spec, tmp_path, monkeypatch, value
):
    packed = small_modules["a.weight"]
    step = packed.tensors["step"].clone()
    step[0] = value
    broken = replace(packed, tensors={**packed.tensors, "step": step})
    path = tmp_path / "broken.safetensors"
    with pytest.raises(InvalidArtifact, match=r"a\.weight.*step.*index 0"):
        write(path, spec(), {**small_modules, "a.weight": broken})
    assert not path.exists()
    with monkeypatch.context() as lenient:
        lenient.setattr(type(CODECS["deltadq"]), "validate", lambda self, packed: None)
        write(path, spec(), {**small_modules, "a.weight": broken})
    with pytest.raises(InvalidArtifact, match=r"a\.weight.*step.*index 0"):
        read(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(small_file, small_modules, spec):
    before = small_file.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write(small_file, spec(report={"loss": float("nan")}), small_modules)
    with pytest.raises(TypeError), container.replacing(small_file) as file:
        file.writelines([b"half", "of a file"])
    assert small_file.read_bytes() == before
    assert os.listdir(small_file.parent) == [small_file.name]


def test_the_digest_is_what_the_page_says(small_file):
    import hashlib

    with safe_open(small_file, framework="pt") as file:
        metadata = json.loads(file.metadata()["tsugiki"])
    claimed = metadata.pop("digest")
    with open(small_file, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    del header["__metadata__"]
    compact = {"sort_keys": True, "separators": (",", ":"), "ensure_ascii": False}
    table = [[n, header[n]["dtype"], header[n]["shape"]] for n in sorted(header)]
    state = hashlib.sha256(json.dumps(metadata, **compact).encode())
    state.update(json.dumps(table, **compact).encode())
    for name in sorted(header):
        begin, end = header[name]["data_offsets"]
        state.update(data[begin:end])
    assert claimed == f"sha256:{state.hexdigest()}" == read(small_file).header.digest
