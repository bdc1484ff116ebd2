"""Whether replicas of a group are what their log says: digests at agreed instances, compared.

At agreed instances (multiples of `phx.types.AGREED_EVERY`) each node notes the chained checksum of
what was applied (the *log*), and a hash of its machines' digests (the *state*). The two are equal
on all members of the cluster; where one differs, that replica has applied something else, or its
machine made something else of the same, or it was changed behind the machine's back. Who is right,
the majority of all members says, and nobody else.

If the digest of a machine is that of its views, the state of its group is worked out more rarely
and is known later (`phx.node.view_digests`); where it is not, only the log is noted. Never of a
part of the machines: what nodes note of one instance must be made of the same.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Literal, NamedTuple

from phx.machine import StateMachine, is_compared
from phx.types import AGREED_EVERY

__all__ = [
    "Agreed",
    "Comparison",
    "Known",
    "Ring",
    "Rings",
    "Verdict",
    "by_views",
    "compare",
    "doubtful",
    "hash_of",
    "state_of",
]

KEPT = 64
STATE_BYTES = 8

Kind = Literal["odd", "others", "split"]
KINDS: tuple[Kind, ...] = ("odd", "others", "split")  # what counts most first
What = Literal["log", "state"]
Rings = Iterable[tuple[int, int, bytes]]


class Agreed(NamedTuple):
    """A group at an agreed instance. `state` b"": not known, and not compared."""

    instance: int
    chain: int
    state: bytes


class Ring:
    """The last agreed instances of one group, at most 64."""

    def __init__(self) -> None:
        self._kept: deque[Agreed] = deque(maxlen=KEPT)

    def note(self, one: Agreed) -> None:
        """Ascending; what is not beyond the last one begins anew (a state was installed)."""
        while self._kept and self._kept[-1].instance >= one.instance:
            self._kept.pop()
        self._kept.append(one)

    def above(self, instance: int) -> list[Agreed]:
        """Those beyond it, ascending. Any thread."""
        return [one for one in tuple(self._kept) if one.instance > instance]

    @property
    def last(self) -> int:
        """The newest instance; 0: none."""
        return self._kept[-1].instance if self._kept else 0


def state_of(machines: Mapping[int, StateMachine]) -> bytes:
    """The hash of the digests of those machines of a group that say they are cheap; b"": none is.

    Raises whatever a machine's `digest` raises.
    """
    return hash_of({machine: one.digest() for machine, one in machines.items() if one.digest_cheap})


def hash_of(digests: Mapping[int, bytes]) -> bytes:
    """The state of a group, of what its machines' digests are; b"": of none."""
    hasher = blake2b(digest_size=STATE_BYTES)
    for machine, digest in sorted(digests.items()):
        hasher.update(b"%d %d " % (machine, len(digest)) + digest)
    return hasher.digest() if digests else b""


def by_views(machines: Mapping[int, StateMachine]) -> bool:
    """Whether views are needed for the state of a group: then it is never made of the others."""
    return any(is_compared(one) and not one.digest_cheap for one in machines.values())


class Verdict(NamedTuple):
    """What the digests of all members that are known say of this node.

    Attributes:
        kind: "equal": nothing differs, as far as is known. "odd": a majority of the members are
            equal, and this node is not. "others": a majority is equal to this node, and `nodes` are
            not. "split": something differs, and no majority is known to be equal.
        what: the log differs; or the log is equal, and the state differs.
        equal: the last agreed instance before `differs` at which there was no difference; 0: none
            is known.
        differs: the first one at which there is.
        nodes: those that this node differs from.
    """

    kind: Literal["equal", "odd", "others", "split"]
    what: What = "log"
    equal: int = 0
    differs: int = 0
    nodes: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind == "equal":
            return "equal"
        since = f"between {self.equal} and" if self.equal else "at or before"
        what = "log" if self.what == "log" else "state; log equal"
        return f"diverged {since} {self.differs} ({what})"


