"""Where the other nodes are: names made numbers, afresh whenever somebody tries to connect.

Three may say it: the configuration, whoever calls `Node.set_address`, and a change of members,
which says where new ones are. What was said while the node ran is kept in the store, with what the
configuration said then. At a start, who spoke last counts: an address that was learned, unless the
configuration says something else of that node by now, because then it was edited since.

A name is looked up by the thread ``phx-names``, which there is only with names. The poll thread
never waits for it: it dials where the node was last, and goes elsewhere once the answer says so.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from phx._core.driver import ERROR_CLOSED, DriverError
from phx._core.peer_table import PeerTable
from phx.config import Config, split_address
from phx.errors import Closed, Damaged, NotInCluster, StoreError, SystemFailure
from phx.store import Store
from phx.store_peers import Learned, read, write

__all__ = ["Addresses", "Place", "is_name", "learned", "pick", "resolve"]

log = logging.getLogger("phx")

Place = tuple[int, str, int]
"""A node, its numeric host ("": not known), its port (0: not known)."""

LOOKUP_US = 10_000_000
REACH_S = 1.0
"""So long whoever fetches waits for a look-up, before it goes where the node was last."""
END_S = 2.0
"""The resolver may take longer; whoever closes a node does not wait for it."""


class Addresses:
    """Of one node: its own, and those of the others. Thread-safe.

    Attributes:
        known: numeric host and port of the others, as far as they are known.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._texts: dict[int, str] = {}  # "host:port" of the others
        self._learned: dict[int, Learned] = {}
        self.known: dict[int, tuple[str, int]] = {}
        self._table: PeerTable | None = None
        self._thread: threading.Thread | None = None
        self._ask: Callable[[Callable[[Store], Any]], Future[Any]] | None = None
        self._dirty = False
        self._writing: Future[Any] | None = None
        self._failed = ""
        self._looking: dict[int, threading.Thread] = {}  # for `reach`
        self._port = 0  # that the node listens at

    # --- at the start

    def begin(self, learned: Mapping[int, Learned]) -> None:
        """What the store has."""
        file = self._config.members
        for node, one in learned.items():
            if one.file == file.get(node, ""):
                self._learned[node] = one
            else:
                log.info(
                    "node %d: the configuration was edited since %s was learned: it counts",
                    node,
                    one.address,
                )
                self._dirty = True
        self._texts = {node: text for node, text in file.items() if node != self._config.node}
        self._texts |= {node: one.address for node, one in self._learned.items()}

    def meet(self, peers: Mapping[int, str]) -> None:
        """Those that others know, before the start. Where the configuration says an address, that
        counts."""
        for node, address in peers.items():
            file = self._config.members.get(node, "")
            if node != self._config.node and (not file or file.endswith(":0")):
                self._texts[node] = address
                self._learned[node] = Learned(address, file)
                self._dirty = True

    def known_nodes(self) -> list[int]:
        """All other nodes that are known, wherever they are."""
        with self._lock:
            return sorted(self._texts)

    def alone(self) -> bool:
        """No other node is known."""
        return not self.known_nodes()

    def members(self) -> list[Place]:
        """Those of the configuration, this node among them."""
        return [self._place(node) for node in sorted(self._config.members)]

    def others(self) -> list[Place]:
        """Peers that the configuration does not have."""
        extra = self._texts.keys() - self._config.members.keys()
        return [self._place(node) for node in sorted(extra)]

    def named(self) -> set[int]:
        """Those whose address is a name."""
        with self._lock:
            return {node for node, text in self._texts.items() if is_name(text)}

    def _place(self, node: int) -> Place:
        own = node == self._config.node
        text = self._config.members[node] if own else self._texts[node]
        host, port = split_address(text)
        numeric = (resolve(host) or [""])[0] if port or own else ""
        if not numeric and own:
            raise SystemFailure(f"members.{node}: {host} has no address")
        if not numeric and port:
            log.warning("node %d: %s has no address yet", node, host)
        self._note(node, numeric, port)
        return node, numeric, port if numeric else 0

    def bind(self) -> tuple[str, int]:
        """Where this node listens. Raises SystemFailure if that has no address."""
        own = self._config.bind or self._config.members[self._config.node]
        host, port = split_address(own)
        found = resolve(host)
        if not found:
            raise SystemFailure(f"{own}: {host} has no address")
        return found[0], port

    # --- while it runs

    def serve(
        self,
        table: PeerTable,
        port: int,
        ask: Callable[[Callable[[Store], Any]], Future[Any]],
    ) -> None:
        """The driver runs, and listens there."""
        self._table, self._port, self._ask = table, port, ask
        if self._dirty:
            self._changed()
        self._start_names()

    def texts(self) -> dict[int, str]:
        """ "host:port" of every other node that has one, and of this one."""
        own = self._config.members[self._config.node]
        host, port = split_address(own)
        if not port:
            own = f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"
        with self._lock:
            found = {node: text for node, text in self._texts.items() if not text.endswith(":0")}
        return {**found, self._config.node: own}

    def text(self, node: int) -> str:
        """ "host:port" of another node, as it was told; "": not known."""
        with self._lock:
            return self._texts.get(node, "")

    def is_peer(self, node: int) -> bool:
        with self._lock:
            return node in self._texts

    def numeric(self, address: str) -> tuple[str, int]:
        """The same in numbers; blocks. Raises ValueError, SystemFailure."""
        host, port = split_address(address)
        found = resolve(host)
        if not found:
            raise SystemFailure(f"{address}: {host} has no address")
        return found[0], port

    def move(self, node: int, address: str) -> None:
        """Another node is there from now on. Blocks while a name is looked up.

        Raises NotInCluster, ValueError, SystemFailure, DriverError: nothing is changed.
        """
        if node != self._config.node and not self.is_peer(node):
            raise NotInCluster(f"node {node} is no member of {self._config.cluster}")
        numeric, port = self.numeric(address)
        assert self._table is not None
        with self._lock:  # a look-up of the old name comes before, or not at all
            self._table.set_address(node, numeric, port, named=is_name(address))
            self._learn(node, address)
            self._note(node, numeric, port)
        self._changed()

    def add(self, node: int, address: str, store_id: bytes | None) -> None:
        """Be connected with this node, too. Blocks. Raises as `move`."""
        host, port = split_address(address)
        numeric = (resolve(host) or [""])[0] if port else ""
        assert self._table is not None
        with self._lock:
            self._table.add(
                node,
                numeric,
                port if numeric else 0,
                named=bool(port) and is_name(address),
                store_id=store_id,
            )
            self._learn(node, address)
            self._note(node, numeric, port)
        self._changed()

    def drop(self, node: int, kept: bytes) -> bool:
        """Let go of a node. False: a store was met behind it, and `kept` is not its id. Then,
        and if it raises DriverError, nothing is changed."""
        assert self._table is not None
        with self._lock:
            if not self._table.drop(node, kept):
                return False
            self._texts.pop(node, None)
            self._learned.pop(node, None)
            self.known.pop(node, None)
        self._changed()
        return True

    def reach(self, node: int) -> tuple[str, int]:
        """Where to connect with a node now. A name is looked up, which blocks for REACH_S at most:
        a node that closes waits for those who fetch. Raises KeyError."""
        with self._lock:
            text, at = self._texts[node], self.known.get(node)
        if not is_name(text):
            if at is None:
                raise KeyError(node)
            return at
        with self._lock:
            looking = self._looking.get(node)
            if looking is None or not looking.is_alive():
                looking = threading.Thread(
                    target=self._look,
                    args=(node, 0),
                    kwargs={"tell": False},
                    name="phx-lookup",
                    daemon=True,
                )
                looking.start()
                self._looking[node] = looking
        looking.join(REACH_S)
        with self._lock:
            return self.known[node]

    def _learn(self, node: int, address: str) -> None:
        file = self._config.members.get(node, "")
        self._texts[node] = address
        if address == file:
            self._learned.pop(node, None)
        else:
            self._learned[node] = Learned(address, file)

    def _note(self, node: int, numeric: str, port: int) -> None:
        if numeric and port and node != self._config.node:
            self.known[node] = numeric, port

    # --- the store

    def _changed(self) -> None:
        self._dirty = True
        self._start_names()
        if self._ask is not None:
            self._writing = self._ask(self.look)

    def keep(self, wait_s: float | None = None) -> None:
        """Wait until the store has what was learned, or cannot take it, at most so long."""
        if self._writing is not None:
            with suppress(Closed, TimeoutError):
                self._writing.result(END_S if wait_s is None else wait_s)

    def look(self, store: Store) -> bool:
        """On the store thread: write what it lacks. False: it has to be tried again."""
        with self._lock:
            learned, dirty = dict(self._learned), self._dirty
            self._dirty = False
        if not dirty:
            return True
        try:
            write(store, learned)
        except StoreError as error:
            self._dirty = True
            if str(error) != self._failed:
                log.error("addresses that were learned cannot be kept: %s", error)
            self._failed = str(error)
            return False
        self._failed = ""
        return True

    # --- names

    def _start_names(self) -> None:
        with self._lock:
            wanted = any(is_name(text) for text in self._texts.values())
            if not wanted or self._table is None or self._thread is not None:
                return
            self._thread = threading.Thread(target=self._run, name="phx-names", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        table = self._table
        assert table is not None
        while (wanted := table.lookups(LOOKUP_US)) is not None:
            for node, attempts in wanted:
                try:
                    self._look(node, attempts, tell=True)
                except DriverError as error:
                    if error.code == ERROR_CLOSED:
                        return
                    log.warning("node %d: %s", node, error)

    def _look(self, node: int, attempts: int, *, tell: bool) -> None:
        text = self.text(node)
        if not is_name(text):
            return
        host, port = split_address(text)
        found = resolve(host)
        with self._lock:
            before = self.known.get(node)
            numeric = pick(found, before[0] if before else "", attempts)
            if not numeric or self._texts.get(node) != text:
                return
            if before and before[0] != numeric:
                log.info(
                    "node %d: %s is at %s now, no longer at %s", node, host, numeric, *before[:1]
                )
            self._note(node, numeric, port)
            if tell and self._table is not None:
                self._table.resolved(node, numeric, port)

    def end(self) -> None:
        """The driver stops. Idempotent."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(END_S)


def learned(store: Store, note: Callable[[str], None]) -> dict[int, Learned]:
    """What the store has of that; nothing, and a note, where it is damaged."""
    try:
        return read(store)
    except Damaged as damage:
        note(f"{damage}; the addresses are those of the configuration, until others are told")
        return {}


def is_name(address: str) -> bool:
    """Whether the host of a "host:port" has to be looked up; with port 0 there is no need."""
    if not address or address.endswith(":0"):
        return False
    try:
        ipaddress.ip_address(split_address(address)[0].partition("%")[0])
    except ValueError:
        return True
    return False


def pick(found: list[str], before: str, attempts: int) -> str:
    """Of what a name has, where to dial: as before while that may be right, else the next one.

    Args:
        before: where was dialled last.
        attempts: that have failed since there was a connection; the first of them may have been the
            end of that connection.
    """
    if not found:
        return ""
    if before not in found:
        return found[0]
    if attempts < 2:
        return before
    return found[(found.index(before) + 1) % len(found)]


def resolve(host: str) -> list[str]:
    """The numeric addresses of a host, in the order of the resolver, each once; [] if it has
    none. Without those that count on one link only. Blocks, for as long as the resolver likes."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    numeric = (str(one[4][0]) for one in found)
    return [one for one in dict.fromkeys(numeric) if "%" not in one]
