"""Why a group takes no values here, and what its callers are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from phx.errors import (
    DeletedUnknown,
    GroupDeleted,
    GroupStopped,
    NodeFailed,
    NodeFailedUnknown,
    NoQuorum,
    NotInCluster,
    Overloaded,
    PhxError,
    StoppedUnknown,
    TimedOut,
    TimedOutUnknown,
)

if TYPE_CHECKING:
    from phx.applier import GroupState

__all__ = ["Deleted", "Removed", "parked", "same_stop", "unknown_stop", "verdict_error"]


def verdict_error(verdict: int, stopped: GroupStopped | None, note: str = "") -> PhxError:
    """The error for a verdict of the engine (engine.pxd, Verdict); `note` is added where the
    deadline passed."""
    match verdict:
        case 1:
            return TimedOut(f"the deadline passed before the value was written or sent{note}")
        case 2:
            return TimedOutUnknown(f"the deadline passed; the value may still be chosen{note}")
        case 3:
            return Overloaded("the leader has too many values waiting")
        case 4:
            return NoQuorum(
                f"the node asked is not the leader, and no leader was found in time{note}"
            )
        case 5:
            if stopped is not None:
                return same_stop(stopped)
            return GroupStopped(0, 0, None, "this node does not propose in the group any more")
        case 6:
            return StoppedUnknown("the group stopped here; the value may still be chosen")
        case 7:
            return NoQuorum(f"the deadline passed and no leader with a majority was found{note}")
        case 8:
            return NodeFailed("the journal failed; this node proposes nothing any more")
        case 9:
            return NodeFailedUnknown("the journal failed; the value may still be chosen")
        case 10:
            return GroupDeleted("the group was deleted")
        case 11:
            return DeletedUnknown("the group was deleted; the value may have been applied before")
    return TimedOutUnknown(f"the engine gave the value up, verdict {verdict}")


class Removed(GroupStopped):
    """The group goes on without this node: it was a member, and is none any more. Callers are told
    NotInCluster."""

    def __init__(self, group: int, instance: int, node: int, version: int) -> None:
        why = f"node {node} is no member of it any more: version {version} is without it"
        super().__init__(group, instance, None, why)


class Deleted(Removed):
    """The group was deleted, on all nodes. Callers are told GroupDeleted."""

    def __init__(self, group: int, instance: int) -> None:
        GroupStopped.__init__(self, group, instance, None, "it was deleted")


def same_stop(stopped: GroupStopped) -> PhxError:
    """A copy for one more caller: each raises its own, with its own traceback."""
    if isinstance(stopped, Deleted):
        return GroupDeleted(f"group {stopped.group}: it was deleted")
    if isinstance(stopped, Removed):
        return NotInCluster(f"group {stopped.group}: {stopped.why}")
    copy = GroupStopped(stopped.group, stopped.instance, stopped.machine, stopped.why)
    copy.__cause__ = stopped.__cause__
    return copy


def parked(state: GroupState) -> GroupStopped:
    """For a caller of a group that the directory has stopped."""
    return GroupStopped(state.group, state.applied + 1, None, "it was stopped (stop_group)")


def unknown_stop(stopped: GroupStopped) -> PhxError:
    if isinstance(stopped, Deleted):
        return DeletedUnknown(f"group {stopped.group} was deleted; the value may be in its log")
    error = StoppedUnknown(f"{stopped}; the value was on its way and may still be chosen")
    error.__cause__ = stopped
    return error