def compare(
    mine: Iterable[Agreed],
    others: Mapping[int, Rings],
    members: int,
) -> Verdict:
    """Judge this node by what it noted, and what others said that they noted.

    Guarantee: "odd" only if more than half of all members, this node not among them, are equal to
    each other at one and the same instance, and this node is not; so never for what one other
    node says, and never in a cluster of two.

    Args:
        others: by node id; not this node's.
        members: how many the group has, this node among them.
    """
    own = {one.instance: one for one in mine}
    rings = {node: {one[0]: Agreed(*one) for one in ring} for node, ring in others.items()}
    found: dict[Kind, tuple[int, What, list[int]]] = {}
    for instance in sorted(own):
        there = {node: ring[instance] for node, ring in rings.items() if instance in ring}
        for what in ("log", "state"):
            if judged := _judge(own[instance], there, what, members):
                kind, nodes = judged
                found.setdefault(kind, (instance, what, nodes))
    for kind in KINDS:
        if kind in found:  # (since when is looked for once: it takes a while)
            return _since(kind, own, rings, *found[kind], members)
    return Verdict("equal")


def _judge(
    mine: Agreed, there: Mapping[int, Agreed], what: What, members: int
) -> tuple[Kind, list[int]] | None:
    """Of one instance: the kind of it, and the nodes that say since when; None: nothing differs."""
    if what == "state":
        there = {node: one for node, one in there.items() if one.state and mine.state}
    differ = [node for node, one in there.items() if not _alike(one, mine, what)]
    if not differ:
        return None
    values = Counter(_value(one, what) for one in there.values())
    values[_value(mine, what)] += 1
    value, count = values.most_common(1)[0]
    if count <= members // 2:
        return "split", differ
    if value == _value(mine, what):
        return "others", differ
    return "odd", [node for node in differ if _value(there[node], what) == value]


def _since(
    kind: Kind,
    own: Mapping[int, Agreed],
    rings: Mapping[int, Mapping[int, Agreed]],
    instance: int,
    what: What,
    nodes: list[int],
    members: int,
) -> Verdict:
    """The verdict, with the interval."""
    equal, differs = _interval(own, rings, nodes, instance, what, members)
    if kind == "odd":
        first = [rings[node][differs] for node in nodes if differs in rings[node]]
        what = "state" if all(_alike(one, own[differs], "log") for one in first) else "log"
    return Verdict(kind, what, equal, differs, _ids(nodes))


def _interval(
    own: Mapping[int, Agreed],
    rings: Mapping[int, Mapping[int, Agreed]],
    nodes: list[int],
    instance: int,
    what: What,
    members: int,
) -> tuple[int, int]:
    """(last equal instance, first that differs) of this node against these. One of them may have
    been odd itself, before it was made anew: where a majority says so, it does not count. Nor is a
    state known to be equal where it is not known."""
    equal, differs = 0, instance
    for at in sorted(own):
        here = [own[at], *(ring[at] for ring in rings.values() if at in ring)]
        there = [
            rings[node][at]
            for node in nodes
            if at in rings[node] and not _outvoted(rings[node][at], here, members)
        ]
        if any(not _same(one, own[at]) for one in there):
            differs = at
            break
        if what == "state":
            there = [one for one in there if one.state and own[at].state]
        if there:
            equal = at
        if at == instance:
            break
    return equal, differs


def _outvoted(one: Agreed, here: list[Agreed], members: int) -> bool:
    """Whether a majority of all members is equal to each other there, and not to this one."""
    for what in ("log", "state"):
        known = [_value(other, what) for other in here if what == "log" or other.state]
        value, count = Counter(known).most_common(1)[0] if known else (_value(one, what), 0)
        if count > members // 2 and (what == "log" or one.state) and value != _value(one, what):
            return True
    return False


def _same(one: Agreed, other: Agreed) -> bool:
    return _alike(one, other, "log") and (
        not (one.state and other.state) or _alike(one, other, "state")
    )


def _alike(one: Agreed, other: Agreed, what: What) -> bool:
    return _value(one, what) == _value(other, what)


def _value(one: Agreed, what: What) -> int | bytes:
    return one.chain if what == "log" else one.state


def _ids(nodes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(nodes))


