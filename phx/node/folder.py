"""The folder of a node: who may open it, and whether what lies in it fits together."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from pathlib import Path

from phx.checkpoint.catalog import ROOT, put_aside
from phx.checkpoint.files import OsFiles
from phx.errors import Locked, NotBootstrapped, StoreError

log = logging.getLogger("phx")


class Folder:
    """The folder of a node: ``lock``, ``journal/``, ``store/``, and ``bootstrap`` while it is new,
    or ``recovered`` before the first start of one that was made of another cluster's.

    Guarantee: at most one Node, in any process, has it open; and what is missing is noticed.
    (A store without its journal: `phx.node.lives`; a journal without its store:
    `phx.node.doctor`.)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal"
        self.store = path / "store"
        self._marker = path / "bootstrap"
        self._taken = path / "recovered"
        self._lock = -1

    def lock(self, *, create: bool) -> None:
        try:
            if create:
                _make_folder(self.path)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._lock = os.open(self.path / "lock", flags, 0o644)
        except FileNotFoundError:
            raise NotBootstrapped(
                f"{self.path} does not exist: bootstrap=True starts a new node there"
            ) from None
        except OSError as error:
            raise StoreError(f"{self.path}: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.unlock()
            raise Locked(f"{self.path} is open already, here or in another process") from None

    def unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def examine(self, *, bootstrap: bool) -> bool:
        """True: to be made new; False: it has a journal, or a store only. Raises StoreError for
        everything else."""
        has_journal, has_store = _has_files(self.journal), _has_files(self.store)
        if has_journal:
            return False
        # The journal is made last, and no promise is made before: a bootstrap that was cut short
        # left nothing to remember.
        if has_store and (self.taken_over or not self.begun):
            return False
        if not bootstrap:
            raise NotBootstrapped(
                f"{self.path} is empty. If this node has never run, start it once with "
                "bootstrap=True; if its disk was lost, it must not vote under its old id"
            )
        shutil.rmtree(self.store, ignore_errors=True)
        self._marker.touch()
        _sync_folder(self.path)
        return True

    def begin_journal(self, why: str) -> None:
        """Put aside what is left of a journal that is lost, durably, for people to look at."""
        aside = ""
        if _has_files(self.journal):
            aside = put_aside(OsFiles(self.path), ROOT, self.journal.name, self.journal.name)
        self.journal.mkdir(exist_ok=True)
        _sync_folder(self.path)
        log.critical(
            "%s: the journal is lost (%s)%s. A new one is begun: this node votes in no group "
            "before it has led it once, with promises of the others",
            self.path,
            why,
            f"; what is left of it is {aside}" if aside else "",
        )

    def take_over(self) -> None:
        """It is made of what another cluster left (``phx recover``): its store is whole, and no
        journal has ever begun in it. Durable once the folder is synced."""
        self._taken.touch()

    @property
    def taken_over(self) -> bool:
        """Such a folder, before its first start."""
        return self._taken.exists()

    @property
    def begun(self) -> bool:
        """The folder is being made new, and that is not known to be finished."""
        return self._marker.exists()

    def whole(self) -> None:
        """Journal and store are made: the folder is not new any more."""
        for marker in (self._marker, self._taken):
            if marker.exists():
                marker.unlink()
                _sync_folder(self.path)


def _has_files(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _make_folder(path: Path) -> None:
    """Make it, and its parents, durably: a folder whose name is not synced goes with the power."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
