"""Scripts of nodes that have trimmed their log, and of one that lacks it."""

from script import Script

from phx.sim.wire_text import SETTLED, Record

SECOND = 1_000_000
BELOW = 5


def settle(s: Script, n: int, *, through: int | None = None) -> None:
    """What is chosen goes to the store of n, and its journal goes up to here."""
    upto = s.end[n]
    for group, instance, lsn in s.engines[n].settle_plan(upto):
        if through is not None and instance > through:
            break
        done = s.settled[n].setdefault(group, [])
        assert instance == len(done) + 1
        done.append(next(r.body for r in s.journal[n] if r.lsn == lsn))
    for group, done in s.settled[n].items():
        s.engines[n].settled(group, len(done))
    s.turn(n)


def retire(s: Script, n: int) -> None:
    """Segments below what is durable are used again."""
    assert s.engines[n].retire(s.end[n]) == 0
    s.turn(n)
    floor, after = s.floors[n]
    assert after <= s.durable[n]
    s.journal[n] = [r for r in s.journal[n] if r.lsn >= floor]


def trim(s: Script, n: int, floor: int) -> None:
    """A checkpoint holds what is below `floor`; the store drops it."""
    settle(s, n)
    s.kept[n][0] = floor
    s.engines[n].floor(0, floor)
    s.turn(n)
    assert s.status(n)["floor"] == floor


def settled_records(records: list[Record]) -> list[tuple[int, int, int]]:
    return [(r.group, r.index, r.ballot) for r in records if r.kind == SETTLED]


def belows(s: Script, n: int) -> list[tuple[int, int, int]]:
    """Of each EVENT_BELOW: group, who has trimmed least, its lowest instance."""
    return [(e[2], e[5], e[3]) for e in s.events[n] if e[0] == BELOW]


def led(s: Script, group: int = 0) -> int:
    """Whoever comes to lead."""
    for _ in range(400):
        s.pass_time(10_000)
        for n in s.nodes:
            if s.status(n, group)["leading"]:
                return n
    raise AssertionError("no leader")


def lagging(count: int = 6) -> Script:
    """1 leads; 3 is cut off and has missed `count` instances; 1 and 2 have all of them."""
    s = Script()
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    for number in range(count):
        s.submit(1, b"%d" % number)
        s.flow()
    s.pass_time(SECOND)
    assert s.status(2)["chosen_through"] == s.status(1)["chosen_through"] == count
    assert s.status(3)["chosen_through"] == 0
    return s


def recovering() -> Script:
    """1 and 2 were started again, with instance 1 settled. 1 leads and has proposed 2 to 6 again;
    no acknowledgement has come."""
    s = lagging(6)
    for n in (1, 2):
        settle(s, n, through=1)
        s.restart(n)
    for _ in range(400):
        s.pass_time(10_000, unless=lambda m: m.name == "Accepted")
        status = s.status(1)
        if status["leading"]:
            assert (status["chosen_through"], status["accepted_last"]) == (1, 6)
            return s
    raise AssertionError("1 does not lead")
