"""Which cache blocks hold which tokens, so that a prompt seen before is not computed again.

Owns: the keys of full blocks, and from key to block and back. A key is a chain hash (vLLM v1's
automatic prefix caching): of the variant's digest, the request's `cache_salt` and every token up to
the block's end. So an equal key means equal keys and values, bit for bit, for our kernels are
batch-invariant; two variants, or two salts, never meet.
Does not know who holds a block, or which are free (kv_blocks.py).
"""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from tsugiki.engine.request import Request

_KEY_BYTES = 16  # a collision needs about 2**64 blocks, by chance or by an attacker's work


class PrefixCache:
    """Blocks by key. A block has at most one key, and a key at most one block."""

    def __init__(self) -> None:
        self._blocks: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._digests: dict[int, str | None] = {}
        self._of_digest: defaultdict[str | None, set[int]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix of these keys."""
        found = []
        for key in keys:
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def put(self, key: bytes, block: int, digest: str | None) -> None:
        """Remember what was computed into a block; nothing changes when another block holds it."""
        if key in self._blocks or block in self._keys:
            return
        self._blocks[key] = block
        self._keys[block] = key
        self._digests[block] = digest
        self._of_digest[digest].add(block)

    def forget(self, block: int) -> None:
        """This block is about to hold something else, or must not be trusted."""
        key = self._keys.pop(block, None)
        if key is None:
            return
        del self._blocks[key]
        digest = self._digests.pop(block)
        self._of_digest[digest].discard(block)
        if not self._of_digest[digest]:
            del self._of_digest[digest]

    def of(self, digest: str | None) -> list[int]:
        """The known blocks of one variant (None: of the base)."""
        return list(self._of_digest.get(digest, ()))


def block_keys(request: Request, count: int, block_size: int) -> list[bytes]:
    """Keys of the first `count` blocks of a request, all of them full; kept with the request."""
    keys = request.block_keys
    while len(keys) < count:
        start = len(keys) * block_size
        parent = keys[-1] if keys else _root(request)
        keys.append(_key(parent, request.tokens(start, start + block_size)))
    return keys[:count]


def _root(request: Request) -> bytes:
    """Different for any two pairs of digest and salt: each part says how long it is."""
    parts = (request.variant.digest, request.cache_salt)
    sized = ("-" if part is None else f"{len(part)}:{part}" for part in parts)
    return blake2b("".join(sized).encode(), digest_size=_KEY_BYTES).digest()


def _key(parent: bytes, tokens: Sequence[int]) -> bytes:
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=_KEY_BYTES).digest()
