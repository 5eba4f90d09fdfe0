"""All that is known of one directory: records of names, checked files, and the view of both.

Owns the order of every change: on disk first, then in memory, then visible (`publish`).
Does not lock: the registry does. Does not know why something changes.
"""

import time
from dataclasses import replace
from pathlib import Path

from tsugiki.errors import StorageFull, Unsupported
from tsugiki.variants.alias import Alias
from tsugiki.variants.catalog import Catalog, Holdings, build_catalog
from tsugiki.variants.signature import Signers
from tsugiki.variants.store import Store
from tsugiki.variants.verification import CheckedFile


class Records:
    """The state of a directory. Reading `catalog` is safe from any thread."""

    def __init__(self, store: Store, signers: Signers) -> None:
        self.store = store
        self.aliases: dict[str, Alias] = {}
        self.damaged: dict[str, str] = {}
        self.unfit: dict[str, CheckedFile] = {}
        self.files: dict[str, CheckedFile] = {}
        self.catalog = Catalog()
        self._signers = signers

    def now(self) -> int:
        """Unix seconds."""
        return int(time.time())

    def alias(self, name: str) -> Alias:
        """The record of a name; an empty one for a new name, or in place of a damaged one."""
        return self.aliases.get(name) or Alias(name, (), ())

    def save(self, alias: Alias) -> None:
        """Make this the record of its name. One without versions is forgotten."""
        name = alias.name
        if not alias.versions:
            self.forget(name)
        elif alias != self.aliases.get(name) or name in self.damaged:
            self.store.save_alias(alias)
            self._remember(alias)

    def save_if_writable(self, alias: Alias) -> None:
        """As `save`; what cannot be written counts until the next start, which finds it again."""
        try:
            self.save(alias)
        except (StorageFull, Unsupported):
            self._remember(alias)

    def forget(self, name: str) -> None:
        """Remove the record of a name."""
        if name in self.aliases or name in self.damaged:
            self.store.remove_alias(name)
        self.aliases.pop(name, None)
        self.damaged.pop(name, None)

    def keep(self, file: CheckedFile) -> None:
        """Move a checked upload among the files that are served; one of the operator's that could
        not be copied is served where it lies."""
        path = file.path
        if path.parent == self.store.uploads_path:
            path = self.store.add_blob(path, file.digest)
        self.files[file.digest] = replace(file, path=path)

    def is_good(self, digest: str) -> bool:
        """Whether the file of this digest is here and was found in order."""
        return digest in self.files and self.files[digest].header is not None

    def named(self) -> set[str]:
        """Digests that some name has."""
        return {v.digest for alias in self.aliases.values() for v in alias.versions}

    def drop(self, digest: str) -> int:
        """Remove a kept file; returns the bytes freed."""
        file = self.files.pop(digest)
        self.publish()
        if file.path != self.store.blob_path(digest):
            return 0  # served where the operator put it
        self.store.remove(file.path)
        return file.bytes

    def leave_in_place(self, name: str, digest: str) -> None:
        """The operator's file of `name`, served where it lay, no longer holds this digest."""
        file = self.files.get(digest)
        if file is None or file.path != self.store.placed_path(name):
            return
        del self.files[digest]
        if place := self._other_place(name, digest):
            self.files[digest] = replace(file, path=place)

    def publish(self) -> None:
        """Let readers see the present state."""
        holdings = Holdings(self.aliases, self.damaged, self.unfit, self.files, self._signers)
        self.catalog = build_catalog(holdings)

    def _remember(self, alias: Alias) -> None:
        self.damaged.pop(alias.name, None)
        if alias.versions:
            self.aliases[alias.name] = alias
        else:
            self.aliases.pop(alias.name, None)

    def _other_place(self, name: str, digest: str) -> Path | None:
        for alias in self.aliases.values():
            if alias.name != name and alias.placed and alias.placed.digest == digest:
                return self.store.placed_path(alias.name)
        return None
