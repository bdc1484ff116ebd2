"""Read points of groups of which only some of the node's peers are members (reads.md).

Nodes have five peers, themselves included. Group 0 has nodes 1, 2, 3, group 1 has all five.
"""

import struct

from script import Script

from phx._core.engine_door import Engine
from phx.sim.wire_text import POINT_OK, Message, encode

HEARTBEAT_US = 100_000
QUORUM = 1


class Mixed(Script):
    """Nodes 4 and 5 take group 0 for one of all five, and ask and answer in it: nobody told them.

    Node 1 leads group 0, and no grant has reached it yet: every point has to be checked.
    """

    def __init__(self) -> None:
        super().__init__(nodes=5, groups=2)
        for _ in range(100):
            self.advance(10_000)
            self.flow(self.unheard)
            if self.status(1)["leading"]:
                break
        assert self.submit(1, b"a") == 0
        self.flow(self.unheard)
        assert self.status(1)["chosen_through"] == 1
        self.advance(HEARTBEAT_US // 10)
        self.drop()

    def remember(self, n: int, engine: Engine) -> None:
        if n <= 3:
            engine.members(0, [3, 1, 2])
        else:
            engine.restoring(0, True)

    def unheard(self, m: Message) -> bool:
        return m.name == "HeartbeatAck" and m.dest == 1

    def read(self, n: int, group: int, ticket: int, flags: int = 0) -> None:
        assert self.engines[n].read(group, ticket, self.now + 10_000_000, flags) == 0
        self.turn(n)

    def told(self, n: int) -> set[int]:
        return {ticket for _, verdict, ticket, _ in self.points[n] if verdict == 0}

    def hostile(self, n: int) -> int:
        return self.engines[n].counters()["hostile_messages"]


def asked(s: Script, source: int, dest: int) -> set[int]:
    questions = [m for m in s.pick(f"{source}→{dest}", "ReadAsk") if m.flags & QUORUM]
    return {group for m in questions for group, _ in m.asked()}


def acknowledge(s: Script, beat: Message) -> None:
    """In the name of whom it went to, and without a lease."""
    s.put(
        beat.dest, 1,
        encode("HeartbeatAck", 0, 0, seq=beat.seq, lease_us=0, count=0, version=beat.version,
               incarnation=s.engines[1].incarnation),
    )  # fmt: skip


def test_a_check_counts_grants_of_members_alone() -> None:
    s = Mixed()
    s.read(1, group=0, ticket=1)
    beats = {m.dest: m for m in s.pick("Heartbeat")}
    for n in (4, 5):
        acknowledge(s, beats[n])
    assert s.told(1) == set()
    acknowledge(s, beats[3])
    assert s.told(1) == {1}


def test_a_quorum_read_asks_who_votes_and_counts_no_others() -> None:
    s = Mixed()
    s.read(2, group=0, ticket=1, flags=QUORUM)
    s.read(2, group=1, ticket=2, flags=QUORUM)
    (first,) = s.pick("2→3", "ReadAsk")
    number = first.fixed["round"]
    assert asked(s, 2, 3) == {0}
    assert asked(s, 2, 4) == set(), "the question about group 1 is in the next message"
    before = s.hostile(2)
    for n in (4, 5):
        rest = struct.pack("<IIQQ", 0, POINT_OK, 1, 0)
        s.put(n, 2, encode("ReadPoint", 0, 0, rest, flags=QUORUM, round=number, count=1))
    assert s.told(2) == set()
    assert s.hostile(2) == before + 2
    s.deliver("2→3", "ReadAsk")
    s.deliver("3→2", "ReadPoint")
    assert s.told(2) == {1}
    assert asked(s, 2, 4) == asked(s, 2, 5) == {1}
    s.crash(1)
    s.crash(3)
    for n in (4, 5):
        s.deliver(f"2→{n}", "ReadAsk")
        s.deliver(f"{n}→2", "ReadPoint")
    assert s.told(2) == {1, 2}


def test_who_is_no_member_is_told_no_point() -> None:
    s = Mixed()
    before = s.hostile(1)
    rest = struct.pack("<IIQ", 0, 0, 0)
    for flags in (0, QUORUM):
        s.put(4, 1, encode("ReadAsk", 0, 0, rest, flags=flags, round=1, count=1))
    s.advance(HEARTBEAT_US, 1)
    for beat in s.pick("Heartbeat"):
        acknowledge(s, beat)
    assert s.pick("1→4", "ReadPoint") == []
    assert s.hostile(1) == before + 2
