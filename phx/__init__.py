"""phx: many independent, replicated, durable state machines in one Python process.

    async with phx.Node(config, machines) as node:
        result = await node.group(7).propose(b"...")

The same without a loop is in ``phx.blocking``; what may go wrong is in ``phx.errors``; machines
ready for use are in ``phx.machines``. Everything is loaded when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from phx._version import __version__

if TYPE_CHECKING:
    from phx import blocking, errors, machines
    from phx.config import Checkpoints, Config, Durability, Journal, Limits, Timing
    from phx.errors import PhxError, Rejected, Unknown
    from phx.group import Group
    from phx.keys import group_of
    from phx.machine import StateMachine
    from phx.node import Node
    from phx.types import (
        CheckpointInfo,
        Entry,
        GroupStatus,
        Leader,
        Moved,
        NodeStatus,
        PeerStatus,
        Read,
        Result,
    )

__all__ = [
    "CheckpointInfo",
    "Checkpoints",
    "Config",
    "Durability",
    "Entry",
    "Group",
    "GroupStatus",
    "Journal",
    "Leader",
    "Limits",
    "Moved",
    "Node",
    "NodeStatus",
    "PeerStatus",
    "PhxError",
    "Read",
    "Rejected",
    "Result",
    "StateMachine",
    "Timing",
    "Unknown",
    "__version__",
    "blocking",
    "errors",
    "group_of",
    "machines",
]

_MODULES = {
    "blocking": (),
    "config": ("Checkpoints", "Config", "Durability", "Journal", "Limits", "Timing"),
    "errors": ("PhxError", "Rejected", "Unknown"),
    "group": ("Group",),
    "keys": ("group_of",),
    "machine": ("StateMachine",),
    "machines": (),
    "node": ("Node",),
    "types": (
        "CheckpointInfo",
        "Entry",
        "GroupStatus",
        "Leader",
        "Moved",
        "NodeStatus",
        "PeerStatus",
        "Read",
        "Result",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"phx.{_HOME[name]}"), name)
    elif name in __all__:
        value = import_module(f"phx.{name}")
    else:
        raise AttributeError(f"module 'phx' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
