"""The other nodes that a node is connected with, as they come and go while it runs.

A peer is connected with, and no more: whether it is a member of some group, the groups say. What is
told here outlives a restart (`phx.node.addresses`); and under a node id that was ever met no other
store is taken, long after it was let go of (`phx.node.lives`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from phx._core.driver import ERROR_GRANTED, ERROR_MEMBER, Driver, DriverError
from phx.config import Config
from phx.node.addresses import Addresses
from phx.node.joining import Joiner, welcome
from phx.node.lives import Lives
from phx.transfer.messages import Ends, Greeting
from phx.types import PeerStatus

__all__ = ["PeerList"]

T = TypeVar("T")

REFUSALS = {
    1: "another version",
    2: "not that way",
    3: "another store",
    4: "another window",
    5: "busy",
    6: "unknown there",
    7: "another cluster",
}
"""By what a REFUSED frame says (docs/design/wire.md)."""


class PeerList:
    """Of one node whose driver runs.

    Args:
        opened: the driver; raises what a call on a node gets that is not open.
        error_of: what a caller is told of a DriverError.
    """

    def __init__(
        self,
        config: Config,
        addresses: Addresses,
        lives: Lives,
        opened: Callable[[], Driver],
        error_of: Callable[[DriverError], Exception],
    ) -> None:
        self._config = config
        self._addresses = addresses
        self._lives = lives
        self._opened = opened
        self._error_of = error_of
        self._joiner: Joiner | None = None
        self._line = threading.Lock()  # who comes and who goes, one at a time

    def move(self, node: int, address: str) -> None:
        """See Node.set_address."""
        self._opened()
        self._do(lambda: self._addresses.move(node, address))

    def statuses(self, status: Mapping[str, Any] | None = None) -> dict[int, PeerStatus]:
        """As they are now, by id; or as the driver's `status` says."""
        found: Any = self._opened().status() if status is None else status
        return {
            peer["node"]: peer_status(peer, self._addresses.text(peer["node"]))
            for peer in found["peers"]
        }

    def add(self, node: int, address: str) -> None:
        """Be connected with another node, over restarts, too. Blocks.

        Raises ConfigError: it cannot be, or 63 are there; ValueError: the address; Closed.
        """
        self._opened()
        with self._line:
            store_id = self._lives.store_of(node)
            self._do(lambda: self._addresses.add(node, address, store_id))
        self._addresses.keep()

    def drop(self, node: int) -> None:
        """Let go of a node that is a member of no group here. Blocks.

        Its store id is remembered, durably, before. Raises ConfigError: it is this node;
        StoreError, Closed; and DriverError, with code ERROR_MEMBER or ERROR_GRANTED. Nothing is
        changed then.
        """
        self._opened()
        with self._line:
            self._lives.keep_peers()
            while not self._do(
                lambda: self._addresses.drop(node, self._lives.store_of(node) or b"")
            ):
                self._lives.keep_peers()  # it was met since
        self._addresses.keep()

    def _do(self, change: Callable[[], T]) -> T:
        try:
            return change()
        except DriverError as error:
            if error.code in (ERROR_MEMBER, ERROR_GRANTED):
                raise
            raise self._error_of(error) from error

    # --- joining

    def join(self, addresses: Sequence[str], store_id: bytes) -> None:
        """Ask there who is in the cluster, and take those for peers, from now on."""
        greeting = Greeting(
            incarnation=self._opened().incarnation,
            store_id=store_id,
            now_us=time.time_ns() // 1000,
            window=self._config.limits.window,
        )
        self._joiner = Joiner(
            self._config.cluster_id,
            self._config.node,
            greeting,
            addresses,
            add=self.add,
            connected=self.connected,
            timeout_us=self._config.timing.connect_timeout_us,
        )
        self._joiner.start()

    def connected(self) -> bool:
        """Whether there is a connection with anybody."""
        return any(peer.connected for peer in self.statuses().values())

    def welcome(self, said: bytes, ends: Ends) -> bytes:
        """What a node is answered that asks who is there."""
        return welcome(said, ends, self._lives.store_of, self._addresses.texts())

    # --- the end

    def end(self, wait_s: float | None = None) -> None:
        """Idempotent."""
        if self._joiner is not None:
            self._joiner.end(wait_s)
        self._addresses.keep(wait_s)

    def forget(self) -> None:
        """In a forked child."""
        if self._joiner is not None:
            self._joiner.forget()


def peer_status(peer: Mapping[str, Any], address: str) -> PeerStatus:
    """Of what the driver says of it."""
    apart = ("node", "connected", "heard_us_ago", "since_us_ago", "refused")
    refused = peer["refused"]
    return PeerStatus(
        node=peer["node"],
        address=address or None,
        connected=peer["connected"],
        refused=REFUSALS.get(refused, f"reason {refused}") if refused else None,
        since_us_ago=peer["since_us_ago"],
        heard_us_ago=peer["heard_us_ago"],
        detail={name: value for name, value in peer.items() if name not in apart},
    )
