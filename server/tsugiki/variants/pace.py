"""How the loader leaves the interpreter to the engine.

Owns: the pauses between the pieces of a load. Python runs one thread at a time, and a load of a
hundred linears is some 20 ms of Python that hashing and copying, which release the interpreter,
do not shorten. Taken in one go it would double a decode step; taken in pieces, with rests between
them that are longer than the pieces, several steps bear a part each and the load takes longer.
"""

import threading
import time
from collections.abc import Callable

REST = 2.0  # seconds of rest for each second of work, while the engine computes


class Pace:
    """Called by a loader thread between two pieces of a load."""

    def __init__(
        self,
        busy: Callable[[], bool],
        *,
        sleep: Callable[[float], None] = time.sleep,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        """`busy()` says whether the engine computes steps; `worked()` gives the seconds of
        processor time of the calling thread. An engine without work costs a load nothing."""
        self._busy = busy
        self._sleep = sleep
        self._worked = worked
        self._last = threading.local()  # by thread: processor time at the end of the last call

    def __call__(self) -> None:
        now = self._worked()
        piece = now - getattr(self._last, "seconds", now)
        self._last.seconds = now
        if self._busy():
            self._sleep(REST * piece)
