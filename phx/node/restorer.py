"""Brings machines back from checkpoints when a node opens, several groups at a time.

The group is paused meanwhile: it votes, accepts and learns, but delivers nothing and does not lead.
Of each group the newest checkpoint that is whole counts; a damaged one is put aside, and the one
before it is taken, in the end the whole log.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from phx._core.driver import ERROR_CLOSED, Driver, DriverError
from phx._core.session_codec import table_facts
from phx.applier import GroupState
from phx.checkpoint.catalog import (
    READ_BYTES,
    Catalog,
    Finding,
    Hasher,
    path_of,
    put_aside,
    verify_file,
)
from phx.checkpoint.files import Input, OsFiles, join
from phx.checkpoint.manifest import FileEntry, Manifest, block_bytes_of, state_digest
from phx.machine import StateMachine

__all__ = ["Restorer"]

log = logging.getLogger("phx")


class Ending(Exception):
    """The node closes."""


class Broken(Exception):
    """A checkpoint is damaged for good."""


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


class FileReader:
    """The Reader that a machine gets: one file of a checkpoint, which was verified just before.

    It is hashed once more on its way: what the disk gives the second time may differ.
    """

    def __init__(self, opened: Input, entry: FileEntry, path: Path) -> None:
        self._opened = opened
        self._entry = entry
        self._path = path
        self._hasher = Hasher(block_bytes_of(entry.size_bytes))
        self.copied = False

    def read(self, bytes_max: int, /) -> bytes:
        pieces = []
        left = min(bytes_max, self._entry.size_bytes - self._hasher.size_bytes)
        while left > 0 and (data := self._opened.read(min(left, READ_BYTES))):
            self._hasher.update(data)
            pieces.append(data)
            left -= len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def path(self) -> Path:
        self.copied = True
        return self._path

    def good(self) -> bool:
        """Whether all that it gave was what was written; reads the rest."""
        while self.read(READ_BYTES):
            pass
        return self._hasher.entry(self._entry.name).digest == self._entry.digest


class Restorer:
    """Restores the paused groups of a driver, and lets them go on.

    Guarantee: machines see no byte of a checkpoint before all of it was found to be what was
    written; a group goes on from exactly the instance that its machines hold.

    Args:
        folder: of the node: the root of the catalog's files.
        factory: makes the machines of a group anew.
        restored: told of each group and the frontier that it goes on from (0: the whole log), on
            the thread that restored it, before the group goes on.
        stuck: told of a group that cannot go on, and why.

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
        stuck: Callable[[GroupState, BaseException], None],
    ) -> None:
        self._catalog = catalog
        self._folder = folder
        self._states = states
        self._driver = driver
        self._factory = factory
        self._restored = restored
        self._stuck = stuck
        self._ending = threading.Event()
        self._files = StoppableFiles(folder, self._ending)
        self._left: deque[int] = deque()
        self.paused: set[int] = set()
        self._threads: list[threading.Thread] = []

    def start(self, groups: list[int], threads: int) -> None:
        """Begin with these, which must be paused."""
        self._left.extend(groups)
        self.paused.update(groups)
        for number in range(min(threads, len(groups))):
            thread = threading.Thread(target=self._work, name=f"phx-restore-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def end(self, wait_s: float | None = None) -> None:
        """Restore nothing more. It waits for the machines that are at it, at most `wait_s` each."""
        self._ending.set()
        self._left.clear()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(wait_s)

    def _work(self) -> None:
        while True:
            try:
                group = self._left.popleft()
            except IndexError:
                return
            state = self._states[group]
            try:
                self._go_on(state, self._restore(state))
            except Ending:
                return
            except BaseException as error:  # a user's restore or factory may exit, too
                if self._ending.is_set() or (
                    isinstance(error, DriverError) and error.code == ERROR_CLOSED
                ):
                    return
                log.critical("group %d cannot be restored", group, exc_info=error)
                self._stuck(state, error)

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
            try:
                self._verify(manifest, path)
                self._load(state.machines, manifest, path)
                return manifest
            except Ending:
                raise
            except Broken as error:
                log.error("group %d: a damaged checkpoint is put aside: %s", group, error)
                self._put_aside(manifest, path)
            except OSError as error:
                log.error("group %d: %s cannot be read now: %s", group, path, error)
            except BaseException:
                # Perhaps it is of another version of the machine. It is whole, so it stays; but it
                # does not count, or it would push out the usable ones.
                log.exception("group %d: %s cannot be restored", group, path)
                self._catalog.forget(manifest)
            self._anew(state)
        return None

    def _anew(self, state: GroupState) -> None:
        state.machines = self._factory(state.group)
        if state.taking:  # else the node closes
            state.taking = state.machines

    def _verify(self, manifest: Manifest, path: str) -> None:
        """Raises Broken for what is damaged for good, OSError for what may be read later."""
        try:
            table_facts(manifest.sessions)
        except ValueError as error:
            raise Broken(f"{path}: the session table: {error}") from error
        findings: list[Finding] = []
        for entry in manifest.files:
            inside = join(path, entry.name)
            try:
                findings += verify_file(self._files, inside, entry)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                    raise
                findings.append(Finding(inside, str(error)))
        if findings:
            raise Broken("; ".join(f"{where}: {why}" for where, why in findings[:3]))

    def _load(self, machines: dict[int, StateMachine], manifest: Manifest, path: str) -> None:
        held = {one.machine for one in manifest.machines}
        if held != machines.keys():
            raise ValueError(f"it holds machines {sorted(held)}, the group has {sorted(machines)}")
        for one in manifest.machines:
            if one.file < 0:
                raise ValueError(f"it does not hold the state of machine {one.machine}")
            entry, machine = manifest.files[one.file], machines[one.machine]
            inside = join(path, entry.name)
            opened = self._files.read(inside)
            try:
                reader = FileReader(opened, entry, self._folder / inside)
                machine.restore(reader)
                good = reader.good()
            finally:
                opened.close()
            if not good or (reader.copied and verify_file(self._files, inside, entry)):
                raise Broken(f"{inside}: it was read differently the second time")
            if one.digest and machine.digest_cheap and state_digest(machine.digest()) != one.digest:
                raise ValueError(f"machine {one.machine} has another digest than when it was taken")

    def _put_aside(self, manifest: Manifest, path: str) -> None:
        self._catalog.forget(manifest)
        try:
            put_aside(self._catalog.files, self._catalog.root, path)
        except OSError as error:
            log.error("%s: %s", path, error)
