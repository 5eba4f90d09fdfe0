"""Dialogues and models that all tests of distillation share."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import SENTENCES, TinyFactory, tiny_llama_config
from tsugiki.compress.dialogues import Dialogue


@pytest.fixture(scope="session")
def distill_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty short dialogues as a file."""
    lines = [
        {"prompt": SENTENCES[i % 5][: 8 + i], "answer": SENTENCES[(i + 1) % 5][: 10 + 2 * i]}
        for i in range(20)
    ]
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.fixture(scope="session")
def dialogues() -> list[Dialogue]:
    """Ten of them as token ids: all begin with the same three tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = (9, 14, 11, 20, 16, 12, 18, 10, 13, 15)
    return [
        Dialogue((5, 6, 7, *torch.randint(3, 390, (n,), generator=generator).tolist()), 8, True)
        for n in lengths
    ]


@pytest.fixture(scope="session")
def deep_base(tiny_model_factory: TinyFactory) -> Path:
    """A base of six layers."""
    return tiny_model_factory(tiny_llama_config(num_hidden_layers=6), seed=4)
