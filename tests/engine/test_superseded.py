"""A leader that does not know that it was superseded; and what a cut may leave of a carry-over."""

from script import Script

from phx._core.engine_door import Engine
from phx.sim.wire_text import FLOOR, Record, ballot, encode, supplied, value


def test_a_superseded_leader_tells_nothing_of_its_successor_under_its_own_ballot() -> None:
    """5 leads in b and has X at 1, which 1 accepted. 4 leads in a higher ballot and has Y chosen
    there. Were 5 to learn Y and to say "chosen through 1 (b)", then 1 would apply X."""
    s = Script(nodes=5)
    s.elect(5)
    s.drop()
    s.submit(5, b"X")
    s.deliver("5→1", "Accept")
    s.drop()
    assert s.status(1)["accepted_last"] == 1
    s.put(4, 5, encode("Chosen", 0, ballot(30, 4), through=1))
    s.put(2, 5, encode("Learn", 0, 0, supplied([(1, value(b"Y", 4))]), first=1, chosen=1, count=1))
    s.advance(400_000, 5)
    s.deliver("5→1", "Chosen")
    s.deliver("5→1", "Accept")
    assert s.values(1) == []
    assert s.status(5)["chosen_through"] == 0


def replayed(records: list[Record]) -> tuple[int, int, int]:
    """Promise, last acceptance and incarnation of a node that finds these records, as the journal
    would hand them on: from the highest floor on."""
    floor = max([r.index for r in records if r.kind == FLOOR], default=0)
    engine = Engine(2, [1, 2, 3], [0], seed=7)
    for record in records:
        if record.lsn >= floor:
            engine.replay(record.raw, record.lsn)
    top = (records[-1].lsn + len(records[-1].raw) + 511) & ~511
    incarnation = engine.start(top, 1_000_000)
    status = engine.status(0)
    return status["promised"], status["accepted_last"], incarnation


def test_whatever_a_cut_leaves_of_a_carry_over_nothing_is_forgotten() -> None:
    s = Script()
    body = value(b"open")
    s.put(1, 2, encode("Accept", 0, ballot(3, 1), body, instance=5, first=1, nbytes=len(body)))
    s.put(3, 2, encode("Prepare", 0, ballot(4, 3), first=1))
    before = len(s.journal[2])
    s.engines[2].retire(s.end[2])
    s.turn(2)
    retired = len(s.journal[2])
    s.restart(2, power=False)
    records = s.journal[2]
    assert FLOOR in [r.kind for r in records[before:retired]]
    assert FLOOR in [r.kind for r in records[retired:]]
    for cut in range(before, len(records) + 1):
        promised, accepted, incarnation = replayed(records[:cut])
        assert (promised, accepted) == (ballot(4, 3), 5), f"cut before {records[cut].line()}"
        assert incarnation >= 2
