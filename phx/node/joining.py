"""A node that joins: who is there, and of which groups is it a member?

It opens as a member of its groups, or not at all (`Admission`): it waits until all of them have it
for one, by the newest configuration that anybody says, and takes that down, durably, before its
driver starts. Without it, it would count quorums of the members in its own configuration file.

A node may be connected without being a member of anything (`Joiner`), too.

Either knows the cluster's name and addresses of some nodes. Of one that answers it learns which
nodes there are and where, and takes them for peers. They refuse its handshake until a group of them
has it for a member, or somebody adds it as a peer there; from then on both are connected. Nothing
of this makes it a member: that is the groups' decision.

Both sides are here. Who is asked answers natively checked requests (`phx._core.handover`) from a
thread of the provider's, with the addresses that it knows itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from phx.config import Config, split_address
from phx.errors import Closed, ConfigError, ForkedError, PhxError
from phx.membership import Membership, newer
from phx.node.addresses import resolve
from phx.node.line import Ending, Lines, now_us
from phx.store import MembersRow
from phx.transfer.changing import LEFT_MAX, ask_join, ask_who, pack_members, unpack_members
from phx.transfer.messages import (
    MEMBERS,
    PEERS,
    PEERS_MAX,
    REFUSED,
    REFUSED_STORE,
    Cut,
    Ends,
    Greeting,
    Hostile,
    join_group,
    join_store,
    pack_peers,
    pack_refused,
    unpack_peers,
)

__all__ = ["Admission", "Joiner", "welcome"]

log = logging.getLogger("phx")

AGAIN_S = 0.5
"""Between two rounds of questions, at first; twice as long each time, up to AGAIN_MAX_S."""
AGAIN_MAX_S = 10.0
ADMIT_S = 0.1
ADMIT_MAX_S = 1.0
ADDRESSES_MAX = 256
"""That were learned: so many of them are asked."""
LEARNED_MAX = 4 * PEERS_MAX
"""So many nodes a joiner hears of; of others than a node can have to do with at a time, too."""
END_S = 2.0
"""The resolver may take longer; whoever closes a node does not wait for it."""


def welcome(
    said: bytes,
    ends: Ends,
    store_of: Callable[[int], bytes | None],
    peers: Mapping[int, str],
    page: Callable[[int], bytes] = lambda group: pack_members([]),
) -> bytes:
    """The answer to a JOIN: the frame to be sent, after which the connection is closed.

    Args:
        said: that frame, which the transport has checked.
        store_of: the store that was ever seen behind a node id; None: none was.
        peers: "host:port" of each node that the asker may want to know, this one among them.
        page: the members of groups, from one on, as MEMBERS has them.
    """
    before = store_of(ends.peer)
    if before is not None and before != join_store(said):
        text = "this node id was used with another store"
        return ends.frame(REFUSED, pack_refused(REFUSED_STORE, text))
    group = join_group(said)
    if group is not None:
        return ends.frame(MEMBERS, page(group))
    return ends.frame(PEERS, pack_peers(peers))


class Admission:
    """Waits until a node that joins is a member of its groups. Before its driver starts.

    Those in ``config.join`` are asked, and those that they name.

    Args:
        groups: of which nothing is known here.
        incarnation: of the life that is to come.

    Attributes:
        peers: "host:port" of the others, as they said.
        members: of the groups, by group: all that name this node.
    """

    def __init__(
        self, config: Config, groups: Iterable[int], incarnation: int, store_id: bytes
    ) -> None:
        self.peers: dict[int, str] = {}
        self.members: dict[int, Membership] = {}
        self._newest: dict[int, Membership] = {}
        self._left: dict[int, set[int]] = {}
        self._groups = frozenset(groups)
        self._ends = Ends(config.cluster_id, config.node, 0)
        now_us, window = time.time_ns() // 1000, config.limits.window
        self._greeting = Greeting(incarnation, store_id, now_us, window)
        self._whom = Whom(config.join)
        self._failed: dict[str, str] = {}
        self._timeout_us = config.timing.connect_timeout_us
        self._lines = Lines()
        self._told = ""

    def wait(self) -> None:
        """Until all groups have this node for a member. Raises Closed: it was ended."""
        pause = ADMIT_S
        while self._groups:
            for address in self._whom:
                self._ask(address)
            missing = self._groups - self.members.keys()
            if not missing:
                return
            self._say(
                f"group {min(missing)}, and {len(missing)} altogether, do not have node "
                f"{self._ends.me} for a member yet: it waits (phx member add, at one that is)"
            )
            if self._lines.ending.wait(pause):
                raise Closed("the node is closed")
            pause = min(1.5 * pause, ADMIT_MAX_S)

    def rows(self) -> dict[int, MembersRow]:
        """What the store is to keep."""
        return {
            group: MembersRow(told, left=tuple(sorted(self._left[group] - set(told.nodes))))
            for group, told in self.members.items()
        }

    def end(self) -> None:
        """Any thread."""
        self._lines.ending.set()

    def _say(self, what: str) -> None:
        if what != self._told:
            log.info(what)
            self._told = what

    def _ask(self, address: str) -> None:
        """Of a name all that it stands for: they may be several nodes."""
        host, port = split_address(address)
        for numeric in resolve(host):
            try:
                self._ask_at(numeric, port)
                self._failed.pop(numeric, None)
            except Ending:
                raise Closed("the node is closed") from None
            except (Cut, OSError, ValueError) as error:
                why = str(error) or type(error).__name__
                if self._failed.get(numeric) != why:
                    self._failed[numeric] = why
                    log.warning("nobody at %s says who the members are: %s", address, why)

    def _ask_at(self, host: str, port: int) -> None:
        """Raises Cut, OSError, Ending; ValueError: two nodes contradict each other."""
        at, lines = (host, port), self._lines
        found = who_is(lines, at, self._ends, self._greeting, self._timeout_us)
        few(self.peers, found, PEERS_MAX - 1)
        self.peers |= found
        for address in found.values():
            self._whom.add(address)
        first: int | None = 0
        while first is not None:
            asking = ask_join(self._ends, self._greeting, first, now_us())
            one = lines.dial(*at, self._timeout_us)
            page = unpack_members(lines.ask(one, asking, late(self._timeout_us)), first)
            for group in page.members.keys() & self._groups:
                left = self._left.get(group, set()).union(page.left[group])
                if len(left) > LEFT_MAX:
                    raise Hostile(f"group {group}: more nodes than {LEFT_MAX} have left it")
                self._left[group] = left
                self._take(group, page.members[group])
            first = page.next

    def _take(self, group: int, told: Membership) -> None:
        newest = self._newest[group] = newer(self._newest.get(group), told) or told
        if self._ends.me in newest.nodes:
            self.members[group] = newest
        else:
            self.members.pop(group, None)


class Whom:
    """Where to ask: the addresses that were given, then those that were learned, of which the
    oldest give way."""

    def __init__(self, given: Iterable[str]) -> None:
        self._given = tuple(dict.fromkeys(given))
        self._learned: deque[str] = deque(maxlen=ADDRESSES_MAX)

    def __iter__(self) -> Iterator[str]:
        """Those there are now, whatever is added meanwhile."""
        return iter((*self._given, *self._learned))

    def add(self, address: str) -> None:
        if address not in self._given and address not in self._learned:
            self._learned.append(address)


def who_is(
    lines: Lines, at: tuple[str, int], ends: Ends, greeting: Greeting, timeout_us: int
) -> dict[int, str]:
    """The others, by who is there. Raises Cut, OSError, Ending.

    Args:
        timeout_us: for the connection, and then for the answer: it is a small one, and others can
            be asked. (Who is stopped takes a connection, and does not answer.)
    """
    question = ask_who(ends, greeting, now_us())
    found = unpack_peers(lines.ask(lines.dial(*at, timeout_us), question, late(timeout_us)))
    return {node: address for node, address in found.items() if node != ends.me}


def late(timeout_us: int) -> Callable[[], bool]:
    """Whether so much time has gone from now on."""
    until_us = now_us() + timeout_us
    return lambda: now_us() >= until_us


def few(known: Mapping[int, str], found: Mapping[int, str], most: int) -> None:
    """Raises Hostile: with those that are said now there are more than that."""
    if len(known.keys() | found.keys()) > most:
        raise Hostile(f"it says that there are more nodes than {most}")


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
        self._whom = Whom(addresses)
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
                for address in self._whom:
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
                at = numeric, port
                found = who_is(self._lines, at, self._ends, self._greeting, self._timeout_us)
                few(self.learned, found, LEARNED_MAX)
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
            if self.learned.get(node) == address:
                continue
            if self._lines.ending.is_set():
                raise Ending
            self.learned[node] = address
            self._whom.add(address)
            try:
                self._add(node, address)
            except (Closed, ForkedError):
                raise
            except PhxError as error:  # of this one; the others may do
                log.warning("node %d at %s is not taken for a peer: %s", node, address, error)
                if not isinstance(error, ConfigError):
                    del self.learned[node]  # it may be another time
