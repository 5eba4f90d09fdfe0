"""Uploads that are verified but not kept yet: they can be loaded and asked, out of sight.

Owns: where their files lie meanwhile. Does not know what is asked of them.
"""

from collections.abc import Callable
from pathlib import Path

from tsugiki.codecs.metadata import Header
from tsugiki.variants.verification import CheckedFile

Trial = Callable[[Header], None]  # whatever it raises refuses the upload


class Trials:
    """Files on trial, by digest. Safe to call from any thread."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}

    def path(self, digest: str) -> Path | None:
        """The upload of this digest, while it is on trial."""
        return self._paths.get(digest)

    def run(self, file: CheckedFile, trial: Trial | None) -> None:
        """Hold the trial of a verified file. Raises whatever it raises."""
        if trial is None or file.header is None:
            return
        self._paths[file.digest] = file.path
        try:
            trial(file.header)
        finally:
            self._paths.pop(file.digest, None)
