"""Brings machines back from checkpoints when a node opens, several groups at a time.

The group is paused meanwhile: it votes, accepts and learns, but delivers nothing and does not lead.
Of each group the newest checkpoint that is whole counts; a damaged one is put aside, and the one
before it is taken, in the end the whole log.

Durable machines are opened first. One whose files hold instance A takes nothing from a checkpoint
K <= A, and no instance up to A from the log (phx.applier); one that is behind K is restored into a
new generation, if the checkpoint has its state; a light one has not, and then it does not serve.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from phx._core.driver import ERROR_CLOSED, Driver, DriverError
from phx.applier import GroupState, taking
from phx.checkpoint.catalog import Catalog, path_of
from phx.checkpoint.files import Input, OsFiles
from phx.checkpoint.loading import Broken, load_machine, need_sound
from phx.checkpoint.manifest import DURABLE, MEMORY, MachineEntry, Manifest
from phx.machine import StateMachine
from phx.node.line import Ending
from phx.node.machine_files import Held, hold, let_go, renewed
from phx.node.threads import join_all

__all__ = ["Restorer", "StoppableFiles", "Unfit"]

log = logging.getLogger("phx")


class Unfit(Exception):
    """A checkpoint is whole, but not what the group's machines can go on from."""


class Stoppable:
    """An Input that raises Ending once the node closes."""

    def __init__(self, opened: Input, ending: threading.Event) -> None:
        self._opened = opened
        self._ending = ending

    @property
    def size_bytes(self) -> int:
        return self._opened.size_bytes

    def read(self, bytes_max: int, /) -> bytes:
        if self._ending.is_set():
            raise Ending
        return self._opened.read(bytes_max)

    def skip(self, size_bytes: int, /) -> None:
        self._opened.skip(size_bytes)

    def close(self) -> None:
        self._opened.close()


class StoppableFiles(OsFiles):
    """Reads until the node closes."""

    def __init__(self, root: Path, ending: threading.Event) -> None:
        super().__init__(root)
        self._ending = ending

    def read(self, path: str) -> Input:
        return Stoppable(super().read(path), self._ending)


