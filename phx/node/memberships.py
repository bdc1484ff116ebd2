"""Who the members of a node's groups are, by log, store and checkpoints; and telling the engine.

at a start      the rows of the store and the manifests of all checkpoints, the newest of each
                group: before the driver starts, so before the engine votes under anything older
installing      the manifest's: into the store with the floor, to the engine before it is told
                of the install
from the log    what the engine counted or was told of (`hear`): noted for the store, which writes
                it when it passes that instance. Who applies and who settles hear the engine before
                each piece of work, whatever has become of the group's machine: a checkpoint above i
                asks `at`, and the store does not go past an i that is not noted
taking          those that hold at the frontier (`at`), which may be older than the newest
changing        whoever waits for a change (`wait`), or connects with those who are members now
                (`on_news`), is told as soon as it is heard
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise

from phx import store_first
from phx._core.driver import Driver
from phx._core.member_table import MemberTable
from phx.checkpoint.manifest import Manifest
from phx.config import Config
from phx.errors import CheckpointFailed, Damaged, GroupDeleted
from phx.membership import Membership, newer, nodes_of
from phx.store import MembersRow, Store
from phx.transfer.changing import pack_members
from phx.types import Members, voter

__all__ = ["ChangeKnown", "Memberships", "members_of_node"]

ChangeKnown = Callable[[int, int, bytes, int, int, bool], None]
"""group, version, members (a roster), instance, floor, active: `MemberTable.known`."""
FIRST = 2  # version of the first change
VERSIONS_KEPT = 16  # of a group, for who waits to hear of one


class Memberships:
    """The members of a node's groups, where they ever changed. Any thread.

    Args:
        note: has the store keep them: `Store.note_members`.
        tell: the engine's input, the one way by which it hears of members that its own log has not
            brought.
        engine: what it says itself.
        first: those of version 1, and where they are, as the configuration has them; all of them
            vote. Empty at a node that joined: it knows of no version 1.
        kept: who left a group, as far as the store saw them pass: `Store.left`.
        created: groups that were created: who their first members are is no file's to say.
    """

    def __init__(
        self,
        note: Callable[[int, Membership, bool, Collection[int]], None],
        tell: ChangeKnown,
        engine: MemberTable | None = None,
        first: Mapping[int, str] | None = None,
        kept: Callable[[int], Collection[int]] = lambda group: (),
        created: Iterable[int] = (),
    ) -> None:
        self._note = note
        self._tell = tell
        self._engine = engine
        self._first = first or {}
        self._kept = kept
        self._hearing = threading.Lock()
        self._heard = 0
        self._wrong: list[tuple[int, ValueError]] = []
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._heard_of = 0
        self._known: dict[int, list[Membership]] = {}  # ascending
        self._versions: dict[int, dict[int, Membership]] = {}  # the same, and those before
        self._left: dict[int, set[int]] = {}
        self._created = set(created)  # groups that no configuration has members for
        self.ended: set[int] = set()
        """Groups whose last value is known to be chosen: nobody is a member of them any more."""
        self.on_ended: Callable[[int], None] = lambda group: None
        self.removed: set[int] = set()
        """Groups that this node was a member of: an active version is without it."""
        self.on_news: Callable[[int, Membership], None] = lambda group, told: None
        self.on_created_members: Callable[[int], None] = lambda group: None
        """Of a created group: its members are others, or they are active."""

    def begin(self, rows: Mapping[int, MembersRow], manifests: Iterable[Manifest]) -> None:
        """What the disk says, at a start: hands the newest of each group over.

        Raises:
            DriverError: the engine takes no such members.
            Damaged: store and checkpoints contradict each other.
        """
        told = [(group, row.membership) for group, row in rows.items()]
        told += [(one.group, one.membership) for one in manifests if one.membership is not None]
        try:
            for group, membership in told:
                self._learn(group, membership)
        except ValueError as error:
            raise Damaged(f"group {group}: store and checkpoints do not agree: {error}") from error
        for group, row in rows.items():
            self._left.setdefault(group, set()).update(row.left)
        self.removed |= {
            group
            for group, row in rows.items()
            if row.removed and self._known[group][-1] == row.membership
        }
        self.ended |= {group for group in self.removed if not self._known[group][-1].nodes}
        for group, known in sorted(self._known.items()):
            self._note(group, known[-1], False, self.left(group))
            self.hand_over(group, known[-1])

    def hear(self) -> None:
        """Learn what the engine has said since. Any thread; when it returns all is noted, whoever
        heard it. What contradicts what is known is kept for `contradictions`."""
        engine = self._engine
        if engine is None or engine.told() == self._heard:
            return
        with self._hearing:
            for group, roster, instance, floor, active, left in engine.take():
                try:
                    self.learned(group, Membership(roster, instance, floor, active), left)
                except ValueError as error:
                    self._wrong.append((group, error))
                self._heard += 1

    def contradictions(self) -> list[tuple[int, ValueError]]:
        """Groups whose members are not what disk or log said, since the last call: nothing more of
        them may be applied. On the applying thread."""
        if not self._wrong:
            return []
        with self._hearing:
            wrong, self._wrong = self._wrong, []
        return wrong

    def now(self, group: int) -> Members:
        """The newest members that the engine knows. Raises DriverError."""
        assert self._engine is not None
        said = self._engine.of(group)
        if said is not None and not nodes_of(said[0]):
            raise GroupDeleted(f"group {group} was deleted")
        if said is None:
            return Members(1, True, {node: voter(where) for node, where in self._first.items()})
        return Membership(*said[:4]).members()

    def learned(self, group: int, told: Membership, removed: bool = False) -> None:
        """From the engine, as soon as it knows the value to be chosen, and again when the members
        are active; `removed`: this node was one, and is none of them. Raises ValueError.

        Before anything above ``told.instance`` is applied: a checkpoint there asks `at`.
        """
        self._learn(group, told)
        self._note(group, told, removed, self.left(group))
        if removed and told.active:
            self.removed.add(group)
        if not told.nodes:
            self.ended.add(group)
            self.on_ended(group)
            return
        if group in self._created:
            self.on_created_members(group)
        self.on_news(group, told)

    def begin_group(self, group: int, *told: Membership) -> None:
        """A created group begins, with these members, or those that followed them. Any thread."""
        self._created.add(group)
        for one in told:
            self._learn(group, one)

    def forget(self, group: int) -> None:
        """The group is gone, and the driver has dropped it: nothing is heard of it any more."""
        self.hear()  # (whoever is at it has learned what was taken before)
        with self._hearing, self._lock:
            self._wrong = [one for one in self._wrong if one[0] != group]
            self._known.pop(group, None)
            self._versions.pop(group, None)
            self._left.pop(group, None)
            for groups in (self.ended, self.removed, self._created):
                groups.discard(group)

    # --- looking

    def newest(self, group: int) -> Membership | None:
        """The newest that was heard of; None: the members never changed. Any thread."""
        with self._lock:
            known = self._known.get(group)
            return known[-1] if known else None

    def version(self, group: int) -> int:
        """Of the newest that was heard of. Any thread."""
        newest = self.newest(group)
        return FIRST - 1 if newest is None else newest.version

    def of_version(self, group: int, version: int) -> Membership | None:
        """One that was heard of in this life, or is the newest that the disk knew. Any thread."""
        with self._lock:
            return self._versions.get(group, {}).get(version)

    def from_group(self, first: int) -> list[tuple[int, Membership]]:
        """The newest of each group from this one on whose members changed. Any thread."""
        with self._lock:
            groups = sorted(group for group in self._known if group >= first)
            return [(group, self._known[group][-1]) for group in groups]

    def page(self, first: int) -> bytes:
        """The same, and who left, as MEMBERS has them; as many as there is room for."""
        return pack_members(
            (group, told, self.left(group)) for group, told in self.from_group(first)
        )

    def wait(self, holds: Callable[[], bool], timeout_s: float) -> bool:
        """Until `holds`, which is asked whenever something was heard. Not on the applying thread,
        which is one of those that hear."""
        until_s = time.monotonic() + timeout_s
        while True:
            with self._news:
                count = self._heard_of
            if holds():
                return True
            with self._news:
                while count == self._heard_of:
                    left_s = until_s - time.monotonic()
                    if left_s <= 0:
                        return False
                    self._news.wait(left_s)

    def most(self) -> int:
        """How many members the group has that has the most, as far as is known. Any thread."""
        with self._lock:
            return max(len(self._first), *(len(one[-1].nodes) for one in self._known.values()), 1)

    def stir(self) -> None:
        """Whoever waits looks again. Any thread."""
        with self._news:
            self._heard_of += 1
            self._news.notify_all()

    def left(self, group: int) -> set[int]:
        """Nodes that were members of it and are none: they never are again. Any thread."""
        kept = self._kept(group)
        with self._lock:
            known = self._known.get(group)
            nodes = known[-1].nodes if known else ()
            return {*self._left.get(group, ()), *kept}.difference(nodes)

    def hand_over(self, group: int, told: Membership | None) -> None:
        """Let the engine know; None: the members never changed, and there is nothing to know.

        Must come before anything by which the engine comes to vote above ``told.instance``.
        Idempotent. Raises DriverError.
        """
        if told is None:
            return
        self._learn(group, told)
        self._tell(group, told.version, told.roster, told.instance, told.floor, told.active)

    def at(self, group: int, frontier: int) -> Membership | None:
        """Those that hold above `frontier`, which does not fall; None: those of the configuration.

        Raises CheckpointFailed: after a start nobody here knows, until the newest change is applied
        (its row is all that the store keeps).
        """
        with self._lock:
            known = self._known.get(group, [])
            before = [one for one in known if one.instance <= frontier]
            after = known[len(before) :]
            version = before[-1].version if before else FIRST - 1
            if after and after[0].version != version + 1:
                raise CheckpointFailed(
                    f"group {group}: who the members at instance {frontier} are is not known here; "
                    f"it is from instance {after[-1].instance} on"
                )
            if not before:
                return None
            known[:] = [before[-1], *after]
            return before[-1]

    def _learn(self, group: int, told: Membership) -> None:
        with self._lock:
            known = {one.instance: one for one in self._known.get(group, [])}
            both = newer(known.get(told.instance), told)
            assert both is not None
            known[told.instance] = both
            ascending = [known[instance] for instance in sorted(known)]
            for low, high in pairwise(ascending):
                newer(low, high)  # versions grow with the instances
                gone = set(low.nodes) - set(high.nodes)
                if gone:
                    self._left.setdefault(group, set()).update(gone)
            first = () if group in self._created else self._first.keys()
            if gone := set(first) - set(ascending[0].nodes):
                self._left.setdefault(group, set()).update(gone)
            self._known[group] = ascending
            versions = self._versions.setdefault(group, {})
            versions[told.version] = both
            while len(versions) > VERSIONS_KEPT:
                del versions[min(versions)]
            self._heard_of += 1
            self._news.notify_all()


def members_of_node(
    driver: Driver, store: Store, config: Config, created: Iterable[int] = ()
) -> Memberships:
    """Of a node whose driver is not started yet."""
    table = MemberTable(driver)
    ids = store_first.read(store)
    first = {node: at for node, at in config.members.items() if ids is None or node in ids}
    if config.join and not ids:
        first = {}
    return Memberships(store.note_members, table.known, table, first, store.left, created)
