from phx._core.chunk_index import ChunkIndex
from phx._core.plan import SettlePlan

class SettleError(Exception):
    """A plan cannot be settled. ``damage``: the journal does not hold what it should."""

    verdict: int
    journal_error: int
    group: int
    instance: int
    lsn: int
    damage: bool

class Settler:
    """Turns a plan into chunks, one by one. Raises SettleError."""

    skipped: int
    entries: int
    entry_bytes: int
    read_bytes: int
    def __init__(
        self, index: ChunkIndex, plan: SettlePlan | RecordStream, pass_bytes: int
    ) -> None: ...
    def next_chunk(self) -> tuple[int, memoryview, memoryview] | None:
        """(id, value, tail) of the next chunk, or None at the end; good until the next call."""
    def stage(self) -> None:
        """The chunk that next_chunk gave belongs to the open transaction."""

class Merger:
    """Joins chunks into one."""

    def __init__(self, index: ChunkIndex) -> None: ...
    def add(self, chunk: int, value: bytes | memoryview) -> None: ...
    def merged(self) -> tuple[int, memoryview, memoryview]:
        """(id, value, tail) of the chunk that holds all entries of those added. Call once."""
    def stage(self) -> None:
        """The merged chunk belongs to the open transaction, and those added leave with it."""

class RecordStream:
    """A journal in memory and a plan over it, for tests and measurements."""

    def __init__(self, base: int = 4096, segment_bytes: int = ...) -> None: ...
    @property
    def upto_lsn(self) -> int: ...
    def append(self, group: int, instance: int, body: bytes, kind: int = 2) -> int:
        """Add a record; its position."""
    def want(self, group: int, instance: int, lsn: int) -> None:
        """Add an item to the plan; in order of group and instance."""
    def damage(self, lsn: int) -> None:
        """The record at `lsn` cannot be read from now on."""
    def fill(self, groups: int, first: int, count: int, body_bytes: int) -> None:
        """Instances first .. first+count-1 of groups 1 .. groups, written instance by instance,
        with noise for bodies; and the plan for all of them."""
