"""Finds out that a replica of this node is not what its log says, and stops it.

Who is asked what, and what follows, is `phx.checkpoint.digests.Comparison`; here are its thread,
and what is done about it:

noted      on the applying thread, at each agreed instance: chained checksum, state of the machines
           whose digest is cheap
asked      each peer, every EVERY_S, about the groups that have something new
compared   `phx.checkpoint.digests`; a majority of all members says who is odd
stopped    the group, here, if it is this node; its checkpoints that are newer than the last known
           equality go to quarantine

Machines whose digest is not cheap are not compared: of their groups only what was applied is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from phx.applier import GroupState
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.digests import Agreed, Comparison, Rings, Verdict, state_of
from phx.checkpoint.files import exists
from phx.checkpoint.manifest import Manifest
from phx.errors import GroupStopped

__all__ = ["Divergence", "set_aside", "stopped_by"]

log = logging.getLogger("phx")

EVERY_S = 30.0
NONE: Mapping[int, bytes] = MappingProxyType({})


class Divergence(threading.Thread):
    """The thread ``phx-digests``; it is there once anything was noted, and there is a peer.

    Guarantee: a group is stopped only if more than half of all members are equal to each other at
    an agreed instance and this node is not. What is not known is no difference.

    Args:
        members: how many the group with the most members has now.
        peers: those that can be asked now.
        ask: (node, group, above) -> what that node noted beyond an instance; None: no answer.
        odd: told of a group whose replica here is odd. On the thread.

    Attributes:
        counters: since the start.
    """

    def __init__(
        self,
        members: Callable[[], int],
        *,
        peers: Callable[[], Iterable[int]],
        ask: Callable[[int, int, int], Rings | None],
        odd: Callable[[int, Verdict], None],
    ) -> None:
        super().__init__(name="phx-digests", daemon=True)
        self._members = members
        self._peers = peers
        self._ask = ask
        self._odd = odd
        self._change = threading.Condition()  # of all that follows
        self._ending = False
        self._known = Comparison(members())
        self.counters = {"digests_noted": 0, "digests_compared": 0, "diverged": 0}

    def note(self, state: GroupState) -> None:
        """The group is at an agreed instance, all of it applied. On the applying thread."""
        found = b""
        if not state.skip:  # else a machine holds the state of a later one
            try:
                found = state_of(state.machines)
            except Exception:
                log.exception("group %d: no digest at %d", state.group, state.applied)
        with self._change:
            self._known.note(state.group, Agreed(state.applied, state.digest, found))
            self.counters["digests_noted"] += 1
            if not self._ending and self.ident is None and self._members() > 1:
                self.start()

    def forget(self, group: int) -> None:
        """The group goes on from another state: what was noted is not of that. On the applying
        thread."""
        with self._change:
            self._known.forget(group)

    def stands(self, group: int, verdict: Verdict) -> bool:
        """Whether a verdict that was told is the last one, and of the state that the group has. On
        the applying thread, where states are replaced."""
        with self._change:
            return self._known.stands(group, verdict)

    def noted(self, group: int, above: int) -> list[Agreed]:
        """What this node says to who asks. Any thread."""
        with self._change:
            return self._known.noted(group, above)

    # --- the thread

    def run(self) -> None:
        next_s = time.monotonic() + EVERY_S
        while True:
            with self._change:
                self._change.wait_for(lambda: self._ending, max(0.0, next_s - time.monotonic()))
                if self._ending:
                    return
            next_s = time.monotonic() + EVERY_S
            try:
                self.round()
            except Exception:
                with self._change:
                    if not self._ending:
                        log.exception("digests could not be compared")

    def round(self) -> None:
        """Ask every peer about every group with news; then judge what is new."""
        for node in self._peers():
            with self._change:
                news = self._known.news(node)
            for group, above in news:
                if self._ending:
                    return
                said = self._ask(node, group, above)
                if said is None:
                    break  # it is not to be reached
                with self._change:
                    self._known.heard(group, node, said)
        with self._change:
            groups = self._known.unjudged()
        for group in groups:
            with self._change:
                known = self._known.known(group)
            self._known.members = self._members()
            verdict = self._known.judge(known)  # while values are applied
            with self._change:
                self.counters["digests_compared"] += 1
                new = self._known.news_is(group, known, verdict)
            if new:
                self._say(group, verdict)

    def _say(self, group: int, verdict: Verdict) -> None:
        nodes = ", ".join(map(str, verdict.nodes))
        if verdict.kind == "odd":
            self.counters["diverged"] += 1
            log.critical(
                "group %d: this node has %s; a majority is equal: nodes %s", group, verdict, nodes
            )
            self._odd(group, verdict)
        elif verdict.kind == "others":
            log.error(
                "group %d: node %s has %s; this node is one of a majority", group, nodes, verdict
            )
        else:
            log.critical(
                "group %d: this node and node %s have %s, and no majority is known to be equal: "
                "nobody stops",
                group,
                nodes,
                verdict,
            )

    def end(self, wait_s: float | None = None) -> None:
        """Ask nobody more; wait for the thread, at most so long."""
        with self._change:
            self._ending = True
            self._change.notify_all()
        if self.ident is not None and self is not threading.current_thread():
            self.join(wait_s)


def stopped_by(state: GroupState, verdict: Verdict) -> GroupStopped:
    """Why the group stops."""
    return GroupStopped(state.group, state.applied + 1, None, str(verdict))


def set_aside(
    catalog: Catalog, victims: Iterable[Manifest], installing: Mapping[int, bytes] = NONE
) -> list[Manifest]:
    """Put checkpoints that `Snapshots.condemn` took out of the catalog to quarantine, but for those
    that were fetched again since; those that could not go there. On the thread that changes the
    folders of the group."""
    left: list[Manifest] = []
    for one in victims:
        if installing.get(one.group) == one.content:
            continue
        if any(other.content == one.content for other in catalog.of(one.group)):
            continue
        path = path_of(catalog.root, one)
        try:
            catalog.put_aside(one)
        except OSError as error:
            if exists(catalog.files, path):
                left.append(one)
            log.error("%s stays, and may not be what the log says: %s", path, error)
        else:
            log.error("%s is put aside: it may not be what the log says", path)
    return left
