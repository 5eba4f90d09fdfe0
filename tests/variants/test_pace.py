"""The loader's pauses: longer than its work, and only while somebody needs them."""

from tsugiki.variants.pace import REST, Pace


def rests(processor_seconds: list[float], *, busy: bool) -> list[float]:
    taken: list[float] = []
    clock = iter(processor_seconds)
    pace = Pace(lambda: busy, sleep=taken.append, worked=lambda: next(clock))
    for _ in processor_seconds:
        pace()
    return taken


def test_each_piece_of_work_is_followed_by_a_longer_rest_while_the_engine_computes() -> None:
    assert rests([3.0, 3.5, 3.5, 5.5], busy=True) == [0.0, REST * 0.5, 0.0, REST * 2.0]
    assert REST > 1


def test_an_idle_engine_costs_a_load_nothing() -> None:
    assert rests([0.0, 1.0, 2.0], busy=False) == []
