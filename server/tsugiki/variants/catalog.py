"""The immutable view of all versions that requests are resolved against.

Owns what a name means, given the records and the checked files. Pure: no disk, no lock.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tsugiki.errors import InvalidArtifact, InvalidRequest, ModelNotFound
from tsugiki.variants.alias import Alias, StoredVersion
from tsugiki.variants.canary import drawn
from tsugiki.variants.signature import Signers
from tsugiki.variants.verification import CheckedFile, missing
from tsugiki.variants.version import Version, split_model


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that is on disk."""

    aliases: Mapping[str, Alias]
    damaged: Mapping[str, str]  # name -> what is wrong with its record
    unfit: Mapping[str, CheckedFile]  # name -> the operator's file, which must not be served
    files: Mapping[str, CheckedFile]  # digest -> its file, fit or failed
    signers: Signers

    def file(self, version: StoredVersion) -> CheckedFile:
        """The file of a version; failed when it is gone or not signed as it must be."""
        digest = version.digest
        found = self.files.get(digest)
        if found is None:
            return missing(f"the file of {digest} is gone; upload it again")
        refusal = self.signers.refusal(digest, version.signature)
        if refusal and not found.error:
            return CheckedFile(found.path, digest, found.bytes, found.modified, 0.0, None, refusal)
        return found


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

    def find(self, name: str, prefix: str | None) -> Version:
        """The active version of a name, or the one whose digest begins so; fit or failed.

        Raises:
            ModelNotFound, InvalidRequest: as `resolve`.
        """
        known = self.known(name)
        matches = [v for v in known if (v.active if prefix is None else _has(v, prefix))]
        if len(matches) == 1:
            return matches[0]
        model = name if prefix is None else f"{name}@{prefix}"
        digests = ", ".join(v.digest for v in known if v.digest)
        if matches:
            raise InvalidRequest(f"{model!r} is ambiguous among {digests}", param="model")
        raise ModelNotFound(f"{model!r} is no version of {name!r}; it has: {digests or 'none'}")

    def resolve(self, model: str, user: str | None = None) -> Version:
        """See Registry.resolve."""
        name, prefix = split_model(model)
        found = None if prefix or not user else self._canary_for(name, user)
        found = found or self.find(name, prefix)
        if found.error:
            raise InvalidArtifact(f"variant {name!r} is not served: {found.error}")
        return found

    def _canary_for(self, name: str, user: str) -> Version | None:
        """The canary, when it can be served and this user is among its share."""
        for version in self.by_name.get(name, ()):
            if version.canary_percent and version.error is None:
                share = version.canary_percent
                return version if drawn(name, version.digest, user, share) else None
        return None


def build_catalog(holdings: Holdings) -> Catalog:
    """The catalog of what is on disk; names in order."""
    names = sorted({*holdings.aliases, *holdings.damaged, *holdings.unfit})
    by_name = {name: tuple(_versions_of(name, holdings)) for name in names}
    paths = {d: file.path for d, file in holdings.files.items() if file.header is not None}
    return Catalog({name: versions for name, versions in by_name.items() if versions}, paths)


def _versions_of(name: str, holdings: Holdings) -> Iterator[Version]:
    if name in holdings.damaged:
        yield _without_file(name, missing(holdings.damaged[name]), active=True)
        return
    alias = holdings.aliases.get(name) or Alias(name, (), ())
    for stored in sorted(alias.versions, key=lambda v: v.digest != alias.active):
        yield _version(alias, stored, holdings)
    if name in holdings.unfit:
        yield _without_file(name, holdings.unfit[name], active=alias.active is None)


def _version(alias: Alias, stored: StoredVersion, holdings: Holdings) -> Version:
    file, digest = holdings.file(stored), stored.digest
    canary = alias.canary
    return Version(
        name=alias.name,
        digest=digest,
        path=file.path,
        codec=file.header.codec if file.header else "",
        bytes=file.bytes,
        ratio=file.ratio,
        created=stored.created,
        active=digest == alias.active,
        error=file.error,
        header=file.header,
        canary_percent=canary.percent if canary and canary.digest == digest else 0.0,
        signed_by=holdings.signers.signer(digest, stored.signature),
    )


def _without_file(name: str, file: CheckedFile, *, active: bool) -> Version:
    """What is listed in place of a version that is not known."""
    return Version(
        name=name,
        digest="",
        path=file.path,
        codec="",
        bytes=file.bytes,
        ratio=0.0,
        created=file.modified,
        active=active,
        error=file.error,
        header=None,
    )


def _has(version: Version, prefix: str) -> bool:
    return version.digest.startswith(prefix)
