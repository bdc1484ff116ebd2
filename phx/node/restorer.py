"""Brings machines back from checkpoints when a node opens, several groups at a time.

The group is paused meanwhile: it votes, accepts and learns, but delivers nothing and does not lead.
Of each group the newest checkpoint that is whole counts; a damaged one is put aside, and the one
before it is taken, in the end the whole log.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from phx._core.driver import ERROR_CLOSED, Driver, DriverError
from phx.applier import GroupState
from phx.checkpoint.catalog import Catalog, path_of, put_aside, verify
from phx.checkpoint.files import Input, join
from phx.checkpoint.manifest import Manifest
from phx.machine import StateMachine

__all__ = ["Restorer"]

log = logging.getLogger("phx")


class FileReader:
    """The Reader that a machine gets: one file of a checkpoint."""

    def __init__(self, opened: Input, path: Path) -> None:
        self._opened = opened
        self._path = path

    def read(self, bytes_max: int, /) -> bytes:
        return self._opened.read(bytes_max)

    def path(self) -> Path:
        return self._path


class Restorer:
    """Restores the paused groups of a driver, and lets them go on.

    Guarantee: machines see no byte of a checkpoint before all of it was found to be what was
    written; a group goes on from exactly the instance that its machines hold.

    Args:
        folder: of the node: the root of the catalog's files.
        factory: makes the machines of a group anew.
        restored: told of each group and the frontier that it goes on from (0: the whole log), on
            the thread that restored it, before the group goes on.

    Attributes:
        paused: groups that do not go on yet.
    """

    def __init__(
        self,
        catalog: Catalog,
        folder: Path,
        states: Mapping[int, GroupState],
        driver: Driver,
        factory: Callable[[int], dict[int, StateMachine]],
        restored: Callable[[GroupState, int], None],
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._states = states
        self._driver = driver
        self._factory = factory
        self._restored = restored
        self._left: deque[int] = deque()
        self.paused: set[int] = set()
        self._threads: list[threading.Thread] = []

    def start(self, groups: list[int], threads: int) -> None:
        """Begin with these, which must be paused."""
        self._left.extend(groups)
        self.paused.update(groups)
        for number in range(min(threads, len(groups))):
            thread = threading.Thread(target=self._work, name=f"phx-restore-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        """Begin with no further group, and wait for those that are under way."""
        self._left.clear()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _work(self) -> None:
        while True:
            try:
                group = self._left.popleft()
            except IndexError:
                return
            state = self._states[group]
            try:
                self._go_on(state, self._restore(state))
            except DriverError as error:
                if error.code == ERROR_CLOSED:
                    return
                log.critical("group %d stays paused: %s", group, error)
            except Exception:
                log.critical("group %d stays paused", group, exc_info=True)

    def _go_on(self, state: GroupState, manifest: Manifest | None) -> None:
        frontier = 0
        if manifest is not None:
            frontier = manifest.frontier
            self._driver.sessions.load(manifest.sessions)
            state.applied = state.digest_at = frontier
            state.digest = manifest.chain
        self._restored(state, frontier)
        self._driver.resume(state.group, frontier)
        self.paused.discard(state.group)

    def _restore(self, state: GroupState) -> Manifest | None:
        """The checkpoint that the group's machines hold now; None: they are new."""
        group = state.group
        for manifest in self._catalog.of(group):
            path = path_of(self._catalog.root, manifest)
            if findings := verify(self._catalog.files, path):
                what = "; ".join(f"{where}: {why}" for where, why in findings[:3])
                log.error("group %d: a damaged checkpoint is put aside: %s", group, what)
                self._put_aside(manifest, path)
                continue
            try:
                self._load(state.machines, manifest, path)
            except Exception:
                # Perhaps it is of another version of the machine. It is whole, so it stays.
                log.exception("group %d: %s cannot be restored", group, path)
                state.machines = state.taking = self._factory(group)
            else:
                return manifest
        return None

    def _load(self, machines: dict[int, StateMachine], manifest: Manifest, path: str) -> None:
        files = self._catalog.files
        held = {one.machine for one in manifest.machines}
        if held != machines.keys():
            raise ValueError(f"it holds machines {sorted(held)}, the group has {sorted(machines)}")
        for one in manifest.machines:
            if one.file < 0:
                raise ValueError(f"it does not hold the state of machine {one.machine}")
            inside = join(path, manifest.files[one.file].name)
            opened = files.read(inside)
            try:
                machines[one.machine].restore(FileReader(opened, self._folder / inside))
            finally:
                opened.close()

    def _put_aside(self, manifest: Manifest, path: str) -> None:
        self._catalog.forget(manifest)
        try:
            put_aside(self._catalog.files, self._catalog.root, path)
        except OSError as error:
            log.error("%s: %s", path, error)
