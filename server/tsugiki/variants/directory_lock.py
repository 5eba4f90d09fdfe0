"""One writer per variants directory.

Owns the lock file: held while a server runs, freed by the kernel however the process ends.
Does not know what is protected.
"""

import fcntl
import os
import weakref
from pathlib import Path

from tsugiki.errors import ConfigError


class DirectoryLock:
    """The exclusive lock of a directory, from construction until `release`."""

    def __init__(self, file: Path, directory: Path) -> None:
        """Take the lock. `file` is made if need be and holds this process's id.

        Raises:
            ConfigError: another server has it; names the directory and that process.
            OSError: the file cannot be made, or this file system has no locks.
        """
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        self._close = weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(handle, 20, 0).decode(errors="replace").strip()
            self.release()
            if not isinstance(error, BlockingIOError):
                raise
            raise ConfigError(
                f"{directory} is in use by another server, process {owner or 'unknown'}; stop it, "
                "or give this one a directory of its own with --variants"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Free the directory; a second call does nothing."""
        self._close()
