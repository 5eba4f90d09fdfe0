"""What changed in the operator's directory since the last look.

Owns: telling one state of a file from another without reading it, and patience with files that are
still being copied. Does not know what is in them (intake.py).
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tsugiki.variants.alias import Stamp

SUFFIX = ".safetensors"
SIGNATURE_SUFFIX = ".sig"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that a look at the operator's directory led to."""

    name: str
    kind: Literal["added", "changed", "removed", "failed"]
    digest: str  # "removed": the one that is gone; "failed": ""
    error: str | None = None  # why a file is not served


def stamps(root: Path) -> dict[str, Stamp]:
    """The state of every NAME.safetensors, and of its NAME.sig, by NAME; reads no file."""
    with os.scandir(root) as entries:
        found = {entry.name: entry for entry in entries if not entry.name.startswith(".")}
    return {
        name.removesuffix(SUFFIX): _stamp(entry)
        + (_stamp(found[sidecar]) if (sidecar := signature_name(name)) in found else ())
        for name, entry in found.items()
        if name.endswith(SUFFIX)
    }


def stamp_of(path: Path) -> Stamp | None:
    """The same of one file; None when there is none."""
    if not os.path.lexists(path):
        return None
    sidecar = path.with_name(signature_name(path.name))
    return _stamp(path) + (_stamp(sidecar) if os.path.lexists(sidecar) else ())


def signature_name(file_name: str) -> str:
    """NAME.sig of NAME.safetensors."""
    return file_name.removesuffix(SUFFIX) + SIGNATURE_SUFFIX


def _stamp(entry: "os.DirEntry[str] | Path") -> Stamp:
    try:
        status = entry.stat()
    except OSError:  # a dangling link, a circle of links, or removed since it was listed
        return (0, 0, 0, 0)
    # ctime too: it moves also when a copy gives the file its old mtime
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Watch:
    """Remembers which state of each file was dealt with."""

    def __init__(self) -> None:
        self._settled: dict[str, Stamp] = {}
        self._last: dict[str, Stamp] = {}

    def settle(self, name: str, stamp: Stamp | None) -> None:
        """This state is dealt with; None: there is no file."""
        for known in (self._settled, self._last):
            if stamp is None:
                known.pop(name, None)
            else:
                known[name] = stamp

    def postpone(self, name: str, stamp: Stamp) -> None:
        """This state is for the next look to deal with: it is not new then."""
        self._last[name] = stamp

    def settled(self, name: str) -> Stamp | None:
        """The state that was dealt with."""
        return self._settled.get(name)

    def different(self, now: Mapping[str, Stamp]) -> list[str]:
        """Names whose file is not as it was dealt with."""
        names = {*now, *self._settled}
        return sorted(name for name in names if now.get(name) != self._settled.get(name))

    def changed(self, now: Mapping[str, Stamp]) -> list[str]:
        """Of these, those whose file is as it was at the last look.

        A file that is still being copied differs from look to look, and is left for a later one.
        """
        last, self._last = self._last, dict(now)
        return [name for name in self.different(now) if now.get(name) == last.get(name)]
