"""The engine thread: takes commands, runs steps, hands events to the event loop.

Owns: the thread, its command queue and its death. All of a step's events cross to the event loop in
one call. Does not know what the commands do.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from tsugiki.engine.core import EngineCore
from tsugiki.engine.step_event import StepEvent
from tsugiki.errors import Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")
Command = Callable[[EngineCore], None]
Commands = SimpleQueue[Command | None]  # None ends the thread
Deliver = Callable[[list[StepEvent]], None]
OnEnd = Callable[[str], None]  # why the thread ended

# How long requests that all wait for something (a load, room) are left before they are asked again.
IDLE_SECONDS = 0.01


def wake(core: EngineCore) -> None:
    """The command that only makes the thread look around."""


class EngineThread:
    """Runs an EngineCore until told to stop, or until something raises that no step contains."""

    def __init__(self, core: EngineCore, commands: Commands) -> None:
        self._core = core
        self._commands = commands
        self._thread = threading.Thread(target=self._run, name="tsugiki-engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._deliver: Deliver
        self._on_end: OnEnd
        self._calls: set[asyncio.Future[Any]] = set()
        self._ended = False  # on the event loop, so that no call is put after the last look

    def start(self, deliver: Deliver, on_end: OnEnd) -> None:
        """Begin. Events go to `deliver`, and the end to `on_end`, on the running event loop."""
        self._loop, self._deliver, self._on_end = asyncio.get_running_loop(), deliver, on_end
        self._thread.start()

    def alive(self) -> bool:
        """Started and neither stopped nor dead."""
        return self._thread.is_alive() and not self._ended

    def put(self, command: Command | None) -> None:
        """Have a command executed between two steps; None ends the thread. From any thread."""
        self._commands.put(command)

    async def call(self, function: Callable[[EngineCore], T]) -> T:
        """The result of a function that runs on the engine thread between two steps.

        Raises:
            Unavailable: the engine is not running. Whatever `function` raises.
        """
        result: asyncio.Future[T] = self._loop.create_future()

        def command(core: EngineCore) -> None:
            try:
                value = function(core)
            except Exception as error:  # it belongs to the caller, who awaits it
                self._loop.call_soon_threadsafe(_fail, result, error)
            else:
                self._loop.call_soon_threadsafe(_resolve, result, value)

        return await self.answered(result, command)

    async def answered(self, result: "asyncio.Future[T]", command: Command) -> T:
        """Put a command that will resolve `result`, and wait for that.

        Raises:
            Unavailable: the engine is not running, or ends before.
        """
        if not self.alive():
            raise Unavailable("the engine is not running")
        self._calls.add(result)
        result.add_done_callback(self._calls.discard)
        self.put(command)
        return await result

    def join(self, timeout: float) -> None:
        """Wait for the end."""
        self._thread.join(timeout)

    def _run(self) -> None:
        reason = "the engine was stopped"
        try:
            while self._take_commands():
                self._send(self._core.step())
        except BaseException as error:
            # Nothing above this frame could act on it: the death itself is what is reported.
            logger.critical("the engine died", exc_info=True)
            reason = f"the engine died: {type(error).__name__}: {error}"
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._finish, reason)

    def _finish(self, reason: str) -> None:
        self._ended = True
        for result in list(self._calls):
            _fail(result, Unavailable(reason))
        self._on_end(reason)

    def _take_commands(self) -> bool:
        """Execute what is queued, waiting for a command when there is nothing to compute."""
        block, timeout = self._patience()
        try:
            while (command := self._commands.get(block, timeout)) is not None:
                command(self._core)
                block, timeout = False, None
        except Empty:
            return True
        return False

    def _patience(self) -> tuple[bool, float | None]:
        scheduler = self._core.scheduler
        if not len(scheduler):
            return True, None
        return (False, None) if scheduler.running else (True, IDLE_SECONDS)

    def _send(self, events: list[StepEvent]) -> None:
        if events:
            self._loop.call_soon_threadsafe(self._deliver, events)


def _resolve(result: "asyncio.Future[T]", value: T) -> None:
    if not result.done():
        result.set_result(value)


def _fail(result: "asyncio.Future[T]", error: Exception) -> None:
    if not result.done():
        result.set_exception(error)
