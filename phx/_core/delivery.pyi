from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

DUPLICATE: Final = 1
STALE: Final = 2
BEYOND: Final = 3
IN_FLIGHT_MAX: Final = 65536

class Entry:
    """One chosen value, as apply sees it. The same on every replica except ``sequence``.

    Attributes:
        group, instance, index: where it stands in the log; ``index`` counts the values of an
            instance.
        machine: the small id of the machine that it is for.
        value: the bytes that were proposed.
        epoch: grows with every new leader of the group: the fencing token.
        time_us: wall clock of the leader that packed it, microseconds since 1970; may go backwards.
        node: the node that took the proposal.
        sequence: for the library: nonzero where a caller of this node waits.
    """

    @property
    def group(self) -> int: ...
    @property
    def instance(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def machine(self) -> int: ...
    @property
    def value(self) -> bytes: ...
    @property
    def epoch(self) -> int: ...
    @property
    def time_us(self) -> int: ...
    @property
    def node(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    def __init__(
        self,
        group: int = 0,
        instance: int = 0,
        value: bytes = b"",
        *,
        index: int = 0,
        machine: int = 0,
        epoch: int = 0,
        time_us: int = 0,
        node: int = 0,
        sequence: int = 0,
    ) -> None: ...

class Batch:
    """A contiguous stretch of one group's log, duplicates left out."""

    done: int
    @property
    def group(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def entries(self) -> list[Entry]: ...
    @property
    def machine(self) -> int: ...
    @property
    def own(self) -> int: ...
    @property
    def dropped(self) -> list[tuple[int, int]]: ...
    @property
    def digest(self) -> int: ...
    @property
    def error(self) -> str | None: ...

class Result:
    """What a caller gets back: the instance of its value, and what apply returned for it."""

    @property
    def instance(self) -> int: ...
    @property
    def value(self) -> Any: ...
    def __init__(self, instance: int, value: object) -> None: ...
    def __iter__(self) -> Iterator[Any]: ...

class Refusal:
    """In the place of a result: the caller's future gets this error instead."""

    @property
    def error(self) -> BaseException: ...
    def __init__(self, error: BaseException) -> None: ...

class Sessions:
    """The de-duplication tables of the groups of one node, and the door from bodies to Batches."""

    incarnation: int
    @property
    def node(self) -> int: ...
    def __init__(self, node: int, groups: Sequence[int]) -> None: ...
    def offer(self, group: int, first: int, bodies: Sequence[bytes]) -> Batch: ...
    def rows(self, group: int) -> list[tuple[int, int, int, list[int]]]: ...
    def table_bytes(self, group: int) -> int: ...
    def next_instance(self, group: int) -> tuple[int, int]: ...

class Waiters:
    """This node's callers in one incarnation, by group and sequence, within limits."""

    @property
    def count(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    def __init__(
        self,
        groups: Sequence[int],
        *,
        group_values_max: int,
        group_bytes_max: int,
        node_values_max: int,
        node_bytes_max: int,
        partly: Callable[[list[Any]], BaseException],
    ) -> None: ...
    def add(self, group: int, waiter: object, nbytes: int) -> int: ...
    def connect(
        self,
        submit: Callable[[int, int, list[bytes], int], int],
        now_us: Callable[[], int],
        value_bytes_max: int,
    ) -> None: ...
    def propose(
        self, group: int, machine: int, value: bytes, timeout: float | None, waiter: object
    ) -> bool: ...
    def add_many(self, group: int, future: object, values: list[Any]) -> int: ...
    def revoke(self, group: int, first: int) -> None: ...
    def complete(
        self, group: int, entries: list[Entry], results: list[Any], start: int = 0
    ) -> int: ...
    def fail(
        self, group: int, first: int, count: int, make: Callable[[], BaseException]
    ) -> int: ...
    def fail_group(self, group: int, make: Callable[[], BaseException]) -> int: ...
    def fail_all(self, make: Callable[[], BaseException]) -> int: ...
    def waiting(self, group: int) -> tuple[int, int]: ...

def entries_of(group: int, instance: int, body: bytes) -> list[Entry]:
    """Every value of one instance, duplicates included. ValueError if the body is unsound."""
