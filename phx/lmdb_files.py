"""What holds for every LMDB folder of phx, whoever keeps something in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from phx.errors import Damaged

__all__ = ["LMDB_MAJOR", "Gate", "refuse_cut"]

LMDB_MAJOR = 0
"""LMDB's engine, always named: 0.9 and 1.0 refuse each other's files; unnamed, either is taken."""


def refuse_cut(env: lmdb.Environment, folder: Path) -> None:
    """Damaged, and the environment closed, if data.mdb is shorter than what it holds.

    It would be a signal at some later read: the map reaches beyond the end of the file.
    """
    used = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    there = (folder / "data.mdb").stat().st_size
    if there < used and env.info()["last_txnid"] > 0:
        env.close()
        raise Damaged(f"{folder}: data.mdb has {there} of {used} bytes")


class Gate:
    """Readers go through together; who needs the map to himself waits until all are out."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            while self._closed:
                self._changed.wait()
            self._closed = True
            while self._inside:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._closed = False
                self._changed.notify_all()
