"""A cached teacher answers as the teacher in memory does, and is asked once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.progress import Progress
from tsugiki.distill import teacher_cache
from tsugiki.distill.batches import Batch
from tsugiki.distill.teacher import LiveTeacher, Teacher, View
from tsugiki.distill.teacher_cache import TeacherCache
from tsugiki.errors import ConfigError

QUIET = Progress(quiet=True)
WHO = {"teacher": "sha256:a", "top_k": 6}


@pytest.fixture(scope="module")
def teacher(tiny_tuned: Path) -> LiveTeacher:
    return LiveTeacher(load_model(tiny_tuned), View(512, 6, 2.0))


def nobody() -> Teacher:
    raise AssertionError("the teacher was loaded, though every part is there")


def test_the_file_says_what_the_teacher_says(
    teacher: LiveTeacher, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    cache = TeacherCache(tmp_path / "cache", [*dialogues, dialogues[0]], WHO)
    cache.fill(lambda: teacher, 3, QUIET)
    batch = Batch((dialogues[4], dialogues[0]), 3)
    found, expected = cache.open().target(batch), teacher.target(batch)
    assert found.indices is not None
    assert expected.indices is not None
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.log_probs, expected.log_probs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.log_probs.exp().sum(-1), torch.ones(batch.answer_tokens))


def test_an_interrupted_fill_goes_on_and_a_whole_one_needs_no_teacher(
    teacher: LiveTeacher,
    dialogues: list[Dialogue],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(teacher_cache, "PART", 4)
    cache = TeacherCache(tmp_path, dialogues, WHO)
    cache.fill(lambda: teacher, 0, QUIET)
    first = tmp_path / "part-00000.safetensors"
    assert len(list(tmp_path.glob("part-*"))) == 3
    written = first.stat().st_mtime_ns
    (tmp_path / "part-00002.safetensors").unlink()
    cache.fill(lambda: teacher, 0, QUIET)
    assert first.stat().st_mtime_ns == written
    cache.fill(nobody, 0, QUIET)
    assert cache.open().target(Batch(tuple(dialogues))).log_probs.shape[1] == 7


def test_expectations_of_another_teacher_or_other_data_are_refused(
    teacher: LiveTeacher, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    TeacherCache(tmp_path, dialogues, WHO).fill(lambda: teacher, 0, QUIET)
    other: list[tuple[Callable[[], TeacherCache], str]] = [
        (lambda: TeacherCache(tmp_path, dialogues, {**WHO, "teacher": "sha256:b"}), "sha256:b"),
        (lambda: TeacherCache(tmp_path, dialogues[1:], WHO), "dialogues"),
    ]
    for make, named in other:
        with pytest.raises(ConfigError, match=f"{named}.*name another directory"):
            make().fill(nobody, 0, QUIET)


def test_a_teacher_without_top_k_fills_no_cache(
    tiny_tuned: Path, dialogues: list[Dialogue], tmp_path: Path
) -> None:
    whole = LiveTeacher(load_model(tiny_tuned), View(512))
    with pytest.raises(ConfigError, match="give --top-k"):
        TeacherCache(tmp_path, dialogues, WHO).fill(lambda: whole, 0, QUIET)
