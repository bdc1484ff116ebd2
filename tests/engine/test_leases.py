"""Leases, by hand: who may count on whom (protocol.md, "Leases and elections").

Whether a leader believes that it holds the lease of a group shows in its answer to a Prepare of
somebody else: while it does, it refuses ("leased"); otherwise it promises.
"""

import struct

import pytest
from script import BEATS, Script

from phx._core.batch import unpack_body
from phx.sim.wire_text import ballot, encode

LEASE_US = 800_000
GRANT_US = 900_000  # an eighth more, by the clock of who gave it
WALL_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000


def heartbeat(s: Script, source: int, dest: int, seq: int, *claims: tuple[int, int]) -> None:
    rest = b"".join(struct.pack("<IIQ", group, 0, number) for group, number in claims)
    s.put(
        source, dest,
        encode("Heartbeat", 0, 0, rest, flags=2, seq=seq, version=seq, base=0,
               incarnation=s.engines[source].incarnation, lease_us=LEASE_US, count=len(claims)),
    )  # fmt: skip


def answer(s: Script, source: int, seq: int, version: int, *refused: int) -> None:
    """To a heartbeat of 1, naming the groups that are not granted."""
    rest = struct.pack(f"<{len(refused)}I", *refused)
    s.put(
        source, 1,
        encode("HeartbeatAck", 0, 0, rest, seq=seq, version=version, lease_us=LEASE_US,
               count=len(refused), incarnation=s.engines[1].incarnation),
    )  # fmt: skip


def last_beat(s: Script) -> tuple[int, int]:
    """Sequence and version of the last heartbeat of 1."""
    beat = s.pick("1→2", "Heartbeat")[-1]
    return beat.seq, beat.version


def holds(s: Script) -> bool:
    """Does 1 refuse a promise because of its lease?"""
    return keeps(s, 1, 3)


def keeps(s: Script, n: int, other: int) -> bool:
    """Does n refuse a promise to this other node because of a lease, its own or one it granted?"""
    s.lines.clear()
    s.put(other, n, encode("Prepare", 0, ballot(40, other), first=1))
    said = s.said("Refuse")
    assert len(said) + len(s.said("Promise")) == 1
    return bool(said) and said[0].endswith("reason=leased")


def keeps_its_word(s: Script, number: int) -> bool:
    """Does 2 refuse 3 a promise of ballot `number` because of what it granted 1?"""
    s.lines.clear()
    s.put(3, 2, encode("Prepare", 0, ballot(number, 3), first=1))
    said = s.said("Refuse")
    assert bool(said) == (s.status(2)["promised"] != ballot(number, 3))
    return bool(said) and said[0].endswith("reason=leased")


def granted_at_once(s: Script) -> None:
    """1 leads, and its last heartbeat was heard and answered in the instant in which it left."""
    s.elect(1)
    s.pass_time(100_000)
    s.drop()
    s.advance(200_000)
    for peer in ("2", "3"):
        assert s.deliver(f"1→{peer}", "Heartbeat")
        assert s.deliver(f"{peer}→1", "HeartbeatAck")
    s.drop()


def test_a_grant_binds_the_member_that_gave_it() -> None:
    s = Script()
    number = s.elect(1)
    s.drop()
    s.put(3, 2, encode("Transfer", 0, ballot(2, 3)))  # 3 does not lead: nothing to hand over
    assert s.status(2)["promised"] == number
    assert not s.pick("2→1", "Prepare")
    s.advance(1_000_000, 2)
    s.put(3, 2, encode("Transfer", 0, ballot(3, 3)))
    assert s.status(2)["promised"] > number


def test_a_claim_to_a_group_that_is_promised_to_somebody_else_is_not_granted() -> None:
    s = Script(groups=2)
    s.put(2, 3, encode("Prepare", 0, ballot(5, 2), first=1))
    s.put(1, 3, encode("Prepare", 1, ballot(5, 1), first=1))
    heartbeat(s, 1, 3, 11, (0, ballot(1, 1)), (1, ballot(5, 1)))
    (ack,) = [m for m in s.pick("3→1", "HeartbeatAck") if m.seq == 11]
    assert ack.refused() == {0}


def test_each_answer_says_what_is_granted_now() -> None:
    """Also where the claims have not changed since the answer before."""
    s = Script(groups=4)
    claims = [(group, ballot(5, 1)) for group in range(3)]

    def refused(seq: int, *changed: tuple[int, int], base: int) -> set[int]:
        rest = b"".join(struct.pack("<IIQ", group, 0, number) for group, number in changed)
        s.put(
            1, 3,
            encode("Heartbeat", 0, 0, rest, flags=0, seq=seq, version=base + len(changed),
                   base=base, incarnation=s.engines[1].incarnation, lease_us=LEASE_US,
                   count=len(changed)),
        )  # fmt: skip
        (ack,) = [m for m in s.pick("3→1", "HeartbeatAck") if m.seq == seq]
        return set(ack.refused())

    for group, number in claims:
        s.put(1, 3, encode("Prepare", group, number, first=1))
    heartbeat(s, 1, 3, 11, *claims)
    assert refused(12, base=11) == set()
    s.engines[3].stop_group(1)
    assert refused(13, base=11) == {1}
    assert refused(14, (3, ballot(5, 1)), base=11) == {1, 3}
    s.put(1, 3, encode("Prepare", 3, ballot(5, 1), first=1))
    assert refused(15, base=12) == {1}
    s.put(1, 3, encode("Prepare", 0, ballot(6, 1), first=1))
    assert refused(16, base=12) == {0, 1}
    assert refused(17, (0, 0), base=12) == {1}


