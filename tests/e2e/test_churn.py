"""Traffic on a real server while its variants are uploaded, replaced, rolled back and deleted: a
short run of `python -m benchmarks.churn` on the tiny base, with memory for two of six variants."""

import asyncio
from pathlib import Path

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.churn.__main__ import with_routes_of
from benchmarks.churn.answers import collect
from benchmarks.churn.check import judge
from benchmarks.churn.known import Known, chosen, distinct_share
from benchmarks.churn.ledger import Ledger
from benchmarks.churn.plan import Settings, make_plan
from benchmarks.churn.round import Played, Target, connection, play
from benchmarks.churn.variants import make, mixtures
from benchmarks.server import server_process
from tests.conftest import TinyFactory, save_tokenizer, tiny_llama_config
from tsugiki.compress.job import open_base

NAMES, SPARES = 6, 3
QUESTIONS = (
    ("What is the capital of France?", ""),
    ("How many apples?", "Sam"),
    ("A server", "."),
    ("Once upon a time", ""),
    ("The weather", "rain"),
    ("Two and three", "five"),
)
FITS_TWO = 8_500  # bytes
SECONDS, RATE = 3.0, 30.0


@pytest.fixture(scope="module")
def sure_base(tiny_model_factory: TinyFactory) -> Path:
    """Weights so large that the logits are far apart, as those of a trained model."""
    return tiny_model_factory(tiny_llama_config(initializer_range=0.5), seed=4)


@pytest.fixture(scope="module")
def files(sure_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Mixtures of three fine-tunes that speak differently."""
    folder = tmp_path_factory.mktemp("churn")
    tuned = []
    for seed in range(3):
        model = AutoModelForCausalLM.from_pretrained(sure_base, dtype=torch.float32)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "embed_tokens" not in name:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        tuned.append(folder / f"tuned-{seed}")
        model.save_pretrained(tuned[-1])
        save_tokenizer(tuned[-1])
    wanted = mixtures(NAMES + SPARES, len(tuned), fresh_seeds=0.3)
    return list(make(open_base(sure_base), tuned, folder / "variants", wanted))


async def churn(url: str, pid: int, files: list[Path]) -> tuple[Played, Known, Ledger, int]:
    """Known answers first, then the round; the spare files are on disk, not on the server."""
    folder = files[0].parent
    known = await collect(url, files, folder / "answers.json", "float32", QUESTIONS)
    stems = [file.stem for file in files]
    settings = Settings(
        names=tuple(stems[:NAMES]),
        spares=tuple(stems[NAMES:]),
        seconds=SECONDS,
        rate=RATE,
        questions=chosen(known.of(stems)),
        every=0.12,
        gap=0.2,
        touched=NAMES,
    )
    target = Target(url, pid, folder, known, clients=8)
    plan = make_plan(with_routes_of(url, settings))
    ledger = Ledger.of({name: known.digests[name] for name in settings.names})
    async with connection(target) as http:
        for spare in settings.spares:
            (await http.delete(f"/v1/variants/{spare}")).raise_for_status()
        return await play(http, plan, target, ledger), known, ledger, len(plan.arrivals)


def test_no_answer_is_wrong_or_lost_while_variants_come_and_go(
    sure_base: Path, files: list[Path], tmp_path: Path
) -> None:
    served = tmp_path / "variants"
    served.mkdir()
    for file in files:
        (served / file.name).write_bytes(file.read_bytes())
    flags = ["--dtype", "float32", "--kv-memory", "16MiB", "--variant-memory", str(FITS_TWO)]
    with server_process(sure_base, served, tmp_path / "log", flags) as (url, pid):
        played, known, ledger, planned = asyncio.run(churn(url, pid, files))
        listed = httpx.get(f"{url}/v1/variants").json()["data"]
    verdict = judge(played.outcomes, ledger.history, known.kept, planned)
    assert (verdict.wrong, verdict.lost, played.report.surprises) == ([], [], [])
    assert verdict.counts["answered"] > planned / 2
    assert verdict.compared_tokens > planned
    assert distinct_share(known.of(known.digests))[0] >= 0.95
    assert {"put", "rollback", "delete", "put-broken", "put-abandoned", "delete-version"} <= set(
        played.report.done
    )
    by_digest = [outcome for outcome in played.outcomes if outcome.version is not None]
    assert any(outcome.end == "answered" for outcome in by_digest)
    assert any(outcome.end == "left" for outcome in played.outcomes)
    assert any(outcome.load_ms is not None for outcome in played.outcomes)
    assert played.resident[0] <= 2  # none, when the last change deleted both
    assert played.resident[1] <= FITS_TWO
    digests = {name: known.digests[name] for name in ledger.names if ledger.names[name].versions}
    assert {version["name"]: version["digest"] for version in listed} == digests
