"""The whole engine on a tiny model, against transformers on the decompressed checkpoints.

The solo law and the oracle law (design): in float32 a request's tokens are transformers' greedy
tokens, alone or mixed, in chunks, after preemption, with variants that come and go.
"""

import asyncio
import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tsugiki.codecs.base import ResidentVariant
from tsugiki.compress.decompress import decompress
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress
from tsugiki.compress.reconstruct import open_variant
from tsugiki.config import ServeConfig
from tsugiki.engine.build import create_engine
from tsugiki.engine.client import GenerationEvent, GenerationSpec
from tsugiki.engine.local import LocalEngine
from tsugiki.engine.request import FinishReason, SamplingParams
from tsugiki.errors import ConfigError

PROMPTS = [[3 + (7 * i + 5 * j) % 390 for j in range(4 + 5 * i)] for i in range(7)]
NEW_TOKENS = 20
QUIET = Progress(quiet=True)
CODECS = {"sparse": "deltadq", "signs": "bitdelta"}
# Blocks of 4 tokens are 2 KiB (2 layers, 2 KV heads of 16, float32): room for 18 of them is room
# for any request of up to 64 tokens, but not for two that grow.
TIGHT = {"block_size": 4, "kv_memory": 18 * 2048, "max_model_len": 64}


@pytest.fixture(scope="session")
def variants(
    tiny_base: Path, tiny_tuned: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Path]]:
    """A directory with a variant per codec, and each one's decompressed checkpoint."""
    root = tmp_path_factory.mktemp("variants")
    checkpoints = {"base": tiny_base}
    for name, codec in CODECS.items():
        file = root / f"{name}.safetensors"
        compress(CompressJob(codec, tiny_base, tiny_tuned, file, options={}), QUIET)
        checkpoints[name] = tmp_path_factory.mktemp("decompressed")
        opened = open_variant(file, str(tiny_base), tmp_path_factory.mktemp("cache"))
        decompress(opened, checkpoints[name], torch.float32, QUIET)
    return root, checkpoints


@pytest.fixture(scope="session")
def expected(variants: tuple[Path, dict[str, Path]]) -> dict[str, list[list[int]]]:
    """transformers' greedy tokens for every model and prompt."""
    return {name: greedy(path) for name, path in variants[1].items()}


def greedy(checkpoint: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in PROMPTS:
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


@pytest.fixture
def serve(
    tiny_base: Path,
    variants: tuple[Path, dict[str, Path]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Callable[..., LocalEngine]:
    """`make(**settings)`: an engine of the tiny base and the two variants, not started."""

    def make(**settings: Any) -> LocalEngine:
        if settings.get("kernels") == "cpu" and not (tmp_path / "kernels").exists():
            # skips without a compiler
            (tmp_path / "kernels").symlink_to(request.getfixturevalue("compiled"))
        return create_engine(
            ServeConfig(
                base=str(tiny_base),
                **{
                    "variants": variants[0],
                    "served_model_name": "base",
                    "device": "cpu",
                    "dtype": "float32",
                    "kernels": "reference",
                    "cache_dir": tmp_path,
                }
                | settings,
            )
        )

    return make


Ask = tuple[str, Sequence[int], Mapping[str, Any]]  # model, prompt, sampling


def answer(engine: LocalEngine, asks: Sequence[Ask]) -> list[GenerationEvent]:
    """All of them at once; each as one event."""

    async def one(number: int, ask: Ask) -> GenerationEvent:
        model, prompt, sampling = ask
        params = SamplingParams(**({"max_tokens": NEW_TOKENS, "temperature": 0.0} | sampling))
        spec = GenerationSpec(f"r{number}", engine.resolve(model), tuple(prompt), params)
        stream = engine.submit(spec)
        await done.wait()
        events = [event async for event in stream]
        assert events[-1].finish_reason is FinishReason.LENGTH, events[-1].error
        assert len(events) == 1
        return events[0]

    async def scenario() -> list[GenerationEvent]:
        await engine.start()
        tasks = [asyncio.create_task(one(i, ask)) for i, ask in enumerate(asks)]
        while not engine._open:  # all are submitted before the first answer is read
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await engine._open.none_left()
            done.set()
            results = await asyncio.gather(*tasks)
        await engine.stop(0)
        return results

    done = asyncio.Event()
    return asyncio.run(scenario())


def everything(**sampling: Any) -> list[Ask]:
    return [(model, prompt, sampling) for prompt in PROMPTS for model in ("base", *CODECS)]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="roomy"),
        pytest.param({"max_num_batched_tokens": 7}, id="prompts in chunks"),
        pytest.param(TIGHT, id="preempted"),
        pytest.param(TIGHT | {"max_num_batched_tokens": 9, "max_num_seqs": 5}, id="all together"),
        pytest.param({"kernels": "cpu"}, id="compiled", marks=pytest.mark.compiler),
    ],
)
def test_mixed_batches_give_transformers_greedy_tokens(
    serve: Callable[..., LocalEngine],
    expected: dict[str, list[list[int]]],
    settings: dict[str, Any],
) -> None:
    engine = serve(**settings)
    asks = everything()
    events = answer(engine, asks)
    for (model, prompt, _), event in zip(asks, events, strict=True):
        assert list(event.token_ids) == expected[model][PROMPTS.index(list(prompt))], model
    assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total
    assert ("kv_memory" in settings) == (engine.stats().preemptions > 0)


