"""Groups that come and go while engines run, and what one of an id must not hear of another."""

import pytest
from script import LONG_US, Script

from phx._core.codec import allocations_live, blocks_live
from phx._core.engine_door import Engine
from phx.sim.wire_text import ballot, encode

HIGHEST = 1_048_575
STOPPED = 5
LEASE_US = 800_000


def add(s: Script, group: int, generation: int = 1, *nodes: int) -> None:
    for n in nodes or s.nodes:
        assert s.engines[n].add_group(group, generation) == 0
        s.seq[n][group] = 1
        s.turn(n)


def drop(s: Script, group: int, *nodes: int) -> None:
    for n in nodes or s.nodes:
        s.engines[n].drop_group(group)
        s.turn(n)


def led(**options: int) -> Script:
    """Three nodes, of which 1 leads group 0."""
    s = Script(3, **options)
    s.elect(1)
    return s


def leases(s: Script, n: int, group: int, ticket: int = 1) -> bool:
    """Whether the leader answers a read at once, without asking anybody: a lease vouches for it."""
    checks = s.engines[n].counters()["read_checks"]
    assert s.engines[n].read(group, ticket, s.now + LONG_US) == 0
    s.turn(n)
    told = [point for point in s.points[n] if point[2] == ticket]
    return bool(told) and s.engines[n].counters()["read_checks"] == checks


# --- coming


@pytest.mark.parametrize("group", [1, 700, HIGHEST])
def test_a_group_that_comes_while_nodes_run_is_led_and_used(group: int) -> None:
    s = led()
    add(s, group)
    for _ in range(100):
        s.pass_time(50_000)
        if len(set(s.leaders(group).values()) - {0}) == 1 and 0 not in s.leaders(group).values():
            break
    leader = s.leaders(group)[1]
    assert s.submit(leader % 3 + 1, b"forwarded", group=group) == 0
    s.pass_time(200_000)
    assert all([b"forwarded"] in s.values(n, group) for n in s.nodes)
    assert s.status(1, group)["generation"] == 1
    assert s.status(1, 0)["generation"] == 0
    assert s.status(1, 0)["leading"], "and the others go on as they did"


def test_it_is_there_once_and_no_generation_comes_again() -> None:
    s = led()
    engine = s.engines[1]
    assert engine.add_group(0, 1) == -1
    assert engine.add_group(6, 3) == 0
    assert engine.add_group(6, 4) == -1
    engine.drop_group(6)
    for generation in (0, 2, 3):
        assert engine.add_group(6, generation) == -1
    assert engine.add_group(6, 4) == 0
    assert engine.add_group(HIGHEST + 1, 1) == -1
    assert engine.add_group(8, 65_536) == -1
    assert engine.add_group(8, 65_535) == 0


def test_the_hole_that_a_group_leaves_is_taken_by_the_next_one() -> None:
    s = led()
    engine = s.engines[1]
    for group in (5, 6, 7):
        assert engine.add_group(group, 1) == 0
    hole = engine.index(6)
    engine.drop_group(6)
    with pytest.raises(KeyError):
        engine.status(6)
    assert engine.add_group(HIGHEST, 1) == 0
    assert engine.index(HIGHEST) == hole
    assert engine.index(7) == 3


def test_one_that_hosts_it_later_follows_the_leader_that_there_is() -> None:
    s = led()
    add(s, 6, 1, 1, 2)
    s.elect(1, group=6)
    s.submit(1, b"early", group=6)
    s.pass_time(500_000)
    add(s, 6, 1, 3)
    s.pass_time(500_000)
    assert s.leaders(6) == {1: 1, 2: 1, 3: 1}
    assert [b"early"] in s.values(3, 6)


def test_silence_of_a_node_that_does_not_host_it_is_no_grant() -> None:
    """1 leads by the vote of 2; 3 answers its heartbeats, and has promised nothing. Later 3 hosts
    the group and elects 2: 1 must not read under a lease until then."""
    s = led()
    add(s, 6, 1, 1, 2)
    s.elect(1, group=6)
    s.pass_time(500_000)
    assert leases(s, 1, 6), "of 2"
    s.disconnect(1, 2)
    s.pass_time(2 * LEASE_US)
    assert s.status(1, 0)["leading"], "3 grants group 0"
    assert not leases(s, 1, 6, ticket=2)


