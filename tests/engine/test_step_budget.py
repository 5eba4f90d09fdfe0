"""Prompt tokens of a step, from what they were measured to cost."""

from tsugiki.engine.step_budget import StepBudget


def learned(target: float | None, *, per_token: float = 0.001, decode: float = 0.03) -> StepBudget:
    """After steps of 8 decode rows, with and without 50 prompt tokens."""
    budget = StepBudget(512, target)
    for _ in range(30):
        budget.record(8, 0, decode)
        budget.record(8, 50, decode + 50 * per_token)
    return budget


def test_a_step_that_decodes_takes_the_prompt_tokens_that_fit_its_time() -> None:
    assert learned(0.1).prompt_tokens(8) in (64, 72)  # 70
    assert learned(0.1, per_token=0.002).prompt_tokens(8) in (32, 40)  # 35


def test_prompts_are_cut_in_pieces_of_few_sizes() -> None:
    fitting = [learned(0.1, per_token=0.001 * (1 + i / 100)).prompt_tokens(8) for i in range(-5, 6)]
    assert len(set(fitting)) <= 2


def test_prompts_get_half_as_much_time_as_the_decodes_and_some_tokens_however_slow() -> None:
    assert learned(0.01, decode=0.05).prompt_tokens(8) == 24
    assert learned(0.01, per_token=0.01).prompt_tokens(8) == 16


def test_the_short_prompt_of_a_newcomer_is_not_cut() -> None:
    assert learned(0.01).newcomer_tokens(8) == 64
    assert StepBudget(20, None).newcomer_tokens(8) == 12


def test_tokens_are_limited_as_well() -> None:
    assert learned(10.0).prompt_tokens(8) == 504
    assert StepBudget(20, 0.01).prompt_tokens(20) == 0
    assert learned(0.01).prompt_tokens(505) == 7


def test_nobody_waits_for_a_step_without_decodes() -> None:
    assert learned(0.01).prompt_tokens(0) == 512


def test_without_a_target_and_before_the_first_measurement_only_tokens_count() -> None:
    assert learned(None).prompt_tokens(8) == 504
    assert StepBudget(512, 0.1).prompt_tokens(8) == 504


def test_it_follows_a_machine_that_becomes_slower() -> None:
    budget = learned(0.1)
    for _ in range(30):
        budget.record(8, 50, 0.03 + 50 * 0.004)
    assert budget.prompt_tokens(8) <= 20
