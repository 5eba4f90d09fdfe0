"""How the loader leaves processor and interpreter to the engine.

Owns: the pauses between the pieces of a load.

Whatever a loader thread does during a step may hold that step up: Python runs one thread at a time,
and the threads that compute a step together wait for the one whose core the loader has taken. A
step of S seconds during which a load works for w seconds lasts S + w at most. Two rules bound that:

- of any stretch of time, the loader rests REST seconds for each second of work, so that a step of
  length T has w = T / (1 + REST) in it and T = S (1 + 1 / REST) = STRETCH S at the very worst;
- it rests after a small part of a step each time. Work that was taken in one go would fall on one
  step, however long the rest after it. As steps differ by orders of magnitude between models and
  batches, the length of a piece follows the last step that was computed.

The worst does not come about: most of a load's work meets steps that wait for memory anyway. With
STRETCH at 1.5, 3 and 5 a load beside eight streams took 145, 82 and 68 ms, and the 99th percentile
of their inter-token times was 1.07, 1.06 .. 1.16 and 1.01 .. 1.14 of that without loads
(benchmarks.cold_start).
"""

import threading
import time
from collections.abc import Callable

STRETCH = 5.0  # how much longer a step may take beside a load, at the very worst
REST = 1 / (STRETCH - 1)  # seconds of rest for each second of work
PIECES = 4  # of work and rest to a step, at least


class Pace:
    """Called by a loader thread between two bits of a load; pauses when it is time to."""

    def __init__(
        self,
        busy: Callable[[], bool],
        step_seconds: Callable[[], float],
        *,
        sleep: Callable[[float], None] = time.sleep,
        worked: Callable[[], float] = time.thread_time,
    ) -> None:
        """`busy()` says whether the engine computes steps, `step_seconds()` how long the last one
        took; `worked()` gives the seconds of processor time of the calling thread. An engine
        without work costs a load nothing."""
        self._busy = busy
        self._step_seconds = step_seconds
        self._sleep = sleep
        self._worked = worked
        self._rested_at = threading.local()  # by thread: its processor time at the last rest

    def __call__(self) -> None:
        now = self._worked()
        piece = now - getattr(self._rested_at, "seconds", now)
        if self._busy():
            if piece < self._step_seconds() / ((1 + REST) * PIECES):
                self._rested_at.seconds = now - piece
                return
            self._sleep(REST * piece)
        self._rested_at.seconds = now
