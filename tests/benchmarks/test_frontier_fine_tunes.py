"""The frontier's own fine-tunes: what they learn from, and how training is called."""

import csv
import json
from pathlib import Path

import pytest

from benchmarks.frontier.fine_tunes import ANSWER, KINDS, OPENING, Effort, command, write_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A few lines of each data set as its authors publish it."""
    for folder in ("banking77", "gsm8k", "wikitext2"):
        (tmp_path / folder).mkdir()
    paragraph = " ".join(f"word{n}" for n in range(300))
    for split, wiki in (("train", "valid"), ("test", "test")):
        with (tmp_path / "banking77" / f"{split}.csv").open("w", newline="") as file:
            rows = [[f"Where is my card, {split} {n}?", "card_arrival"] for n in range(5)]
            csv.writer(file).writerows([["text", "category"], *rows])
        solved = [{"question": f"{split} {n}?", "answer": "#### 3"} for n in range(4)]
        text = "".join(json.dumps(line) + "\n" for line in solved)
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(text)
        article = f" = Title = \n \n {split} {paragraph} \n too short \n {paragraph} \n"
        (tmp_path / "wikitext2" / f"{wiki}.txt").write_text(article)
    return tmp_path


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_kind_writes_lines_whose_test_side_was_not_trained_on(kind: str, data: Path) -> None:
    written = write_data(kind, data, data)
    sides = {role: read(data / f"{kind}.{role}.jsonl") for role in ("train", "calibration", "test")}
    assert written == data / f"{kind}.train.jsonl"
    assert all(set(line) == {"prompt", "answer"} for lines in sides.values() for line in lines)
    assert all(line in sides["train"] for line in sides["calibration"])
    whole_prompts = [x["prompt"] for x in sides["train"] if not x["prompt"].startswith("Continue")]
    assert not set(whole_prompts) & {line["prompt"] for line in sides["test"]}


def test_articles_are_long_paragraphs_in_two_parts(data: Path) -> None:
    write_data("articles", data, data)
    lines = read(data / "articles.train.jsonl")
    assert len(lines) == 2
    assert all(len(line["prompt"].split()) == OPENING + 1 for line in lines)
    assert all(len(line["answer"].split()) == ANSWER for line in lines)


def test_a_mixture_holds_as_much_of_each_kind(data: Path) -> None:
    write_data("mixture", data, data)
    answers = [line["answer"] for line in read(data / "mixture.test.jsonl")]
    assert len(answers) == 6
    assert answers.count("card arrival") == answers.count("#### 3") == 2


def test_training_goes_on_where_it_was_and_trains_embeddings_where_the_kind_says(
    tmp_path: Path,
) -> None:
    calls = {kind: command(kind, tmp_path, tmp_path / "x", tmp_path, Effort(64)) for kind in KINDS}
    assert all("--resume" in call for call in calls.values())
    assert [kind for kind, call in calls.items() if "--embeddings" in call] == ["embeddings"]
