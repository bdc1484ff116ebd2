"""Leaderships that somebody asks to be moved, and what callers are told of who leads."""

import pytest
from script import Script

from phx._core.batch import unpack_body
from phx._core.driver import (
    EVENT_FAILED,
    EVENT_LEADER,
    TRANSFER_NOT_LEADING,
    TRANSFER_NOT_READY,
    TRANSFER_UNDER_WAY,
)
from phx.sim.wire_text import ballot, encode

SECOND = 1_000_000


def told(s: Script, n: int) -> list[tuple[int, int]]:
    """(leader, epoch) of every event of group 0."""
    return [(leader, epoch) for kind, _, _, epoch, _, leader in s.events[n] if kind == EVENT_LEADER]


def failed(s: Script) -> list[tuple[int, ...]]:
    return [event for n in s.nodes for event in s.events[n] if event[0] == EVENT_FAILED]


def transfer(s: Script, n: int, to: int, group: int = 0) -> int:
    verdict = s.engines[n].transfer(group, to)
    s.turn(n)
    return verdict


def elected(s: Script, among: list[int]) -> tuple[int, int]:
    """Time passes until one of these leads: which, and its ballot."""
    for _ in range(100):
        s.pass_time(100_000)
        for n in among:
            if s.status(n)["leading"]:
                return n, s.status(n)["ballot"]
    raise AssertionError("no leader")


def chosen(s: Script, n: int) -> list[bytes]:
    return [value for values in s.values(n) if values != "no-op" for value in values]


def test_a_transfer_takes_one_message_and_a_phase_1() -> None:
    s = Script()
    first = s.elect(1)
    s.flow()
    s.lines.clear()
    assert transfer(s, 1, 3) == TRANSFER_UNDER_WAY
    s.flow()
    assert s.leaders() == {1: 3, 2: 3, 3: 3}, "without time going by"
    second = s.status(3)["ballot"]
    assert second > first
    said = [line.split(" ")[1] for line in s.lines]
    assert said[0] == "Transfer"
    assert {*said[1:]} == {"Prepare", "Promise"}
    assert len(said) == 5


def test_everybody_is_told_of_the_leader_and_its_epoch() -> None:
    s = Script()
    first = s.elect(1)
    s.flow()
    assert [told(s, n)[-1] for n in s.nodes] == [(1, first)] * 3
    transfer(s, 1, 2)
    s.flow()
    second = s.status(2)["ballot"]
    assert [told(s, n)[-1] for n in s.nodes] == [(2, second)] * 3
    for n in s.nodes:
        epochs = [epoch for _, epoch in told(s, n) if epoch]
        assert epochs == sorted(set(epochs))
        assert all((leader == 0) == (epoch == 0) for leader, epoch in told(s, n))


def test_a_leader_that_has_to_prepare_again_has_another_epoch_and_all_are_told() -> None:
    s = Script()
    first = s.elect(1)
    s.flow()
    # 3 has promised a ballot that came to nothing (see test_flows.py).
    s.disconnect(1, 3)
    s.pass_time(900_000, lambda m: m.name in ("PreVote", "Prepare"))
    s.put(2, 3, encode("Prepare", 0, ballot(5, 2), first=1))
    s.drop("3→2")
    s.connect(1, 3)
    s.submit(1, b"refused by 3")
    s.pass_time(SECOND)
    second = s.status(1)["ballot"]
    assert s.status(1)["leading"]
    assert second > first
    assert [told(s, n)[-1] for n in s.nodes] == [(1, second)] * 3


@pytest.mark.parametrize("to", [2, 3])
def test_nothing_that_is_proposed_fails_and_nothing_is_chosen_twice(to: int) -> None:
    s = Script()
    s.elect(1)
    s.flow()
    sent = []
    for n in s.nodes:
        for k in range(4):
            value = b"%d/%d" % (n, k)
            sent.append(value)
            s.submit(n, value)
            if k == 1:
                s.deliver("Forward")
            if k == 2:  # some acceptances are on their way, others get lost
                s.deliver("1→2", "Accept")
                s.drop("1→3", "Accept")
    assert transfer(s, 1, to) == TRANSFER_UNDER_WAY
    s.submit(1, b"after")
    s.pass_time(2 * SECOND)
    assert s.leaders() == dict.fromkeys(s.nodes, to)
    for n in s.nodes:
        values = chosen(s, n)
        assert set(values) == {*sent, b"after"}
    assert failed(s) == []


def test_it_stays_where_it_was_moved_although_another_node_is_preferred() -> None:
    s = Script(balance=1)
    s.elect(1)
    s.pass_time(2 * SECOND)
    assert transfer(s, 1, 3) == TRANSFER_UNDER_WAY
    s.pass_time(20 * SECOND, step_us=50_000)
    assert s.leaders() == {1: 3, 2: 3, 3: 3}
    # And moves by itself again once that leadership is over.
    s.crash(3)
    s.pass_time(5 * SECOND, step_us=50_000)
    assert set(s.leaders().values()) == {1}