def test_a_seed_gives_the_same_answer_alone_mixed_and_preempted(
    serve: Callable[..., LocalEngine],
) -> None:
    sampling = {"temperature": 1.3, "top_p": 0.95, "seed": 7, "repetition_penalty": 1.1}
    asks = everything(**sampling)
    roomy = [event.token_ids for event in answer(serve(), asks)]
    assert [e.token_ids for e in answer(serve(**TIGHT), asks)] == roomy
    assert answer(serve(), asks[1:2])[0].token_ids == roomy[1]
    assert len(set(roomy)) > len(PROMPTS)


def test_prompt_logprobs_are_transformers_log_softmax_in_any_chunking(
    serve: Callable[..., LocalEngine], variants: tuple[Path, dict[str, Path]]
) -> None:
    asks = everything(prompt_logprobs=2, logprobs=1, max_tokens=1)
    expected = [logprobs for path in variants[1].values() for logprobs in transformers_logits(path)]
    by_prompt = [logprobs for i in range(len(PROMPTS)) for logprobs in expected[i :: len(PROMPTS)]]
    for settings in ({}, {"max_num_batched_tokens": 5}):
        events = answer(serve(**settings), asks)
        for (_, prompt, _), event, logits in zip(asks, events, by_prompt, strict=True):
            assert event.prompt_logprobs is not None
            assert event.prompt_logprobs[0] is None
            found = [p.logprob for p in event.prompt_logprobs[1:] if p is not None]
            wanted = logits[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(found), wanted, atol=2e-4, rtol=0)
            second = event.prompt_logprobs[1]
            assert second is not None
            assert [t for t, _ in second.top] == logits[0].topk(2).indices.tolist()
            assert event.logprobs[0].logprob == pytest.approx(logits[-1].max().item(), abs=2e-4)


