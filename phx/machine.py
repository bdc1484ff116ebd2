"""The contract between phx and the state machines that a user writes.

A machine is deterministic: the same entries in the same order must lead to the same state on every
node. No clock (use ``entry.time_us``), no random numbers, no iteration over sets of strings, no
reading of what another group or the outside world says.

An exception of ``apply`` stops the group on this node, for a machine that failed half-way holds an
unknown state. So an *expected* failure (a key that is missing, a version that does not match) is a
result, not an exception.

Who calls what, and what waits meanwhile. The *applying thread* is the event loop's, or the applier
thread of a blocking node. Calls of one machine never overlap; those of its views may, with the
machine's and with one another's.

    call                               thread                     waits for it
    ---------------------------------  -------------------------  ----------------------------------
    apply, apply_batch, digest         the applying one           all groups of the node
    prepare, prepare_batch             the one that proposes      all who propose at this node
    query                              the applying one           all groups: at most 1 ms at a time
    freeze                             the applying one           all groups: keep it below 10 ms
    commit                             the applying one           all groups: one transaction's sync
    retire, DurableMachine.close       the applying one           all groups
    View.snapshot, View.close          any, not the applying one  nobody, while the GIL is let go
    CopyView.digest, digest_slowly     any, not the applying one  nobody, while the GIL is let go
    StateMachine.snapshot              any; nobody applies then   whoever wants the object
    the factory, open, restore         any; on a new object       nobody, while the GIL is let go

Calls of ``prepare`` never overlap one another, over all groups of a node. In a node for asyncio
they come from the event loop, and so between two applies; in a blocking node from whichever thread
proposes, and so *during* an apply, too: a machine that looks at its state in both takes a lock.

The calls of a *mirror*, a second machine of which nobody but phx knows (``checkpoints.mirror``),
all come from one thread that is not the applying one, and nobody waits for them.

One view is used by one thread at a time, while the machine that gave it goes on applying, is
retired or is closed. "While the GIL is let go": a loop of Python gives it away every few
milliseconds by itself; one long call into C (sorting a million keys) may not.

``freeze``, ``View.snapshot`` and ``restore`` are for checkpoints; with ``digest_of_views`` machines
are frozen to be compared with those of other nodes, too. A machine in use is replaced, and
``retire`` called, when a checkpoint of another node is installed: whoever keeps what
``group.machine()`` gave has to ask again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from phx.errors import NoQueries
from phx.types import MACHINE_ID_MAX, Entry

__all__ = [
    "CopyView",
    "DurableMachine",
    "Machines",
    "Reader",
    "StateMachine",
    "View",
    "Writer",
    "has_prepare",
    "has_snapshots",
    "has_views",
    "is_compared",
    "machines_of",
    "no_rest",
]


class Writer(Protocol):
    """Where a snapshot is written to: one file, from its beginning to its end.

    Guarantee: what was written in order is what ``restore`` reads, byte by byte, or it is found to
    be damaged before a machine sees it. Nothing is durable, or seen by anybody, before the snapshot
    has returned.

    One thread at a time; only until ``snapshot`` returns.
    """

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Append all of ``data``, which may be changed again afterwards.

        It may sleep, without the GIL, to keep to a rate. Pieces of 64 KiB to 1 MiB are best.
        Raises PhxError or OSError (no room, or the snapshot is not wanted any more): let it pass.
        """
        ...

    def fileno(self) -> int:
        """A descriptor at the end of what was written, for a copy that goes round ``write``.

        Such a copy keeps to no rate, and the file is read once more for its checksum. Whoever
        writes to it must not read from, seek or close it. Raises OSError where there is no file, or
        what is written is compressed.
        """
        ...


class Reader(Protocol):
    """What a snapshot wrote, verified, from its beginning. One thread at a time."""

    def read(self, bytes_max: int, /) -> bytes:
        """The next ``bytes_max`` bytes (1 ..); fewer only where they end, b"" at the end."""
        ...

    def path(self) -> Path:
        """The whole file, for those who would rather copy it, until ``restore`` returns. Read it
        only; it may be in use."""
        ...


class View(Protocol):
    """The state of a machine at one instance, which later applies do not change.

    It does not depend on its machine: it stays good after the machine was retired or closed.
    """

    def snapshot(self, writer: Writer, /) -> None:
        """As StateMachine.snapshot. At most one call at a time; there may be none, or several."""
        ...

    def close(self) -> None:
        """Called once, whatever happened, and never during ``snapshot``; must not raise."""
        ...


