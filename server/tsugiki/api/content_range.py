"""The header Content-Range of a resumable upload (RFC 9110, section 14.4).

Owns: its two forms. Does not know uploads.
"""

import re
from dataclasses import dataclass

from tsugiki.errors import InvalidRequest

_FORM = re.compile(r"bytes (?:(\d{1,15})-(\d{1,15})|\*)/(\d{1,15})")


@dataclass(frozen=True, slots=True)
class ContentRange:
    """`bytes START-END/TOTAL`, or `bytes */TOTAL`: nothing is sent, only asked how far it is."""

    total: int
    start: int | None = None
    end: int = -1  # the last byte, counted in

    @property
    def length(self) -> int:
        """Bytes that the body should have."""
        return 0 if self.start is None else self.end - self.start + 1


def parse_content_range(header: str) -> ContentRange:
    """Either form.

    Raises:
        InvalidRequest: neither, or a range that is none.
    """
    match = _FORM.fullmatch(header.strip())
    if match is None:
        raise InvalidRequest(
            f"Content-Range: {header!r} is neither 'bytes START-END/TOTAL' nor 'bytes */TOTAL'",
            param="Content-Range",
        )
    total = int(match[3])
    asked = ContentRange(total)
    if match[1] is not None:
        asked = ContentRange(total, int(match[1]), int(match[2]))
    if not total or (asked.start is not None and not asked.start <= asked.end < total):
        raise InvalidRequest(
            f"Content-Range: {header!r} is no part of a file; END is the last byte, below TOTAL",
            param="Content-Range",
        )
    return asked
