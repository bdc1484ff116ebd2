"""Messages and records that no honest node sends: what they may cost, and what they may not do.

Found by the fuzzers (docs/design/hostile-bytes.md), or while they were written.
"""

import resource
import struct

import pytest
from script import Script

from phx._core import codec
from phx._core.engine_door import Engine
from phx.sim.wire_text import FLAG_LAST, align8, ballot, encode, value

KIB = 1024
MIB = KIB * KIB
FAR = 30_000_000  # instances


def reported(instance: int, number: int, body: bytes) -> bytes:
    entry = struct.pack("<QQII", instance, number, len(body), 0) + body
    return entry.ljust(align8(len(entry)), b"\0")


def preparing() -> tuple[Script, int]:
    s = Script()
    s.flow()
    for _ in range(100):
        s.advance(10_000, 1)
        s.flow(lambda m: m.name == "Prepare")
        if s.pick("1→2", "Prepare"):
            return s, s.status(1)["ballot"]
    raise AssertionError("no Prepare")


def with_a_log(values: int, size: int, **options: int) -> Script:
    s = Script(batch_bytes_max=256 * KIB, window_bytes=64 * MIB, **options)
    s.elect(1)
    s.flow()
    for _ in range(values):
        s.submit(1, bytes(size))
    s.flow()
    return s


def answered_bytes(engine: Engine, peer: int) -> int:
    return sum(len(frame) for to, frame, _ in engine.turn()["outgoing"] if to == peer)


def test_a_promise_that_tells_of_a_far_instance_takes_memory_for_that_one_alone() -> None:
    s, number = preparing()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    page = reported(FAR + 1, 9, value(b"far"))
    s.put(2, 1, encode("Promise", 0, number, page, FLAG_LAST, first=1, chosen=FAR, floor=1,
                       count=1))  # fmt: skip
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 100 * KIB, f"{grown} KiB"  # in KiB; a table from the first one on is 700 MiB
    assert not s.status(1)["leading"]


def test_what_members_report_in_turn_is_adopted_by_instance() -> None:
    """Two promises that interleave: kept by instance, whoever tells of it first."""
    s, number = preparing()
    odd = b"".join(reported(i, 9, value(b"%d" % i)) for i in (1, 5, 9))
    s.put(2, 1, encode("Promise", 0, number, odd, 0, first=1, floor=1, count=3, reply=1))
    even = b"".join(reported(i, 9, value(b"%d" % i)) for i in (3, 5, 7))
    s.put(3, 1, encode("Promise", 0, number, even, FLAG_LAST, first=1, floor=1, count=3))
    s.flow(lambda m: m.name == "Prepare")
    s.pass_time(1_000_000)
    chosen = [one if isinstance(one, str) else one[0] for one in s.values(1)]
    assert chosen[:9] == [b"1", "no-op", b"3", "no-op", b"5", "no-op", b"7", "no-op", b"9"]


def test_a_prepare_with_more_ranges_than_anybody_holds_is_not_answered() -> None:
    s = Script()
    s.flow()
    for count, answered in ((64, True), (65, False)):
        s.drop()
        before = s.engines[3].counters()["hostile_messages"]
        holds = struct.pack("<QQQ", 1, 1, 1) * count
        number = ballot(900 + count, 1)
        s.put(1, 3, encode("Prepare", 0, number, holds, first=1, holds=count))
        assert bool(s.pick("3→1", "Promise")) is answered
        assert (s.status(3)["promised"] == number) is answered
        assert s.engines[3].counters()["hostile_messages"] == before + (not answered)


def test_the_same_question_a_thousand_times_gets_one_answer_in_a_turn() -> None:
    s = with_a_log(20, 20 * KIB)
    ask = encode("LearnAsk", 0, 0, first=1, last=20)
    engine = s.engines[1]
    engine.receive(2, ask)
    once = answered_bytes(engine, 2)
    assert once > 100 * KIB
    engine.receive(2, ask * 1000)
    assert answered_bytes(engine, 2) == once
    engine.receive(2, ask)
    assert answered_bytes(engine, 2) == once, "the next turn answers again"


def test_fetches_of_one_turn_are_one_for_each_group_and_peer() -> None:
    engine = with_a_log(10, 1000, cache_bytes_max=1).engines[1]
    engine.receive(2, encode("LearnAsk", 0, 0, first=1, last=9) * 500)
    engine.receive(3, encode("LearnAsk", 0, 0, first=1, last=9) * 500)
    assert sorted(one[1] for one in engine.turn()["fetches"]) == [2, 3]


def test_promises_asked_for_again_and_again_are_bounded_in_a_turn() -> None:
    s = Script(batch_bytes_max=256 * KIB, window_bytes=64 * MIB)
    s.elect(1)
    s.flow()
    for i in range(30):  # 6 MiB accepted at 2, chosen by nobody
        s.submit(1, bytes([i]) * (200 * KIB))
        s.deliver("1→2", "Accept")
        s.drop("1→3", "Accept")
        s.drop("2→1", "Accepted")
    engine = s.engines[2]
    engine.turn()
    number = s.status(1)["ballot"]
    engine.receive(1, encode("Prepare", 0, number, first=1) * 200)
    assert 32 * MIB <= answered_bytes(engine, 1) < 48 * MIB
    engine.receive(1, encode("Prepare", 0, number, first=1))
    assert answered_bytes(engine, 1) > 5 * MIB, "the next turn answers again"


@pytest.mark.parametrize(
    ("kind", "index", "number"),
    [
        (codec_kind, index, number)
        for codec_kind, index, number in (
            (1, 0, 0),  # a promise of nothing
            (2, 1, 0),  # an acceptance in no ballot
            (2, 0, ballot(1, 1)),  # of no instance
            (4, 1 << 32, 0),  # an incarnation that does not exist
            (4, 1, 1 << 32),  # a lease of an hour and more: the node would never vote again
        )
    ],
)
def test_a_record_that_cannot_be_is_damage(kind: int, index: int, number: int) -> None:
    engine = Engine(1, [1, 2, 3], [0])
    body = value(b"x") if kind == 2 else b""
    with pytest.raises(ValueError, match="damaged"):
        engine.replay(codec.encode_record(kind, 0, index, number, body), 4096)
