"""Groups of one node with different members: whose votes count, and who hears of what is led.

Nodes have five peers, themselves included. Group 0 has nodes 1, 2, 3, group 1 has all five.
"""

import struct

from script import Script

from phx._core.engine_door import Engine
from phx.sim.wire_text import encode

ALL = 0b11111
THREE = 0b00111


class Mixed(Script):
    """Nodes 4 and 5 take group 0 for one of all five, and answer in it: nobody told them."""

    def __init__(self) -> None:
        super().__init__(nodes=5, groups=2)

    def remember(self, n: int, engine: Engine) -> None:
        if n <= 3:
            engine.members(0, [3, 1, 2])
        else:
            engine.restoring(0, True)

    def led(self, *groups: int) -> None:
        """Node 1 leads these."""
        for group in groups:
            self.pass_time(2_000_000)
            leader = self.leaders(group)[1]
            if leader != 1:
                self.engines[leader].transfer(group, 1)
                self.turn(leader)
            self.elect(1, group)
        assert all(self.status(1, group)["leading"] for group in groups)


def claims(s: Script, source: int, dest: int) -> set[int]:
    """Groups that heartbeats on their way tell of."""
    beats = s.pick(f"{source}→{dest}", "Heartbeat")
    return {group for m in beats for group, _, _ in struct.iter_unpack("<IIQ", m.rest)}


def test_groups_with_the_same_members_share_what_says_so() -> None:
    engine = Engine(1, [1, 2, 3, 4, 5], range(6))
    assert engine.configs() == [(ALL, 0, 3, 6, 0)]
    for group in (1, 2, 3):
        engine.members(group, [1, 2, 3])
    engine.members(4, [1, 2, 3], [5])
    assert engine.configs() == [(THREE, 0, 2, 3, 0), (THREE, 0b10000, 2, 1, 0), (ALL, 0, 3, 2, 0)]
    engine.members(4, [1, 2, 3, 4, 5])
    engine.members(1, [1, 2, 3])  # as before
    assert engine.configs() == [(THREE, 0, 2, 3, 0), (ALL, 0, 3, 3, 0)]


def test_half_of_the_members_is_no_quorum() -> None:
    engine = Engine(1, range(1, 6), range(5))
    for group in range(5):
        engine.members(group, range(1, group + 2))
    assert {voters.bit_count(): quorum for voters, _, quorum, _, _ in engine.configs()} == {
        1: 1, 2: 2, 3: 2, 4: 3, 5: 3,
    }  # fmt: skip


def test_two_of_three_members_choose_though_the_node_has_five_peers() -> None:
    s = Mixed()
    s.led(0, 1)
    for n in (3, 4, 5):
        s.disconnect(1, n)
    s.flow()
    assert s.submit(1, b"x", group=0) == 0
    assert s.submit(1, b"y", group=1) == 0
    s.flow()
    assert [b"x"] in s.values(1, group=0)
    assert [b"y"] not in s.values(1, group=1)


def test_nodes_that_are_no_members_are_not_asked_and_their_answers_are_not_counted() -> None:
    s = Mixed()
    s.led(0, 1)
    for n in (2, 3):
        s.disconnect(1, n)
    s.pass_time(2_000_000)
    s.lines.clear()
    prevotes = s.engines[1].counters()["prevotes"]
    for _ in range(300):
        s.advance(10_000)
        number = s.status(1)["highest_seen"]
        for n in (4, 5):
            s.put(n, 1, encode("PreVoteReply", 0, number, chosen=9, promised=number, verdict=1))
        s.flow()
    assert s.engines[1].counters()["prevotes"] > prevotes
    assert not [line for line in s.said("PreVote", "Prepare") if " g0 " in line]
    assert not s.status(1, group=0)["leading"]
    assert s.status(1, group=1)["leading"]


def test_only_members_are_told_of_a_leadership() -> None:
    s = Mixed()
    s.led(0, 1)
    s.flow()
    s.engines[1].transfer(1, 4)  # a change, and then all of it anew
    s.turn(1)
    s.advance(50_000, 1)
    assert claims(s, 1, 2) == claims(s, 1, 4) == {1}
    s.drop()
    for n in (2, 4):
        s.disconnect(1, n)
        s.connect(1, n)
    s.advance(200_000, 1)
    assert 0 in claims(s, 1, 2)
    assert 0 not in claims(s, 1, 4)


def test_a_change_of_what_is_led_is_told_to_members_alone() -> None:
    s = Mixed()
    s.led(0, 1)
    s.flow()
    s.engines[1].transfer(0, 2)
    s.turn(1)
    s.advance(50_000, 1)
    assert claims(s, 1, 2) == claims(s, 1, 3) == {0}
    assert claims(s, 1, 4) == claims(s, 1, 5) == set()


def test_a_leader_cut_from_its_members_steps_down_in_their_groups_alone() -> None:
    s = Mixed()
    s.led(0, 1)
    number = s.status(1, group=1)["ballot"]
    for n in (2, 3):
        s.disconnect(1, n)
    s.pass_time(1_500_000)
    assert not s.status(1, group=0)["leading"]
    assert s.status(1, group=1)["leading"]
    assert s.status(1, group=1)["ballot"] == number
    (three, five) = s.engines[1].configs()
    assert three[4] == 0
    assert five[4] >= 1
