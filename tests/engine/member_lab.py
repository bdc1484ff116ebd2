"""Clusters of scripts in which a group's members change."""

from typing import Any

from script import Script

from phx._core import members
from phx._core.engine_door import Engine

VOTER, WITNESS, LEARNER = 1, 2, 3
UNDER_WAY, NOT_LEADING, CONFLICT, BUSY, NOT_CAUGHT_UP, NO_SLOT, UNSOUND = range(7)
EVENT_HALTED, EVENT_MEMBERS = 3, 7
HALT_SLOTS = 5
ACTIVE, HELD, LEFT, ENDED = 1, 2, 4, 8
MEMBERSHIP = 2  # kind of a body


def roster(version: int, voters: tuple[int, ...], learners: tuple[int, ...] = (),
           witnesses: tuple[int, ...] = (), ballot: int = 1) -> bytes:  # fmt: skip
    roles = {**dict.fromkeys(voters, VOTER), **dict.fromkeys(learners, LEARNER)}
    roles |= dict.fromkeys(witnesses, WITNESS)
    rows = [(n, roles[n], b"node%d:7000" % n) for n in sorted(roles)]
    return members.write(version, ballot, 0, rows)


def named(value: bytes) -> set[int]:
    """Nodes in a membership value."""
    read = members.read(value)
    assert read is not None
    return {node for node, _, _ in read[3]}


class Changing(Script):
    """Nodes of one group; only `first` are its members at the beginning, and all know that."""

    def __init__(self, nodes: int = 5, first: tuple[int, ...] = (1, 2, 3), **options: int) -> None:
        self.first = first
        super().__init__(nodes, **options)

    def remember(self, n: int, engine: Engine) -> None:
        engine.members(0, self.first)

    def change(self, n: int, voters: tuple[int, ...], learners: tuple[int, ...] = (),
               version: int = 0, witnesses: tuple[int, ...] = ()) -> int:  # fmt: skip
        """Asked of node n; the next version, if none is given."""
        value = roster(version or self.version(n) + 1, voters, learners, witnesses)
        verdict = self.engines[n].change_members(0, value)
        self.turn(n)
        return verdict

    def learners(self, leader: int, *nodes: int) -> None:
        """These are learners, active, and have what is chosen."""
        now = tuple(m for m in self.voters(leader))
        assert self.change(leader, now, nodes) == UNDER_WAY
        self.flow()
        self.pass_time(1_000_000)
        leader = self.leader()
        assert self.membership(leader)["active"]
        for n in nodes:
            assert self.status(n)["chosen_through"] == self.status(leader)["chosen_through"]

    def leader(self) -> int:
        found = [n for n in self.engines if self.status(n)["leading"]]
        assert len(found) == 1, found
        return found[0]

    def voters(self, n: int) -> tuple[int, ...]:
        value = self.membership(n)["value"]
        if value is None:
            return self.first
        read = members.read(value)
        assert read is not None
        return tuple(node for node, role, _ in read[3] if role != LEARNER)

    def membership(self, n: int) -> dict[str, Any]:
        return self.engines[n].membership(0)

    def version(self, n: int) -> int:
        version: int = self.membership(n)["version"]
        return version

    def versions(self) -> dict[int, int]:
        return {n: self.version(n) for n in self.engines}

    def removed(self, n: int) -> bool:
        return bool(self.membership(n)["active"] and self.membership(n)["left"])

    def told(self, n: int) -> list[tuple[int, int, int]]:
        """What whoever applies has heard of members: (version, instance, flags)."""
        return [(e[4], e[3], e[1]) for e in self.events[n] if e[0] == EVENT_MEMBERS]

    def chosen_at(self, n: int, instance: int) -> bytes | None:
        return self.find(n, 0, instance)

    def logs_agree(self) -> None:
        """U1, as far as anybody still has it."""
        seen: dict[int, bytes] = {}
        for n in self.engines:
            for i in range(1, self.status(n)["chosen_through"] + 1):
                body = self.find(n, 0, i)
                if body is not None:
                    assert seen.setdefault(i, body) == body, (n, i)
