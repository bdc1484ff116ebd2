"""Slots of members: whoever learns who they are gives those one that have none."""

from member_lab import HALT_SLOTS, Changing, roster

from phx._core.engine_door import Engine

SLOTS = 64


def led() -> Changing:
    s = Changing(4)
    s.elect(1)
    return s


def test_members_without_slots_get_some_and_the_group_stops_where_none_is_left() -> None:
    """To guess who votes would be worse."""
    s = led()
    assert s.engines[3].change_known(0, 2, roster(2, (1, 2, 3, 9)), 5, 1 << 20, True) == 0
    s.turn(3)
    assert not s.status(3)["halted"]
    assert 9 in s.engines[3].peers()
    assert s.engines[3].add_peer(9) == 0
    s = led()
    taken = [one for one in s.engines[3].peers() if one]
    for other in range(100, 100 + SLOTS - len(taken)):
        assert s.engines[3].add_peer(other) == 0
    assert s.engines[3].change_known(0, 2, roster(2, (1, 2, 3, 9)), 5, 1 << 20, True) == 0
    s.turn(3)
    assert [e[1] for e in s.events[3] if e[0] == 3] == [HALT_SLOTS]
    assert s.status(3)["halted"]
    s.crash(3)
    s.pass_time(100_000)


class Told(Changing):
    """The store of 3 says who its members are; 9 is one of them."""

    row = b""
    others = 0

    def remember(self, n: int, engine: Engine) -> None:
        super().remember(n, engine)
        for other in range(self.others):
            engine.add_peer(100 + other)
        if n == 3 and self.row:
            assert engine.change_known(0, 2, self.row, 5, 1 << 20, True) == 0


def test_a_restart_with_no_slots_left_stops_the_group_and_one_with_some_goes_on() -> None:
    s = Told(4)
    s.elect(1)
    value = roster(2, (1, 2, 3, 9))
    s.row = value
    s.others = SLOTS
    s.restart(3)
    assert s.status(3)["halted"]
    s.others = 0
    s.restart(3)
    assert not s.status(3)["halted"]
    assert s.version(3) == 2
