"""Leaderships that are given to somebody who does not take them: who leads meanwhile, and who is
asked again."""

import pytest
from script import Script

from phx._core.driver import TRANSFER_NOT_READY, TRANSFER_UNDER_WAY
from phx.sim.wire_text import encode

SECOND = 1_000_000
HEARTBEAT_US = 100_000


def led_by_one(**options: int) -> Script:
    """Node 1 leads group 0, all have granted it."""
    s = Script(**options)
    s.elect(1)
    s.pass_time(2 * HEARTBEAT_US)
    s.lines.clear()
    return s


def want(s: Script, **priorities: int) -> None:
    """want(s, n1=0): node 1 leads only what nobody else does, from now on."""
    for name, priority in priorities.items():
        s.engines[int(name[1:])].priority(priority)
        s.turn(int(name[1:]))
    s.flow()


def transfer(s: Script, n: int, to: int = 0) -> int:
    verdict = s.engines[n].transfer(0, to)
    s.turn(n)
    return verdict


def restoring(s: Script, n: int, so: bool = True) -> None:
    """Its machine is not there: it votes, and does not lead. No heartbeat says so."""
    s.engines[n].restoring(0, so)
    s.turn(n)


def given(s: Script) -> list[str]:
    return [line.split(" ")[0] for line in s.said("Transfer")]


def test_who_is_refused_leads_again_at_once_and_asks_nobody_in_vain() -> None:
    """A drained node of which nobody takes the group: callers would wait for most of the drain."""
    s = led_by_one()
    want(s, n1=0)
    restoring(s, 2)
    restoring(s, 3)
    for to in (2, 3):
        assert transfer(s, 1) == TRANSFER_UNDER_WAY
        s.flow()
        assert s.status(1)["leading"], "without time going by"
        assert given(s)[-1] == f"1→{to}"
    assert transfer(s, 1) == TRANSFER_NOT_READY
    assert transfer(s, 1, 2) == TRANSFER_NOT_READY
    assert s.status(1)["leading"]
    s.pass_time(SECOND)
    restoring(s, 3, False)
    assert transfer(s, 1) == TRANSFER_NOT_READY
    s.pass_time(2 * SECOND)
    for _ in range(2):
        if not s.status(3)["leading"]:
            assert transfer(s, 1) == TRANSFER_UNDER_WAY
            s.flow()
    assert s.leaders() == {1: 3, 2: 3, 3: 3}


def test_a_transfer_that_nobody_takes_is_taken_back_by_a_drained_node_as_by_any_other() -> None:
    s = led_by_one()
    want(s, n1=0)
    restoring(s, 2)
    restoring(s, 3)
    assert transfer(s, 1) == TRANSFER_UNDER_WAY
    assert s.drop("Transfer")
    s.pass_time(600_000)
    assert s.status(1)["leading"]


@pytest.mark.parametrize("to", [0, 2])
def test_a_member_that_does_not_grant_the_group_is_not_given_it(to: int) -> None:
    """Its machine is stopped, and its answers to heartbeats say so."""
    s = led_by_one()
    s.engines[2].stop_group(0)
    s.turn(2)
    s.pass_time(2 * HEARTBEAT_US)
    if to:
        assert transfer(s, 1, to) == TRANSFER_NOT_READY
        assert given(s) == []
        assert s.status(1)["leading"]
    else:
        assert transfer(s, 1) == TRANSFER_UNDER_WAY
        assert given(s) == ["1→3"]


def test_balance_offers_nothing_to_a_machine_that_is_stopped() -> None:
    s = led_by_one(balance=1)
    s.engines[2].stop_group(0)
    s.turn(2)
    want(s, n2=200)
    s.pass_time(150 * SECOND, step_us=100_000)
    assert given(s) == []
    assert s.status(1)["leading"]


def test_balance_offers_ever_more_seldom_what_is_not_taken() -> None:
    s = led_by_one(balance=1)
    restoring(s, 2)
    want(s, n2=200)
    s.pass_time(60 * SECOND, step_us=100_000)
    assert 3 <= len(given(s)) <= 6
    restoring(s, 2, False)
    s.pass_time(64 * SECOND, step_us=100_000)
    assert s.leaders() == {1: 2, 2: 2, 3: 2}


def test_two_nodes_that_drain_pass_nothing_to_each_other() -> None:
    s = led_by_one()
    want(s, n1=0, n2=0)
    restoring(s, 3)
    assert transfer(s, 1) == TRANSFER_UNDER_WAY
    s.flow()
    assert given(s) == ["1→3"]
    assert s.status(1)["leading"]
    assert transfer(s, 1) == TRANSFER_NOT_READY
    assert transfer(s, 1, 2) == TRANSFER_NOT_READY


def test_balance_moves_nothing_between_two_nodes_that_drain() -> None:
    """The group would be node 1's, were both wanted: one that is about to be closed."""
    s = Script(balance=1)
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    s.elect(2)
    want(s, n1=0, n2=0)
    s.crash(3)
    s.connect(1, 2)
    s.lines.clear()
    s.pass_time(5 * SECOND)
    assert given(s) == []
    assert s.leaders() == {1: 2, 2: 2}


def test_nobody_resigns_in_favour_of_a_node_that_drains_unless_it_is_named() -> None:
    s = led_by_one()
    want(s, n2=0, n3=0)
    assert transfer(s, 1) == TRANSFER_NOT_READY
    assert transfer(s, 1, 3) == TRANSFER_UNDER_WAY
    s.flow()
    assert s.status(3)["leading"]


def test_who_closes_gives_it_to_somebody_that_can_take_it() -> None:
    s = led_by_one()
    s.engines[2].stop_group(0)
    s.turn(2)
    want(s, n3=0)
    s.pass_time(2 * HEARTBEAT_US)
    s.engines[1].resign()
    s.turn(1)
    assert given(s) == ["1→3"]


def test_a_leader_whose_machine_stops_gives_it_to_somebody_that_can_take_it() -> None:
    """The same value has stopped node 2's already."""
    s = led_by_one()
    s.engines[2].stop_group(0)
    s.turn(2)
    s.pass_time(2 * HEARTBEAT_US)
    s.engines[1].stop_group(0)
    s.turn(1)
    s.flow()
    assert given(s) == ["1→3"]
    assert s.leaders() == {1: 3, 2: 3, 3: 3}, "without time going by"


def test_a_refusal_of_one_member_puts_no_other_off() -> None:
    """A member that lost its votes asks for the leadership, to rejoin."""
    s = led_by_one()
    restoring(s, 2)
    assert transfer(s, 1, 2) == TRANSFER_UNDER_WAY
    s.flow()
    number = s.status(1)["ballot"]
    assert s.status(1)["leading"]
    s.pass_time(2 * HEARTBEAT_US)
    s.put(3, 1, encode("Rejoin", 0, number, chosen=s.status(1)["chosen_through"]))
    assert given(s) == ["1→2", "1→3"]


def test_a_refusal_from_before_moves_nothing() -> None:
    """Somebody else was promised the group since, or leads it."""
    s = led_by_one()
    restoring(s, 3)
    assert transfer(s, 1, 3) == TRANSFER_UNDER_WAY
    s.deliver("Transfer")
    (refusal,) = s.pick("Refuse")
    s.flow(lambda m: m.name == "Refuse")
    s.pass_time(SECOND, lambda m: m.name == "Refuse")
    leader = next(n for n in s.nodes if s.status(n)["leading"])
    before = s.status(leader)["ballot"]
    s.put(3, 1, refusal.raw)
    s.flow()
    assert s.status(leader)["leading"]
    assert s.status(leader)["ballot"] == before