def test_it_stays_with_who_leads_already_when_it_is_moved_there() -> None:
    s = Script(balance=1)
    s.elect(1)
    s.crash(1)
    s.pass_time(3 * SECOND, step_us=50_000)
    assert s.status(2)["leading"]
    assert transfer(s, 2, 2) == TRANSFER_UNDER_WAY
    s.restart(1)
    s.pass_time(20 * SECOND, step_us=50_000)
    assert s.leaders() == {1: 2, 2: 2, 3: 2}


def test_one_that_balance_moved_is_balanced_on() -> None:
    s = Script(balance=1)
    s.elect(1)
    s.pass_time(2 * SECOND)
    s.crash(1)
    s.pass_time(3 * SECOND, step_us=50_000)
    assert s.status(2)["leading"]
    s.restart(1)
    s.connect(1, 2)
    s.connect(1, 3)
    s.pass_time(10 * SECOND, step_us=50_000)
    assert s.leaders() == {1: 1, 2: 1, 3: 1}


def test_whoever_does_not_lead_has_nothing_to_give() -> None:
    s = Script()
    s.elect(1)
    s.flow()
    s.lines.clear()
    assert transfer(s, 2, 3) == TRANSFER_NOT_LEADING
    assert transfer(s, 1, 1) == TRANSFER_UNDER_WAY  # it leads already
    assert transfer(s, 1, 9) == TRANSFER_NOT_READY
    assert transfer(s, 1, 2, group=5) == -1
    s.flow()
    assert s.lines == []
    assert s.status(1)["leading"]


def test_it_is_not_given_to_who_is_not_there_or_far_behind() -> None:
    s = Script(window=16)
    s.elect(1)
    s.flow()
    s.disconnect(1, 3)
    assert transfer(s, 1, 3) == TRANSFER_NOT_READY
    for k in range(10):
        s.submit(1, b"%d" % k)
        s.flow()
    s.connect(1, 3)
    s.flow(unless=lambda m: m.dest == 3 and m.name not in ("Heartbeat", "HeartbeatAck"))
    s.advance(100_000)
    s.flow(unless=lambda m: m.dest == 3 and m.name not in ("Heartbeat", "HeartbeatAck"))
    assert transfer(s, 1, 3) == TRANSFER_NOT_READY
    assert s.status(1)["leading"]
    s.pass_time(SECOND)
    assert transfer(s, 1, 3) == TRANSFER_UNDER_WAY
    s.flow()
    assert s.status(3)["leading"]


def test_who_resigns_gives_it_to_the_next_that_can_take_it() -> None:
    s = Script()
    s.elect(1)
    s.flow()
    s.disconnect(1, 2)
    assert transfer(s, 1, 0) == TRANSFER_UNDER_WAY
    s.flow()
    assert s.status(3)["leading"], "2 is preferred, but not there"


def test_nobody_to_resign_to() -> None:
    s = Script()
    s.elect(1)
    s.flow()
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    assert transfer(s, 1, 0) == TRANSFER_NOT_READY
    assert s.status(1)["leading"]


def test_it_comes_back_when_it_is_refused_or_lost() -> None:
    for lost in (False, True):
        s = Script()
        first = s.elect(1)
        s.flow()
        if not lost:
            s.engines[3].stop_group(0)
            s.turn(3)
        assert transfer(s, 1, 3) == TRANSFER_UNDER_WAY
        if lost:
            assert s.drop("Transfer")
        s.submit(2, b"x")
        s.pass_time(3 * SECOND)
        leaders = set(s.leaders().values())
        assert len(leaders) == 1
        assert lost or leaders <= {1, 2}
        assert s.status(leaders.pop())["ballot"] > first
        assert chosen(s, 2) == [b"x"]
        assert failed(s) == []


def test_a_transfer_that_comes_late_or_twice_moves_nothing() -> None:
    s = Script()
    s.elect(1)
    s.flow()
    transfer(s, 1, 2)
    late = s.pick("Transfer")[0].raw
    s.flow()
    second = s.status(2)["ballot"]
    s.put(1, 2, late)
    s.put(1, 3, late)
    s.pass_time(SECOND)
    assert s.status(2)["ballot"] == second
    assert s.leaders() == {1: 2, 2: 2, 3: 2}


def test_the_epoch_of_a_value_may_be_below_that_of_one_before_it() -> None:
    """The run of docs/design/leadership.md: why a machine keeps the highest that it has seen."""
    s = Script(nodes=5)
    one, first = elected(s, s.nodes)
    holder, *rest = [n for n in s.nodes if n != one]
    s.submit(one, b"lost")
    s.submit(one, b"late")
    s.deliver(f"{one}→{holder}", "Accept", instance=2)
    s.drop("Accept")
    for n in rest:
        s.disconnect(one, n)
        s.disconnect(holder, n)
    s.disconnect(one, holder)
    two, second = elected(s, rest)
    s.submit(two, b"early")
    s.flow()
    others = [n for n in rest if n != two]
    assert chosen(s, others[0]) == [b"early"]
    for n in others:
        s.disconnect(two, n)
        s.connect(holder, n)
    elected(s, [holder, *others])
    assert s.values(others[0])[:2] == [[b"early"], [b"late"]]
    bodies = [s.body(others[0], instance) or b"" for instance in (1, 2)]
    assert [unpack_body(body)[1] for body in bodies] == [second, first]
    assert second > first
