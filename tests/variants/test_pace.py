"""The loader's pauses: in proportion to its work, and only while somebody needs them."""

import pytest

from tsugiki.variants.pace import PIECES, REST, STRETCH, Pace

PIECE = 1 / ((1 + REST) * PIECES)  # of a step


def rests(processor_seconds: list[float], *, busy: bool = True, step: float = 0.0) -> list[float]:
    taken: list[float] = []
    clock = iter(processor_seconds)
    pace = Pace(lambda: busy, lambda: step, sleep=taken.append, worked=lambda: next(clock))
    for _ in processor_seconds:
        pace()
    return taken


def test_work_is_followed_by_rest_in_proportion_while_the_engine_computes() -> None:
    assert rests([3.0, 3.5, 3.5, 5.5]) == [0.0, REST * 0.5, 0.0, REST * 2.0]


def test_small_bits_of_work_add_up_until_they_are_a_piece_of_the_step() -> None:
    taken = rests([n * PIECE / 2 for n in range(6)], step=1.0)
    assert taken == pytest.approx([REST * PIECE] * 2)


def test_the_longer_a_step_the_fewer_rests_and_no_less_of_them() -> None:
    work = [n / 1000 for n in range(3001)]
    short, long = rests(work, step=0.02), rests(work, step=0.5)
    assert len(long) < len(short)
    assert sum(long) == pytest.approx(sum(short), rel=0.1)
    assert sum(long) == pytest.approx(REST * 3.0, rel=0.1)


def test_a_step_that_all_of_the_work_holds_up_lasts_no_longer_than_it_may() -> None:
    step, bit = 0.02, 0.0002
    taken = rests([n * bit for n in range(1000)], step=step)
    work_to_rest = 1000 * bit / sum(taken)
    assert step * (1 + work_to_rest) <= 1.05 * STRETCH * step


def test_an_idle_engine_costs_a_load_nothing() -> None:
    assert rests([0.0, 1.0, 2.0], busy=False) == []
