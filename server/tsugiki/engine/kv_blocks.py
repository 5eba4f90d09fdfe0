"""Which blocks of the KV cache are free, and who holds the others.

Owns: how many hold each block, the free ones, and the order in which those that are worth keeping
(prefix_cache.py) are given away. Block ids only: the tensors they name belong to the model runner,
and a request's table belongs to the request. Does not know requests, variants or tokens' values.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from tsugiki.engine.prefix_cache import PrefixCache


class BlockManager:
    """Hands out fixed-size blocks of cache positions. Full ones may have several holders."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"need at least one block of one token, got {num_blocks=} {block_size=}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.cache = PrefixCache()
        self._holders = [0] * num_blocks
        # A stack: the block freed last is the one most likely to be in a CPU cache.
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: dict[int, None] = {}  # free and in the prefix cache, least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, those in the prefix cache included."""
        return len(self._free) + len(self._idle)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.block_size)

    def fits(self, tokens: int) -> bool:
        """Whether so many tokens of one request fit when nobody else is there."""
        return self.blocks_for(tokens) <= self.num_blocks

    def missing(self, table: Sequence[int], tokens: int) -> int:
        """How many blocks `table` lacks for its request to hold so many tokens."""
        return max(0, self.blocks_for(tokens) - len(table))

    def takes(self, shared: Sequence[int], tokens: int) -> int:
        """How many free blocks a request of so many tokens takes that begins with `shared`."""
        idle = sum(block in self._idle for block in shared)
        return idle + self.missing(shared, tokens)

    def freed_by(self, table: Iterable[int]) -> int:
        """How many blocks are free once this table's holder lets go."""
        return sum(self._holders[block] == 1 for block in table)

    def share(self, table: list[int], blocks: Iterable[int]) -> None:
        """Append blocks of the prefix cache to `table`, beside those who hold them already."""
        for block in blocks:
            self._idle.pop(block, None)
            self._holders[block] += 1
            table.append(block)

    def extend(self, table: list[int], tokens: int) -> bool:
        """Grow `table` until it holds so many tokens; False, nothing changed: too few are free."""
        need = self.missing(table, tokens)
        if need > self.num_free:
            return False
        for _ in range(need):
            block = self._free.pop() if self._free else self._oldest_idle()
            self._holders[block] = 1
            table.append(block)
        return True

    def free(self, table: list[int]) -> None:
        """Let go of every block of `table` and empty it.

        Last block first: of a prefix that is kept, the end is given away before the beginning.
        """
        for block in reversed(table):
            self._holders[block] -= 1
            if not self._holders[block]:
                if block in self.cache:
                    self._idle[block] = None
                else:
                    self._free.append(block)
        table.clear()

    def forget(self, blocks: Iterable[int]) -> None:
        """Take blocks out of the prefix cache; those who hold them keep them."""
        for block in blocks:
            self.cache.forget(block)
            if block in self._idle:
                del self._idle[block]
                self._free.append(block)

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Raise RuntimeError when a block is lost, invented, or held by others than is booked."""
        held = Counter(block for table in tables for block in table)
        if any(self._holders[block] != held[block] for block in range(self.num_blocks)):
            raise RuntimeError("the KV block ledger is broken: it counts other holders than hold")
        if sorted([*held, *self._free, *self._idle]) != list(range(self.num_blocks)):
            raise RuntimeError("the KV block ledger is broken: a block is lost, shared or invented")
        if not all(block in self.cache for block in self._idle):
            raise RuntimeError("the KV block ledger is broken: a block is kept for nothing")

    def _oldest_idle(self) -> int:
        block = next(iter(self._idle))
        del self._idle[block]
        self.cache.forget(block)
        return block
