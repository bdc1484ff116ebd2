"""A group whose machine is being restored: everything but leading, and nothing chosen by decree."""

import random

import pytest
from harness import Cluster, Faults
from script import Script

from phx.sim.wire_text import ballot, encode

SECOND = 1_000_000


def restoring(s: Script, n: int, on: bool = True, group: int = 0) -> None:
    s.engines[n].restoring(group, on)
    s.turn(n)


def test_it_votes_accepts_and_forwards_while_another_leads() -> None:
    s = Script()
    restoring(s, 1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    s.pass_time(3 * SECOND)
    assert (s.status(1)["leader"], s.status(2)["leader"]) == (2, 2)
    assert s.status(1)["promised"] == s.status(2)["ballot"]
    assert not [line for line in s.said("PreVote", "Prepare") if line.startswith("1→")]
    s.submit(2, b"from 2")
    s.submit(1, b"from 1")
    s.pass_time(SECOND)
    assert s.values(1) == s.values(2) == [[b"from 2"], [b"from 1"]]
    assert s.status(1)["restoring"]


def test_alone_it_leads_as_soon_as_it_is_over_and_takes_values_before() -> None:
    s = Script(nodes=1, groups=2)
    restoring(s, 1)
    assert s.submit(1, b"waits") == 0
    s.pass_time(3 * SECOND)
    assert (s.status(1)["leader"], s.status(1, 1)["leader"]) == (0, 1)
    assert s.status(1)["waiting_values"] == 1
    restoring(s, 1, False)
    s.pass_time(SECOND)
    assert s.status(1)["leading"]
    assert s.values(1) == [[b"waits"]]


def test_a_value_of_a_caller_times_out_as_where_nobody_leads() -> None:
    s = Script(nodes=1)
    restoring(s, 1)
    s.submit(1, b"too late", timeout_us=SECOND)
    s.pass_time(2 * SECOND)
    assert [event[:2] for event in s.events[1] if event[0] == 1] == [(1, 7)]  # no quorum: rejected


@pytest.mark.parametrize("during", ["prevote", "prepare", "leading"])
def test_whoever_leads_or_tries_to_gives_up(during: str) -> None:
    s = Script()
    if during == "leading":
        s.elect(1)
        s.submit(1, b"a")
        s.flow()
    else:
        while not s.pick("1→2", "PreVote"):
            s.advance(10_000, 1)
        if during == "prepare":
            s.deliver("PreVote")
            s.deliver("PreVoteReply")
            assert s.pick("1→2", "Prepare")
    restoring(s, 1)
    assert not s.status(1)["leading"]
    if during == "leading":
        assert s.pick("1→2", "Transfer")
    s.pass_time(3 * SECOND)
    leader = s.status(1)["leader"]
    assert leader in (2, 3)
    s.submit(1, b"b")
    s.pass_time(SECOND)
    assert s.values(1)[-1] == [b"b"]
    restoring(s, 1, False)
    restoring(s, 2)
    restoring(s, 3)
    s.pass_time(4 * SECOND)
    assert s.leaders() == {1: 1, 2: 1, 3: 1}


def test_a_leadership_that_is_offered_is_refused() -> None:
    s = Script()
    restoring(s, 1)
    s.lines.clear()
    s.put(2, 1, encode("Transfer", 0, ballot(7, 2)))
    assert [line for line in s.said("Refuse") if line.endswith("reason=stopped")]
    assert not s.pick("1→3", "Prepare")


def test_both_ways_twice_is_once() -> None:
    s = Script(nodes=1)
    restoring(s, 1)
    restoring(s, 1)
    restoring(s, 1, False)
    s.engines[1].restoring(9, True)  # a group that is not hosted
    s.pass_time(SECOND)
    assert s.status(1)["leading"]


def test_a_stopped_group_leads_again_once_its_machine_was_made_anew_and_not_before() -> None:
    s = Script(nodes=1)
    s.engines[1].stop_group(0)
    s.pass_time(2 * SECOND)
    assert s.leaders() == {1: 0}
    restoring(s, 1)
    s.pass_time(2 * SECOND)
    assert (s.leaders(), s.status(1)["stopped"]) == ({1: 0}, True)
    restoring(s, 1, False)
    s.pass_time(2 * SECOND)
    assert (s.leaders(), s.status(1)["stopped"]) == ({1: 1}, False)
    s.submit(1, b"a value")
    s.pass_time(SECOND)
    assert s.status(1)["chosen_through"] == 1


def test_a_group_that_stops_while_it_is_restored_stays_stopped() -> None:
    """A machine that does not apply must not lead: nobody would hear what became of its values."""
    s = Script(nodes=1)
    restoring(s, 1)
    s.engines[1].stop_group(0)
    restoring(s, 1, False)
    s.pass_time(3 * SECOND)
    assert s.status(1)["stopped"]
    assert not s.status(1)["leading"]
    restoring(s, 1)  # made anew
    restoring(s, 1, False)
    s.pass_time(3 * SECOND)
    assert s.status(1)["leading"]


def test_one_that_is_restored_and_asked_for_anew_goes_on_then() -> None:
    s = Script(nodes=1)
    restoring(s, 1)
    s.engines[1].stop_group(0)
    restoring(s, 1)
    restoring(s, 1, False)
    s.pass_time(3 * SECOND)
    assert s.status(1)["leading"]


def test_an_acceptance_below_the_machine_s_start_is_no_chosen_value() -> None:
    """The run of flow.pxd: v accepted by 1 alone, w chosen; then 1 holds a checkpoint with w."""
    s = Script()
    s.elect(1)
    s.submit(1, b"v")
    s.drop("Accept")
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    s.pass_time(3 * SECOND)
    assert s.status(2)["leading"]
    s.submit(2, b"w")
    s.pass_time(SECOND)
    assert [b"w"] in s.values(3)
    at = s.values(3).index([b"w"]) + 1
    s.restart(1)
    restoring(s, 1)
    s.engines[1].applied(0, 10)
    restoring(s, 1, False)
    s.pass_time(SECOND)
    status = s.status(1)
    assert (status["chosen_through"], status["applied_through"]) == (0, 10)
    assert status["accepted_last"] >= 1
    assert s.engines[1].settle_plan(s.end[1]) == []
    assert [s.body(1, i) for i in range(1, 11)] == [None] * 10
    s.connect(1, 2)
    s.connect(1, 3)
    s.pass_time(3 * SECOND)
    assert s.values(1) == s.values(2)
    assert s.values(1)[at - 1] == [b"w"]


@pytest.mark.parametrize("seed", range(8))
def test_machines_come_and_go_at_random_and_every_claim_holds(seed: int) -> None:
    """The checker of the harness watches U1 to U7 and the leases; it raises where one breaks."""
    c = Cluster(seed, faults=Faults(loss=0.02))
    dice = random.Random(seed)
    absent: set[tuple[int, int]] = set()  # (node, group) that restore
    for number in range(150):
        n, group = dice.choice(c.nodes), dice.choice(c.groups)
        engine = c.node[n].engine
        if engine is not None:
            on = (n, group) not in absent
            (absent.add if on else absent.discard)((n, group))
            engine.restoring(group, on)
            c.node[n].poke()
            c.node[n].submit(group, [b"%d" % number], 3 * SECOND)
            c.node[n].watch_leadership()
            assert not (on and engine.status(group)["leading"])
        if dice.random() < 0.05 and c.alive(n):
            c.crash(n, power=dice.random() < 0.5, restart_us=dice.randrange(SECOND))
            absent -= {one for one in absent if one[0] == n}
        c.run(dice.randrange(100_000))
        for n, group in absent:
            assert not c.statuses(group).get(n, {}).get("leading")
    c.faults = Faults()
    c.run(SECOND)
    for n, group in absent:
        engine = c.node[n].engine
        assert engine is not None
        engine.restoring(group, False)
        c.node[n].poke()
    c.run_until(c.even, 60 * SECOND)
