"""Small tokenizers of the two kinds that served models have."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from tests.conftest import SENTENCES, save_tokenizer
from tsugiki.text.huggingface import HfTextSide, load_text_side


@pytest.fixture(scope="session")
def byte_level_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the tests' byte-level BPE, as Llama 3, Qwen and SmolLM2 have."""
    directory = tmp_path_factory.mktemp("byte-level")
    save_tokenizer(directory)
    LlamaConfig(vocab_size=512, eos_token_id=1).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a SentencePiece-like BPE and byte fallback, as Llama 2 and Gemma have."""
    directory = tmp_path_factory.mktemp("sentencepiece")
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁]*"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_bytes_as_ordinary(tokenizer), bos_token="<s>", eos_token="</s>"
    )
    fast.save_pretrained(directory)
    LlamaConfig(vocab_size=450, eos_token_id=2).save_pretrained(directory)
    return directory


def _bytes_as_ordinary(tokenizer: Tokenizer) -> Tokenizer:
    """Training can only reserve the byte tokens as special ones; decoding must see them."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [
        token for token in content["added_tokens"] if not token["content"].startswith("<0x")
    ]
    return Tokenizer.from_str(json.dumps(content))


@pytest.fixture(scope="session")
def byte_level(byte_level_dir: Path) -> HfTextSide:
    """The text side of a byte-level tokenizer."""
    return load_text_side(byte_level_dir)


@pytest.fixture(scope="session")
def sentencepiece(sentencepiece_dir: Path) -> HfTextSide:
    """The text side of a SentencePiece-like tokenizer."""
    return load_text_side(sentencepiece_dir)


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece"])
def either(request: pytest.FixtureRequest) -> HfTextSide:
    """Both kinds, one after the other."""
    side: HfTextSide = request.getfixturevalue(request.param)
    return side
