from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from phx._core.entries import Entry

IN_FLIGHT_MAX: Final = 65536

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

class Waiters:
    """This node's callers in one incarnation, by group and sequence, within limits."""

    @property
    def count(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def refused(self) -> int: ...
    def __init__(
        self,
        groups: Sequence[int],
        *,
        group_values_max: int,
        group_bytes_max: int,
        node_values_max: int,
        node_bytes_max: int,
        partly: Callable[[list[Any]], BaseException],
        queue_target_us: int = 0,
    ) -> None: ...
    def add(self, group: int, waiter: object, nbytes: int, now_us: int = 0) -> int: ...
    def connect(
        self,
        submit: Callable[[int, int, list[bytes], int], int],
        now_us: Callable[[], int],
        value_bytes_max: int,
        overloaded: Callable[[int, int], BaseException],
    ) -> None: ...
    def propose(
        self, group: int, machine: int, value: bytes, timeout: float | None, waiter: object
    ) -> bool: ...
    def propose_many(
        self, group: int, machine: int, values: list[bytes], timeout: float | None, future: object
    ) -> bool: ...
    def add_many(
        self, group: int, future: object, values: list[Any], now_us: int = 0
    ) -> int: ...
    def revoke(self, group: int, first: int) -> None: ...
    def complete(
        self, group: int, entries: Sequence[Entry], results: list[Any], start: int = 0
    ) -> int: ...
    def fail(
        self, group: int, first: int, count: int, make: Callable[[], BaseException]
    ) -> int: ...
    def settle_applied(
        self,
        group: int,
        row: tuple[int, int, int, Sequence[int]],
        make: Callable[[], BaseException],
    ) -> list[tuple[int, int]]: ...
    def fail_group(self, group: int, make: Callable[[], BaseException]) -> int: ...
    def fail_all(self, make: Callable[[], BaseException]) -> int: ...
    def queue(self) -> tuple[int, int, int]: ...
    def waiting(self, group: int) -> tuple[int, int]: ...
