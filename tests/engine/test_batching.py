"""How chunks become rows: order, segments, places in the cache, wanted logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tsugiki.codecs.base import ResidentVariant, StagedLinear
from tsugiki.engine.batching import BatchPlan, build
from tsugiki.engine.request import Request
from tsugiki.engine.schedule import Chunk

RequestFactory = Callable[..., Request]
BLOCK = 4


class NamedCodec:
    """All of a codec that the order of rows depends on."""

    def __init__(self, name: str) -> None:
        self.name = name


def variant(digest: str, codec: str) -> ResidentVariant:
    bare = ResidentVariant(digest, 512, {}, {}, None, None, 1)
    linear: Any = StagedLinear(NamedCodec(codec), object(), None)  # type: ignore[arg-type]
    return replace(bare, linears={"layers.0.qkv": linear})


VARIANTS = {"a": variant("a", "lora"), "b": variant("b", "deltadq"), "c": variant("c", "lora")}


def plan(*chunks: Chunk) -> BatchPlan:
    return build(chunks, VARIANTS, BLOCK, torch.device("cpu"))


def chunk(request: Request, start: int, tokens: int) -> Chunk:
    blocks = -(-(start + tokens) // BLOCK)
    request.block_table = [10 * (int(request.request_id[1:]) + 1) + i for i in range(blocks)]
    return Chunk(request, start, tokens)


def test_rows_are_the_base_then_codec_by_codec_and_decode_rows_share_a_segment(
    make_request: RequestFactory,
) -> None:
    decode = {"prompt": 3, "output": [50]}
    made = plan(
        chunk(make_request(digest="a", **decode), 3, 1),
        chunk(make_request(digest="b", prompt=6), 0, 6),
        chunk(make_request(**decode), 3, 1),
        chunk(make_request(digest="c", **decode), 3, 1),
        chunk(make_request(prompt=5), 0, 5),
        chunk(make_request(digest="a", **decode), 3, 1),
        chunk(make_request(digest="a", prompt=2), 0, 2),
        chunk(make_request(digest="a", prompt=2), 0, 2),
    )
    segments = [
        (s.variant and s.variant.digest, s.stop - s.start, s.chunk_tokens)
        for s in made.batch.segments
    ]
    assert segments == [
        (None, 6, 5),
        ("b", 6, 6),
        ("a", 2, 1),
        ("a", 2, 2),
        ("a", 2, 2),
        ("c", 1, 1),
    ]
    assert made.batch.segments[-1].stop == len(made.batch.token_ids) == 19


def test_every_row_knows_its_token_its_position_and_its_place(
    make_request: RequestFactory,
) -> None:
    long = make_request(prompt=range(20, 26), output=[91, 92])
    short = make_request(prompt=[7])
    batch = plan(chunk(long, 3, 5), chunk(short, 0, 1)).batch
    assert batch.token_ids.tolist() == [7, 23, 24, 25, 91, 92]
    assert batch.positions.tolist() == [0, 3, 4, 5, 6, 7]
    where = batch.attention
    assert where.query_start.tolist() == [0, 1, 6]
    assert where.context.tolist() == [1, 8]
    assert where.block_tables.tolist() == [[20, 0], [10, 11]]
    assert where.slots.tolist() == [80, 43, 44, 45, 46, 47]
    assert (where.query_start.dtype, where.slots.dtype) == (torch.int32, torch.int64)


def test_only_completed_chunks_want_logits(make_request: RequestFactory) -> None:
    made = plan(chunk(make_request(prompt=9), 0, 4), chunk(make_request(prompt=5), 0, 5))
    assert made.batch.logit_rows.tolist() == [8]
    assert [(w.prompt, w.sampled) for w in made.logit_rows] == [
        (range(0), range(0)),
        (range(0), range(1)),
    ]


def test_prompt_logprobs_want_every_row_that_predicts_an_unscored_prompt_token(
    make_request: RequestFactory,
) -> None:
    request = make_request(prompt=6, prompt_logprobs=0)
    first = plan(chunk(request, 0, 4))
    assert first.batch.logit_rows.tolist() == [0, 1, 2, 3]
    assert not first.logit_rows[0].sampled
    request.prompt_logprobs = [None] * 4  # type: ignore[list-item]
    last = plan(chunk(request, 4, 2))
    assert last.batch.logit_rows.tolist() == [0, 1]
    assert (last.logit_rows[0].prompt, last.logit_rows[0].sampled) == (range(1), range(1, 2))


def test_a_preempted_request_does_not_score_its_prompt_again(make_request: RequestFactory) -> None:
    request = make_request(prompt=6, prompt_logprobs=0, output=[3])
    request.prompt_logprobs = [None] * 5  # type: ignore[list-item]
    again = plan(chunk(request, 0, 7))
    assert again.batch.logit_rows.tolist() == [6]
    assert (again.logit_rows[0].prompt, again.logit_rows[0].sampled) == (range(0), range(1))


def test_a_draft_adds_rows_to_sample_from_but_is_computed_like_one_token(
    make_request: RequestFactory,
) -> None:
    request = make_request(prompt=3, output=[50], digest="a")
    drafted = replace(chunk(request, 3, 1), draft=(60, 61))
    request.block_table.append(14)
    made = plan(drafted, chunk(make_request(digest="a", prompt=2, output=[51]), 2, 1))
    assert made.batch.token_ids.tolist() == [50, 60, 61, 51]
    assert made.batch.positions.tolist() == [3, 4, 5, 2]
    assert made.batch.attention.context.tolist() == [6, 3]
    assert made.batch.attention.slots.tolist() == [43, 56, 57, 82]
    assert [(s.start, s.stop, s.chunk_tokens) for s in made.batch.segments] == [(0, 4, 1)]
    assert made.batch.logit_rows.tolist() == [0, 1, 2, 3]
    assert [w.sampled for w in made.logit_rows] == [range(3), range(3, 4)]
