"""Groups that this node was a member of, and is none of any more.

heard       an active version is without this node (`Memberships.removed`), and nobody needs it
stopped     callers get NotInCluster, machines are retired; in the turn in which it is heard
freed       checkpoints, the files of durable machines, the log in the store. What is left in the
            journal is overwritten in time
kept        who the members are, as a tombstone: who comes back after a year is told (the store and
            the engine, docs/design/membership.md, section 3)

All of it is done again by a start, so a crash may come anywhere.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from phx._core.driver import Driver, DriverError
from phx.applier import Applier, GroupState
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.files import remove_tree
from phx.checkpoint.manifest import Manifest
from phx.checkpoint.rebuild import unmark
from phx.config import Config
from phx.errors import PhxError
from phx.node.keeper import Keeper
from phx.node.machine_files import FOLDER
from phx.node.memberships import Memberships
from phx.node.snapshots import Snapshots
from phx.node.transfers import Transfers
from phx.stops import Deleted, Removed
from phx.store import Floor, Store
from phx.transfer.staging import waiting

__all__ = ["Removal", "mark_removed"]

log = logging.getLogger("phx")


def mark_removed(
    states: Mapping[int, GroupState], memberships: Memberships, node: int
) -> frozenset[int]:
    """At a start, before anything of them is opened: those that the disk knows of."""
    for group in memberships.removed:
        state = states[group]
        state.stopped = stop_of(group, memberships, node)
        state.taking, state.machines = {}, {}
    return frozenset(memberships.removed)


def stop_of(group: int, memberships: Memberships, node: int) -> Removed:
    newest = memberships.newest(group)
    assert newest is not None
    if not newest.nodes:
        return Deleted(group, newest.instance + 1)
    return Removed(group, newest.instance + 1, node, newest.version)


class Removal:
    """Of one node. On the applying thread, but for what it has others do."""

    def __init__(
        self,
        config: Config,
        states: Mapping[int, GroupState],
        memberships: Memberships,
        applier: Applier,
        driver: Driver,
        keeper: Keeper,
        catalog: Catalog,
        snapshots: Snapshots,
        transfers: Transfers,
    ) -> None:
        self._config = config
        self._states = states
        self._memberships = memberships
        self._applier = applier
        self._driver = driver
        self._keeper = keeper
        self._catalog = catalog
        self._snapshots = snapshots
        self._transfers = transfers
        transfers.fetcher.on_removed = self.free_again  # what was under way has left something
        self._done: set[int] = set()

    def begin(self, groups: frozenset[int]) -> None:
        """Those that were removed before this start: what is left of them goes."""
        for group in groups:
            self._done.add(group)
            self.free(self._states[group])

    def look(self) -> None:
        """Whether there are more."""
        if len(self._memberships.removed) == len(self._done):
            return
        for group in self._memberships.removed - self._done:
            self._done.add(group)
            stop = stop_of(group, self._memberships, self._config.node)
            self._applier.remove(self._states[group], stop)
            self._transfers.gone(group)
            log.warning("%s; what is here of it is deleted", stop)
            self.free(self._states[group])
        self._driver.poke()

    def forget(self, group: int) -> None:
        """It is gone, and nothing of it is left here. On the applying thread."""
        self._done.discard(group)

    def free(self, state: GroupState) -> None:
        """All that is here of it goes; again, if something was made since. Nothing, if it was
        dropped meanwhile: another group may have its id. Any thread."""
        if self._states.get(state.group) is not state:
            return
        victims = self._snapshots.condemn(state.group, -1, b"")
        self._snapshots.between(lambda: self._delete(state, victims))
        self._keeper.ask(lambda store: self._forget(store, state))

    def free_again(self, group: int) -> None:
        """The same, on a thread that nobody drops the group beside."""
        if (state := self._states.get(group)) is not None:
            self.free(state)

    def _delete(self, state: GroupState, victims: list[Manifest]) -> None:
        """Checkpoints, and files of machines."""
        group = state.group
        if self._states.get(group) is not state:
            return
        if self._snapshots.mirrors is not None:
            self._snapshots.mirrors.drop(group)
        try:
            for one in victims:
                remove_tree(self._catalog.files, path_of(self._catalog.root, one))
            files, root = self._catalog.files, self._catalog.root
            if group in (parts := waiting(files, root)):
                remove_tree(files, parts[group][0])
            for _ in unmark(files, root, group):
                pass
            for folder in (Path(self._config.dir) / FOLDER).glob(f"{group}.*"):
                shutil.rmtree(folder)
        except OSError as error:
            log.error("group %d, which is not hosted any more, left something: %s", group, error)

    def _forget(self, store: Store, state: GroupState) -> None:
        """The log. On the store thread."""
        group = state.group
        settled = store.settled().get(group, 0)
        if not settled or self._states.get(group) is not state:
            return
        try:
            store.raise_floors({group: Floor(settled + 1, settled)})
            self._driver.floored(group, settled + 1, settled)
        except (PhxError, DriverError, ValueError) as error:
            log.error("group %d, which is not hosted any more, left its log: %s", group, error)