class CopyView:
    """A view that is a machine of its own: a copy that nobody else has, and nobody applies to."""

    def __init__(self, machine: StateMachine) -> None:
        self._machine: StateMachine | None = machine

    def _open(self) -> StateMachine:
        if self._machine is None:
            raise ValueError("the view is closed")
        return self._machine

    def snapshot(self, writer: Writer, /) -> None:
        self._open().snapshot(writer)

    def digest(self, rest: Callable[[], None]) -> bytes:
        """What ``digest`` of the machine was when it was frozen: see ``digest_slowly``."""
        return self._open().digest_slowly(rest)

    def close(self) -> None:
        self._machine = None


def no_rest() -> None:
    """For ``digest_slowly``, where nobody minds how long it takes."""


class StateMachine(ABC):
    """A machine in memory, rebuilt at every start: from a checkpoint, if it has them, and the log.

    Guarantee: ``apply`` sees every chosen value of its group that is addressed to it exactly once,
    in the order of the log, whatever was retried, resent or restarted.

    ``apply`` is all that a machine must have. ``snapshot`` and ``restore`` belong together, and
    ``freeze`` is what makes them useful beside a machine that goes on applying.

    Attributes:
        digest_cheap: ``digest`` costs less than a millisecond, whatever the state: it may be
            called every few thousand instances.
        digest_of_views: it is not cheap, and what ``freeze`` gives has a ``digest``, as CopyView
            does: it is worked out of a view, on another thread, a little at a time. Not for a
            DurableMachine.

    A machine with neither is not compared with those of other nodes (``state_compared`` in the
    status of its group). Which of them is set has to be the same on all nodes of a cluster.
    """

    digest_cheap: ClassVar[bool] = False
    digest_of_views: ClassVar[bool] = False

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

    def query(self, query: Any) -> Any:
        """The answer to a question about the state, which it does not change.

        Guarantee: called where no instance is half applied, on the thread that applies. All groups
        of the node wait for it, so it has to be quick: a walk over everything belongs into a
        snapshot.

        Args:
            query: what the caller of ``group.read`` gave: any object, which never leaves the
                process.

        Returns:
            What becomes the ``value`` of the caller's Read. It must not be an object that the
            machine changes later.

        Whatever it raises reaches the caller; nothing stops.
        """
        raise NoQueries(f"{type(self).__name__} has no query: it is read through the log only")

    def prepare(self, value: bytes) -> bytes:
        """What is proposed in the place of ``value``: clocks and random numbers belong here.

        Guarantee: called once for each value, at the node that takes the proposal, before anything
        of it is queued, written or sent. What it returns is what every replica applies, however
        often it is forwarded or proposed again. Values of one node are proposed in the order in
        which they were prepared. A machine without one costs nothing: its values never enter Python
        before they are chosen.

        It may be called for a value that is then not taken (a limit was reached), so it must have
        no effect that counts. It must not propose anything itself. This node's state may lag, and
        right after the start be that of a new machine: what was prepared by a look at it has to be
        checked by ``apply``.

        Whatever it raises reaches the caller at once: a Rejected as it is, anything else as the
        cause of PrepareFailed. The value was not proposed; nothing stops.

        Source: PhxPaxos, BeforePropose; Mazieres, Paxos Made Practical.
        """
        return value

    def prepare_batch(self, values: Sequence[bytes]) -> Sequence[bytes]:
        """The same for the values of one ``propose_many``; as many as there were, in order.

        Override it where one look at the clock serves all of them. If it raises, none is proposed.
        """
        return [self.prepare(value) for value in values]

    def digest(self) -> bytes:
        """A fingerprint of the state, equal on replicas that applied the same; b"": not offered."""
        return b""

    def digest_slowly(self, rest: Callable[[], None]) -> bytes:
        """The same as ``digest``; nothing changes the machine meanwhile, for it belongs to a view.

        Args:
            rest: to be called after each 0.2 ms of work or so: it sleeps, and lets others have the
                GIL. Raises where the digest is not wanted any more: let it pass.
        """
        return self.digest()

    def freeze(self) -> View | None:
        """The state as it is now, for somebody to write while this machine goes on; None: no view
        (then a mirror may be written instead).

        Called between two instances, never in the middle of one. All groups of the node wait: it
        has to be O(1) or a copy of references, and must not read or write files at length.
        """
        return None

    def snapshot(self, writer: Writer) -> None:
        """Write the whole state. Nothing changes the machine meanwhile.

        Equal states should write equal bytes, whatever led to them: then a copy that was begun from
        one replica can be finished from another. Whatever ``writer`` raises must pass.
        """
        raise NotImplementedError

    def restore(self, reader: Reader) -> None:
        """Take on the state that ``snapshot`` wrote: afterwards every apply, result and digest is
        what it would have been there.

        Called once, at most, on an object that its factory just made and nobody else has seen. If
        it raises, the object is thrown away. It has to refuse what it does not understand (such as
        a later format), and need not look for damaged bytes: phx has checked them.
        """
        raise NotImplementedError

    def retire(self) -> None:
        """This object was replaced by a restored one: the last call that it gets.

        Views of it may be in use still. A DurableMachine is closed after it.
        """
        return


