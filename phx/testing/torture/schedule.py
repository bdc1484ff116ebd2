"""What goes wrong, where and when: episodes of faults, all decided by a seed.

An episode is a few faults that overlap; when the last one is over, everything is mended and the
cluster must come to rest. In one episode at most one fault touches a node's process or disk; those
of the network come on top.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

KINDS = {
    "kill": "SIGKILL; sometimes once more while it starts",
    "close": "closed cleanly, and started again",
    "stop": "SIGSTOP for seconds, leaders preferred; then SIGCONT",
    "drop": "nothing from and to a node gets through until the end, and nobody is told",
    "oneway": "the same in one direction",
    "partial": "two nodes cut off from each other, the others not",
    "delay": "every message late",
    "cut": "connections reset, again and again",
    "slow": "every fdatasync takes long",
    "eio": "an fdatasync fails, or every one",
    "full": "the file system is full",
    "power": "what was not synced is gone, or some of it",
    "forget": "some lag; of those that do not, one loses its power, and the rest is killed",
    "wipe": "SIGKILL, and the store is gone, mostly the checkpoints too; the journal stays",
    "wipe-journal": "SIGKILL, and the journal is gone or damaged; the node is allowed to rejoin",
    "lag": "killed or stopped until the others do not keep the log that it needs any more",
    "flip": "SIGKILL, and bits of the store and the checkpoints are flipped",
    "replace": "a node is replaced by a new one, and its folder deleted",
    "grow": "a new node is added, then some node removed",
    "shrink": "a node is removed, later a new one added",
    "move": "all nodes are replaced by new ones at a time",
}
"""Every kind of fault, with what it is."""

NETWORK = frozenset({"drop", "oneway", "partial", "delay", "cut"})
LOSING = frozenset({"wipe", "wipe-journal", "flip"})
"""One at a time: two that lost theirs may be all that had some value, and a node that lost its
journal votes again only with promises of the others (docs/design/protocol.md, Lemma 7)."""
DOUBTFUL = frozenset({"power", "eio", "forget"})
"""What relaxed groups lose something by: where there are any, these are such, too."""
MEMBERS = frozenset({"replace", "grow", "shrink", "move"})
"""The members change. None of these ends before the change is active."""
GROUPS = {
    "group-create": "groups are created, at any node, at times two of an id",
    "group-delete": "groups are deleted, and others created under their ids",
    "group-stop": "groups are stopped; then they go on, or are deleted, or stay so",
    "group-move": "groups are moved to other nodes",
}
"""What is done to created groups, where they come and go. None of it ends before it is done."""
SINGLE = LOSING | {"lag"} | MEMBERS | GROUPS.keys()
"""Of these one in an episode: who lags needs others that go on without it, and so does who lost
something; and a change of members, or of groups, is to be made though others are in its way, not
because of one that is."""
WHOLE = frozenset({"move", "forget"})
"""They need every node."""
SHORTEST_S, LONGEST_S = 0.5, 6.0
QUIET_S = (0.5, 2.0)


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        kind: of KINDS or GROUPS.
        nodes: whom it hits, in order. For oneway and partial: the first is cut off from the others.
            For GROUPS: who may be killed when it is asked, as nothing else hits it.
            Who is replaced hands its number on here: 1 is node 1, or who came in its place.
        leader_first: hit whoever leads most groups at that moment in place of the first node.
        at_s, lasts_s: from the start of the episode.
        seed: of whatever else is to be decided.
    """

    kind: str
    nodes: tuple[int, ...]
    leader_first: bool
    at_s: float
    lasts_s: float
    seed: int


@dataclass(frozen=True)
class Episode:
    """Some faults at a time, then quiet for `quiet_s` seconds."""

    faults: tuple[Fault, ...]
    quiet_s: float

    def __str__(self) -> str:
        return ", ".join(
            f"{fault.kind} {'leader' if fault.leader_first else ''}"
            f"{'+'.join(map(str, fault.nodes[fault.leader_first :]))}"
            for fault in self.faults
        )


