from collections.abc import Iterable, Mapping

from phx._core.chunk_index import ChunkIndex
from phx._core.journal_door import Journal
from phx._core.plan import SettlePlan

class SettleError(Exception):
    """A plan cannot be settled. ``damage``: the journal does not hold what it should.
    ``unreadable``: it does not give an entry, now at least.
    """

    verdict: int
    journal_error: int
    group: int
    instance: int
    lsn: int
    damage: bool
    unreadable: bool

class Settler:
    """Turns a plan into chunks, one by one. Raises SettleError."""

    skipped: int
    entries: int
    entry_bytes: int
    read_bytes: int
    reads: int
    def __init__(
        self,
        index: ChunkIndex,
        plan: SettlePlan,
        pass_bytes: int,
        given: dict[tuple[int, int], bytes] | None = None,
    ) -> None:
        """`given`: bodies by group and instance, for entries whose records cannot be read."""
    def next_chunk(self) -> tuple[int, memoryview, memoryview] | None:
        """(id, value, tail) of the next chunk, or None at the end; good until the next call."""
    def barriers(self) -> list[tuple[int, int, bytes]]:
        """(group, instance, body) of the membership values in the chunk that next_chunk gave."""
    def stage(self) -> None:
        """The chunk that next_chunk gave belongs to the open transaction."""

class Merger:
    """Joins chunks into one, without what lies below the floor of its group."""

    def __init__(self, index: ChunkIndex) -> None: ...
    def add(
        self, chunk: int, value: bytes | memoryview, tail: bytes | memoryview | None = None
    ) -> None:
        """Raises ChunkDamage. `tail`: taken in the place of the one at the end of the value."""
    def patch(self, bodies: Mapping[tuple[int, int], bytes]) -> None:
        """Take these bodies, by group and instance, in the place of what the chunks have there."""
    def merged(self) -> tuple[int, memoryview, memoryview]:
        """(id, value, tail) of the chunk that holds what is kept of those added. Call once.

        ValueError: that is nothing.
        """
    def stage(self) -> None:
        """The merged chunk belongs to the open transaction, and those added leave with it."""

def plan_over(journal: Journal, items: Iterable[tuple[int, int, int]]) -> SettlePlan:
    """For tests: a plan over (group, instance, lsn) items of a journal that outlives it."""
