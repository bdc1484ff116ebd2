"""The contract between phx and the state machines that a user writes.

A machine is deterministic: the same entries in the same order must lead to the same state on every
node. No clock (use ``entry.time_us``), no random numbers, no iteration over sets of strings, no
reading of what another group or the outside world says.

phx calls a machine from one thread only: the event loop's, or the applier thread of a blocking
node. An exception stops the group on this node, for a machine that failed half-way holds an
unknown state. So an *expected* failure (a key that is missing, a version that does not match) is a
result, not an exception.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from phx.types import MACHINE_ID_MAX, Entry

__all__ = ["Machines", "Reader", "StateMachine", "Writer", "machines_of"]


class Writer(Protocol):
    """Where ``snapshot`` writes to."""

    def write(self, data: bytes, /) -> object: ...


class Reader(Protocol):
    """Where ``restore`` reads from; ``read`` gives b"" at the end."""

    def read(self, bytes_max: int, /) -> bytes: ...


class StateMachine(ABC):
    """A machine in memory, rebuilt at every start from the log.

    Guarantee: ``apply`` sees every chosen value of its group that is addressed to it exactly once,
    in the order of the log, whatever was retried, resent or restarted.
    """

    @abstractmethod
    def apply(self, entry: Entry) -> Any:
        """Apply one value; what it returns is the ``value`` of the caller's Result.

        The result reaches the caller on the node that took the proposal, and nobody else. It
        should not be an object that the machine changes later.
        """

    def apply_batch(self, entries: Sequence[Entry]) -> Sequence[Any]:
        """Apply several values, of one group and in order; as many results as entries.

        Override it where a whole batch can be applied faster than its values one by one. Where one
        batch ends and the next begins differs between nodes and must not matter.

        Args:
            entries: made one by one as they are looked at, so to walk once is fast. They hold a
                piece of the log: of what is to stay, keep the entry or its value.
        """
        return [self.apply(entry) for entry in entries]

    def digest(self) -> bytes:
        """A fingerprint of the state, equal on replicas that applied the same; b"": not offered."""
        return b""

    def snapshot(self, writer: Writer) -> None:
        """Write the whole state. Reserved for checkpoints: not called yet."""
        raise NotImplementedError

    def restore(self, reader: Reader) -> None:
        """Replace the state by what ``snapshot`` wrote. Reserved, too."""
        raise NotImplementedError


Made = StateMachine | Mapping[int, StateMachine]
Factory = Callable[[int], Made]
Machines = Factory | Mapping[int, Callable[[int], StateMachine]]


def machines_of(machines: Machines, group: int) -> dict[int, StateMachine]:
    """The machines of a group, by id. TypeError or ValueError for what cannot be one.

    Args:
        machines: a factory, called with the group id, that makes the machine with id 0, or a
            mapping of machines by id; or a mapping of machine id to such a factory.
    """
    made: object
    if isinstance(machines, Mapping):
        made = {machine: factory(group) for machine, factory in machines.items()}
    else:
        made = machines(group)
    found = dict(made) if isinstance(made, Mapping) else {0: made}
    if not found:
        raise ValueError(f"group {group} has no machine")
    for machine, one in found.items():
        if isinstance(machine, bool) or not isinstance(machine, int):
            raise TypeError(f"a machine id is a number, not {machine!r}")
        if not 0 <= machine <= MACHINE_ID_MAX:
            raise ValueError(f"a machine id is 0 .. {MACHINE_ID_MAX}, not {machine}")
        if not isinstance(one, StateMachine):
            raise TypeError(f"machine {machine} of group {group} is no StateMachine: {one!r}")
    return {machine: found[machine] for machine in sorted(found)}
