"""The tables of a run, its JSON, and whether it was as it must be."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.churn.compare import growth, quantile, waits
from benchmarks.churn.known import Known, distinct_share
from benchmarks.churn.plan import Settings
from benchmarks.churn.round import Round
from benchmarks.results import save

MOST_GROWTH, MOST_WAIT = 1.01, 2.0
HEAD = (
    f"{'round':<8}{'answered':>9}{'404':>5}{'429':>5}{'left':>6}{'lost':>6}{'wrong':>7}"
    f"{'changes':>9}{'hot TTFT p50':>14}{'p99 ms':>8}{'cold p50':>10}{'RSS MB':>9}{'anon MB':>9}"
    f"{'fit':>5}{'late s':>8}"
)


def row(found: Round) -> str:
    """One line of the table."""
    hot, requests = list(found.ttft.values()) or [0.0], found.requests
    cold = found.cold_ttft or [0.0]
    return (
        f"{found.kind:<8}{requests.get('answered', 0):>9}{requests.get('not-found', 0):>5}"
        f"{requests.get('overloaded', 0):>5}{requests.get('left', 0):>6}{len(found.lost):>6}"
        f"{len(found.wrong):>7}{sum(found.operations['done'].values()):>9}"
        f"{1000 * quantile(hot, 0.5):>14.0f}{1000 * quantile(hot, 0.99):>8.0f}"
        f"{1000 * quantile(cold, 0.5):>10.0f}{found.memory['rss'] / 1e6:>9.0f}"
        f"{found.memory['anonymous'] / 1e6:>9.0f}{found.resident_variants:>5}{found.late:>8.1f}"
    )


def report(
    rounds: Sequence[Round], settings: Settings, known: Known, budgets: Mapping[str, int]
) -> int:
    """Print what the rounds say together and save it; 1 when something is not as it must be."""
    print("\n" + HEAD + "\n" + "\n".join(map(row, rounds)))
    problems = [p for r in rounds for p in (*r.wrong, *r.lost, *r.operations["surprises"])]
    for problem in problems[:20]:
        print("  " + problem)
    grown, waited = growth(rounds), waits(rounds)
    print(f"operations: {rounds[-1].operations['done']}")
    print(f"memory after the last churn round / the one before: {shown(grown)}")
    print(f"TTFT p99 of hot variants, churn / calm: {shown(waited)}")
    pairs, request = distinct_share(known.of((*settings.names, *settings.spares)))
    save(
        "churn",
        {
            "variants": len(settings.names),
            "spare_versions": len(settings.spares),
            "pairs_distinct": pairs,
            "told_apart_by_one_request": request,
            "budgets": budgets,
            "rate": settings.rate,
            "seconds": settings.seconds,
            "memory_growth": grown,
            "ttft_p99": waited,
            "rounds": [brief(r) for r in rounds],
        },
    )
    too_large = grown is not None and grown["rss"] > MOST_GROWTH
    too_slow = waited is not None and waited["ratio"] > MOST_WAIT
    return int(bool(problems) or too_large or too_slow)


def brief(found: Round) -> dict[str, Any]:
    """A round for the results: quantiles instead of every wait."""
    content = asdict(found)
    for name, values in (("ttft", list(found.ttft.values())), ("cold_ttft", found.cold_ttft)):
        content[name] = {f"p{q:g}": quantile(values, q / 100) for q in (50, 95, 99) if values}
    return content


def shown(values: dict[str, Any] | None) -> str:
    """A small table on one line."""
    if values is None:
        return "not measured (it needs two rounds of one server)"
    texts = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in values.items()}
    return "  ".join(f"{key} {text}" for key, text in texts.items())
