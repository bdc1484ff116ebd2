"""What holds for every LMDB folder of phx, whoever keeps something in it."""

from __future__ import annotations

from pathlib import Path

import lmdb

from phx.errors import Damaged

__all__ = ["LMDB_MAJOR", "refuse_cut"]

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