def test_a_plan_to_settle_is_in_order_of_ids_whenever_they_came() -> None:
    s = led()
    came = (700, 5, HIGHEST, 6)
    for group in came:
        add(s, group)
    for _ in range(100):
        s.pass_time(50_000)
        if all(0 not in s.leaders(group).values() for group in came):
            break
    for group in came:
        assert s.submit(1, b"v", group=group) == 0
    s.pass_time(500_000)
    planned = [(group, instance) for group, instance, _ in s.engines[1].settle_plan(s.end[1])]
    assert planned == sorted(planned)
    assert set(came) <= {group for group, _ in planned}


# --- going


def test_what_was_dropped_is_asked_for_by_nobody_and_the_others_go_on() -> None:
    s = led()
    add(s, 6)
    s.elect(1, group=6)
    s.submit(1, b"x", group=6)
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    s.pass_time(2 * LEASE_US)
    assert s.submit(1, b"waits", group=6) == 0
    s.engines[1].read(6, 11, s.now + LONG_US)
    s.engines[1].read(6, 12, s.now + LONG_US, 1)
    s.engines[1].read(0, 13, s.now + LONG_US, 1)
    s.turn(1)
    s.events[1].clear()
    drop(s, 6, 1)
    assert {(p[2], p[1]) for p in s.points[1]} >= {(11, STOPPED), (12, STOPPED)}
    assert not [e for e in s.events[1] if e[2] == 6], "its callers are not told by this"
    s.connect(1, 2)
    s.connect(1, 3)
    s.pass_time(3_000_000)
    assert [p for p in s.points[1] if p[2] == 13 and p[1] == 0]
    assert s.submit(1, b"group 0") == 0
    s.pass_time(500_000)
    assert all([b"group 0"] in s.values(n) for n in s.nodes)


def test_its_own_leadership_ends_with_it_and_another_member_leads() -> None:
    s = led()
    add(s, 6)
    s.elect(1, group=6)
    s.submit(1, b"x", group=6)
    s.flow()
    drop(s, 6, 1)
    s.pass_time(3_000_000)
    assert s.status(2, 6)["leader"] in (2, 3)
    assert s.status(2, 6)["leader"] == s.status(3, 6)["leader"]
    assert [b"x"] in s.values(2, 6)


def test_a_thousand_groups_come_and_go_and_nothing_is_left() -> None:
    s = led(cache_bytes_max=4096)

    def cycle(number: int) -> None:
        group = (6, 21, HIGHEST)[number % 3]
        add(s, group, number)
        s.engines[1].read(group, number, s.now + LONG_US, number % 2)
        if number % 10 == 0:
            s.elect(1, group=group)
            s.submit(1, b"v" * 600, group=group)
            s.submit(2, b"w", group=group)
            s.flow()
        elif number % 3 == 0:
            s.submit(2, b"nobody leads yet", group=group)
            s.flow()
        drop(s, group)
        s.flow()

    def retire() -> None:
        """What is settled, and the journal, are not what is counted here."""
        for n in s.nodes:
            s.journal[n].clear()
            s.chosen[n].clear()
            s.events[n].clear()
            s.points[n].clear()
        s.lines.clear()

    for number in range(1, 13):
        cycle(number)
    s.pass_time(2_000_000)
    retire()
    before = blocks_live(), allocations_live()
    for number in range(13, 1013):
        cycle(number)
        retire()
    s.pass_time(2_000_000)
    retire()
    assert (blocks_live(), allocations_live()) == before
    assert s.engines[1].index(0) == 0
    assert s.engines[1].add_group(9, 1) == 0
    assert s.engines[1].index(9) == 1


# --- one life of an id and another


def test_messages_of_another_generation_are_not_looked_at() -> None:
    s = led()
    add(s, 6, 2)
    refused = s.engines[1].counters()["refused_messages"]
    high = ballot(40, 2)
    for generation in (0, 1, 3):
        s.put(2, 1, encode("Prepare", 6, high, first=1, generation=generation))
        s.put(2, 1, encode("PreVote", 6, 0, chosen=5, generation=generation))
        s.put(2, 1, encode("LearnAsk", 6, 0, first=1, last=3, generation=generation))
    assert s.engines[1].counters()["refused_messages"] == refused + 9
    assert s.status(1, 6)["promised"] == 0
    assert s.status(1, 6)["highest_seen"] == 0
    s.put(2, 1, encode("Prepare", 6, high, first=1, generation=2))
    assert s.status(1, 6)["promised"] == high


