"""Every error of phx, and what each one means for the caller.

An error says one of three things in its class, and in ``outcome``:

    rejected    the value was not proposed and never will be by this call: it is safe to try again
    unknown     the value may have been chosen, or may still be: trying again may apply it twice,
                unless the command itself can tell
    applied     the value was applied, and what apply returned for it is not to be had

    class               outcome    when
    ------------------  ---------  -----------------------------------------------------------------
    NotInCluster        rejected   this node does not host that group, or is no member
    UnknownMachine      rejected   no machine with that id in the group; nothing was applied
    NoQuorum            rejected   the deadline passed and no leader with a majority was to be found
    Overloaded          rejected   a limit on values or bytes in flight is reached, or it would wait
                                   for longer than limits.wait_us_max: back off, then retry
      DiskFull          rejected     this node's disk is full: ask another node
    ValueTooLarge       rejected   above limits.value_bytes_max: it will never be taken
    NotLeader           rejected   this node does not lead the group, so it has nothing to give away
    TransferFailed      rejected   the leadership did not go where it should
    VersionConflict     rejected   the group's members are of another version than the caller knew
    ChangeUnderWay      rejected   the group's members are being changed already
    NotCaughtUp         rejected   no quorum of the new members has what is chosen, and its votes
    PrepareFailed       rejected   the machine's prepare raised: the value was not proposed
    GroupStopped        rejected   apply failed in this group on this node; other nodes go on
    GroupExists         rejected   there is a group of that id already
    GroupDeleted        rejected   the group was deleted: nothing is applied in it any more
    NodeFailed          rejected   this node's journal failed: it takes part in nothing any more
    TimedOut            rejected   the deadline passed before anything was written or sent
    Closed              rejected   the node is closed, or not open yet
    ForkedError         rejected   this process was forked from the one that opened the node
    TimedOutUnknown     unknown    the deadline passed after the value had been sent or written
    StoppedUnknown      unknown    the group stopped here while the value was on its way
    DeletedUnknown      unknown    the group was deleted; the value may have been applied before
    NodeFailedUnknown   unknown    this node's journal failed while the value was on its way
    ClosedUnknown       unknown    the node closed while the value was on its way
    NotApplied          unknown    the value's place in its session had gone by; it may have been
                                   applied before
    PartlyDone          unknown    of a propose_many: some values are applied, others failed; see
                                   ``results``
    ResultNotKept       applied    this node went on from a checkpoint of another node, and the
                                   value is in it
    NotChosenYet        rejected   reading: that instance has no value yet
    NoLongerKept        rejected   reading: that instance is not kept any more
    NotReady            rejected   wait_ready: time was up before every group was ready
    ConfigError         rejected   the configuration; ``problems`` lists everything that is wrong
    StoreError          rejected   the node's folder cannot be opened or written
      Damaged           rejected     something in it is missing or corrupt: never repaired silently
      Foreign           rejected     it belongs to another cluster or node
      Locked            rejected     another process, or another Node, has it open
      NotBootstrapped   rejected     it is empty, and bootstrap=True was not given
    CheckpointFailed    rejected   a checkpoint could not be taken
    GroupRestoring      rejected   reading: the group's machine is being restored
    NoQueries           rejected   reading: the machine has no ``query``
    SystemFailure       rejected   a thread, a socket or an address could not be had
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from phx.types import Members

Outcome = Literal["rejected", "unknown", "applied"]


class PhxError(Exception):
    """Anything that phx raises. ``outcome`` says what became of the value."""

    outcome: ClassVar[Outcome] = "rejected"


class Rejected(PhxError):
    """Not proposed, and never will be by this call: safe to retry."""


class Unknown(PhxError):
    """May have been chosen, or may still be. Look before you retry."""

    outcome: ClassVar[Outcome] = "unknown"


# --- rejected


class NotInCluster(Rejected):
    """This node does not host that group, or is not a member. Ask a node that does."""


class UnknownMachine(Rejected):
    """The group has no machine with that id: nothing was applied, on any node."""


class NoQuorum(Rejected, TimeoutError):
    """The deadline passed while no leader with a majority was to be found. Retry later."""


class Overloaded(Rejected):
    """A limit on values or bytes in flight is reached, or what waits already takes as long as
    ``limits.wait_us_max``. Await something, or back off, then retry. The message says which.
    """


class DiskFull(Overloaded):
    """This node's disk has no room for the journal: the value was not taken, and nothing was
    written or sent. Other nodes go on: ask one of them. The node takes values again by itself, once
    there is room.
    """


class ValueTooLarge(Rejected, ValueError):
    """The value is above ``limits.value_bytes_max``; it will never be taken."""


class NotLeader(Rejected):
    """This node does not lead the group. Ask the node that does.

    Attributes:
        leader: its id, as this node was told; None: none known.
    """

    def __init__(self, group: int, leader: int | None) -> None:
        who = "no leader is known" if leader is None else f"node {leader} does"
        super().__init__(f"this node does not lead group {group}: {who}")
        self.group = group
        self.leader = leader

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.group, self.leader)


class TransferFailed(Rejected):
    """The leadership of a group did not go where it should: the text says why. Somebody leads, or
    will; nothing that was proposed is lost by it. Try again later.
    """


class VersionConflict(Rejected):
    """The group's members were changed meanwhile: nothing was proposed. Look at ``members``, and
    decide again.

    Attributes:
        group: whose.
        members: those there are.
    """

    def __init__(self, group: int, members: Members) -> None:
        super().__init__(f"group {group} has the members of version {members.version}")
        self.group = group
        self.members = members

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.group, self.members)


class ChangeUnderWay(Rejected):
    """Another change of the group's members is not active yet: nothing was proposed. Try again when
    it is.

    Attributes:
        group: whose.
    """

    def __init__(self, group: int) -> None:
        super().__init__(f"the members of group {group} are being changed")
        self.group = group

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.group,)


class NotCaughtUp(Rejected):
    """No quorum of the new voters is within reach of what is chosen, so the group would stand still
    until one is: nothing was proposed. Add them as learners, and try again when they have come.

    Attributes:
        group: whose.
        nodes: ids of the voters that lag, or are not there.
    """

    def __init__(self, group: int, nodes: Sequence[int]) -> None:
        who = ", ".join(map(str, nodes))
        super().__init__(f"group {group}: no quorum of the new members has caught up: {who} lag")
        self.group = group
        self.nodes = list(nodes)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.group, self.nodes)


class PrepareFailed(Rejected):
    """The machine's ``prepare`` raised (that is the cause), or gave back no bytes: this value was
    not proposed. Nothing else is touched.
    """


class TimedOut(Rejected, TimeoutError):
    """The deadline passed before the value was written or sent anywhere. Safe to retry."""


class Closed(Rejected):
    """The node is closed, or was never opened."""


class ForkedError(Rejected):
    """This process is a fork of the one that opened the node: open a new one, or use spawn."""


class GroupStopped(Rejected):
    """``apply`` failed: the group takes nothing more on this node, and applies nothing more.

    The group goes on at other nodes. This node goes on voting in it, and in every other group;
    after the machine is mended, close the node and open it again.

    Attributes:
        group: the group that stopped.
        instance: the first instance that is not applied here.
        machine: the id of the machine that failed; None when the library found the fault.
    """

    def __init__(self, group: int, instance: int, machine: int | None, why: str) -> None:
        at = f"group {group} stopped at instance {instance}"
        by = "" if machine is None else f", machine {machine}"
        super().__init__(f"{at}{by}: {why}")
        self.group = group
        self.instance = instance
        self.machine = machine
        self.why = why

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.group, self.instance, self.machine, self.why)


class GroupExists(Rejected):
    """A group of that id is there already, with other members, or it is stopped, or being deleted.

    Attributes:
        group: its id.
        phase: as ``CreatedGroup.phase``; "configured": it is one of the configuration.
    """

    def __init__(self, group: int, phase: str) -> None:
        super().__init__(f"group {group} is there already: {phase}")
        self.group = group
        self.phase = phase

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.group, self.phase)


class GroupDeleted(Rejected):
    """The group was deleted: its log has its last value, and this one is not below it."""


class NodeFailed(Rejected):
    """A write or sync of this node's journal failed: it neither votes nor proposes in any group any
    more. Other nodes go on. Mend the disk, then start the node again.
    """


# --- unknown


class NodeFailedUnknown(Unknown):
    """This node's journal failed while the value was on its way: it may still be chosen."""


