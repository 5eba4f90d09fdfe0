"""The probe that `compress` stores: what transformers surely answers, and the base does not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsugiki.codecs import artifact
from tsugiki.codecs.artifact import Header
from tsugiki.compress.greedy import MARGIN
from tsugiki.compress.probe import DEFAULT_TOKENS, PROMPTS
from tsugiki.errors import ConfigError

TOKENS = 12


@torch.inference_mode()
def logits_after(directory: Path, probe: dict[str, Any]) -> torch.Tensor:
    """float32 [expected tokens, vocab] of plain transformers, teacher-forced on the probe."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt, answer = probe["prompt_ids"], probe["greedy_ids"]
    logits: torch.Tensor = model(torch.tensor([prompt + answer])).logits[0]
    return logits[len(prompt) - 1 : -1]


@pytest.fixture
def stored_probe(walk: Any, cache_dir: Path) -> Callable[..., tuple[Header, Any]]:
    """`stored_probe(base, tuned, **job)` -> header and report of a file with a probe."""

    def make(base: Path, tuned: Path, **job: Any) -> tuple[Header, Any]:
        report = walk.compress(base, tuned, **({"probe": TOKENS, "cache_dir": cache_dir} | job))
        return artifact.read_header(walk.file), report

    return make


@pytest.mark.parametrize(
    ("codec", "options"), [("deltadq", {"alpha": 4}), ("bitdelta", {}), ("lora", {})]
)
def test_the_probe_is_what_transformers_answers_by_a_margin_and_the_base_does_not(
    codec: str,
    options: dict[str, int],
    walk: Any,
    stored_probe: Any,
    tiny_base: Path,
    tiny_tuned: Path,
    dialogues_file: Path,
) -> None:
    header, report = stored_probe(
        tiny_base, tiny_tuned, codec=codec, options=options, calibration=dialogues_file
    )
    assert header.probe is not None
    expected = torch.tensor(header.probe["greedy_ids"])
    logits = logits_after(walk.decompress(tiny_base), header.probe)
    best, second = logits.topk(2).values.unbind(1)
    assert torch.equal(logits.argmax(1), expected)
    assert bool((best - second >= MARGIN - 1e-3).all())
    of_base = logits_after(tiny_base, header.probe)
    lead = of_base.amax(1) - of_base.gather(1, expected[:, None])[:, 0]
    assert lead.max() >= MARGIN - 1e-3
    assert any("the base answers otherwise" in line for line in report.notes)


def test_without_calibration_fixed_prompts_are_asked(
    stored_probe: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    header, _ = stored_probe(tiny_base, tiny_tuned, probe=None)
    assert header.probe is not None
    assert 0 < len(header.probe["greedy_ids"]) <= DEFAULT_TOKENS


def test_no_probe_is_stored_unless_asked_for(
    stored_probe: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    header, report = stored_probe(tiny_base, tiny_tuned, probe=0)
    assert header.probe is None
    assert report.notes == ()


def test_the_probe_changes_nothing_but_the_metadata(
    walk: Any, stored_probe: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    stored_probe(tiny_base, tiny_tuned, probe=0)
    without = artifact.read(walk.file)
    stored_probe(tiny_base, tiny_tuned)
    probed = artifact.read(walk.file)
    assert probed.header.digest != without.header.digest
    assert probed.modules.keys() == without.modules.keys()
    for name, packed in without.modules.items():
        again = probed.modules[name].tensors
        assert all(torch.equal(tensor, again[part]) for part, tensor in packed.tensors.items())


def test_a_size_limit_counts_the_probe(
    walk: Any, stored_probe: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    header, report = stored_probe(
        tiny_base, tiny_tuned, codec="deltadq", options={}, max_bytes=24_000
    )
    assert header.probe is not None
    assert report.file_bytes == walk.file.stat().st_size <= 24_000


def test_a_variant_that_the_base_answers_alike_says_so(
    stored_probe: Any, tiny_base: Path, tune: Any
) -> None:
    """A change so small that no answer turns."""

    def touch(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][0] += 1e-3

    _, report = stored_probe(tiny_base, tune(tiny_base, touch))
    assert any("the base gives the same answer" in line for line in report.notes)


def test_a_model_that_is_sure_of_nothing_gets_no_probe(
    stored_probe: Any, tiny_base: Path, tune: Any
) -> None:
    def flatten(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] *= 1e-3

    header, report = stored_probe(tiny_base, tune(tiny_base, flatten))
    assert header.probe is None
    assert any(line.startswith("no probe: none of") for line in report.notes)


def test_long_prompts_are_left_out(
    stored_probe: Any, tiny_base: Path, tiny_tuned: Path, tmp_path: Path
) -> None:
    lines = [{"prompt": "Paris " * 600, "answer": "x"}, {"prompt": "Sam", "answer": "y"}]
    lines += [{"prompt": f"Sam has {i} apples", "answer": "z"} for i in range(PROMPTS)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    header, _ = stored_probe(tiny_base, tiny_tuned, calibration=path)
    assert header.probe is not None
    assert len(header.probe["prompt_ids"]) < 100


def test_more_tokens_than_the_format_holds_are_refused(
    walk: Any, stored_probe: Any, tiny_base: Path, tiny_tuned: Path
) -> None:
    with pytest.raises(ConfigError, match="--probe is 65; it must be 0"):
        walk.compress(tiny_base, tiny_tuned, probe=65)
