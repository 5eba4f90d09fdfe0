"""Which version of a name answers: activation, canary, rollback.

Owns those changes and the lock that every change of the directory takes. Every change is durable
before it is visible, and visible when the call returns. Does not know how versions come and go
(registry.py).
"""

import threading

from tsugiki.errors import Conflict, InvalidRequest
from tsugiki.variants.alias import Alias
from tsugiki.variants.reading import Reading
from tsugiki.variants.records import Records
from tsugiki.variants.trial import Trials
from tsugiki.variants.version import Version, split_model


class Choosing(Reading):
    """The part of a registry that decides who answers; safe from any thread."""

    def __init__(self, records: Records, trials: Trials) -> None:
        super().__init__(records, trials)
        self._lock = threading.Lock()

    def activate(self, name: str, digest: str) -> Version:
        """Make a known version (a digest or 12 hex of one) the one that the bare name means.

        Ends a canary, also when the version is active already.

        Raises:
            ModelNotFound, InvalidRequest, InvalidArtifact: as `resolve`.
        """
        with self._lock:
            version = self.resolve(f"{name}@{digest}")
            alias = self._records.alias(name)
            return self._change(alias.activated(version.digest, self._records.now()), version)

    def canary(self, name: str, digest: str, percent: float) -> Version:
        """Let a known version answer `percent` of the users, beside the active one; 0 ends that.

        Survives restarts. Ends by `activate` or a new activated upload, `rollback`, deletion.

        Raises:
            ModelNotFound, InvalidRequest, InvalidArtifact: as `resolve`; a percent beyond 0 to 100.
            Conflict: the version is the active one, or there is none to compare with.
        """
        if not 0 <= percent <= 100:
            raise InvalidRequest(f"percent is {percent}; it must be 0 to 100", param="percent")
        with self._lock:
            version = self._find(name, digest) if percent == 0 else self.resolve(f"{name}@{digest}")
            alias = self._records.alias(name)
            if percent == 0 and not version.canary_percent:
                return version
            if alias.active in (None, version.digest):
                reason = "it is the active version" if alias.active else "no version is active"
                raise Conflict(f"{name}@{version.digest} cannot be a canary: {reason}")
            after = alias.with_canary(version.digest, percent, self._records.now())
            return self._change(after, version)

    def rollback(self, name: str) -> Version:
        """Undo the last change of who answers: a canary ends, and the active version stays; without
        one, the version that was active before is so again. Returns the active version.

        Raises:
            ModelNotFound: no such name.
            Conflict: there was none before, or it can no longer be served.
        """
        with self._lock:
            after = self._rolled_back(name)
            return self._change(after, self._find(name, str(after.active)))

    def rollback_target(self, name: str) -> Version:
        """What `rollback` would make, or leave, the active version now.

        Raises:
            ModelNotFound, Conflict: as `rollback`.
        """
        with self._lock:
            return self._find(name, str(self._rolled_back(name).active))

    def _change(self, alias: Alias, version: Version) -> Version:
        """Make this the record; returns the version as it is then."""
        self._records.save(alias)
        self._records.publish()
        known = self._records.catalog.by_name.get(alias.name, ())
        return next((v for v in known if v.digest == version.digest), version)

    def _find(self, name: str, digest: str) -> Version:
        """A version, fit or failed, by a digest or 12 hex of one."""
        return self._records.catalog.find(*split_model(f"{name}@{digest}"))

    def _rolled_back(self, name: str) -> Alias:
        self._records.catalog.known(name)
        alias = self._records.alias(name)
        if alias.canary is None:
            self._require_earlier(alias)
        return alias.rolled_back(self._records.now())

    def _require_earlier(self, alias: Alias) -> None:
        reason: str | None = "there was none"
        if len(alias.activations) > 1:
            reason = self._find(alias.name, alias.activations[-2]).error
        if reason:
            raise Conflict(f"variant {alias.name!r} cannot return to an earlier version: {reason}")
