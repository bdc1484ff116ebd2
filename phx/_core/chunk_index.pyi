class ChunkIndex:
    """Where every settled instance is. Calls must not overlap."""

    store_id: bytes
    next_id: int
    def __init__(self, store_id: bytes) -> None: ...
    def load(self, chunk: int, tail: bytes | memoryview) -> None:
        """Take over the packed index of a chunk. In ascending order of ids. Raises ChunkDamage."""
    def seal(self, groups: bytes | memoryview) -> None:
        """All chunks are loaded: they must hold just what the table of groups says. ChunkDamage."""
    def commit(self) -> None:
        """What is staged is in the store now."""
    def rollback(self) -> None:
        """What is staged never came to be."""
    def groups_packed(self) -> bytes:
        """The table of groups as it will be once what is staged is committed."""
    def find(self, group: int, instance: int) -> tuple[int, int] | None:
        """(chunk, row) that holds the instance."""
    def bounds(self, group: int) -> tuple[int, int]:
        """(lowest instance kept, settled through)."""
    def settled(self) -> dict[int, int]: ...
    def rows(self) -> list[tuple[int, int, int, int]]:
        """For tests: every (group, first, chunk, row)."""
    def row_count(self) -> int: ...
    def chunk_list(self) -> list[tuple[int, int, int, int]]:
        """Every chunk as (id, value bytes, used bytes, entries), by id."""
    def mergeable(self, chunks_max: int) -> list[int]:
        """Ids of small chunks worth joining, oldest first; [] when there is nothing to gain."""
