"""Puts a checkpoint in the place of what a group has, while the node and its other groups go on."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from phx._core.driver import ERROR_OVERLOADED, Driver, DriverError
from phx._core.session_codec import table_facts
from phx.applier import Applier, GroupState, Replacement
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.installing import install
from phx.checkpoint.loading import Broken, load_machine, need_sound
from phx.checkpoint.manifest import DURABLE, MEMORY, MachineEntry, Manifest, members_of
from phx.machine import DurableMachine, StateMachine
from phx.node.keeper import Keeper
from phx.node.line import Ending
from phx.node.machine_files import Held, begin, durable_in, sweep
from phx.node.memberships import Memberships
from phx.node.restorer import StoppableFiles, Unfit
from phx.node.snapshots import Snapshots
from phx.node.threads import handed, result_of
from phx.store import Floor
from phx.store_hosted import generation_at

__all__ = ["Installer"]

log = logging.getLogger("phx")

SLICE_S = 0.1

T = TypeVar("T")


class Installer:
    """Installs checkpoints of a node's groups, each on the thread that asks for it.

    Guarantee: of a group either everything is replaced or nothing (see `Applier.replace`); nothing
    is used of a checkpoint before all of it was found to be what was written; no other group waits
    for more than a change of references and, with durable machines, one synced rename.

    Args:
        folder: of the node: the root of the catalog's files.
        factory: makes the machines of a group anew.
        paused: groups of which the driver delivers nothing; those that go on are taken out.
        closing: whether values are not taken any more.
        threads: so many restore at a time.
    """

    def __init__(
        self,
        catalog: Catalog,
        folder: Path,
        states: Mapping[int, GroupState],
        driver: Driver,
        keeper: Keeper,
        applier: Applier,
        snapshots: Snapshots,
        memberships: Memberships,
        factory: Callable[[int], dict[int, StateMachine]],
        paused: set[int],
        closing: Callable[[], bool],
        *,
        threads: int,
    ) -> None:
        self.catalog = catalog
        self.folder = folder
        self.states = states
        self.driver = driver
        self.keeper = keeper
        self.applier = applier
        self.snapshots = snapshots
        self.memberships = memberships
        self.factory = factory
        self.paused = paused
        self.closing = closing
        self.on_swapped: Callable[[Manifest], None] = lambda _: None  # on the applying thread
        self.on_told: Callable[[Manifest], None] = lambda _: None  # the group goes on
        self.installing: dict[int, bytes] = {}  # checkpoints about to be a group's state
        self.ending = threading.Event()
        self.files = StoppableFiles(folder, self.ending)
        self.restoring = threading.Semaphore(threads)
        self.counters = {"installed": 0, "restore_us_max": 0, "swap_us_max": 0}

    def install(self, manifest: Manifest, *, verified: bool) -> None:
        """Install a checkpoint that is where checkpoints are. Blocks.

        Args:
            verified: all of it was read just now, and found to be what was written.

        Raises:
            Ending: the node closes.
            Broken, OSError: of the checkpoint.
            Unfit: the machines do not take it.
            StoreError, DriverError: whatever the store and the driver have against it.
        """
        floor = int(self.driver.group_status(manifest.group)["floor"])
        if generation_at(manifest.frontier + 1) != generation_at(floor):
            raise Unfit("it is of another group that had, or has, this id")
        self.installing[manifest.group] = manifest.content
        try:
            for _ in install(_Place(self, manifest, verified)):
                pass
        finally:
            self.installing.pop(manifest.group, None)

    def command(self, tell: Callable[[], None]) -> None:
        """Tell the driver something, as soon as it has room for it. Raises DriverError, Ending."""
        while True:
            try:
                return tell()
            except DriverError as error:
                if error.code != ERROR_OVERLOADED:
                    raise
            if self.ending.wait(SLICE_S):
                raise Ending

    def pause(self, group: int) -> None:
        """Have nothing more of a group delivered. Raises DriverError, Ending."""
        self.command(lambda: self.driver.pause(group))
        self.driver.group_status(group)  # it has come to that: nothing follows any more
        self.paused.add(group)

    def wait(self, future: Future[T]) -> T:
        """Its result. Raises Ending once the node closes, unless it is being worked at."""
        return result_of(future, self.ending.is_set)


class _Place:
    """`phx.checkpoint.installing.Place` for one group of a node."""

    def __init__(self, owner: Installer, manifest: Manifest, verified: bool) -> None:
        self._owner = owner
        self._manifest = manifest
        self._verified = verified
        self._state = owner.states[manifest.group]
        self._machines: dict[int, StateMachine] = {}
        self._held: dict[int, Held] = {}
        self._swapped = False

    def passed(self) -> bool:
        owner, state = self._owner, self._state
        running = state.stopped is None and state.group not in owner.paused
        return running and state.applied >= self._manifest.frontier

    def restore(self) -> None:
        owner = self._owner
        while not owner.restoring.acquire(timeout=SLICE_S):
            if owner.ending.is_set():
                raise Ending
        try:
            began = time.perf_counter_ns()
            self._restore()
            took_us = (time.perf_counter_ns() - began) // 1000
        finally:
            owner.restoring.release()
        counters = owner.counters
        counters["restore_us_max"] = max(counters["restore_us_max"], took_us)

    def _restore(self) -> None:
        owner, manifest = self._owner, self._manifest
        path = path_of(owner.catalog.root, manifest)
        try:
            group, frontier, _, _ = table_facts(manifest.sessions)
        except ValueError as error:
            raise Broken(f"{path}: the session table: {error}") from error
        if (group, frontier) != (manifest.group, manifest.frontier):
            raise Broken(f"{path}: the session table is of another state")
        if not self._verified:
            need_sound(owner.files, manifest, path)
        try:
            made = owner.factory(manifest.group)
            if {one.machine for one in manifest.machines} != made.keys():
                raise Unfit(f"{path} holds other machines than the group has")
            for one in manifest.machines:
                self._load(one, made[one.machine], path)
        except (Ending, Broken, Unfit, OSError):
            raise
        except BaseException as error:  # a user's restore may exit, too
            raise Unfit(f"{path}: {type(error).__name__}: {error}") from error
        self._machines = made

    def _load(self, one: MachineEntry, machine: StateMachine, path: str) -> None:
        owner, manifest = self._owner, self._manifest
        durable = isinstance(machine, DurableMachine)
        if one.file < 0 or one.kind != (DURABLE if durable else MEMORY):
            raise Unfit(f"{path} does not hold the state of machine {one.machine}")
        if isinstance(machine, DurableMachine):
            self._held[one.machine] = begin(owner.folder, manifest.group, one.machine, machine)
        load_machine(
            owner.files, machine, one, manifest, path, owner.folder.joinpath, digest=not durable
        )
        if durable:
            self._held[one.machine].applied = manifest.frontier

    def floor(self) -> None:
        group, frontier = self._manifest.group, self._manifest.frontier
        floors = {group: Floor(frontier + 1, frontier)}
        members = members_of([self._manifest])
        owner = self._owner
        owner.catalog.add(self._manifest)
        owner.wait(owner.keeper.ask(lambda store: store.raise_floors(floors, members)))

    def swap(self) -> None:
        if not self._machines or self._state.removed:
            return
        owner, state = self._owner, self._state
        if state.stopped is not None and state.group not in owner.paused:
            owner.pause(state.group)
        made = Replacement(
            frontier=self._manifest.frontier,
            table=self._manifest.sessions,
            members=self._manifest.changed_members,
            chain=self._manifest.chain,
            machines=self._machines,
            durable={number: held.machine for number, held in self._held.items()},
            idle=state.group in owner.paused,
            settle=self._settle,
        )
        future, swap = handed(lambda: self._replace(made))
        owner.applier.soon(swap)
        owner.driver.poke()
        self._swapped = owner.wait(future)

    def _replace(self, made: Replacement) -> bool:
        """On the applying thread."""
        began = time.perf_counter_ns()
        owner, state = self._owner, self._state
        swapped = owner.applier.replace(state, made)
        if swapped:
            self._machines, self._held = {}, {}  # they are the group's
            if owner.closing():
                state.taking = {}
            owner.snapshots.installed(state)
            owner.on_swapped(self._manifest)
        took_us = (time.perf_counter_ns() - began) // 1000
        owner.counters["swap_us_max"] = max(owner.counters["swap_us_max"], took_us)
        owner.counters["installed"] += swapped
        return swapped

    def _settle(self) -> None:
        """The new files count: all of them, or none."""
        before = {number: held.generations.current() for number, held in self._held.items()}
        try:
            for held in self._held.values():
                held.switch()
        except BaseException:
            for number, held in self._held.items():
                held.switch_back(before[number])
            raise

    def know(self) -> None:
        owner, manifest = self._owner, self._manifest
        owner.command(lambda: owner.memberships.hand_over(manifest.group, manifest.membership))

    def tell(self) -> None:
        owner, manifest = self._owner, self._manifest
        group, frontier = manifest.group, manifest.frontier
        if self._state.removed:
            return
        owner.command(lambda: owner.driver.install(group, frontier, manifest.epoch))
        if group in owner.paused:
            owner.command(lambda: owner.driver.resume(group, frontier))
            owner.driver.group_status(group)  # it has come to that: values are taken
            owner.paused.discard(group)
        if self._swapped:
            owner.on_told(manifest)

    def drop(self) -> None:
        """On the thread that writes checkpoints: nobody else changes the folders of a group, and no
        view of an old machine is open there between two of its tasks."""
        owner, group = self._owner, self._manifest.group
        machines = list(durable_in(self._state.machines))

        def drop() -> None:
            with suppress(OSError):
                for _ in owner.catalog.drop(group, 1):
                    pass
            for number in machines:
                sweep(owner.folder, group, number)

        owner.snapshots.between(drop)

    def abandon(self) -> None:
        for held in self._held.values():
            held.drop()
        self._held, self._machines = {}, {}
