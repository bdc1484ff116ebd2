from collections.abc import Iterable

class ChunkIndex:
    """Where every settled instance is. Calls must not overlap."""

    store_id: bytes
    next_id: int
    def __init__(self, store_id: bytes) -> None: ...
    def load(self, chunk: int, tail: bytes | memoryview) -> None:
        """Take over the packed index of a chunk. In ascending order of ids. Raises ChunkDamage."""
    def seal(self, groups: bytes | memoryview) -> None:
        """All chunks are loaded: they must hold what the table of groups says. ChunkDamage."""
    def stage_floor(self, group: int, kept_from: int, settled_through: int) -> bool:
        """Both become the greater of what they are and this; False: they are that already.

        Raises ValueError, and stages nothing, if that would leave instances between what is settled
        and what is kept: settled_through may only go beyond what the store has when nothing up to
        it is kept.
        """
    def stage_drops(self, chunks: Iterable[int]) -> None:
        """These chunks leave with the transaction. ValueError: something of one of them is kept."""
    def commit(self) -> None:
        """What is staged is in the store now."""
    def rollback(self) -> None:
        """What is staged never came to be."""
    def groups_packed(self) -> bytes:
        """The table of groups as it will be once what is staged is committed."""
    def mark(self, chunk: int) -> bool:
        """It is damaged: left out of what is `mergeable` or thin. False: there is no such chunk."""
    def damaged(self) -> list[int]:
        """Ids of the chunks that are marked."""
    def find(self, group: int, instance: int) -> tuple[int, int] | None:
        """(chunk, row) that holds the instance."""
    def bounds(self, group: int) -> tuple[int, int]:
        """(lowest instance kept, settled through)."""
    def floors(self) -> dict[int, tuple[int, int]]:
        """Of every group with something settled: (lowest instance kept, settled through)."""
    def settled(self) -> dict[int, int]: ...
    def first_within(self, group: int, through: int, bytes_max: int) -> int:
        """The lowest instance from which on what is kept up to `through` takes at most so many
        bytes, about: of a part of a stretch, a share by count. through + 1: not even that one, or
        it is not kept. What is not settled yet takes none.
        """
    def rows(self) -> list[tuple[int, int, int, int]]:
        """For tests: every (group, first, chunk, row)."""
    def row_count(self) -> int: ...
    def chunk_list(self) -> list[tuple[int, int, int, int, int, int]]:
        """Every chunk as (id, value bytes, used bytes, entries, kept, kept bytes), by id."""
    def mergeable(self, chunks_max: int) -> list[int]:
        """Ids of small chunks worth joining, oldest first; [] when there is nothing to gain."""
    def dead_chunks(self, chunks_max: int) -> list[int]:
        """Ids of chunks of which nothing is kept, oldest first."""
    def thin_chunks(self, chunks_max: int) -> list[int]:
        """Ids of chunks worth writing anew without what is not kept, oldest first; or [].

        Worth it: of each less than a quarter is kept, and what is kept of them all fits in a chunk
        half as large as they are together. A quarter of a large chunk is that of its size.
        """

def floors_of(groups: bytes | memoryview) -> dict[int, tuple[int, int]]:
    """A table of groups by itself: (lowest instance kept, settled through). Raises ChunkDamage."""
