from collections.abc import Iterator, Sequence
from typing import Any, overload

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

class Passage:
    """The bodies of a stretch of log; only native code makes and reads one."""

class Entries(Sequence[Entry]):
    """Consecutive entries of one group: a Sequence of Entry, each made when it is looked at."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Entry]: ...
    def index(self, value: Any, start: int = 0, stop: int = ...) -> int: ...
    def count(self, value: Any) -> int: ...
    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...

def entries_of(group: int, instance: int, body: bytes) -> list[Entry]:
    """Every value of one instance, duplicates included. ValueError if the body is unsound."""
