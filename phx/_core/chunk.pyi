from collections.abc import Iterable

VERDICTS: tuple[str, ...]
CLASS_BYTES: tuple[int, int, int]
PAGE_HEADER_BYTES: int

class ChunkDamage(Exception):
    """Something in the store is not what was written; where (0: not known)."""

    verdict: int
    chunk: int
    group: int
    instance: int
    def __init__(self, verdict: int, chunk: int, group: int, instance: int) -> None: ...

class Gather:
    """Consecutive entries of one group, from several chunks, into one bytes object.

    The chunks must stay where they are until ``take``.
    """

    def __init__(
        self, store_id: bytes, group: int, first: int, last: int, bytes_max: int
    ) -> None: ...
    def add(self, chunk: int, value: bytes | memoryview, row: int) -> bool:
        """Take what this chunk has of the entries still wanted; True: there is room for more."""
    @property
    def wanted(self) -> int:
        """The instance that the next chunk must hold."""
    def take(self) -> bytes:
        """All of it, every checksum checked."""

def verify_chunk(chunk: int, value: bytes | memoryview, store_id: bytes) -> int:
    """Check everything in a chunk; the number of its entries. Raises ChunkDamage."""

def damaged_entries(
    chunk: int, value: bytes | memoryview, tail: bytes | memoryview, store_id: bytes
) -> list[tuple[int, int, int]]:
    """(group, first, last) of the entries of a chunk that are not what was written, in order.

    Where damage hides where the next entry of a row begins, the rest of the row counts as damaged.
    `tail`: a sound one, from the table of indexes or from the chunk; ChunkDamage if it is not.
    """

def rosters_of(
    chunk: int, value: bytes | memoryview, store_id: bytes
) -> list[tuple[int, int, bytes]]:
    """(group, instance, body) of the membership values of a chunk, in order. Raises ChunkDamage:
    something of it is not what was written."""

def chunk_rows(
    chunk: int, value: bytes | memoryview, store_id: bytes
) -> list[tuple[int, int, int, int, int]]:
    """The packed index: (group, first, count, offset, bytes) of every row."""

def build_chunk(
    chunk: int, value_bytes: int, store_id: bytes, entries: Iterable[tuple[int, int, bytes]]
) -> tuple[bytes, int]:
    """A chunk of as many of the ascending (group, instance, body) as fit, and how many."""

def value_bytes(total: int, first: int = 0) -> int:
    """Size of the chunk to begin for `total` bytes, of which the first entry takes `first`."""
