"""A node that comes to a created group later: who are its members, and is this node one of them?

The directory's row names it only when its group has it for a member (`phx.machines.directory`), so
there is nothing to wait for but an answer: whoever hosts the group is asked who its members are,
and the newest that name this node are those under which it begins, as a node that joins a group of
the configuration does (`phx.node.joining.Admission`). It votes, if it does, when it has come to the
change that named it (docs/design/membership.md, M4).

What is said of another generation of the id is of another group, and is passed over: who answers
may not have heard of this one yet, or of one after it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NamedTuple

from phx._core.driver import DriverError
from phx.membership import Membership, newer
from phx.node.fetcher import Peers
from phx.node.line import Ending, Lines, now_us
from phx.node.threads import join_all
from phx.store_hosted import base_of, is_of
from phx.store_members import MembersRow
from phx.transfer.changing import Page, ask_members, unpack_members
from phx.transfer.messages import Cut, Ends

__all__ = ["Arrivals"]

log = logging.getLogger("phx")


AGAIN_S = 0.1
AGAIN_MAX_S = 1.0
"""Between two rounds of questions, at first and at most."""


class Wanted(NamedTuple):
    """Members of a group of this generation, of this version or a later one; whom to ask."""

    generation: int
    version: int
    nodes: tuple[int, ...]


class Arrivals:
    """Asks for the members of groups that this node is to host, and never hosted. Any thread.

    From the first question on it has a thread, ``phx-arrive``: who is asked may be slow to answer.

    Args:
        told: of a group whose members were found.
    """

    def __init__(self, peers: Peers, told: Callable[[int], None]) -> None:
        self._peers = peers
        self._told = told
        self._lines = Lines()
        self._wake = threading.Condition()
        self._wanted: dict[int, Wanted] = {}
        self._found: dict[int, tuple[int, MembersRow]] = {}
        self._fresh = False
        self._thread: threading.Thread | None = None

    def members(
        self, group: int, generation: int, version: int, nodes: Iterable[int]
    ) -> MembersRow | None:
        """Those that name this node (the first ones, if nobody who answers knows of others); None:
        nobody has said so yet, and these nodes are asked, until one of them knows of that version
        or of a later one."""
        with self._wake:
            found = self._found.get(group)
            if found is not None and found[0] == generation:
                return found[1]
            others = tuple(node for node in nodes if node != self._peers.node)
            wanted = Wanted(generation, version, others)
            if self._wanted.get(group) != wanted and not self._lines.ending.is_set():
                self._wanted[group] = wanted
                self._fresh = True
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="phx-arrive", daemon=True
                    )
                    self._thread.start()
                self._wake.notify_all()
            return None

    def forget(self, group: int) -> None:
        """It is hosted, or is not to be."""
        with self._wake:
            self._wanted.pop(group, None)
            self._found.pop(group, None)

    def end(self, wait_s: float | None = None) -> None:
        """Nobody is asked any more. Idempotent."""
        with self._wake:
            self._lines.ending.set()
            self._wake.notify_all()
            threads = [] if self._thread is None else [self._thread]
        join_all(threads, wait_s)

    def forget_lines(self) -> None:
        """In a forked child."""
        self._lines.forget()

    # --- its thread

    def _run(self) -> None:
        pause_s = AGAIN_S
        with suppress(Ending):
            while True:
                line = self._line()
                try:
                    self._ask_all(line)
                except Ending:
                    raise
                except DriverError as error:
                    log.debug("nobody is asked for members now: %s", error)
                except Exception:
                    log.exception("members of created groups are asked for again")
                with self._wake:
                    if self._wake.wait_for(self._stirred, pause_s):
                        pause_s = AGAIN_S
                    pause_s = min(2 * pause_s, AGAIN_MAX_S)
                    self._fresh = False

    def _ask_all(self, line: list[tuple[int, Wanted]]) -> None:
        there = self._peers.connected()
        for group, wanted in line:
            nodes = tuple(node for node in wanted.nodes if node in there)
            found = self._ask(group, wanted._replace(nodes=nodes))
            if found is not None:
                self._take(group, wanted.generation, found)

    def _stirred(self) -> bool:
        return self._fresh or self._lines.ending.is_set()

    def _line(self) -> list[tuple[int, Wanted]]:
        """What is to be asked now; waits until there is something. Raises Ending."""
        with self._wake:
            self._wake.wait_for(lambda: self._wanted or self._lines.ending.is_set())
            if self._lines.ending.is_set():
                raise Ending
            return list(self._wanted.items())

    def _take(self, group: int, generation: int, found: MembersRow) -> None:
        with self._wake:
            wanted = self._wanted.get(group)
            if wanted is None or wanted.generation != generation:
                return
            del self._wanted[group]
            self._found[group] = generation, found
        self._told(group)

    def _ask(self, group: int, wanted: Wanted) -> MembersRow | None:
        """Raises Ending."""
        newest: Membership | None = None
        first: Membership | None = None
        left: set[int] = set()
        for node in wanted.nodes:
            try:
                page = self._told_by(node, group)
                told = page.members.get(group)
                if told is not None and told.instance == base_of(wanted.generation):
                    first = told
                if told is None or not is_of(wanted.generation, told):
                    continue
                newest = newer(newest, told)
                left.update(page.left[group])
                if newest is not None and newest.version >= wanted.version:
                    break
            except (KeyError, OSError, Cut) as error:
                log.debug("group %d: node %d does not say who is in it: %s", group, node, error)
            except ValueError as error:
                log.warning("group %d: what node %d says of it is not so: %s", group, node, error)
        if newest is None and first is not None and self._peers.node in first.nodes:
            # Whoever knew of later ones is not there. It has never begun, so it is as one of the
            # first members that was slow.
            return MembersRow(first)
        if newest is None or self._peers.node not in newest.nodes:
            return None
        return MembersRow(newest, left=tuple(sorted(left - set(newest.nodes))))

    def _told_by(self, node: int, group: int) -> Page:
        """Raises KeyError, OSError, Cut, ValueError, Ending."""
        peers = self._peers
        question = ask_members(
            Ends(peers.cluster, peers.node, node), peers.greeting, group, now_us()
        )
        one = self._lines.dial(*peers.at(node), peers.timeout_us)
        return unpack_members(self._lines.ask(one, question, lambda: False), group)
