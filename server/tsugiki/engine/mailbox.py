"""Items for one reader on the event loop, who takes all that are there at once.

Owns: `Mailbox`. Does not know what the items are.
"""

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """A queue of which one coroutine waits for the first item and gets all of them."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._arrival: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        """Add an item; wakes the reader once, however many follow before it runs."""
        self._items.append(item)
        self.interrupt()

    def interrupt(self) -> None:
        """Let `arrival` return although nothing may have arrived."""
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def __bool__(self) -> bool:
        return bool(self._items)

    async def arrival(self) -> None:
        """Wait until there is an item, or until `interrupt`."""
        if not self._items:
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival

    async def take(self) -> list[T]:
        """All items, oldest first; waits until there is one."""
        while not self._items:
            await self.arrival()
        items, self._items = self._items, []
        return items
