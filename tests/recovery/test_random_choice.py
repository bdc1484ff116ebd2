"""Random runs of the protocol, in which some members are lost: what survivors make of the rest.

A small Multi-Paxos without time: leaders come one after the other, each with promises of some
majority; Accepts reach whom they reach, in any order; decisions are cumulative, as in
docs/design/protocol.md.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import combinations

import pytest

from phx.recovery.choice import choose
from phx.recovery.seen import GroupSeen

Values = dict[int, bytes]


@dataclass
class Member:
    promised: int = 0
    accepted: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    chosen_through: int = 0  # as it knows
    log: Values = field(default_factory=dict)

    def learn(self, through: int, chosen: Values) -> None:
        for at in range(self.chosen_through + 1, through + 1):
            self.log[at] = chosen[at]
        self.chosen_through = max(self.chosen_through, through)

    def seen(self, settled: int) -> GroupSeen:
        """`settled`: so much of what it knows to be chosen is in its store."""
        return GroupSeen(
            settled_through=settled,
            learned={at: body for at, body in self.log.items() if at > settled},
            accepted={at: vote for at, vote in self.accepted.items() if at > self.chosen_through},
        )


class Group:
    def __init__(self, chance: random.Random, size: int) -> None:
        self.chance, self.ballot, self.values = chance, 0, 0
        self.members = {node: Member() for node in range(1, size + 1)}
        self.chosen: Values = {}

    @property
    def majority(self) -> int:
        return len(self.members) // 2 + 1

    def lead(self) -> None:
        """One leadership: phase 1, what it found, some values of its own."""
        chance = self.chance
        self.ballot += 1
        promising = chance.sample(list(self.members.values()), self.majority)
        for one in promising:
            one.promised = self.ballot
        start = max(one.chosen_through for one in promising) + 1
        best: dict[int, tuple[int, bytes]] = {}
        for one in promising:
            for at, vote in one.accepted.items():
                if at >= start and (at not in best or best[at][0] < vote[0]):
                    best[at] = vote
        proposals = {}
        for at in range(start, max(best, default=start - 1) + 1 + chance.randrange(5)):
            self.values += 1
            proposals[at] = best[at][1] if at in best else b"%d" % self.values
        sends = [(at, one) for at in proposals for one in self.members.values()]
        chance.shuffle(sends)
        for at, one in sends[: chance.randrange(len(sends) + 1)]:
            # (Others may have promised more to nobody yet: leaders come one after the other.)
            if one.promised <= self.ballot and at > one.chosen_through:
                one.promised = self.ballot
                one.accepted[at] = self.ballot, proposals[at]
        self.count(start, proposals)

    def count(self, start: int, proposals: Values) -> None:
        at = start
        while at in proposals and self.held(at, proposals[at]) >= self.majority:
            assert self.chosen.setdefault(at, proposals[at]) == proposals[at]
            at += 1
        for one in self.members.values():
            known = self.chance.randrange(one.chosen_through, max(at, one.chosen_through + 1))
            if all(i in self.chosen for i in range(one.chosen_through + 1, known + 1)):
                one.learn(known, self.chosen)

    def held(self, at: int, value: bytes) -> int:
        """So many have acknowledged it: in this ballot, or as known to be chosen."""
        return sum(
            one.accepted.get(at) == (self.ballot, value) or one.chosen_through >= at
            for one in self.members.values()
        )


@pytest.mark.parametrize("size", [3, 4, 5])
def test_a_majority_loses_nothing_and_nobody_contradicts_what_a_survivor_knows(size: int) -> None:
    adopted = gaps = lost = 0
    for seed in range(400):
        chance = random.Random(f"{size}/{seed}")
        group = Group(chance, size)
        for _ in range(chance.randrange(1, 9)):
            group.lead()
        seen = {
            node: one.seen(chance.randint(0, one.chosen_through))
            for node, one in group.members.items()
        }
        stores = {node: one.log for node, one in group.members.items()}
        for count in range(1, size + 1):
            for survivors in combinations(seen, count):
                found = choose(0, {node: seen[node] for node in survivors}, seen)
                assert found is not None
                log = {
                    at: stores[found.source][at] for at in range(1, found.settled_through + 1)
                } | dict(found.bodies)
                assert sorted(log) == list(range(1, found.through + 1))
                known = max(group.members[node].chosen_through for node in survivors)
                assert found.chosen_through == known
                for at in range(1, known + 1):
                    assert log[at] == group.chosen[at]
                assert found.majority == (2 * count > size)
                if found.majority:
                    for at, value in group.chosen.items():
                        assert log[at] == value
                adopted += found.adopted > 0
                gaps += found.beyond > 0
                lost += any(log.get(at) != value for at, value in group.chosen.items())
    assert min(adopted, gaps, lost) > 50  # (or it would show nothing)