def test_a_leader_of_another_generation_leads_nothing_here_and_is_granted_nothing() -> None:
    s = led()
    add(s, 6, 1, 1, 2)
    s.elect(1, group=6)
    s.pass_time(300_000)
    drop(s, 6, 2)
    add(s, 6, 2, 2)
    add(s, 6, 2, 3)
    s.pass_time(300_000)
    assert s.status(1, 6)["leading"], "in the old one"
    assert not leases(s, 1, 6)
    s.pass_time(3_000_000)
    assert s.status(2, 6)["leader"] in (2, 3), "the new one is led by its own"
    assert s.status(2, 6)["leader"] == s.status(3, 6)["leader"]
    drop(s, 6, 1)
    add(s, 6, 2, 1)
    s.pass_time(1_000_000)
    assert len(set(s.leaders(6).values())) == 1
    assert 0 not in s.leaders(6).values()


def test_a_point_of_another_generation_is_no_answer_to_a_read() -> None:
    """2 hosts the new one, where nothing is chosen; a read of the old one at 1, which nobody leads,
    must not take its word for the point."""
    s = led()
    add(s, 6)
    s.elect(1, group=6)
    s.submit(1, b"x", group=6)
    s.flow()
    for n in (2, 3):
        drop(s, 6, n)
        add(s, 6, 2, n)
    s.pass_time(2 * LEASE_US)
    assert s.engines[1].read(6, 5, s.now + LONG_US, 1) == 0
    s.turn(1)
    s.pass_time(1_000_000)
    assert not [p for p in s.points[1] if p[2] == 5]


# --- journals


def test_records_of_a_group_that_is_gone_are_passed_over_and_of_an_unknown_one_damage() -> None:
    s = led()
    add(s, 6)
    s.elect(1, group=6)
    s.submit(1, b"x", group=6)
    s.flow()
    raw = [(record.raw, record.lsn) for record in s.journal[1]]
    assert any(record.group == 6 and record.generation == 1 for record in s.journal[1])

    def replayed(*groups: tuple[int, int], gone: int | None = None) -> Engine:
        engine = Engine(1, s.nodes, [0])
        for group, generation in groups:
            assert engine.add_group(group, generation) == 0
        if gone is not None:
            engine.gone(6, gone)
        for record, lsn in raw:
            engine.replay(record, lsn)
        return engine

    def started(engine: Engine) -> Engine:
        engine.start(s.end[1], s.now)
        engine.turn()
        return engine

    again = started(replayed((6, 1)))
    assert again.status(6)["promised"] == s.status(1, 6)["promised"]
    with pytest.raises(ValueError, match="damaged"):
        replayed()
    with pytest.raises(ValueError, match="damaged"):
        replayed(gone=0)
    assert started(replayed(gone=1)).status(0)["promised"] == s.status(1, 0)["promised"]
    later = started(replayed((6, 2)))
    assert (later.status(6)["promised"], later.status(6)["accepted_last"]) == (0, 0)
    assert started(replayed((6, 2), gone=1)).add_group(6, 1) == -1
    with pytest.raises(ValueError, match="damaged"):
        replayed((6, 0))


def test_what_is_live_of_it_is_carried_over_no_more() -> None:
    s = led()
    add(s, 6)
    s.elect(1, group=6)
    s.submit(1, b"x", group=6)
    s.submit(1, b"stays")
    s.flow()
    drop(s, 6, 1)
    plan = s.engines[1].settle_plan(s.durable[1])
    assert {group for group, _, _ in plan} == {0}
    for group, instance, _ in plan:
        s.engines[1].settled(group, instance)
    before = len(s.journal[1])
    assert s.engines[1].retire(s.end[1]) == 0
    s.turn(1)
    carried = s.journal[1][before:]
    assert carried
    assert not [record for record in carried if record.group == 6 and record.generation]
