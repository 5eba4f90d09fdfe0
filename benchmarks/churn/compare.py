"""What several rounds say together: memory after one and after the next, waits with and without
changes. Pure."""

import random
from collections.abc import Sequence
from typing import Any

from benchmarks.churn.round import Round

RESAMPLES = 1000
Quantile = tuple[float, float, float]  # value and its 95 % bootstrap interval


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least a share q does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * q // 1).__int__() - 1)]


def growth(rounds: Sequence[Round]) -> dict[str, float] | None:
    """Memory after the last churn round over that after the one before, of one server process."""
    churned = [r for r in rounds if r.kind == "churn"]
    if len(churned) < 2 or churned[-1].pid != churned[-2].pid:
        return None
    before, after = churned[-2].memory, churned[-1].memory
    return {kind: after[kind] / before[kind] for kind in before}


def waits(rounds: Sequence[Round], q: float = 0.99) -> dict[str, Any] | None:
    """The q-quantile of the time to the first token with changes and without, and their ratio with
    its 95 % bootstrap interval; over the arrivals that a hot variant answered in every round."""
    churned = [r.ttft for r in rounds if r.kind == "churn"]
    calm = [r.ttft for r in rounds if r.kind == "calm"]
    if not churned or not calm:
        return None
    common = sorted(set.intersection(*(set(found) for found in (*churned, *calm))))

    def ratio(arrivals: Sequence[str]) -> tuple[float, float]:
        with_changes = quantile([found[a] for found in churned for a in arrivals], q)
        return with_changes, quantile([found[a] for found in calm for a in arrivals], q)

    if not common:
        return None
    draw = random.Random(0)
    samples = (ratio(draw.choices(common, k=len(common))) for _ in range(RESAMPLES))
    ratios = sorted(a / b for a, b in samples)
    churn_wait, calm_wait = ratio(common)
    return {
        "arrivals": len(common),
        "churn": churn_wait,
        "calm": calm_wait,
        "ratio": churn_wait / calm_wait,
        "interval": (ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES)]),
    }
