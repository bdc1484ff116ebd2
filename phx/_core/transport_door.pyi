from typing import Any

class TransportDoor:
    """One node's connections, driven by hand; for tests."""

    def __init__(
        self,
        node: int,
        *,
        cluster: int = 1,
        payload_bytes_max: int = 65536,
        peer_queue_bytes_max: int = ...,
        handshake_us: int = 500_000,
        silence_us: int = 5_000_000,
        backoff_min_us: int = 1_000,
        backoff_max_us: int = 20_000,
        incarnation: int = 1,
        refuse: int = 0,
    ) -> None: ...
    def close(self) -> None: ...
    def refuse(self, node: int) -> None:
        """From now on, a handshake of this node is refused."""
    def listen(self, host: str = "127.0.0.1", port: int = 0) -> int: ...
    def set_peer(
        self,
        node: int,
        port: int,
        host: str = "127.0.0.1",
        *,
        named: bool = False,
        looked_up: bool = False,
    ) -> None:
        """Port 0: a peer that is known, but not dialled."""
    def drop_peer(self, node: int) -> None: ...
    def dialing(self) -> list[int]:
        """Peers with names that were about to be dialled, since the last call."""
    def step(self, wait_ms: int = 0) -> None:
        """One turn: wait for at most so long, read, dial, time out, write."""
    def send(self, peer: int, payload: bytes, after: int = 0) -> None: ...
    def release(self, lsn: int) -> None: ...
    def frames(self) -> list[tuple[int, bytes]]:
        """Payloads that arrived since the last call, as (peer, payload)."""
    def handed(self) -> list[tuple[int, int, bytes]]:
        """Connections taken out since the last call, as (descriptor, peer, bytes)."""
    def changes(self) -> list[tuple[int, bool]]:
        """(peer, connected) since the last call."""
    def lines(self) -> list[str]:
        """Log lines since the last call."""
    def status(self) -> dict[str, Any]:
        """What the transport holds: connections, their buffers, and each peer's queue."""
