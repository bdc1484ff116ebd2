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
from collections.abc import Callable, Iterable, Mapping, Sequence

from phx.config import Config, split_address
from phx.errors import Closed, ConfigError, ForkedError, PhxError
from phx.membership import Membership, newer
from phx.node.addresses import resolve
from phx.node.line import Ending, Lines, Side, now_us
from phx.store import MembersRow
from phx.transfer.changing import Asking, ask_join, pack_members, unpack_members
from phx.transfer.messages import (
    JOIN,
    MEMBERS,
    PEERS,
    REFUSED,
    REFUSED_STORE,
    Cut,
    Ends,
    Frames,
    Greeting,
    Patience,
    join_group,
    join_store,
    pack_join,
    pack_peers,
    pack_refused,
    unpack_peers,
    unpack_refused,
)

__all__ = ["Admission", "Joiner", "welcome"]

log = logging.getLogger("phx")

AGAIN_S = 0.5
"""Between two rounds of questions, at first; twice as long each time, up to AGAIN_MAX_S."""
AGAIN_MAX_S = 10.0
ADMIT_S = 0.1
ADMIT_MAX_S = 1.0
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
        self._addresses = list(dict.fromkeys(config.join))
        self._timeout_us = config.timing.connect_timeout_us
        self._lines = Lines()
        self._told = ""

    def wait(self) -> None:
        """Until all groups have this node for a member. Raises Closed: it was ended."""
        pause = ADMIT_S
        while self._groups:
            for address in list(self._addresses):
                self._ask(address)
            missing = self._groups - self.members.keys()
            if not missing:
                return
            self._say(
                f"group {min(missing)}, and {len(missing)} altogether, do not have node "
                f"{self._ends.me} for a member yet: it waits (Node.add_member)"
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
        host, port = split_address(address)
        try:
            for numeric in resolve(host):
                self._ask_at(numeric, port)
        except Ending:
            raise Closed("the node is closed") from None
        except (Cut, OSError, ValueError) as error:
            log.debug("nobody at %s says who the members are: %s", address, error)

    def _ask_at(self, host: str, port: int) -> None:
        """Raises Cut, OSError, Ending; ValueError: two nodes contradict each other."""
        who = Question(self._ends)
        hello = self._ends.frame(JOIN, pack_join(self._greeting))

        def over() -> bool:
            return who.peers is not None

        talk(self._lines, (host, port), self._timeout_us, who, over, hello)
        for node, address in (who.peers or {}).items():
            if node != self._ends.me:
                self.peers[node] = address
            if address not in self._addresses and node != self._ends.me:
                self._addresses.append(address)
        first: int | None = 0
        while first is not None:
            asking = ask_join(self._ends, self._greeting, first, now_us())
            page = unpack_members(self._answer(host, port, asking))
            for group in page.members.keys() & self._groups:
                self._left.setdefault(group, set()).update(page.left.get(group, ()))
                self._take(group, page.members[group])
            first = page.next

    def _take(self, group: int, told: Membership) -> None:
        newest = self._newest[group] = newer(self._newest.get(group), told) or told
        if self._ends.me in newest.nodes:
            self.members[group] = newest
        else:
            self.members.pop(group, None)

    def _answer(self, host: str, port: int, asking: Asking) -> bytes:
        def over() -> bool:
            return asking.answer is not None

        talk(self._lines, (host, port), self._timeout_us, asking, over, asking.hello)
        assert asking.answer is not None
        return asking.answer


def talk(
    lines: Lines,
    at: tuple[str, int],
    timeout_us: int,
    side: Side,
    over: Callable[[], bool],
    hello: bytes,
) -> None:
    """Over a connection of its own. Raises Cut, OSError, Ending, and what the side raises."""
    one = lines.dial(*at, timeout_us)
    try:
        lines.run(one, side, over, hello)
    finally:
        lines.close(one)


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
        hello = self._ends.frame(JOIN, pack_join(self._greeting))

        def over() -> bool:
            return question.peers is not None

        talk(self._lines, (host, port), self._timeout_us, question, over, hello)
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