class TimedOutUnknown(Unknown, TimeoutError):
    """The deadline passed after the value had been sent or written: it may still be chosen."""


class StoppedUnknown(Unknown):
    """The group stopped on this node while the value was on its way: it may still be chosen."""


class DeletedUnknown(Unknown):
    """The group was deleted, and this node has not seen all of its log: the value may be in it."""


class ClosedUnknown(Unknown):
    """The node closed while the value was on its way: it may still be chosen."""


class NotApplied(Unknown):
    """The value was chosen when its place in its session had gone by, and was left out. If it was
    applied, that was earlier, and its result is not kept.
    """


class ResultNotKept(PhxError):
    """The value is applied. This node was too far behind and went on from a checkpoint of another
    node, in which its effect stands; what apply returned for it is not kept anywhere.
    """

    outcome: ClassVar[Outcome] = "applied"


class PartlyDone(Unknown):
    """Of the values of one ``propose_many`` some failed.

    Attributes:
        results: for each value, in order, its Result or the PhxError that it met.
    """

    def __init__(self, results: Sequence[object]) -> None:
        failed = [result for result in results if isinstance(result, BaseException)]
        first = f", first {type(failed[0]).__name__}: {failed[0]}" if failed else ""
        super().__init__(f"{len(failed)} of {len(results)} values failed{first}")
        self.results = list(results)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.results,)


