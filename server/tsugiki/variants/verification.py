"""Whether a file may be served on the resident base, and what is known of it when it may not.

Owns the order of the checks: cheap ones first, the digest over all bytes and every value last.
Does not know names, nor the format itself (codecs/).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tsugiki.codecs import artifact
from tsugiki.codecs.coverage import check_coverage, coverage
from tsugiki.codecs.fit import check_base
from tsugiki.codecs.metadata import Header
from tsugiki.variants.version import BaseIdentity

BF16_BYTES = 2

Verify = Callable[[Path], Header]  # raises InvalidArtifact and its children


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """A file on disk and what its verification found: a header, or an error."""

    path: Path
    digest: str  # "" when it has none that can be trusted
    bytes: int
    modified: int  # unix seconds
    ratio: float  # see honest_ratio
    header: Header | None
    error: str | None


def verify_against(identity: BaseIdentity) -> Verify:
    """The full check of one file against a base: header, base, shapes, digest, every value, and
    how much of the base they change, which the returned header tells.

    The returned function raises:
        InvalidArtifact (WrongBase, CorruptArtifact): naming the value and the remedy.
    """

    def verify(path: Path) -> Header:
        fits(artifact.read_header(path), identity)
        content = artifact.read(path)
        found = coverage(content.modules)
        check_coverage(content.header.report, found)
        return replace(content.header, coverage=found)

    return verify


def fits(header: Header, identity: BaseIdentity) -> None:
    """Refuse a header that was made for another base or does not fit this one.

    Raises:
        WrongBase, InvalidArtifact.
    """
    check_base(header, identity.fingerprint, identity.layout, identity.accept_derived)


def passed(path: Path, header: Header, modified: int) -> CheckedFile:
    """A file that may be served."""
    ratio = honest_ratio(header)
    return CheckedFile(path, header.digest, header.file_bytes, modified, ratio, header, None)


def failed(path: Path, reason: str) -> CheckedFile:
    """A file that must not be served, with as much as can be said of it."""
    try:
        status = path.stat()
    except OSError:
        return missing(reason)
    return CheckedFile(path, "", status.st_size, int(status.st_mtime), 0.0, None, reason)


def missing(reason: str) -> CheckedFile:
    """The place of a file that is not there."""
    return CheckedFile(Path(), "", 0, 0, 0.0, None, reason)


def without_path(error: Exception, path: Path) -> str:
    """The message without the server's own path in front, which is nobody's business."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).removeprefix(f"{path}: ")


def honest_ratio(header: Header) -> float:
    """bf16 bytes of the parameters that the file really changes / bytes of the file; 0 while nobody
    has counted them."""
    changed = 0 if header.coverage is None else header.coverage.parameters
    return changed * BF16_BYTES / header.file_bytes
