"""Clusters of scripts that read: who leads, under a lease or without one, and what was told."""

import struct

from script import Script

from phx.sim.wire_text import Message, encode

HEARTBEAT_US, LEASE_US = 100_000, 800_000
QUORUM = 1
Told = list[tuple[int, int]]


class Reads(Script):
    """A cluster of three of which node 1 leads group 0, with a value chosen at instance 1."""

    def __init__(self, nodes: int = 3, **options: int) -> None:
        super().__init__(nodes, **options)
        self.tickets = 0
        self.ballot = self.elect(1)
        self.submit(1, b"a")
        self.pass_time(200_000)
        self.lines.clear()

    def read(self, n: int, quorum: bool = False, within_us: int = 10_000_000) -> int:
        self.tickets += 1
        flags = QUORUM if quorum else 0
        assert self.engines[n].read(0, self.tickets, self.now + within_us, flags) == 0
        self.turn(n)
        return self.tickets

    def told(self, n: int) -> Told:
        """(ticket, instance) of those that have a point."""
        return [(ticket, at) for _, verdict, ticket, at in self.points[n] if verdict == 0]

    def failed(self, n: int) -> Told:
        return [(ticket, verdict) for _, verdict, ticket, _ in self.points[n] if verdict]

    def answers(self, source: int, dest: int, *points: tuple[int, int, int, int], number: int,
                flags: int = 0) -> None:  # fmt: skip
        rest = b"".join(struct.pack("<IIQQ", *point) for point in points)
        self.put(
            source, dest,
            encode("ReadPoint", 0, 0, rest, flags=flags, round=number, count=len(points)),
        )  # fmt: skip


def leaseless() -> Reads:
    """Node 1 leads, and no grant has reached it yet: every point has to be checked."""
    s = Reads.__new__(Reads)
    Script.__init__(s)
    s.tickets = 0
    for _ in range(100):
        s.advance(10_000)
        s.flow(lambda m: m.name == "HeartbeatAck" and m.dest == 1)
        if s.status(1)["leading"]:
            break
    s.ballot = s.status(1)["ballot"]
    s.submit(1, b"a")
    s.flow(lambda m: m.name == "HeartbeatAck" and m.dest == 1)
    assert s.leaders() == {1: 1, 2: 1, 3: 1}
    assert s.status(1)["chosen_through"] == 1
    s.advance(HEARTBEAT_US // 10)  # (a heartbeat that was sent just now would be waited for)
    s.drop()
    s.lines.clear()
    return s


def acknowledge(s: Script, beat: Message, *refused: int, version: int | None = None) -> None:
    """In the name of whom it went to, and without a lease."""
    rest = struct.pack(f"<{len(refused)}I", *refused)
    s.put(
        beat.dest, 1,
        encode("HeartbeatAck", 0, 0, rest, seq=beat.seq, lease_us=0, count=len(refused),
               version=beat.version if version is None else version,
               incarnation=s.engines[1].incarnation),
    )  # fmt: skip
