"""What must hold at the end of a run. Each check is a function of what was seen, and nothing else.

A check gives None, or (invariant, message). The invariants during the run are the watch's
(`invariants.pyx`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from phx.sim.history import STEPS_MAX, Operation, check_history

__all__ = [
    "Broken",
    "Hosting",
    "Probe",
    "Replica",
    "Standing",
    "bounded",
    "caught_up",
    "changed",
    "decides",
    "equal_digests",
    "exactly_once",
    "given_back",
    "hosted",
    "linearizable",
    "mended",
    "quiet",
    "rejoined",
    "repaired",
    "settled",
]

Broken = tuple[str, str]
ELECTIONS_MAX = 4
"""A group with a connected majority decides within so many election timeouts (`election_time_us`)
after the last fault, replay of journals included."""


class Replica(NamedTuple):
    """One group at one node, at the end."""

    node: int
    group: int
    applied_through: int
    digest: bytes


class Probe(NamedTuple):
    """A value that was proposed to a group when the faults had stopped."""

    group: int
    asked_us: int
    done_us: int | None


def linearizable(operations: Iterable[Operation], *, steps_max: int = STEPS_MAX) -> Broken | None:
    """U8: clients saw what one machine would have shown them."""
    found = check_history(operations, steps_max=steps_max)
    return None if found is None else (found.kind, str(found))


def exactly_once(
    operations: Iterable[Operation], lists: Mapping[int, bytes], token_bytes: int
) -> Broken | None:
    """An append that was acknowledged stands in its list once, one that is unknown at most once.

    Args:
        operations: all appends to `lists` that were not rejected.
        lists: key to value, at the end, of machines that have applied everything.
        token_bytes: of what an append adds, each time something else.
    """
    known: dict[bytes, Operation] = {}
    for one in operations:
        if one.kind == "append":
            known[one.argument] = one
    times: dict[bytes, int] = {}
    for key, value in lists.items():
        if len(value) % token_bytes:
            return "exactly-once", f"list {key} has {len(value)} bytes: no whole number of tokens"
        for at in range(0, len(value), token_bytes):
            token = value[at : at + token_bytes]
            times[token] = times.get(token, 0) + 1
            written = known.get(token)
            if written is None:
                return "exactly-once", f"list {key} has {token!r}, which nobody may have written"
            if written.key != key:
                return "exactly-once", f"{token!r} of key {written.key} stands in {key}"
    for token, written in known.items():
        found = times.get(token, 0)
        if found > 1 or (not found and written.returned_us is not None):
            return "exactly-once", f"it stands in its list {found} times: {written!r}"
    return None


def equal_digests(replicas: Iterable[Replica]) -> Broken | None:
    """U7: machines that applied the same instances are equal."""
    seen: dict[tuple[int, int], Replica] = {}
    for one in replicas:
        other = seen.setdefault((one.group, one.applied_through), one)
        if other.digest != one.digest:
            return "U7", (
                f"group {one.group} at instance {one.applied_through}: "
                f"node {other.node} has {other.digest!r}, node {one.node} {one.digest!r}"
            )
    return None


def caught_up(replicas: Iterable[Replica], decided: Mapping[int, int]) -> Broken | None:
    """U12: every node that runs has applied everything that was decided."""
    for one in replicas:
        if one.applied_through < decided[one.group]:
            return "liveness", (
                f"node {one.node} applied group {one.group} up to {one.applied_through} only, "
                f"of {decided[one.group]} decided"
            )
    return None


def election_time_us(lease_us: int, election_us: int, sync_us: int, delay_us: int) -> int:
    """How long an election takes at most where nothing goes wrong: the old leader's grants run out,
    the last back-off passes, and a pre-vote, a promise and an acceptance are written and sent.
    """
    return lease_us * 9 // 8 + 2 * election_us + 6 * (sync_us + 2 * delay_us)


def decides(probes: Iterable[Probe], bound_us: int) -> Broken | None:
    """U12: a value proposed after the last fault is applied within the bound."""
    for one in probes:
        if one.done_us is None:
            return "liveness", f"group {one.group} never decided after the faults had stopped"
        if one.done_us - one.asked_us > bound_us:
            return "liveness", (
                f"group {one.group} took {one.done_us - one.asked_us} us to decide after the "
                f"faults had stopped; the bound is {bound_us}"
            )
    return None


def rejoined(suspects: Sequence[tuple[int, int]]) -> Broken | None:
    """U12: who lost its journal votes again. Of the end: (node, group) that do not."""
    if not suspects:
        return None
    return "liveness", f"{len(suspects)} replicas never voted again, the first: {suspects[0]}"


class Standing(NamedTuple):
    """What a node that runs knows of the members of a group, at the end.

    version, decided: of the members that it knows, and of those that there are.
    active: it knows that they are.
    member, believes: whether it is one, and takes itself for one.
    ended: it is none any more, and has ended.
    heard: somebody of those that it would ask still exists.
    """

    node: int
    group: int
    version: int
    decided: int
    active: bool
    member: bool
    believes: bool
    ended: bool
    heard: bool


def changed(standings: Iterable[Standing]) -> Broken | None:
    """U12, U10: who is a member knows it, and that they are active; who is none any more ends."""
    for one in standings:
        where = f"node {one.node}, group {one.group}, version {one.version} of {one.decided}"
        if one.member and one.ended:
            return "U10", f"a member has ended: {where}"
        if one.member and (one.version < one.decided or not one.active):
            return "liveness", f"a member does not know that the newest members are active: {where}"
        if not one.member and one.believes and one.heard:
            return "liveness", f"who is no member any more was never told: {where}"
    return None


class Hosting(NamedTuple):
    """A created group at a node that runs, at the end.

    phase: as the directory has it.
    member: the node is one.
    hosts: the group runs there.
    left: something of it is kept.
    """

    node: int
    group: int
    phase: str
    member: bool
    hosts: bool
    left: bool


def hosted(seen: Iterable[Hosting]) -> Broken | None:
    """U12, U15: all nodes host what the directory says, and keep nothing of what is gone."""
    for one in seen:
        where = f"group {one.group}, {one.phase}, at node {one.node}"
        if one.phase == "ending":
            return "liveness", f"it never ended: {where}"
        if one.phase == "live" and one.member and not one.hosts:
            return "liveness", f"it never began: {where}"
        if one.hosts and (not one.member or one.phase == "gone"):
            return "liveness" if one.member else "U15", f"it is hosted: {where}"
        if one.phase == "gone" and one.left:
            return "liveness", f"something of it is left: {where}"
    return None


def mended(holes: Mapping[int, Sequence[tuple[int, int, int]]]) -> Broken | None:
    """What was found damaged in a store is mended. Of the end: what is not, by node."""
    for node, left in holes.items():
        return "liveness", f"{len(left)} holes in the store of node {node}, the first: {left[0]}"
    return None


def repaired(astray: Sequence[tuple[int, int]]) -> Broken | None:
    """Who was odd is found, and made anew. Of the end: (node, group) that are not."""
    if not astray:
        return None
    return "liveness", f"{len(astray)} replicas stay odd, or are never made anew: {astray[0]}"


def settled(waiting: Sequence[Operation]) -> Broken | None:
    """Every call was heard of: its deadline has passed, or its node died."""
    if not waiting:
        return None
    return "liveness", f"nothing was heard of {len(waiting)} calls, the first: {waiting[0]!r}"


ROUNDS_MAX = 2
"""Ballots that a group may still use while nothing is asked: it is handed to the node that it
prefers, or handed over and taken back."""


def quiet(
    before: Mapping[int, int], after: Mapping[int, int], resends: int, nodes: int
) -> Broken | None:
    """No endless elections, no endless resending.

    Args:
        before, after: highest counter of a ballot in each group, at two times between which nothing
            was asked.
        resends: between them.
        nodes: of the cluster; each may have missed one message from before.
    """
    used = {group: after[group] - before[group] for group in after}
    for group, rounds in used.items():
        if rounds > ROUNDS_MAX:
            return "liveness", f"group {group} used {rounds} ballots while nothing was asked"
    most = nodes - 1 + RESENDS_MAX * sum(used.values())
    if resends > most:
        return "liveness", f"{resends} messages were sent again while nothing was asked"
    return None


RESENDS_MAX = 16
"""Messages that may be sent again for each election while nothing is asked."""


def bounded(memory: Mapping[str, int], bounds: Mapping[str, int]) -> Broken | None:
    """What is held in memory is within its bound."""
    for name, bound in bounds.items():
        if memory[name] > bound:
            return "bounded", f"{name}: {memory[name]}, more than {bound}"
    return None


def given_back(before: int, after: int) -> Broken | None:
    """Blocks of native memory alive before a world was made, and after it was closed."""
    if after == before:
        return None
    return "bounded", f"{after - before} blocks of native memory were not given back"
