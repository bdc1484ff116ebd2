"""Which nodes lead rather than others: what each said of itself, and what comes of that."""

import pytest
from script import Script

from phx._core.driver import TRANSFER_UNDER_WAY

SECOND = 1_000_000


def want(s: Script, **priorities: int) -> None:
    """want(s, n1=200): node 1 wants to lead so much from now on."""
    for name, priority in priorities.items():
        n = int(name[1:])
        s.engines[n].priority(priority)
        s.turn(n)
    s.pass_time(20_000)


def leader(s: Script, group: int = 0) -> int:
    """Who leads, as all that run say."""
    (found,) = {s.status(n, group)["leader"] for n in s.engines}
    return found


def until_led(s: Script, group: int = 0) -> int:
    for _ in range(100):
        s.pass_time(100_000)
        found = {s.status(n, group)["leader"] for n in s.engines}
        if len(found) == 1 and 0 not in found:
            return found.pop()
    raise AssertionError("nobody leads")


def test_the_highest_that_is_there_leads_every_group() -> None:
    s = Script(groups=6, balance=1)
    want(s, n3=101)
    s.pass_time(3 * SECOND)
    assert [leader(s, group) for group in s.groups] == [3] * 6


def test_equals_share_evenly_what_a_third_does_not_want() -> None:
    s = Script(groups=12, balance=1)
    want(s, n2=99)
    s.pass_time(3 * SECOND)
    led = [leader(s, group) for group in s.groups]
    assert {n: led.count(n) for n in s.nodes} == {1: 6, 2: 0, 3: 6}


def test_a_lower_one_gives_it_to_a_higher_one_that_has_caught_up() -> None:
    s = Script(balance=1)
    s.elect(1)
    s.pass_time(2 * SECOND)
    want(s, n3=150)
    s.pass_time(3 * SECOND)
    assert leader(s) == 3
    want(s, n3=100)
    s.pass_time(5 * SECOND)
    assert leader(s) == 1, "the one that the group prefers among equals"


def test_nothing_moves_by_itself_without_balance() -> None:
    s = Script(balance=0)
    s.elect(1)
    want(s, n3=150)
    s.pass_time(5 * SECOND)
    assert leader(s) == 1


def test_who_is_far_behind_gets_nothing_and_the_next_best_does() -> None:
    s = Script(balance=1, window=16)
    s.elect(1)
    s.pass_time(2 * SECOND)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    for k in range(20):
        s.submit(1, b"%d" % k)
        s.flow()
    want(s, n2=150, n3=200)
    s.connect(1, 3)
    s.connect(2, 3)
    behind = lambda m: m.dest == 3 and m.name not in ("Heartbeat", "HeartbeatAck")  # noqa: E731
    s.pass_time(3 * SECOND, behind)
    assert {s.status(n)["leader"] for n in (1, 2)} == {2}
    s.pass_time(5 * SECOND)
    assert leader(s) == 3


def test_one_of_priority_0_leads_what_nobody_else_does_and_gives_it_back() -> None:
    s = Script(balance=1)
    want(s, n1=0, n2=0)
    assert until_led(s) == 3
    s.crash(3)
    s.pass_time(2 * SECOND)
    held = until_led(s)
    assert held in (1, 2)
    s.submit(held, b"x")
    s.flow()
    s.restart(3)
    s.pass_time(6 * SECOND)
    assert leader(s) == 3


def test_what_was_moved_by_hand_stays_with_a_lower_one() -> None:
    s = Script(balance=1)
    want(s, n3=200)
    assert until_led(s) == 3
    assert s.engines[3].transfer(0, 2) == TRANSFER_UNDER_WAY
    s.turn(3)
    s.pass_time(20 * SECOND, step_us=50_000)
    assert leader(s) == 2


@pytest.mark.parametrize("to", [0, 2])
def test_who_is_drained_gets_it_back_unless_somebody_was_named(to: int) -> None:
    s = Script(balance=1)
    s.elect(1)
    s.pass_time(2 * SECOND)
    want(s, n1=0)
    assert s.engines[1].transfer(0, to) == TRANSFER_UNDER_WAY
    s.turn(1)
    s.pass_time(10 * SECOND, step_us=50_000)
    assert leader(s) == 2
    want(s, n1=100)
    s.pass_time(10 * SECOND, step_us=50_000)
    assert leader(s) == (1 if to == 0 else 2)


def test_it_resigns_in_favour_of_the_highest() -> None:
    s = Script()
    s.elect(1)
    want(s, n2=50)
    assert s.engines[1].transfer(0, 0) == TRANSFER_UNDER_WAY
    s.turn(1)
    s.flow()
    assert leader(s) == 3


def test_a_priority_is_as_high_as_it_can_be_whatever_a_heartbeat_says() -> None:
    s = Script(balance=1)
    s.elect(1)
    s.pass_time(2 * SECOND)
    want(s, n1=255)
    for n in (2, 3):
        s.engines[n].priority(0xFFFFFFFF)
        s.turn(n)
    s.pass_time(5 * SECOND)
    assert leader(s) == 1
