"""RECORD_SETTLED: what a store that is lost, or put back from a copy, leaves in the journal."""

import pytest
from script import Script
from trimmed import belows, lagging, retire, settle, settled_records, trim

from phx._core.codec import encode_record
from phx._core.engine_door import Engine
from phx.sim.wire_text import ACCEPT, SETTLED, ballot, value

SECOND = 1_000_000


def test_settled_is_said_before_the_floor_and_again_only_when_it_grew_or_would_be_lost() -> None:
    s = lagging(3)
    settle(s, 2)
    before = s.end[2]
    assert s.engines[2].retire(before) == 0
    s.turn(2)
    made = [r for r in s.journal[2] if r.lsn >= before]
    kinds = [r.line() for r in made]
    assert settled_records(made) == [(0, 3, 1)]
    assert kinds.index("SETTLED") < kinds.index("FLOOR")
    again = s.end[2]
    assert s.engines[2].retire(before) == 0  # below the last one
    s.turn(2)
    assert settled_records([r for r in s.journal[2] if r.lsn >= again]) == []
    s.submit(1, b"x")
    s.pass_time(SECOND)
    settle(s, 2)
    grown = s.end[2]
    assert s.engines[2].retire(before) == 0
    s.turn(2)
    assert settled_records([r for r in s.journal[2] if r.lsn >= grown]) == [(0, 4, 1)]
    last = s.end[2]
    retire(s, 2)  # nothing new, but the segment goes
    assert settled_records([r for r in s.journal[2] if r.lsn >= last]) == [(0, 4, 1)]


def test_a_start_says_it_again_with_everything_else_that_is_live() -> None:
    s = lagging(3)
    trim(s, 2, 3)
    retire(s, 2)
    since = s.end[2]
    s.restart(2)
    made = [r for r in s.journal[2] if r.lsn >= since]
    assert settled_records(made) == [(0, 3, 3)]
    kinds = [r.line() for r in made]
    assert kinds.index("SETTLED") < kinds.index("FLOOR")


def lost_store(s: Script, n: int) -> None:
    s.crash(n, power=False)
    s.settled[n] = {}
    s.kept[n] = {}
    s.restart(n)


def test_a_lost_store_does_not_make_what_was_chosen_open_again() -> None:
    """The run of section 6: v chosen by {1, 2}, settled at 1, its journal used again, its store
    lost; 2 dies; 3 prepares with 1. Without the record 1 knows of nothing, and 3 fills 1 (U1)."""
    s = lagging(1)
    settle(s, 1)
    retire(s, 1)
    assert not [r for r in s.journal[1] if r.line().startswith("ACCEPT")]
    lost_store(s, 1)
    status = s.status(1)
    assert (status["chosen_through"], status["settled_through"], status["floor"]) == (1, 1, 2)
    s.crash(2)
    s.connect(1, 3)
    s.lines.clear()
    s.submit(3, b"w")
    for _ in range(30):
        s.pass_time(SECOND // 3)
        assert not [line for line in s.said("Accept") if "instance=1" in line.split(" ")]
    assert s.status(3)["chosen_through"] == 0
    assert (0, 1, 2) in belows(s, 3)


def test_what_was_settled_is_forgotten_among_what_is_open_whatever_the_order() -> None:
    """Acceptances up to it, before and behind the record, and votes above it."""
    s = Script()
    number = s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    for text in (b"a", b"b", b"c"):
        s.submit(1, text)
        s.flow()
    settle(s, 2)
    s.engines[2].retire(0)
    s.turn(2)
    s.submit(1, b"open")
    s.deliver("1→2", "Accept")
    s.drop("2→")
    assert s.status(2)["accepted_last"] == 4
    records = list(s.journal[2])
    for order in (records, records[::-1]):
        s.crash(2, power=False)
        s.journal[2] = order
        s.settled[2] = {}
        s.start(2)
        status = s.status(2)
        assert (status["chosen_through"], status["accepted_last"], status["promised"]) == (
            3, 4, number,
        )  # fmt: skip
        assert status["floor"] == 4
        s.connect(1, 2)


@pytest.mark.parametrize(
    ("index", "kept", "body"), [(0, 1, b""), (3, 0, b""), (3, 5, b""), (1 << 63, 1, b""),
                                (3, 1, b"x")],
)  # fmt: skip
def test_a_settled_record_that_cannot_be_is_damage(index: int, kept: int, body: bytes) -> None:
    engine = Engine(1, [1, 2, 3], [0])
    with pytest.raises(ValueError, match="damaged"):
        engine.replay(encode_record(SETTLED, 0, index, kept, body), 0)
    engine.replay(encode_record(SETTLED, 0, 3, 4, b""), 0)
    assert engine.status(0)["chosen_through"] == 3
    with pytest.raises(ValueError, match="damaged"):  # of a group that is not hosted
        engine.replay(encode_record(SETTLED, 7, 3, 4, b""), 0)


def test_what_was_accepted_while_the_store_settled_stands_before_the_record() -> None:
    s = lagging(3)
    settle(s, 2)
    upto = s.end[2]
    s.submit(1, b"on")
    s.flow()
    assert s.engines[2].retire(upto) == 0
    s.turn(2)
    kinds = [r.kind for r in s.journal[2] if r.lsn >= s.floors[2][0]]
    assert kinds.index(ACCEPT) < kinds.index(SETTLED)


def test_a_store_that_is_made_anew_has_to_know_what_was_settled_before_the_replay() -> None:
    far = (1 << 25) + 1
    found = [
        encode_record(ACCEPT, 0, far, ballot(3, 1), value(b"v")),
        encode_record(SETTLED, 0, far - 1, 1, b""),
    ]
    with pytest.raises(ValueError, match="damaged"):
        Engine(2, [1, 2, 3], [0]).replay(found[0], 0)
    told = Engine(2, [1, 2, 3], [0], settled={0: far - 1})
    for number, record in enumerate(found):
        told.replay(record, 512 * number)
    status = told.status(0)
    assert (status["chosen_through"], status["accepted_last"]) == (far - 1, far)


def test_a_store_that_is_as_it_was_is_not_touched_by_the_record() -> None:
    s = lagging(5)
    trim(s, 2, 3)
    retire(s, 2)
    s.restart(2)
    status = s.status(2)
    assert (status["chosen_through"], status["settled_through"], status["floor"]) == (5, 5, 3)
    assert s.chosen[2][-1] == (0, 1, 5)  # announced again, from the beginning
