from collections.abc import Iterable

class WatchDoor:
    """A watch over `nodes` nodes and `groups` groups, told what a test makes up.

    Values carry the number that `propose` gave them in their first eight bytes.
    """

    def __init__(self, nodes: int, groups: int) -> None: ...
    def failure(self) -> tuple[str, str] | None:
        """(invariant, text) of the first violation."""
    def time(self, now_us: int) -> None: ...
    def propose(self, node: int, group: int, sequence: int, text: bytes) -> bytes:
        """A value that a caller of a running node proposes: its bytes."""
    def start(
        self, node: int, replayed: Iterable[tuple[int, bytes]] = ..., settled: dict[int, int] = ...
    ) -> None:
        """A life begins: records (position, bytes) are replayed into a real engine."""
    def die(self, node: int) -> None: ...
    def emit(self, node: int, lsn: int, records: bytes) -> int:
        """Records are written from this position on; the position after them."""
    def durable(self, node: int, lsn: int) -> None: ...
    def send(self, node: int, messages: bytes) -> None: ...
    def step(self, node: int, group: int) -> None: ...
    def full(self) -> None: ...
    def chosen(self, node: int, group: int, instance: int, body: bytes) -> None: ...
    def applied(
        self,
        node: int,
        group: int,
        instance: int,
        index: int,
        value: bytes,
        epoch: int = 0,
        time_us: int = 0,
    ) -> None: ...
    def acked(self, node: int, group: int, value: bytes) -> None: ...
    def dropped(self, node: int, group: int, value: bytes) -> None: ...
    def verdict(self, value: bytes, rejected: bool) -> None: ...
    def spoil(self, node: int, group: int, **fields: int) -> None:
        """Write into the engine: promised, chosen_through, settled_through, applied_through,
        cached_bytes, pending_bytes."""
    def spoil_slot(self, node: int, group: int, instance: int, ballot: int, body: bytes) -> None:
        """The engine holds this acceptance."""
    def spoil_lead(self, node: int, group: int, ballot: int, lease_us: int) -> None:
        """The engine leads in this ballot; everybody has granted it a lease until then."""