# --- reading and waiting


class NotChosenYet(Rejected, LookupError):
    """That instance has no value yet, as far as this node knows."""


class NoLongerKept(Rejected, LookupError):
    """That instance lies below what this node keeps."""


class NotReady(Rejected, TimeoutError):
    """Time was up before every group had a leader and was applied up to what had been chosen.

    Attributes:
        groups: those that were not ready.
    """

    def __init__(self, groups: Sequence[int]) -> None:
        some = ", ".join(map(str, groups[:5])) + (", …" if len(groups) > 5 else "")
        super().__init__(f"not ready: {len(groups)} groups ({some})")
        self.groups = list(groups)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.groups,)


class GroupRestoring(Rejected):
    """The group's machine waits for a checkpoint on this node: no state to read from. Ask another
    node, or later.

    Attributes:
        group: which.
    """

    def __init__(self, group: int) -> None:
        super().__init__(f"the machine of group {group} is being restored on this node")
        self.group = group

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.group,)


class NoQueries(Rejected, NotImplementedError):
    """The machine has no ``query``: it cannot be read but through the log."""


# --- configuration, folder, system


class ConfigError(Rejected, ValueError):
    """The configuration cannot be.

    Attributes:
        problems: everything that is wrong with it, each as "path: what".
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems,)


class StoreError(Rejected):
    """The node's folder cannot be opened, read or written."""


class Damaged(StoreError):
    """Something in the folder is missing or corrupt. phx never repairs that silently."""


class Foreign(StoreError):
    """The folder belongs to another cluster or another node, or has another format version."""


class Locked(StoreError):
    """The folder is open already, in another process or as another Node of this one."""


class NotBootstrapped(StoreError):
    """The folder is empty. A new voter starts only with ``bootstrap=True``: it may be a lost disk,
    and a node that forgot its promises must not vote under its old id.
    """


class CheckpointFailed(Rejected):
    """No checkpoint was taken: the text says why. The group goes on, the older ones stay."""


class SystemFailure(Rejected, OSError):
    """A thread, a socket or an address could not be had."""


def all_errors() -> list[type[PhxError]]:
    """Every error class that a caller may get, base classes first."""
    found: list[type[PhxError]] = [PhxError]
    for kind in found:
        own = [one for one in kind.__subclasses__() if one.__module__ == __name__]
        found += [one for one in own if one not in found]
    return found
