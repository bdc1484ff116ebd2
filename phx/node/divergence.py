"""Finds out that a replica of this node is not what its log says, and stops it.

Who is asked what, and what follows, is `phx.checkpoint.digests.Comparison`; here are its thread,
and what is done about it:

noted      on the applying thread, at each agreed instance: chained checksum, state of the machines
           whose digest is cheap; where views are needed (`phx.node.view_digests`), a little later,
           on that thread, and of no other instance meanwhile
asked      each peer, every EVERY_S, about the groups that have something new
compared   `phx.checkpoint.digests`; a majority of all members says who is odd
stopped    the group, here, if it is this node; its checkpoints that are newer than the last known
           equality go to quarantine

A machine with neither a cheap digest nor one of its views is not compared: only what was applied.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from phx.applier import GroupState
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.digests import Agreed, Comparison, Rings, Verdict, by_views, state_of
from phx.checkpoint.files import exists
from phx.checkpoint.manifest import Manifest
from phx.errors import GroupStopped
from phx.node.view_digests import ViewDigests

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
        self._of_views = ViewDigests()
        self._walking: dict[int, Agreed] = {}  # what is to be noted when its state is known
        self._counters = {"digests_noted": 0, "digests_compared": 0, "diverged": 0}

    @property
    def counters(self) -> dict[str, int]:
        """Since the start."""
        return {**self._counters, **self._of_views.counters}

    def note(self, state: GroupState) -> None:
        """The group is at an agreed instance, all of it applied. On the applying thread."""
        if state.group in self._walking:
            self._of_views.missed(state.group, state.applied)
            return  # what is noted comes in order
        one = Agreed(state.applied, state.digest, b"")
        if not state.skip:  # else a machine holds the state of a later one
            try:
                if by_views(state.machines):
                    if self._walk(state, one):
                        return
                else:
                    one = one._replace(state=state_of(state.machines))
            except Exception:
                log.exception("group %d: no digest at %d", state.group, state.applied)
        with self._change:
            self._note(state.group, one)

    def _note(self, group: int, one: Agreed) -> None:
        self._known.note(group, one)
        self._counters["digests_noted"] += 1
        if not self._ending and self.ident is None and self._members() > 1:
            self.start()

    def _walk(self, state: GroupState, one: Agreed) -> bool:
        """Begin to work out the state, if it is time for that and there is a peer; whether it was.
        Raises whatever a machine raises."""
        group = state.group

        def told(found: bytes) -> None:
            with self._change:
                if self._walking.get(group) is one:  # else the group has another state by now
                    del self._walking[group]
                    self._note(group, one._replace(state=found))

        if self._members() < 2:
            return False
        with self._change:
            self._walking[group] = one
        begun = False
        try:
            begun = self._of_views.begin(group, one.instance, state.machines, told)
        finally:
            if not begun:
                with self._change:
                    del self._walking[group]
        return begun

    def forget(self, group: int) -> None:
        """The group goes on from another state: what was noted is not of that. On the applying
        thread."""
        with self._change:
            self._known.forget(group)
            self._walking.pop(group, None)
        self._of_views.forget(group)

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
                self._counters["digests_compared"] += 1
                new = self._known.news_is(group, known, verdict)
            if new:
                self._say(group, verdict)

    def _say(self, group: int, verdict: Verdict) -> None:
        nodes = ", ".join(map(str, verdict.nodes))
        if verdict.kind == "odd":
            self._counters["diverged"] += 1
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
        self._of_views.end(wait_s)
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
