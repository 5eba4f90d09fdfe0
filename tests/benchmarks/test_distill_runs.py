"""The comparison of distillations measures each run once and counts what its arithmetic is."""

from pathlib import Path

from torch import nn

from benchmarks.distill.operations import linear_weights, training_operations
from benchmarks.distill.runs import Run, Sizes, append, measured, runs
from benchmarks.distill.table import table

RESULT = {
    "accuracy": {"value": 0.25},
    "perplexity": {"value": 2.0},
    "kl": {"value": 0.5},
    "trained_parameters": 3e6,
    "peak_rss": 4e8,
    "cpu_seconds_per_step": 1.5,
    "operations_per_token": 2e9,
}


def test_the_grid_holds_every_run_once_and_the_headline_for_each_seed() -> None:
    found = list(runs(Sizes(steps=140, test_lines=0, seeds=3, grid=True)))
    assert len(found) == len(set(found)) == 2 + 3 * 3 + 1 + 8
    assert sum(run.method == "neo" and not run.cached for run in found) == 3 + 8
    rates = {run.method: run.learning_rate for run in found}
    assert rates["neo"] == 10 * rates["full-kd"]


def test_rows_are_read_as_they_were_written_less_what_a_kill_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert measured(file) == {}
    first, second = (Run("neo", 40, 0, rank=16, alpha=0.1, seed=seed) for seed in (0, 1))
    append(file, first, RESULT)
    with file.open("a") as cut:
        cut.write('{"run": {"meth')
    assert measured(file) == {first: RESULT}
    append(file, second, RESULT)
    assert list(measured(file)) == [first, second]
    line = table(measured(file)).splitlines()[-1]
    assert line.startswith("| neo, rank 16, alpha 0.1 | 40 | 2 | 25.0 % (25.0 %, 25.0 %) |")


def test_rows_of_a_gpu_show_its_memory_and_seconds_by_the_clock() -> None:
    on_gpu = {**RESULT, "peak_device": 2.5e9, "seconds_per_step": 0.04}
    line = table({Run("full-kd", 140, 0, alpha=0.5): on_gpu}).splitlines()[-1]
    assert line.endswith("| 3.0 M | 2500 | 0.040 | 2.00 |")


def test_operations_are_counted_by_what_is_frozen_and_what_is_trained() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2))
            self.base_model[0].requires_grad_(False)

    model = Model()
    assert linear_weights(model) == (25, 10)
    assert training_operations(model, None) == 2 * (2 * 25 + 10)
    assert training_operations(model, Model()) == 2 * (25 + 2 * 25 + 10)
