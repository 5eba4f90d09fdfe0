"""Uploads that are verified but not kept yet: they can be loaded and asked, out of sight.

Owns: where their files lie meanwhile. Does not know what is asked of them.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from tsugiki.codecs.metadata import Header
from tsugiki.variants.verification import CheckedFile

Trial = Callable[[Header], None]  # whatever it raises refuses the upload
TrialOf = Callable[[str], Trial]  # of a file that is to become a version of this name


class Trials:
    """Files on trial, by digest. Safe to call from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, list[Path]] = {}  # of one digest there may be several

    def path(self, digest: str) -> Path | None:
        """An upload of this digest, while it is on trial."""
        with self._lock:
            return next(iter(self._paths.get(digest, ())), None)

    def run(self, file: CheckedFile, trial: Trial | None) -> None:
        """Hold the trial of a verified file. Raises whatever it raises."""
        if trial is None or file.header is None:
            return
        with self._lock:
            self._paths.setdefault(file.digest, []).append(file.path)
        try:
            trial(file.header)
        finally:
            with self._lock:
                self._paths[file.digest].remove(file.path)
                if not self._paths[file.digest]:
                    del self._paths[file.digest]
