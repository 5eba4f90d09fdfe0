"""A summary as a table for people and as JSON for programs.

Owns: layout alone.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsugiki import __version__
from tsugiki.bench.statistics import PERCENTILES, Distribution, Goodput, Slo, Summary

_COLUMNS = ("mean", *(f"p{percent}" for percent in PERCENTILES))


def table(summary: Summary) -> str:
    """Several lines, without a newline at the end."""
    lines = [
        f"requests     {summary.complete} complete, {summary.failed} failed, {summary.left} left; "
        f"{summary.seconds:.2f} s",
        f"throughput   {summary.requests_per_second:.2f} requests/s, "
        f"{summary.tokens_per_second:.1f} tokens/s generated, "
        f"{summary.prompt_tokens_per_second:.1f} tokens/s of prompts "
        f"({summary.cached_tokens} tokens out of the prefix cache)",
        "ms".ljust(24) + "".join(f"{name:>10}" for name in _COLUMNS),
        *_row("time to first token", summary.ttft),
        *_row("inter-token", summary.itl),
        *_row("per token of a request", summary.tpot),
        *_row("end to end", summary.latency),
        *_row("sent late", summary.late),
    ]
    if summary.goodput is not None:
        lines.append(_goodput(summary.goodput))
    lines += [f"error        {count} x {kind}" for kind, count in summary.errors.items()]
    lines.append(
        f"client       {summary.client_core:.1%} of a core, "
        f"{summary.client_token_us:.0f} us a generated token"
    )
    return "\n".join(lines)


def write_json(path: Path, options: Mapping[str, Any], summary: Summary) -> None:
    """One object: options, client, summary.

    Raises:
        OSError: the file cannot be written.
    """
    record = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": dict(options),
        "client": {
            "tsugiki": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "summary": asdict(summary),
    }
    path.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def _row(title: str, values: Distribution | None) -> list[str]:
    if values is None:
        return []
    cells = (getattr(values, name) for name in _COLUMNS)
    return [title.ljust(24) + "".join(f"{cell:>10.1f}" for cell in cells)]


def _goodput(goodput: Goodput) -> str:
    return (
        f"goodput      {goodput.requests_per_second:.2f} requests/s, {goodput.share:.1%} "
        f"of the requests within {_bounds(goodput.slo)}"
    )


def _bounds(slo: Slo) -> str:
    bounds = (("time to first token", slo.ttft_ms), ("inter-token", slo.itl_ms))
    return " and ".join(f"{name} {bound:g} ms" for name, bound in bounds if bound is not None)