class DurableMachine(StateMachine):
    """A machine whose state is in files of its own, and is not rebuilt from the log.

    Guarantee to the machine: the calls come in the order ``open``, perhaps ``restore``, then
    ``apply*`` and ``commit`` in turn, ``close``. ``commit`` comes only where an instance ends, and
    after an apply that raised, or was not finished, there is none: so what is half-done is never
    durable.

    Guarantee that the machine has to give: at any moment, also after the process was killed or the
    power failed, the files hold the state of exactly the instances up to the ``applied`` of one
    commit, the last that returned or the one that was under way. It never commits by itself.
    Together with the log this makes every value count exactly once.
    """

    @abstractmethod
    def open(self, folder: Path) -> int:
        """Open what is in ``folder``, or begin there; the ``applied`` of the last commit, 0: new.

        The folder is this machine's alone; it is made if need be. Calls after it may come from
        another thread.

        Raises Damaged if what is there cannot be used, and nothing less than that: the folder is
        then put aside and the state restored. Any other error means "not now".
        """

    @abstractmethod
    def commit(self, applied: int) -> None:
        """Make durable, in one transaction: everything applied so far, and the number ``applied``.

        Args:
            applied: the last instance that was applied; never less than at the last commit.

        If it raises, the machine is closed, and its group stops on this node.
        """

    @abstractmethod
    def close(self) -> None:
        """Leave the files as of the last commit and let go of them. Views stay good.

        Called once after ``open``, also if that or anything else raised; must not raise.
        """

    @abstractmethod
    def freeze(self) -> View:
        """The state as of the last commit. Nothing was applied since."""

    def snapshot(self, writer: Writer) -> None:
        """Write the state as of the last commit. Nothing was applied since."""
        view = self.freeze()
        try:
            view.snapshot(writer)
        finally:
            view.close()

    def restore(self, reader: Reader) -> None:
        """As StateMachine.restore, between ``open`` of a new folder and the first apply.

        When it returns, the state is durable, together with the ``applied`` of the commit before
        the snapshot: to close and open this folder gives that number. If it raises or the process
        dies, the folder is thrown away.
        """
        raise NotImplementedError


def has_prepare(machine: StateMachine) -> bool:
    """Whether a machine rewrites values before they are proposed."""
    kind = type(machine)
    return (
        kind.prepare is not StateMachine.prepare
        or kind.prepare_batch is not StateMachine.prepare_batch
    )


def has_snapshots(machine: StateMachine) -> bool:
    """Whether a machine has both halves, ``snapshot`` and ``restore``."""
    kind = type(machine)
    return (
        kind.snapshot is not StateMachine.snapshot
        and kind.restore is not StateMachine.restore
        and kind.restore is not DurableMachine.restore
    )


def has_views(machine: StateMachine) -> bool:
    """Whether a checkpoint of it is written from a view (``freeze``), while it goes on."""
    return type(machine).freeze is not StateMachine.freeze and has_snapshots(machine)


def is_compared(machine: StateMachine) -> bool:
    """Whether nodes compare its state at agreed instances."""
    return machine.digest_cheap or (
        machine.digest_of_views
        and not isinstance(machine, DurableMachine)  # a view of it is of the last commit
        and type(machine).freeze is not StateMachine.freeze
    )


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
