"""A node that is no member of anything yet: it learns who is there, and waits.

It knows the cluster's name and addresses of some nodes. Of one that answers it learns which nodes
there are and where, and takes them for peers. They refuse its handshake until one of them, or its
user, adds it as a peer there; from then on both are connected. Nothing of this makes it a member:
that is the groups' decision.

Both sides are here. Who is asked answers natively checked requests (`phx._core.handover`) from a
thread of the provider's, with the addresses that it knows itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from phx.config import split_address
from phx.errors import Closed, ConfigError, ForkedError, PhxError
from phx.node.addresses import resolve
from phx.node.line import Ending, Lines, now_us
from phx.transfer.messages import (
    JOIN,
    PEERS,
    REFUSED,
    REFUSED_STORE,
    Cut,
    Ends,
    Frames,
    Greeting,
    Patience,
    join_store,
    pack_join,
    pack_peers,
    pack_refused,
    unpack_peers,
    unpack_refused,
)

__all__ = ["Joiner", "welcome"]

log = logging.getLogger("phx")

AGAIN_S = 0.5
"""Between two rounds of questions, at first; twice as long each time, up to AGAIN_MAX_S."""
AGAIN_MAX_S = 10.0
END_S = 2.0
"""The resolver may take longer; whoever closes a node does not wait for it."""


def welcome(
    said: bytes, ends: Ends, store_of: Callable[[int], bytes | None], peers: Mapping[int, str]
) -> bytes:
    """The answer to a JOIN: the frame to be sent, after which the connection is closed.

    Args:
        said: that frame, which the transport has checked.
        store_of: the store that was ever seen behind a node id; None: none was.
        peers: "host:port" of each node that the asker may want to know, this one among them.
    """
    before = store_of(ends.peer)
    if before is not None and before != join_store(said):
        text = "this node id was used with another store"
        return ends.frame(REFUSED, pack_refused(REFUSED_STORE, text))
    return ends.frame(PEERS, pack_peers(peers))


class Joiner(threading.Thread):
    """Asks one address after the other, until somebody answers and this node is connected.

    Args:
        addresses: "host:port" of nodes of the cluster; those of the answers are asked, too.
        add: takes a node for a peer.
        connected: whether there is a connection with anybody.
    """

    def __init__(
        self,
        cluster: int,
        node: int,
        greeting: Greeting,
        addresses: Sequence[str],
        *,
        add: Callable[[int, str], object],
        connected: Callable[[], bool],
        timeout_us: int,
    ) -> None:
        super().__init__(name="phx-join", daemon=True)
        self._ends = Ends(cluster, node, 0)
        self._greeting = greeting
        self._addresses = list(dict.fromkeys(addresses))
        self._add = add
        self._connected = connected
        self._timeout_us = timeout_us
        self._lines = Lines()
        self._told: dict[str, str] = {}
        self.learned: dict[int, str] = {}

    def run(self) -> None:
        pause = AGAIN_S
        try:
            while not self._connected():
                for address in list(self._addresses):
                    if self._learn(address):
                        break
                if self._lines.ending.wait(pause):
                    return
                pause = min(2 * pause, AGAIN_MAX_S)
        except Ending:
            return
        except PhxError as error:
            log.debug("nobody is asked any more: %s", error)

    def end(self, wait_s: float | None = None) -> None:
        """Idempotent. A thread that waits for the resolver is left to itself, and ends then."""
        self._lines.ending.set()
        if self.ident is not None and self is not threading.current_thread():
            self.join(END_S if wait_s is None else wait_s)

    def forget(self) -> None:
        """In a forked child."""
        self._lines.forget()

    def _learn(self, address: str) -> bool:
        """Whether somebody answered there."""
        host, port = split_address(address)
        why = f"{host} has no address"
        for numeric in resolve(host):
            try:
                found = self._ask(numeric, port)
            except (Cut, OSError) as error:
                why = str(error) or type(error).__name__
                continue
            self._told.pop(address, None)
            self._take(found)
            return True
        if self._told.get(address) != why:
            self._told[address] = why
            log.warning("nobody at %s says who is in the cluster: %s", address, why)
        return False

    def _take(self, found: Mapping[int, str]) -> None:
        for node, address in sorted(found.items()):
            if node == self._ends.me or self.learned.get(node) == address:
                continue
            if self._lines.ending.is_set():
                raise Ending
            self.learned[node] = address
            if address not in self._addresses:
                self._addresses.append(address)
            try:
                self._add(node, address)
            except (Closed, ForkedError):
                raise
            except PhxError as error:  # of this one; the others may do
                log.warning("node %d at %s is not taken for a peer: %s", node, address, error)
                if not isinstance(error, ConfigError):
                    del self.learned[node]  # it may be another time

    def _ask(self, host: str, port: int) -> dict[int, str]:
        """Raises Cut, OSError, Ending."""
        question = Question(self._ends)
        one = self._lines.dial(host, port, self._timeout_us)
        try:
            hello = self._ends.frame(JOIN, pack_join(self._greeting))
            self._lines.run(one, question, lambda: question.peers is not None, hello)
        finally:
            self._lines.close(one)
        return question.peers or {}


class Question:
    """The asking side of one connection."""

    def __init__(self, ends: Ends) -> None:
        self._frames = Frames(ends, {PEERS, REFUSED})
        self._patience = Patience(now_us())
        self.peers: dict[int, str] | None = None

    @property
    def due_us(self) -> int:
        return self._patience.due_us

    def feed(self, data: bytes, now_us: int) -> bytes:
        """Raises Hostile; Declined, with what the other side says; Stalled."""
        for kind, payload in self._frames.feed(data):
            if kind == REFUSED:
                raise unpack_refused(payload)
            self.peers = unpack_peers(payload)
        self._patience.check(now_us, "there was no answer")
        return b""
