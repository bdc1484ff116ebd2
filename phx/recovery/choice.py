"""What the log of a group is, by what its survivors have. Pure; nothing is read or written here.

It is phase 1 over the survivors: what one of them knows to be chosen is taken, and beyond that, of
each instance, the value that was accepted in the highest ballot: it may have been chosen, and if
one was that any of these accepted, it is this one.

The log ends before the first instance of which nobody has anything, so that no later value is done
where an earlier one is not. Of what survivors hold behind such a gap nothing can have been chosen
unless the value in the gap was, too (acceptances are counted cumulatively), and that one is lost. A
majority has no such gap below anything that was chosen.

What cannot be told: where a value was accepted in a lower ballot than one above it, another may
have been chosen in its place, in the higher ballot, by members that are lost. Mostly none was: who
leads anew does not propose again what it knows to be chosen. So these values are taken, and counted
(`older`). Nor does a count of 0 exclude it: a value that is chosen in a higher ballot may be the
same that a survivor has of a lower one, and what was chosen below it another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from phx.checkpoint.manifest import Manifest
from phx.errors import StoreError
from phx.membership import Membership, newer, nodes_of
from phx.recovery.seen import GroupSeen
from phx.store_members import MembersRow
from phx.types import Role

__all__ = ["Choice", "choose"]

KNOWN = 1 << 64  # above all ballots, and instances


@dataclass(frozen=True, slots=True)
class Choice:
    """The log of one group, as it is taken over.

    Attributes:
        source: the survivor that is furthest: its store, its checkpoints, its machines are taken.
        kept_from: the log is there from this instance on; below it a checkpoint has the state.
        settled_through: of the source's store; what follows is in `bodies`.
        chosen_through: everything up to there is known to be chosen, and is there.
        through: the end of the log.
        known_through: everything up to there is known to have been chosen; what is above `through`
            is lost.
        bodies: of the instances above settled_through, from kept_from on.
        adopted: how many values above chosen_through are taken, which may have been chosen.
        older: of these, those that were accepted in a lower ballot than a value above them that is
            taken, too: if another was chosen in their place, by those that are lost, the log is
            not what it was there.
        beyond: values that survivors have and that are not taken: behind a gap, or behind a change
            of members that may be chosen.
        version, members, voters: who the members were, at `through`; version 1: those of the
            configuration, as far as that is known.
        left: nodes that were members before, as far as is known.
        here: voters among the survivors, but for those who may have forgotten what they accepted.
        checkpoints, machines: of the source.
    """

    group: int
    source: int
    kept_from: int
    settled_through: int
    chosen_through: int
    through: int
    known_through: int
    bodies: Mapping[int, bytes] = field(repr=False)
    adopted: int
    older: int
    beyond: int
    version: int
    members: tuple[int, ...]
    voters: tuple[int, ...]
    left: tuple[int, ...]
    here: tuple[int, ...]
    checkpoints: tuple[Manifest, ...] = field(repr=False)
    machines: Mapping[int, int]

    @property
    def majority(self) -> bool:
        """The survivors are one: then nothing is lost, and nothing need be recovered."""
        return most(self.here, self.voters)


def choose(group: int, seen: Mapping[int, GroupSeen], first: Iterable[int] | None) -> Choice | None:
    """What becomes of a group; None: no survivor is a member of it.

    Args:
        seen: by survivor.
        first: the members that the cluster began with; None: not known.

    Raises StoreError: they cannot be taken together, or the state of some instance is nowhere;
    ValueError: two of them contradict each other.
    """
    there = {n: one for n, one in seen.items() if one.row is None or not one.row.removed}
    if not there:
        return None
    members: Membership | None = None
    for one in seen.values():
        members = newer(members, one.row.membership if one.row is not None else None)
    since = members.instance if members is not None else 0
    source = max(there, key=lambda n: (there[n].chosen_through, there[n].last, -n))
    best = there[source]
    learned, accepted, beyond = _together(seen.values())
    need_what_was_applied(group, source, best, learned, accepted)
    log = _Log(best, learned, accepted, since)
    state = max(best.frontier, min(best.machines.values(), default=0))
    if log.kept_from > state + 1:
        raise StoreError(
            f"group {group}: the log of node {source} begins with {log.kept_from}, and it has no "
            "whole checkpoint that reaches so far"
        )
    if log.through < max(best.machines.values(), default=0):
        raise StoreError(
            f"group {group}: the machines of node {source} have applied more than instance "
            f"{log.through}, and no journal has the next value: no log goes with what they hold"
        )
    version, nodes, voters = _members(log.change, members, first)
    here = tuple(n for n in sorted(there.keys() & set(voters)) if not there[n].forgot)
    return Choice(
        group=group,
        source=source,
        kept_from=log.kept_from,
        settled_through=best.settled_through,
        chosen_through=best.chosen_through,
        through=log.through,
        known_through=max(since, *(one.chosen_through for one in seen.values())),
        bodies={i: body for i, body in log.bodies.items() if i >= log.kept_from},
        adopted=sum(ballot != KNOWN for ballot in log.ballots),
        older=0 if most(here, voters) else log.older(),
        beyond=beyond + sum(i > log.through for i in (*accepted, *learned)),
        version=version,
        members=nodes,
        voters=voters,
        left=_left(seen.values(), members, nodes),
        here=here,
        checkpoints=best.checkpoints,
        machines=best.machines,
    )


def most(here: Sequence[int], voters: Sequence[int]) -> bool:
    return bool(voters) and 2 * len(here) > len(voters)


def need_what_was_applied(
    group: int,
    source: int,
    best: GroupSeen,
    learned: Mapping[int, bytes],
    accepted: Mapping[int, tuple[int, bytes]],
) -> None:
    """Of what its durable machines have applied the value is known: raises StoreError. That it was
    chosen is certain, and a log with another one would go with no machine that holds it. What it
    accepted itself is what it applied, unless power was lost, which took what came later from the
    journal and not from the machine; so nobody must have accepted anything else in a higher
    ballot."""
    last = max(best.machines.values(), default=0)
    for at in range(max(best.settled_through, best.frontier) + 1, last + 1):
        own, highest = best.accepted.get(at), accepted.get(at)
        if at in learned or (highest is None and own is None):
            continue  # (Of the second the log says that nobody has it.)
        if own is None or highest is None or own[1] != highest[1]:
            raise StoreError(
                f"group {group}: the machines of node {source} have applied instance {at}, and "
                "which of the values that survivors accepted there that was cannot be told. "
                "Without the folder of these machines, or without that survivor, it can be done"
            )


def _together(
    seen: Iterable[GroupSeen],
) -> tuple[dict[int, bytes], dict[int, tuple[int, bytes]], int]:
    """What any of them learned; what was accepted in the highest ballot; and how many acceptances
    have no place, for above a change only those count who know of it: the others are no members
    there yet, and what they accepted was never chosen (Theorem U10). Of who was removed it is not
    known when, so it is believed only what it learned."""
    every = list(seen)
    changes = {one.since for one in every}
    learned: dict[int, bytes] = {}
    accepted: dict[int, tuple[int, bytes]] = {}
    dropped = 0
    for one in every:
        for instance, body in one.learned.items():
            if learned.setdefault(instance, body) != body:
                raise ValueError(f"two values are chosen at instance {instance}")
        if one.row is not None and one.row.removed:
            continue
        end = min((at for at in changes if at > one.since), default=KNOWN)
        for instance, vote in one.accepted.items():
            if instance > end:
                dropped += 1
            elif instance not in accepted or accepted[instance][0] < vote[0]:
                accepted[instance] = vote
    return learned, {i: vote for i, vote in accepted.items() if i not in learned}, dropped


class _Log:
    """From the end of the source's store on."""

    def __init__(
        self,
        best: GroupSeen,
        learned: Mapping[int, bytes],
        accepted: Mapping[int, tuple[int, bytes]],
        since: int,
    ) -> None:
        self.bodies: dict[int, bytes] = {}
        self.kept_from = best.kept_from
        self.through = best.settled_through
        self.ballots: list[int] = []  # of what is taken above all that is known to be chosen
        self.change: bytes | None = None  # that may be chosen, and was not known to be
        while self.change is None:
            at = self.through + 1
            body = learned.get(at)
            if body is None and at <= best.frontier:
                # (What was accepted there may be another value than the one in the checkpoint.)
                self.kept_from = at + 1
                self.through = at
                continue
            ballot = KNOWN
            if body is None and at in accepted:
                ballot, body = accepted[at]
            if body is None:
                return
            if at > best.chosen_through:
                self.ballots.append(ballot)
            self.bodies[at] = body
            self.through = at
            if at > since and nodes_of(body):
                self.change = body  # whoever adopts one proposes nothing above it (M2)

    def older(self) -> int:
        """How many of what is taken stand below something of a higher ballot, or chosen."""
        highest, found = 0, 0
        for ballot in reversed(self.ballots):
            found += ballot < highest
            highest = max(highest, ballot)
        return found


def _members(
    change: bytes | None, members: Membership | None, first: Iterable[int] | None
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Version, nodes and voters."""
    if change is not None:
        members = Membership(change, 1, (1 << 64) - 1)
    if members is None:
        ids = tuple(sorted(first or ()))
        return 1, ids, ids
    by_id = members.members().by_id
    voters = tuple(node for node, one in by_id.items() if one.role != Role.LEARNER)
    return members.version, members.nodes, voters


def _left(
    seen: Iterable[GroupSeen], members: Membership | None, nodes: Sequence[int]
) -> tuple[int, ...]:
    rows: list[MembersRow] = [one.row for one in seen if one.row is not None]
    gone = {node for row in rows for node in (*row.left, *row.membership.nodes)}
    if members is not None:
        gone.update(members.nodes)
    return tuple(sorted(gone - set(nodes)))
