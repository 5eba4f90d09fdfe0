"""Dialogues and models that all tests of distillation share."""

from pathlib import Path

import pytest
import torch

from tests.conftest import TinyFactory, tiny_llama_config
from tsugiki.compress.dialogues import Dialogue


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