class Restorer:
    """Restores the paused groups of a driver, and lets them go on.

    Guarantee: machines see no byte of a checkpoint before all that is to be read of it was found to
    be what was written; a group goes on from exactly the instance that its machines hold, or from
    one below what a durable machine holds, with that in its state.

    Args:
        folder: of the node: the root of the catalog's files.
        factory: makes the machines of a group anew.
        restored: told of each group and the frontier that it goes on from (0: the whole log), on
            the thread that restored it, before the group goes on.
        stuck: told of a group that cannot go on, and why.

    Attributes:
        begins: behind which instance the log of a group begins, and who its members are there.
        paused: groups that do not go on yet.
        unmade: those whose machines could not be made, and why: they are not restored.
        at: groups that are being restored, or wait for it; nobody else may touch their state.
        on_removed: told of a group that this node left while it was restored: what was opened of it
            is let go of.
    """

    def __init__(
        self,
        catalog: Catalog,
        folder: Path,
        states: Mapping[int, GroupState],
        driver: Driver,
        factory: Callable[[int], dict[int, StateMachine]],
        restored: Callable[[GroupState, int], None],
        stuck: Callable[[GroupState, BaseException], None],
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._states = states
        self._driver = driver
        self._factory = factory
        self._restored = restored
        self._stuck = stuck
        self.on_removed: Callable[[GroupState], None] = lambda state: None
        self._ending = threading.Event()
        self._files = StoppableFiles(folder, self._ending)
        self._left: deque[int] = deque()
        self.begins: Callable[[int], tuple[int, Sequence[int]]] = lambda group: (0, ())
        self.paused: set[int] = set()
        self.unmade: dict[int, BaseException] = {}
        self.at: set[int] = set()
        self._threads: list[threading.Thread] = []

    def start(self, groups: list[int], threads: int) -> None:
        """Go on with these, which must be paused."""
        self._threads = [one for one in self._threads if one.is_alive()]
        self.at.update(groups)
        self._left.extend(groups)
        self.paused.update(groups)
        for number in range(min(threads, len(groups))):
            thread = threading.Thread(target=self._work, name=f"phx-restore-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self, wait_s: float | None = None) -> None:
        """Restore nothing more. It waits for the machines that are at it, at most `wait_s`."""
        self._ending.set()
        self._left.clear()
        join_all(self._threads, wait_s)

    def _work(self) -> None:
        while True:
            try:
                group = self._left.popleft()
            except IndexError:
                return
            state = self._states[group]
            try:
                if (error := self.unmade.pop(group, None)) is not None:
                    raise error
                self._go_on(state, self._restore(state))
            except Ending:
                return
            except BaseException as error:  # a user's restore or factory may exit, too
                if self._ending.is_set() or (
                    isinstance(error, DriverError) and error.code == ERROR_CLOSED
                ):
                    return
                if not state.removed:
                    log.critical("group %d cannot be restored", group, exc_info=error)
                    self.at.discard(group)  # it may be made anew
                    self._stuck(state, error)
                    continue
            if state.removed:
                self._drop(state)
            # Last: from here on others touch it, and another group of its id may begin.
            self.at.discard(group)

    def _drop(self, state: GroupState) -> None:
        """The node left it meanwhile: what was opened since then is of no use."""
        state.let_go()
        state.machines, state.taking, state.skip = {}, {}, {}
        self.on_removed(state)

    def _go_on(self, state: GroupState, manifest: Manifest | None) -> None:
        if state.removed:
            return
        frontier, nodes = self.begins(state.group)
        if manifest is None and frontier:
            if self._driver.sessions.next_instance(state.group)[0] != frontier + 1:
                self._driver.sessions.begin(state.group, frontier, nodes)
            state.applied = state.digest_at = frontier
        elif manifest is not None:
            frontier = manifest.frontier
            self._driver.sessions.load(manifest.sessions, manifest.changed_members)
            state.applied = state.digest_at = frontier
            state.digest = manifest.chain
        self._restored(state, frontier)
        self._driver.resume(state.group, frontier)
        self.paused.discard(state.group)

    def _restore(self, state: GroupState) -> Manifest | None:
        """The checkpoint that the group goes on from; None: from none, so with the whole log."""
        for manifest in self._catalog.of(state.group):
            held = self._held(state)
            if self._brought_back(state, held, manifest):
                self._settle(state, held, manifest.frontier)
                return manifest
            self._anew(state)
        held = self._held(state)
        self._settle(state, held, self.begins(state.group)[0])
        return None

    def _held(self, state: GroupState) -> dict[int, Held]:
        held = hold(self._files, self._folder, state, self._factory, self._catalog.on_damage)
        base, _ = self.begins(state.group)
        for number, one in held.items():
            if 0 < one.applied < base:
                log.error(
                    "group %d: the files of machine %d are of an earlier group of its id: it "
                    "begins anew", state.group, number,
                )  # fmt: skip
                one.renew(renewed(state, number, self._factory))
        return held

    def _brought_back(self, state: GroupState, held: dict[int, Held], manifest: Manifest) -> bool:
        """Restore what has to be; False: not from this one, and nothing is open any more."""
        group, path = state.group, path_of(self._catalog.root, manifest)
        try:
            self._verify(state, held, manifest, path)
            self._load(state, held, manifest, path)
            return True
        except Ending:
            let_go(held)
            raise
        except Broken as error:
            self._catalog.found_damaged(manifest, error)
        except OSError as error:
            log.error("group %d: %s cannot be read now: %s", group, path, error)
        except Unfit as error:
            log.error("group %d: %s does not serve: %s", group, path, error)
            self._catalog.forget(manifest)
        except BaseException:
            # Perhaps it is of another version of the machine. It is whole, so it stays; but it
            # does not count, or it would push out the usable ones.
            log.exception("group %d: %s cannot be restored", group, path)
            self._catalog.forget(manifest)
        let_go(held)
        return False

    def _settle(self, state: GroupState, held: dict[int, Held], frontier: int) -> None:
        """The machines that are open are the group's, which goes on from `frontier`."""
        try:
            for one in held.values():
                one.settle()
        except BaseException:
            let_go(held)
            raise
        state.skip = {n: one.applied for n, one in held.items() if one.applied > frontier}
        state.committed = {n: one.applied for n, one in held.items()}
        state.durable = {n: one.machine for n, one in held.items()}

    def _anew(self, state: GroupState) -> None:
        state.machines = self._factory(state.group)
        if state.taking:  # else the node closes
            state.taking = taking(state.machines)

    def _verify(
        self, state: GroupState, held: dict[int, Held], manifest: Manifest, path: str
    ) -> None:
        """All bytes that are going to be read. Raises Broken for what is damaged for good, OSError
        for what may be read later, Unfit for what holds other machines or not their state."""
        there = {one.machine for one in manifest.machines}
        if there != state.machines.keys():
            raise Unfit(
                f"it holds machines {sorted(there)}, the group has {sorted(state.machines)}"
            )
        behind = _behind(manifest, held)
        for one in behind:
            if one.file < 0:
                raise Unfit(f"it does not hold the state of machine {one.machine}")
            if one.kind != (DURABLE if one.machine in held else MEMORY):
                raise Unfit(f"machine {one.machine} was of another kind")
        need_sound(self._files, manifest, path, [manifest.files[one.file] for one in behind])

    def _load(
        self, state: GroupState, held: dict[int, Held], manifest: Manifest, path: str
    ) -> None:
        for one in _behind(manifest, held):
            durable = held.get(one.machine)
            if durable is not None and not durable.fresh:
                durable.renew(renewed(state, one.machine, self._factory))
            load_machine(
                self._files,
                state.machines[one.machine],
                one,
                manifest,
                path,
                self._folder.joinpath,
                digest=durable is None,  # a durable one's is for the thread that applies
            )
            if durable is not None:
                durable.applied = manifest.frontier


def _behind(manifest: Manifest, held: dict[int, Held]) -> list[MachineEntry]:
    """The machines whose state has to come from the checkpoint."""
    return [
        one
        for one in manifest.machines
        if one.machine not in held or held[one.machine].applied < manifest.frontier
    ]
