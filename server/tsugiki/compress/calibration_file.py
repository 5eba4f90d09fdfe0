"""Which examples of the calibration file a job uses for what: never the same for two purposes.

Owns: the split between calibration and measurement, how long an example may be. Does not know: what
is computed from the examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tsugiki.compress.dialogues import Dialogue, examples_in, read_dialogues
from tsugiki.compress.job import CompressJob, OpenedBase
from tsugiki.compress.tokenizer_check import has_tokenizer, load_tokenizer
from tsugiki.errors import InvalidRequest

MAX_TOKENS = 512  # of one dialogue
MOST_MEASURED = 64  # dialogues


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """The file of a job that has one."""

    path: Path
    tokenizer_directory: Path
    longest: int  # tokens of a dialogue
    calibrating: int  # the first so many examples; of the rest, some measure

    @classmethod
    def of(cls, job: CompressJob, path: Path, base: OpenedBase) -> "CalibrationFile":
        """`path`: the job's calibration file.

        Raises:
            InvalidRequest: too few examples to set some aside for --max-kl.
        """
        directory = job.tuned if has_tokenizer(job.tuned) else job.base
        longest = min(MAX_TOKENS, base.architecture.max_position_embeddings)
        calibrating = job.calibration_examples
        if job.max_kl is not None:
            found = examples_in(path)
            if found < 2:
                raise InvalidRequest(
                    f"{path} holds {found} examples; --max-kl needs 2 or more, half to calibrate "
                    "with and half to measure on"
                )
            calibrating = min(calibrating, found // 2)
        return cls(path, directory, longest, calibrating)

    def to_calibrate(self) -> Iterator[Dialogue]:
        """What statistics are taken from.

        Raises:
            InvalidRequest: the file is unreadable or malformed.
        """
        return self._read(self.calibrating)

    def to_measure(self) -> Iterator[Dialogue]:
        """Examples beyond those, for KL.

        Raises:
            InvalidRequest: the file is unreadable or malformed.
        """
        # a dialogue that is all prompt is left out on both sides of the cut, so positions are not
        # those of the file: the two readings are told apart by what was read
        calibrated = sum(1 for _ in self.to_calibrate())
        everything = self._read(self.calibrating + MOST_MEASURED)
        return islice(everything, calibrated, None)

    def _read(self, limit: int) -> Iterator[Dialogue]:
        tokenizer = load_tokenizer(self.tokenizer_directory)
        return read_dialogues(self.path, tokenizer, limit=limit, max_tokens=self.longest)