def doubtful(rings: Mapping[int, Rings], members: int) -> frozenset[int]:
    """The nodes whose state nobody should take over: those that at some agreed instance are not
    equal to a majority of all members, though somebody is not equal to them.

    For who has noted nothing that counts. Where nothing differs there is no doubt.
    """
    there: dict[tuple[int, What], dict[int | bytes, set[int]]] = {}
    for node, ring in rings.items():
        for instance, chain, state in ring:
            there.setdefault((instance, "log"), {}).setdefault(chain, set()).add(node)
            if state:
                there.setdefault((instance, "state"), {}).setdefault(state, set()).add(node)
    found: set[int] = set()
    for values in there.values():
        if len(values) > 1:
            for nodes in values.values():
                if len(nodes) <= members // 2:
                    found |= nodes
    return frozenset(found)


class Known(NamedTuple):
    """What there is to judge a group by: what was noted here, in which ring, and by others."""

    ring: Ring | None
    mine: list[Agreed]
    others: dict[int, list[Agreed]]


class Comparison:
    """What one node noted of its groups, what its peers said that they noted, and what follows.

    Guarantee: a verdict is told once, as long as it is the same, and never of a state that the
    group does not have any more when it is judged. What is not known is no difference. It locks
    nothing, and reads no clock.

    Args:
        members: how many the group with the most members has; may be set anew.
        agreed_every: agreed instances are the multiples of this.
    """

    def __init__(self, members: int, agreed_every: int = AGREED_EVERY) -> None:
        self.members = members
        self._far = KEPT * agreed_every
        self._mine: dict[int, Ring] = {}
        self._theirs: dict[int, dict[int, Ring]] = {}
        self._unjudged: set[int] = set()  # groups of which something was noted or heard
        self._said: dict[int, Verdict] = {}

    def note(self, group: int, one: Agreed) -> None:
        """The group is at an agreed instance, all of it applied."""
        self._mine.setdefault(group, Ring()).note(one)
        self._unjudged.add(group)

    def forget(self, group: int) -> None:
        """The group goes on from another state: what was noted is not of that."""
        self._mine.pop(group, None)
        self._said.pop(group, None)

    def noted(self, group: int, above: int) -> list[Agreed]:
        """What this node says to who asks."""
        mine = self._mine.get(group)
        return mine.above(above) if mine is not None else []

    def news(self, node: int) -> list[tuple[int, int]]:
        """Groups that have gone on since that peer said how far it is, and how far that is."""
        theirs = {group: rings.get(node) for group, rings in self._theirs.items()}
        last = {group: ring.last for group, ring in theirs.items() if ring is not None}
        return [
            (group, last.get(group, 0))
            for group, mine in self._mine.items()
            if mine.last > last.get(group, 0)
        ]

    def heard(self, group: int, node: int, said: Rings) -> None:
        """That peer's answer to a question of `news`."""
        ring = self._theirs.setdefault(group, {}).setdefault(node, Ring())
        mine = self._mine.get(group)
        # What is far beyond cannot be compared yet, and must not be the last that was heard.
        far = (mine.last if mine is not None else 0) + self._far
        for one in said:
            if ring.last < one[0] <= far:
                ring.note(Agreed(*one))
        self._unjudged.add(group)

    def unjudged(self) -> list[int]:
        """The groups of which something is new since this was asked last."""
        groups, self._unjudged = sorted(self._unjudged), set()
        return groups

    def known(self, group: int) -> Known:
        """What there is to judge a group by."""
        others = self._theirs.get(group, {})
        rings = {node: ring.above(0) for node, ring in others.items()}
        return Known(self._mine.get(group), self.noted(group, 0), rings)

    def judge(self, known: Known) -> Verdict:
        """It looks at nothing but what is known, and takes a while: nobody need wait for it."""
        return compare(known.mine, known.others, self.members)

    def news_is(self, group: int, known: Known, verdict: Verdict) -> bool:
        """Whether this is to be told: it is not what was told last, and of the state that the group
        has. Then it was told."""
        stale = self._mine.get(group) is not known.ring  # it goes on from another state
        if verdict.kind == "equal" or verdict == self._said.get(group) or stale:
            return False
        self._said[group] = verdict
        return True

    def stands(self, group: int, verdict: Verdict) -> bool:
        """Whether a verdict that was told is the last one, and of the state that the group has."""
        return self._said.get(group) is verdict