def transformers_logits(checkpoint: Path) -> list[torch.Tensor]:
    """Log-probabilities [tokens, vocabulary] of every prompt."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        return [model(torch.tensor([prompt])).logits[0].log_softmax(-1) for prompt in PROMPTS]


def test_a_variant_is_loaded_when_first_asked_for_and_says_so(
    serve: Callable[..., LocalEngine],
) -> None:
    engine = serve()
    assert [info.state for info in engine.variants()] == ["disk", "disk"]
    base, cold = answer(engine, [("base", PROMPTS[1], {}), ("sparse", PROMPTS[1], {})])
    assert base.variant_load_ms is None
    assert cold.variant_load_ms is not None
    assert {info.name: info.state for info in engine.variants()} == {
        "signs": "disk",
        "sparse": "ready",
    }


def test_variants_that_do_not_fit_together_take_turns(
    serve: Callable[..., LocalEngine], expected: dict[str, list[list[int]]]
) -> None:
    roomy = serve()
    asks = everything()
    answer(roomy, asks)
    largest = max(info.resident_bytes for info in roomy.variants())
    before = {id(variant) for variant in alive(ResidentVariant)}
    engine = serve(variant_memory=largest)
    for (model, prompt, _), event in zip(asks, answer(engine, asks), strict=True):
        assert list(event.token_ids) == expected[model][PROMPTS.index(list(prompt))]
    assert engine.stats().resident_variants == 1
    assert engine.stats().tiers[1].evictions > 0
    left = [variant for variant in alive(ResidentVariant) if id(variant) not in before]
    assert len(left) == 1, "what was evicted is gone, not only off the books"


def alive(kind: type) -> list[object]:
    """The objects of a class that somebody still holds."""
    gc.collect()
    return [item for item in gc.get_objects() if type(item) is kind]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 513}, "over the model's own 512"),
        ({"kv_memory": 100}, "less than one block of 8192 bytes"),
        ({"kv_memory": 8192 * 2, "max_model_len": 64}, "holds 32 tokens; it needs 32768 bytes"),
    ],
)
def test_sizes_that_cannot_be_are_refused_with_the_numbers(
    serve: Callable[..., LocalEngine], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        serve(**settings)


def test_the_longest_request_follows_from_model_and_memory(
    serve: Callable[..., LocalEngine], tmp_path: Path
) -> None:
    assert serve(variants=tmp_path / "one").max_model_len() == 512
    assert serve(variants=tmp_path / "other", kv_memory=8192 * 3).max_model_len() == 48


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="reference"),
        pytest.param({"kernels": "cpu"}, id="compiled", marks=pytest.mark.compiler),
    ],
)
def test_a_cached_prefix_changes_neither_tokens_nor_logprobs(
    serve: Callable[..., LocalEngine], settings: dict[str, Any]
) -> None:
    """Computed together, in chunks: nobody finds anything. One by one: all find the beginning,
    each of its own variant only."""
    prompts = [[*PROMPTS[-1][:30], *PROMPTS[i]] for i in range(3)]
    asks = [(model, p, {"logprobs": 2}) for p in prompts for model in ("base", *CODECS)]
    alone = answer(serve(**settings, prefix_caching=False, max_num_batched_tokens=16), asks)
    cached = in_turn(serve(**settings, block_size=4), asks)
    assert [event.cached_tokens for event in alone] == [0] * 9
    assert [event.cached_tokens for event in cached] == [0] * 3 + [28] * 6
    for (model, _, _), one, other in zip(asks, alone, cached, strict=True):
        assert one.token_ids == other.token_ids
        # torch's sums depend on how many rows there are; our kernels are exact, except that long
        # chunks of bitdelta multiply with a rebuilt weight
        if settings and model != "signs":
            assert one.logprobs == other.logprobs


def in_turn(engine: LocalEngine, asks: Sequence[Ask]) -> list[GenerationEvent]:
    """One after the other; the last event of each, with all its tokens."""

    async def one(number: int, ask: Ask) -> GenerationEvent:
        model, prompt, sampling = ask
        params = SamplingParams(**({"max_tokens": NEW_TOKENS, "temperature": 0.0} | sampling))
        spec = GenerationSpec(f"r{number}", engine.resolve(model), tuple(prompt), params)
        stream = engine.submit(spec)
        await engine._open.none_left()
        return await anext(stream)

    async def scenario() -> list[GenerationEvent]:
        await engine.start()
        async with asyncio.timeout(60):
            results = [await one(number, ask) for number, ask in enumerate(asks)]
        await engine.stop(0)
        return results

    return asyncio.run(scenario())


@pytest.mark.compiler
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_drafts_change_neither_tokens_nor_logprobs(
    serve: Callable[..., LocalEngine], dtype: str
) -> None:
    """Greedy and sampled, the base and variants: most answers of these models end in circles."""
    asks: list[Ask] = [
        (model, PROMPTS[2], {"max_tokens": 60, "logprobs": 1} | sampling)
        for model in ("base", *CODECS)
        for sampling in ({}, {"temperature": 0.3, "seed": 3}, {"repetition_penalty": 1.2})
    ]
    settings = {"kernels": "cpu", "dtype": dtype, "prefix_caching": False}
    plain = answer(serve(**settings), asks)
    engine = serve(**settings, prompt_lookup=True)
    drafted = answer(engine, asks)
    assert engine.stats().accepted_tokens > 0
    for one, other in zip(plain, drafted, strict=True):
        assert one.token_ids == other.token_ids
        assert one.logprobs == other.logprobs