def episodes(
    seed: str,
    kinds: Collection[str],
    nodes: Collection[int],
    *,
    first: Collection[str] = (),
    longest_s: float = LONGEST_S,
    changing: bool = False,
    creating: bool = False,
    relaxing: bool = False,
) -> Iterator[Episode]:
    """The episodes of a run, without end. The same arguments give the same episodes.

    Every kind has its turn before any has its next one, so that a short run has them all.

    Args:
        kinds: of KINDS; of GROUPS, too, if `creating`.
        nodes: ids.
        first: of these kinds, those that come before the others.
        longest_s: no fault lasts longer, in seconds.
        changing: each episode begins with a change of members, and the other kinds come on top.
        creating: each episode begins with something that is done to created groups, and the others
            come on top; or, half as often, with one of SINGLE.
        relaxing: there are groups that say what is only written, which outlives the failure of one
            machine at a time.
    """
    chance = random.Random(seed)
    lead = set(kinds) & MEMBERS if changing else set(kinds)
    top = sorted(set(kinds) - MEMBERS if changing else kinds)
    if creating:
        lead, top = set(kinds) & SINGLE, sorted(set(kinds) - GROUPS.keys())
    single = SINGLE | DOUBTFUL if relaxing else SINGLE
    late = sorted(lead - set(first)) + sorted(lead & GROUPS.keys())  # those twice
    while True:
        for turn in (sorted(lead & set(first)), late):
            chance.shuffle(turn)
            for kind in turn:
                yield _episode(chance, kind, top, sorted(nodes), longest_s, single)


def _episode(
    chance: random.Random,
    kind: str,
    kinds: list[str],
    nodes: list[int],
    longest_s: float,
    single: Collection[str],
) -> Episode:
    chosen = [kind]
    if kinds and chance.random() < 0.6:
        chosen += chance.choices(kinds, k=chance.choice((1, 1, 2)))
    free = list(nodes)  # of faults of the process or disk
    chance.shuffle(free)
    faults: list[Fault] = []
    for one in chosen:
        if one in single and any(fault.kind in single for fault in faults):
            continue
        if one in GROUPS:
            hit = []
        elif one in NETWORK:
            hit = chance.sample(nodes, _how_many(chance, one, len(nodes), single))
        elif one == "power" and one not in single and not faults:
            # Whatever is durable nowhere but in memory of a majority shows when all lose power.
            hit = free if chance.random() < 0.5 else free[:1]
        elif one in WHOLE:
            hit = free if len(free) == len(nodes) else []
        else:
            hit = free[: _how_many(chance, one, len(free), single)]
        if not hit and one not in GROUPS:
            continue
        if one not in NETWORK:
            free = [node for node in free if node not in hit]
        whole = len(hit) == len(nodes)
        # Elsewhere the leader might be a node that another fault of this episode has already.
        alone = one in NETWORK or not [f for f in faults if f.kind not in NETWORK | GROUPS.keys()]
        # (Nor has any other process a fault then, and a change is to meet those, too.)
        often = 0.6 if one not in MEMBERS else 0.3
        leader_first = alone and not whole and len(hit) == 1 and chance.random() < often
        if leader_first and one not in NETWORK:
            free = []
        faults.append(
            Fault(
                one,
                tuple(hit),
                leader_first,
                round(chance.uniform(0.0, 1.5), 3) if faults else 0.0,
                round(chance.uniform(SHORTEST_S, longest_s), 3),
                chance.getrandbits(32),
            )
        )
    if faults[0].kind in GROUPS:
        faults[0] = replace(faults[0], nodes=tuple(free))
    return Episode(tuple(faults), round(chance.uniform(*QUIET_S), 3))


def _how_many(chance: random.Random, kind: str, available: int, single: Collection[str]) -> int:
    """Mostly one; sometimes so many that no majority is left; sometimes all."""
    if kind in ("oneway", "partial", "full") or kind in single:
        return min(1, available)
    return min(available, chance.choice((1, 1, 1, 1, 2, available)))
