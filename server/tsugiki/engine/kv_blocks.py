"""Which blocks of the KV cache are free, and who holds the others.

Owns: the free list. Block ids only: the tensors they name belong to the model runner, and a
request's table belongs to the request. Does not know requests, variants or tokens' values.
"""

from collections.abc import Iterable


class BlockManager:
    """Hands out fixed-size blocks of cache positions. A block has one holder at a time."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"need at least one block of one token, got {num_blocks=} {block_size=}"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        # A stack: the block freed last is the one most likely to be in a CPU cache.
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.block_size)

    def fits(self, tokens: int) -> bool:
        """Whether so many tokens of one request fit when nobody else is there."""
        return self.blocks_for(tokens) <= self.num_blocks

    def missing(self, table: list[int], tokens: int) -> int:
        """How many blocks `table` lacks for its request to hold so many tokens."""
        return max(0, self.blocks_for(tokens) - len(table))

    def extend(self, table: list[int], tokens: int) -> bool:
        """Grow `table` until it holds so many tokens; False, nothing changed: too few are free."""
        need = self.missing(table, tokens)
        if need > len(self._free):
            return False
        for _ in range(need):
            table.append(self._free.pop())
        return True

    def free(self, table: list[int]) -> None:
        """Take back every block of `table` and empty it."""
        self._free.extend(reversed(table))
        table.clear()

    def check(self, tables: Iterable[list[int]]) -> None:
        """Raise RuntimeError when a block is lost, shared or invented."""
        held = [block for table in tables for block in table]
        if sorted(held + self._free) != list(range(self.num_blocks)):
            raise RuntimeError("the KV block ledger is broken: a block is lost, shared or invented")
