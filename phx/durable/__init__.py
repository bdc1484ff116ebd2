"""Base classes of machines whose state is in files of their own: LMDB, or SQLite.

A node opens, commits and closes them, in ``machines/`` of its folder; how to choose between them
and a machine in memory: docs/howto/write-a-state-machine.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from phx.durable.generations import Generations
    from phx.durable.lmdb import LmdbMachine
    from phx.durable.sqlite import SqliteMachine

__all__ = ["Generations", "LmdbMachine", "SqliteMachine"]

_HOME = {"Generations": "generations", "LmdbMachine": "lmdb", "SqliteMachine": "sqlite"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'phx.durable' has no attribute {name!r}")
    return getattr(import_module(f"phx.durable.{_HOME[name]}"), name)
