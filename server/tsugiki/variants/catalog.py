"""The immutable view of all versions that requests are resolved against.

Owns what a name means, given the records and the checked files. Pure: no disk, no lock.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tsugiki.errors import InvalidArtifact, InvalidRequest, ModelNotFound
from tsugiki.variants.store import Alias
from tsugiki.variants.verification import CheckedFile, missing
from tsugiki.variants.version import Version, split_model

FILE = "file"  # in Alias.activations: the operator's file of that name


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that is on disk."""

    aliases: Mapping[str, Alias]
    damaged: Mapping[str, str]  # name -> what is wrong with its record
    placed: Mapping[str, CheckedFile]  # name -> the operator's file
    blobs: Mapping[str, CheckedFile]  # digest -> uploaded file

    def alias(self, name: str) -> Alias:
        """The record of a name; without one, the operator's file is active."""
        return self.aliases.get(name) or Alias(
            name, activations=(FILE,) if name in self.placed else ()
        )

    def file(self, name: str, entry: str) -> CheckedFile:
        """The file of a digest, or of FILE, under a name; failed when it is gone."""
        if entry == FILE:
            found, what = self.placed.get(name), f"the file of {name!r}"
        else:
            found, what = self.blobs.get(entry), f"the file of {entry}"
        return found or missing(f"{what} is gone; upload it again")


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every version, by name, and the files of every servable digest."""

    by_name: Mapping[str, tuple[Version, ...]] = field(default_factory=dict)  # active one first
    paths: Mapping[str, Path] = field(default_factory=dict)

    def known(self, name: str) -> tuple[Version, ...]:
        """All versions of a name.

        Raises:
            ModelNotFound: there is none.
        """
        if name not in self.by_name:
            raise ModelNotFound(f"there is no model or variant {name!r}; GET /v1/models lists them")
        return self.by_name[name]

    def resolve(self, model: str) -> Version:
        """See Registry.resolve."""
        name, prefix = split_model(model)
        known = self.known(name)
        matches = [v for v in known if (v.active if prefix is None else _has(v, prefix))]
        if len(matches) != 1:
            digests = ", ".join(v.digest for v in known if v.digest)
            if matches:
                raise InvalidRequest(f"{model!r} is ambiguous among {digests}", param="model")
            raise ModelNotFound(f"{model!r} is no version of {name!r}; it has: {digests or 'none'}")
        if matches[0].error:
            raise InvalidArtifact(f"variant {name!r} is not served: {matches[0].error}")
        return matches[0]


def build_catalog(holdings: Holdings) -> Catalog:
    """The catalog of what is on disk; names in order."""
    names = sorted({*holdings.aliases, *holdings.damaged, *holdings.placed})
    by_name = {name: tuple(_versions_of(name, holdings)) for name in names}
    files = [*holdings.placed.values(), *holdings.blobs.values()]
    paths = {file.digest: file.path for file in files if file.header is not None}
    return Catalog({name: versions for name, versions in by_name.items() if versions}, paths)


def _versions_of(name: str, holdings: Holdings) -> Iterator[Version]:
    if name in holdings.damaged:
        yield _version(name, missing(holdings.damaged[name]), True, FILE, 0)
        return
    alias = holdings.alias(name)
    active = alias.activations[-1] if alias.activations else ""
    entries = {stored.digest: stored.created for stored in alias.versions}
    placed = holdings.placed.get(name)
    if placed is not None and (active == FILE or placed.digest not in entries):
        entries = {FILE: placed.modified} | entries
        entries.pop(placed.digest, None)  # the same content was uploaded too: one version
    if active:
        entries.setdefault(active, 0)  # a file that is gone is shown, and refused, as failed
    for entry in sorted(entries, key=lambda entry: entry != active):
        yield _version(name, holdings.file(name, entry), entry == active, entry, entries[entry])


def _version(name: str, file: CheckedFile, active: bool, entry: str, created: int) -> Version:
    header = file.header
    return Version(
        name=name,
        digest=file.digest or ("" if entry == FILE else entry),
        path=file.path,
        codec=header.codec if header else "",
        bytes=file.bytes,
        ratio=file.ratio,
        created=created,
        active=active,
        error=file.error,
        header=header,
    )


def _has(version: Version, prefix: str) -> bool:
    return version.digest.startswith(prefix)
