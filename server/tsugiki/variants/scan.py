"""From the directory to the records: once at the start, and for every later change of a file.

Owns: what a new, replaced, removed or broken file of the operator does to a name, and finishing
what a crash interrupted. Does not lock: the registry does. Does not know changes that are asked for
(registry.py).

An operator's file counts as an upload that activates: it is copied among the kept files, and the
copy is what is served, so that the operator may write over the file or remove it at any moment. One
that carries a probe and would take the place of a version that answers is tried first. At a start
nothing can be tried yet: such a file is left to the first look, and the version before it answers.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from tsugiki.errors import ProbeFailed, Unsupported
from tsugiki.variants.alias import OPERATORS_FILE, Alias, Stamp, StoredVersion
from tsugiki.variants.intake import Arrival, Intake
from tsugiki.variants.records import Records
from tsugiki.variants.store import CrashPoint
from tsugiki.variants.trial import TrialOf, Trials
from tsugiki.variants.watch import Change, Watch, signature_name, stamp_of, stamps

logger = logging.getLogger(__name__)

_UNKNOWN: Stamp = ()  # of a file that has to be looked at in any case


class Scan:
    """Brings the records of a directory up to date with its files."""

    def __init__(
        self, records: Records, intake: Intake, trials: Trials, crash_point: CrashPoint
    ) -> None:
        self._records = records
        self._store = records.store
        self._intake = intake
        self._trials = trials
        self._crash_point = crash_point
        self._watch = Watch()
        self.postponed = False  # whether the start left files to the first look

    def start(self) -> None:
        """Read everything, and finish or undo what a crash interrupted."""
        records = self._records
        deleted = self._read_records()
        records.files.update((digest, self._intake.kept(digest)) for digest in self._store.blobs())
        with _tidying():
            self._store.clean(records.now())
        for alias in deleted:
            self._finish_deletion(alias)
        for alias in list(records.aliases.values()):
            self._prepare(alias)
        found = stamps(self._store.root)
        for name in self._watch.different(found):
            stamp = found.get(name)
            arrival = self.arrival(name, stamp)
            if stamp is not None and arrival is not None and self.must_be_tried(name, arrival):
                self._watch.postpone(name, stamp)
                self._intake.discard(arrival)
                self.postponed = True
            else:
                self.apply(name, stamp, arrival)
        self._drop_orphans()
        records.publish()

    def changed(self) -> dict[str, Stamp | None]:
        """Files that changed and have been still since the last look, with their present state;
        None: the file is gone. Opens no file."""
        found = stamps(self._store.root)
        return {name: found.get(name) for name in self._watch.changed(found)}

    def arrival(
        self, name: str, stamp: Stamp | None, trial_of: TrialOf | None = None
    ) -> Arrival | None:
        """The file of a name, checked, and tried if it must be; a failed one when it must not be
        served. Takes as long as reading it: call this without the lock.

        Raises:
            TsugikiError: what left a trial undecided.
        """
        if stamp is None:
            return None
        arrival = self._intake.placed(name)
        if trial_of is None or not self.must_be_tried(name, arrival):
            return arrival
        try:
            self._trials.run(arrival.file, trial_of(name))
        except ProbeFailed as error:
            return self._intake.refused(name, arrival, str(error))
        except BaseException:
            self._intake.discard(arrival)
            raise
        return arrival

    def must_be_tried(self, name: str, arrival: Arrival) -> bool:
        """Whether a file brings a probe and would replace a version that can be served."""
        header, alias = arrival.file.header, self._records.alias(name)
        if header is None or header.probe is None or alias.active is None:
            return False
        known = (alias.active, alias.placed and alias.placed.digest)
        return header.digest not in known and self._records.is_good(alias.active)

    def apply(self, name: str, stamp: Stamp | None, arrival: Arrival | None) -> list[Change]:
        """Bring the record of a name up to date with its file, unless that changed since."""
        try:
            if self._stamp(name) != stamp:
                return []
            if stamp is None or arrival is None:
                changes = self._removed(name)
            elif arrival.file.header is None:
                changes = self._failed(name, arrival)
            else:
                changes = self._taken(name, stamp, arrival)
            self._watch.settle(name, stamp)
            return changes
        finally:
            if arrival is not None:
                self._intake.discard(arrival)

    def take_away(self, alias: Alias) -> None:
        """Remove the operator's file of a name or version that was deleted. A file with other
        content, placed since, stays and is found by the next look."""
        stamp = self._stamp(alias.name)
        if stamp is not None and self._is_of(alias, stamp):
            path = self._store.placed_path(alias.name)
            self._store.remove(path.with_name(signature_name(path.name)))
            self._store.remove(path)
            self._watch.settle(alias.name, None)
        self._crash_point("file taken away")

    def _read_records(self) -> list[Alias]:
        """Fills the records; returns those of unfinished deletions."""
        deleted = []
        for name, alias in self._store.aliases():
            if isinstance(alias, str):
                logger.error("variant %r: %s", name, alias)
                self._records.damaged[name] = alias
                self._watch.settle(name, self._stamp(name))  # only another file mends it
            elif alias.deleted:
                deleted.append(alias)
            else:
                self._records.aliases[name] = alias
        return deleted

    def _finish_deletion(self, alias: Alias) -> None:
        stamp = self._stamp(alias.name)
        with _tidying():
            self.take_away(alias)
            self._store.remove_alias(alias.name)
            self._crash_point("record removed")
            return
        self._watch.settle(alias.name, stamp)  # it cannot be removed, but it is not served

    def _prepare(self, alias: Alias) -> None:
        """Finish the deletion of a version; settle a file that is known already."""
        placed = alias.placed
        if placed is None:
            if OPERATORS_FILE in alias.activations:
                self._watch.settle(alias.name, _UNKNOWN)
        elif alias.version(placed.digest) is None:
            self._watch.settle(alias.name, placed.stamp)
            with _tidying():
                self.take_away(alias)
                self._records.save(replace(alias, placed=None))
        else:
            known = placed.stamp if self._records.is_good(placed.digest) else _UNKNOWN
            self._watch.settle(alias.name, known)

    def _drop_orphans(self) -> None:
        if self._records.damaged:
            return  # a damaged record may be the only one that names a file
        with _tidying():
            for digest in set(self._records.files) - self._records.named():
                self._records.drop(digest)

    def _is_of(self, alias: Alias, stamp: Stamp) -> bool:
        """Whether the operator's file is the one that was dealt with, or holds the same."""
        if stamp in (self._watch.settled(alias.name), alias.placed and alias.placed.stamp):
            return True
        arrival = self._intake.placed(alias.name)
        self._intake.discard(arrival)
        return alias.version(arrival.file.digest) is not None

    def _taken(self, name: str, stamp: Stamp, arrival: Arrival) -> list[Change]:
        records, digest = self._records, arrival.file.digest
        alias = records.alias(name)
        before = alias.placed.digest if alias.placed else None
        if before is not None and before != digest:
            records.leave_in_place(name, before)
        same = before == digest and records.is_good(digest)
        if not records.is_good(digest):
            records.keep(arrival.file)
        version = StoredVersion(digest, arrival.file.modified, "file", arrival.signature)
        takes_over = digest != before and OPERATORS_FILE not in alias.activations
        after = alias.with_placed(version, stamp, records.now(), takes_over=takes_over)
        records.save_if_writable(after)
        if records.unfit.pop(name, None) is None and same:
            return []
        return [Change(name, "added" if before is None else "changed", digest)]

    def _failed(self, name: str, arrival: Arrival) -> list[Change]:
        alias = self._records.aliases.get(name)
        if alias is not None and alias.placed:
            self._records.leave_in_place(name, alias.placed.digest)
        elif alias is not None and OPERATORS_FILE in alias.activations:
            self._records.save_if_writable(alias.without_placed(self._records.now()))
        self._records.unfit[name] = arrival.file
        return [Change(name, "failed", "", arrival.file.error)]

    def _removed(self, name: str) -> list[Change]:
        records = self._records
        unfit = records.unfit.pop(name, None)
        alias = records.alias(name)
        after = alias
        if alias.placed:
            records.leave_in_place(name, alias.placed.digest)
        if alias.placed or OPERATORS_FILE in alias.activations:
            after = alias.without_placed(records.now())
            records.save_if_writable(after)
        gone = [v.digest for v in alias.versions if after.version(v.digest) is None]
        if unfit is not None and not gone:
            gone = [""]
        return [Change(name, "removed", digest) for digest in gone]

    def _stamp(self, name: str) -> Stamp | None:
        return stamp_of(self._store.placed_path(name))


@contextmanager
def _tidying() -> Iterator[None]:
    """What cannot be tidied up stays: the directory is served as it is."""
    try:
        yield
    except Unsupported as error:
        logger.warning("leftovers stay, the directory is served as it is: %s", error)
