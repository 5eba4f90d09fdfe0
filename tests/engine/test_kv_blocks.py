"""Block ledger: nothing lost, nothing shared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsugiki.engine.kv_blocks import BlockManager

STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60)), max_size=40)


@given(blocks=st.integers(1, 20), size=st.integers(1, 8), steps=STEPS)
def test_every_block_is_free_or_held_once(
    blocks: int, size: int, steps: list[tuple[int, int]]
) -> None:
    manager = BlockManager(blocks, size)
    tables: list[list[int]] = [[], [], [], []]
    for who, tokens in steps:
        if tokens == 0:
            manager.free(tables[who])
            assert tables[who] == []
        else:
            before = list(tables[who])
            if manager.extend(tables[who], tokens):
                assert len(tables[who]) == max(len(before), manager.blocks_for(tokens))
            else:
                assert tables[who] == before
        manager.check(tables)
    assert manager.num_free == blocks - sum(map(len, tables))


def test_a_block_with_more_holders_than_booked_is_noticed() -> None:
    manager = BlockManager(4, 2)
    table: list[int] = []
    manager.extend(table, 3)
    with pytest.raises(RuntimeError, match="other holders"):
        manager.check([table, table])


def test_what_is_in_the_prefix_cache_is_given_away_last_its_end_first() -> None:
    manager = BlockManager(4, 2)
    table: list[int] = []
    manager.extend(table, 6)
    for block in table:
        manager.cache.put(b"%d" % block, block, None)
    first, second, third = table
    manager.free(table)
    assert manager.num_free == 4
    other: list[int] = []
    manager.extend(other, 4)
    assert other[1] == third
    assert manager.cache.match([b"%d" % first, b"%d" % second]) == [first, second]
    assert third not in manager.cache


def test_a_shared_block_is_free_when_the_last_holder_lets_go() -> None:
    manager = BlockManager(2, 2)
    one: list[int] = []
    two: list[int] = []
    manager.extend(one, 2)
    manager.cache.put(b"key", one[0], None)
    manager.share(two, list(one))
    manager.check([one, two])
    manager.free(one)
    assert manager.num_free == 1
    manager.free(two)
    manager.check([])
    assert manager.takes([0 if 0 in manager.cache else 1], 3) == 2


def test_extending_to_what_it_holds_already_takes_nothing() -> None:
    manager = BlockManager(4, 2)
    table: list[int] = []
    assert manager.extend(table, 4)
    assert manager.extend(table, 3)
    assert manager.num_free == 2


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockManager(0, 16)
