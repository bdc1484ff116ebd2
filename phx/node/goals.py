"""What the members of a group are to be, said so that it holds for many groups: "4 in the place of
1". ValueError, at once: it can be had of no group. And how a call ends that wants it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from phx.applier import GroupState
from phx.config import split_address
from phx.errors import (
    Closed,
    ClosedUnknown,
    ForkedError,
    NotInCluster,
    PhxError,
    TimedOutUnknown,
    Unknown,
)
from phx.membership import roster_of
from phx.types import MEMBERS_MAX, Member, Role

__all__ = [
    "Goal",
    "Wanted",
    "adding",
    "concerns",
    "exactly",
    "overtaken",
    "removed",
    "removing",
    "replacing",
    "sound",
    "unknown",
    "votes",
    "with_learners",
]

Goal = Callable[[Mapping[int, Member]], dict[int, Member]]
"""From the members there are to those there are to be. Raises what the call is to raise."""


def adding(node: int, address: str, role: Role = Role.VOTER) -> Goal:
    """There already, with another role: it gets this one."""
    split_address(address)
    return lambda now: {**now, node: Member(Role(role), address)}


def removing(node: int) -> Goal:
    return lambda now: {one: member for one, member in now.items() if one != node}


def replacing(node: int, by: int, address: str) -> Goal:
    """In the role of `node`. Where that is no member, and the other one is, all is done."""
    split_address(address)

    def goal(now: Mapping[int, Member]) -> dict[int, Member]:
        if node not in now:
            if by in now:
                return dict(now)
            raise NotInCluster(f"node {node} is no member, and cannot be replaced")
        return {**removing(node)(now), by: Member(now[node].role, address)}

    return goal


def concerns(goal: Goal, now: Mapping[int, Member]) -> bool:
    """False: it is to replace somebody who is no member."""
    try:
        goal(now)
    except NotInCluster:
        return False
    return True


def exactly(members: Mapping[int, Member]) -> Goal:
    found = sound(members)
    return lambda now: dict(found)


def sound(members: Mapping[int, Member]) -> dict[int, Member]:
    """A copy. Raises ValueError: they cannot be members, or are nowhere."""
    roster_of(2, members)
    for one in members.values():
        split_address(one.address)
    return dict(members)


def votes(one: Member) -> bool:
    return one.role != Role.LEARNER


def with_learners(now: Mapping[int, Member], target: Mapping[int, Member]) -> dict[int, Member]:
    """Those of `target` who are to vote and are no members yet, as learners beside all there are;
    as many as there is room for."""
    new = [node for node, one in sorted(target.items()) if node not in now and votes(one)]
    room = MEMBERS_MAX - len(now)
    return {**now, **{node: Member(Role.LEARNER, target[node].address) for node in new[:room]}}


# --- one change, and how a call ends


@dataclass(slots=True)
class Wanted:
    """One change: the members of `version`, after those of the version before."""

    state: GroupState
    version: int
    members: Mapping[int, Member]
    newcomers: tuple[int, ...]  # voters that were none before
    until_s: float  # of time.monotonic(): nobody waits for longer
    perhaps: bool = False  # it may have been proposed

    @property
    def group(self) -> int:
        return self.state.group

    def roster(self) -> bytes:
        return roster_of(self.version, self.members)


def unknown(what: str, why: PhxError) -> Unknown:
    """What ends a call of which something may have been done."""
    kind = ClosedUnknown if isinstance(why, Closed | ForkedError) else TimedOutUnknown
    return kind(f"{what}: {why}")


def overtaken(wanted: Wanted, version: int) -> TimedOutUnknown:
    return TimedOutUnknown(
        f"group {wanted.group}: version {version} has followed, and who the members of version "
        f"{wanted.version} were is not known here"
    )


def removed(group: int, node: int) -> NotInCluster:
    return NotInCluster(f"group {group}: node {node} is no member of it any more")
