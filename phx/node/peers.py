"""The other nodes that a node is connected with, as they come and go while it runs.

A peer is connected with, and no more: whether it is a member of some group, the groups say. What is
told here outlives a restart (`phx.node.addresses`); and under a node id that was ever met no other
store is taken, long after it was let go of (`phx.node.lives`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from phx._core.driver import ERROR_GRANTED, ERROR_MEMBER, Driver, DriverError
from phx.config import Config
from phx.errors import Closed, ForkedError, PhxError
from phx.membership import Membership
from phx.node.addresses import Addresses
from phx.node.joining import Joiner, welcome
from phx.node.lives import Lives
from phx.node.memberships import Memberships
from phx.transfer.changing import pack_members
from phx.transfer.messages import Ends, Greeting
from phx.types import PeerStatus

__all__ = ["Introducer", "PeerList"]

log = logging.getLogger("phx")

GONE_S = 60.0
"""So long a node that is a member of nothing any more is still connected with, or let in again: so
long whoever was removed may ask whether it is."""
AGAIN_S = 1.0

END_S = 2.0

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
        self.page: Callable[[int], bytes] = lambda group: pack_members([])
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

    def is_peer(self, node: int) -> bool:
        return self._addresses.is_peer(node)

    def address(self, node: int) -> str:
        """As it was told; "": not known."""
        return self._addresses.text(node)

    def texts(self) -> dict[int, str]:
        """The addresses of all that have one, this node among them."""
        return self._addresses.texts()

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
        texts = self._addresses.texts()
        return welcome(said, ends, self._lives.store_of, texts, self.page)

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


class Introducer:
    """Connects with those who became members of a group, and lets go of those who are none any
    more of any.

    Guarantee: whoever is a member by the newest configuration of a group that is known here becomes
    a peer, as soon as that is heard, and over restarts; the address is that of the configuration,
    where that is news. Who is a member of nothing any more, and does not stand in this node's own
    configuration, is let go of after GONE_S without a connection.

    A name may have to be looked up, and the store written: so it has a thread, ``phx-introduce``,
    from the first news on.
    """

    def __init__(self, config: Config, peers: PeerList, memberships: Memberships) -> None:
        self._config = config
        self._peers = peers
        self._memberships = memberships
        self._news: deque[tuple[int, Membership]] = deque()
        # By group: the version whose addresses are no news.
        self._seen = {one: told.version for one, told in memberships.from_group(0)}
        self._again: dict[int, str] = {}  # could not be added
        self._gone: dict[int, float] = {}  # since when they are in no configuration, not connected
        self._wake = threading.Condition()
        self._begun = self._ending = False
        self._thread: threading.Thread | None = None
        memberships.on_news = self.heard

    def begin(self) -> None:
        """The node is open. What was heard before is looked at now, and who was added for a change
        that came to nothing before this start."""
        now, strangers = time.monotonic(), self._peers.texts().keys() - self._wanted()
        with self._wake:
            self._begun = True
            for node in strangers:
                self._gone.setdefault(node, now)
            if self._news or self._gone:
                self._start()

    def _wanted(self) -> set[int]:
        """Who is a member of anything, or stands in this node's own configuration."""
        members = {n for _, told in self._memberships.from_group(0) for n in told.nodes}
        return members | self._config.members.keys()

    def heard(self, group: int, told: Membership) -> None:
        """Any thread; returns at once."""
        with self._wake:
            self._news.append((group, told))
            self._start()
            self._wake.notify()

    def _start(self) -> None:
        if self._thread is None and self._begun and not self._ending:
            self._thread = threading.Thread(target=self._run, name="phx-introduce", daemon=True)
            self._thread.start()

    def unwanted(self, node: int) -> None:
        """A change that may come to nothing is about to name it: it stays for GONE_S at least."""
        with self._wake:
            self._gone[node] = time.monotonic()
            self._start()
            self._wake.notify()

    def end(self, wait_s: float | None = None) -> None:
        """Idempotent. A thread that waits for the resolver is left to itself."""
        with self._wake:
            self._ending = True
            self._wake.notify()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(END_S if wait_s is None else wait_s)

    def _run(self) -> None:
        try:
            while (news := self._next()) is not None:
                for group, told in news:
                    self._meet(group, told)
                try:
                    self._retry()
                    self._let_go()
                except DriverError as error:  # as when its queue is full
                    log.debug("peers are looked at again in a moment: %s", error)
        except (Closed, ForkedError):
            return

    def _next(self) -> list[tuple[int, Membership]] | None:
        with self._wake:
            if not (self._news or self._ending or self._again or self._gone):
                self._wake.wait()
            if not (self._news or self._ending):
                self._wake.wait(AGAIN_S)
            if self._ending:
                return None
            news = list(self._news)
            self._news.clear()
            return news

    def _meet(self, group: int, told: Membership) -> None:
        before = self._memberships.of_version(group, told.version - 1)
        were = self._config.members if before is None else addresses_of(before)
        said, news = addresses_of(told), told.version > self._seen.get(group, 1)
        self._seen[group] = max(told.version, self._seen.get(group, 1))
        for node, address in said.items():
            if node == self._config.node:
                continue
            self._gone.pop(node, None)
            if not self._peers.is_peer(node):
                self._add(node, address)
            elif news and self._moved(node, were.get(node, address), address):
                self._move(node, address)
        if told.active:
            for node in were:
                if node not in said:
                    self._gone.setdefault(node, time.monotonic())

    def _moved(self, node: int, before: str, address: str) -> bool:
        """Whether its address is news. Where it was not known before ("port 0"), who told this node
        since knows better."""
        known = not before.endswith(":0") or self._peers.address(node).endswith(":0")
        return before != address and known

    def _add(self, node: int, address: str) -> None:
        try:
            self._peers.add(node, address)
        except (Closed, ForkedError):
            raise
        except (PhxError, ValueError) as error:
            if node not in self._again:
                log.error("node %d, a member at %s, cannot be connected: %s", node, address, error)
            self._again[node] = address
            return
        self._again.pop(node, None)
        log.info("node %d at %s is a member, and connected with", node, address)

    def _move(self, node: int, address: str) -> None:
        if address.endswith(":0") or address == self._peers.address(node):
            return
        try:
            self._peers.move(node, address)
        except (Closed, ForkedError):
            raise
        except (PhxError, ValueError) as error:
            log.error("node %d, which is at %s now, cannot be found: %s", node, address, error)

    def _retry(self) -> None:
        wanted = self._wanted() if self._again else set()
        for node, address in list(self._again.items()):
            if node in wanted:
                self._add(node, address)
            else:  # by now it is a member of nothing
                del self._again[node]

    def _let_go(self) -> None:
        if not self._gone:
            return
        gone = dict(self._gone)  # first: who is named from now on is looked at next time
        now, there, wanted = time.monotonic(), self._peers.statuses(), self._wanted()
        for node, since in gone.items():
            with self._wake:
                if self._gone.get(node) != since:
                    continue
                if node in wanted or node not in there:
                    del self._gone[node]
                elif there[node].connected:
                    self._gone[node] = now
            if node not in wanted and node in there and now >= self._gone[node] + GONE_S:
                self._drop(node)  # and next time it is not there

    def _drop(self, node: int) -> None:
        try:
            self._peers.drop(node)
        except DriverError as error:  # the engine counts it still: another time
            log.debug("node %d is not let go of yet: %s", node, error)
            return
        except (Closed, ForkedError):
            raise
        except PhxError as error:
            log.error("node %d cannot be let go of: %s", node, error)
            return
        log.info("node %d is a member of nothing any more, and let go of", node)


def addresses_of(told: Membership) -> dict[int, str]:
    if not told.nodes:  # the group was deleted
        return {}
    return {node: one.address for node, one in told.members().by_id.items()}


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