def test_an_answer_that_refuses_the_group_is_no_lease_of_it() -> None:
    s = Script()
    s.elect(1)
    s.pass_time(100_000)
    assert holds(s)
    s.advance(200_000, 1)
    seq, version = last_beat(s)
    answer(s, 2, seq, version, 0)
    assert holds(s)  # 3 has not taken its grant back
    answer(s, 3, seq, version, 0)
    assert not holds(s)


def test_an_older_answer_does_not_take_back_what_a_newer_one_refused() -> None:
    """Two nodes held the lease of a group (simulator, default seed 106661): the others had promised
    it to somebody else and said so, and then their earlier answers arrived."""
    s = Script()
    s.elect(1)
    s.pass_time(100_000)
    s.advance(200_000, 1)
    seq, version = last_beat(s)
    for member in (2, 3):
        answer(s, member, seq, version, 0)
    for member in (2, 3):
        answer(s, member, seq - 1, version)
    assert not holds(s)


def test_an_answer_to_a_heartbeat_from_before_the_claim_is_no_lease() -> None:
    s = Script()
    s.flow()
    while not s.pick("2→1", "Promise"):
        s.advance(10_000)
        s.flow(lambda m: m.name == "Promise")  # heartbeats are answered all the time
    s.drop("Heartbeat")
    s.drop("HeartbeatAck")
    s.deliver("2→1", "Promise")
    assert s.status(1)["leading"]
    assert not holds(s)


def test_a_lease_counts_from_the_sending_of_the_heartbeat() -> None:
    s = Script()
    s.elect(1)
    s.pass_time(100_000)
    s.drop()
    s.advance(200_000, 1)
    sent_us = s.now
    seq, version = last_beat(s)
    s.advance(300_000, 1)
    for member in (2, 3):
        answer(s, member, seq, version)
    s.now = sent_us
    s.advance(LEASE_US - 1_000, 1)
    assert holds(s)
    s.advance(1_000, 1)
    assert not holds(s)


@pytest.mark.parametrize("beats", [False, True])
def test_a_value_that_another_leader_proposes_again_carries_no_lease(beats: bool) -> None:
    """A leader's value is found and chosen by the next one, and says still whose it was. Who holds
    the lease, and who grants it, heartbeats alone say."""
    s = Script()
    first = s.elect(1)
    s.pass_time(100_000)
    assert holds(s)
    s.submit(1, b"mine")
    s.deliver("1→2", "Accept")
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    for _ in range(400):
        s.advance(10_000, 2, 3)
        s.flow(lambda m: m.name == "Promise")
        if s.pick("3→2", "Promise"):
            break
    for name in BEATS:
        s.drop(name)
    s.deliver("3→2", "Promise")
    second = s.status(2)["ballot"]
    assert s.status(2)["leading"]
    s.flow(None if beats else lambda m: m.name in BEATS)
    if beats:
        s.pass_time(100_000)
    assert [s.status(n)["chosen_through"] > 0 for n in (2, 3)] == [True, True]
    for n in (2, 3):
        at = s.values(n).index([b"mine"]) + 1
        assert unpack_body(s.body(n, at) or b"")[1] == first < second
    s.connect(1, 3)  # (what it says has a way, and nothing else is delivered)
    assert keeps(s, 2, 3) == beats, "of who has proposed it again"
    assert keeps(s, 3, 1) == beats, "of who has accepted it"


def test_a_grant_outlasts_the_lease_by_an_eighth() -> None:
    """Asked for, given and told in the same instant: the eighth is for clocks that differ."""
    s = Script()
    granted_at_once(s)
    s.advance(LEASE_US - 1_000)
    assert holds(s)
    assert keeps_its_word(s, 41)
    s.advance(1_000)
    assert not holds(s)
    assert keeps_its_word(s, 42)
    s.advance(GRANT_US - LEASE_US - 1_000)
    assert keeps_its_word(s, 43)
    s.advance(1_000)
    assert not keeps_its_word(s, 44)


@pytest.mark.parametrize("jump_us", [HOUR_US, -HOUR_US])
def test_a_lease_is_as_long_whatever_the_wall_clock_does(jump_us: int) -> None:
    """It jumps at all of them when the lease has just been given; each end is looked at."""
    s = Script()
    s.wall_ahead_us = WALL_US
    granted_at_once(s)
    s.wall_ahead_us += jump_us
    s.advance(LEASE_US - 1_000)
    assert holds(s)
    assert keeps_its_word(s, 41)
    s.advance(1_000)
    assert not holds(s)
    s.advance(GRANT_US - LEASE_US - 1_000)
    assert keeps_its_word(s, 42)
    s.advance(1_000)
    assert not keeps_its_word(s, 43)
