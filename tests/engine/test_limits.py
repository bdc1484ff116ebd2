"""Limits of the engine: long promises, a journal at its limit, nodes that may not lead."""

from script import Script

from phx.sim.wire_text import Message, encode

KIB = 1024
MIB = KIB * KIB


def test_a_promise_longer_than_one_reply_is_asked_for_in_parts() -> None:
    """The candidate counts the promise when all of it has come, and loses nothing of it."""
    s = Script(batch_bytes_max=256 * KIB, window_bytes=64 * MIB)
    s.elect(1)
    s.flow()
    values = [bytes([i]) * (200 * KIB) for i in range(60)]
    for value in values:  # 12 MiB, one instance each, accepted by 1 and 2, chosen by nobody yet
        s.submit(1, value)
        s.deliver("1→2", "Accept")
        s.drop("1→3", "Accept")
        s.drop("2→1", "Accepted")
    assert s.status(2)["accepted_last"] >= 48
    before = s.status(2)["accepted_last"]
    s.engines[2].stop_group(0)  # so that 3, which has none of it, is the one to lead
    s.turn(2)
    s.crash(1)
    since = len(s.lines)
    ballot = s.elect(3)
    s.pass_time(1_000_000)
    asked = [line for line in s.said("Prepare", since=since) if line.startswith("3→2")]
    assert len(asked) >= 2, "one reply cannot have held 12 MiB"
    assert ballot == s.status(3)["ballot"], "all parts belong to one ballot"
    assert s.status(3)["chosen_through"] >= before
    chosen = [one[0] for one in s.values(3) if isinstance(one, list)]
    assert chosen[:before] == values[: len(chosen[:before])]
    assert len(chosen) >= 48


def test_a_long_promise_with_a_part_lost_does_not_count() -> None:
    s = Script(batch_bytes_max=256 * KIB, window_bytes=64 * MIB)
    s.elect(1)
    s.flow()
    for i in range(60):
        s.submit(1, bytes([i]) * (200 * KIB))
        s.deliver("1→2", "Accept")
        s.drop("1→3", "Accept")
        s.drop("2→1", "Accepted")
    s.engines[2].stop_group(0)
    s.turn(2)
    s.crash(1)
    lost: list[Message] = []

    def first_of_the_second_part(m: Message) -> bool:
        if m.name == "Promise" and m.start > 1 and m.page == 0:
            lost.append(m)
            return True
        return False

    for _ in range(150):
        s.advance(10_000)
        s.flow(first_of_the_second_part)
    assert lost, "the promise had no second part"
    assert not s.status(3)["leading"]


def test_a_node_with_a_full_journal_accepts_nothing_and_goes_on_promising() -> None:
    s = Script()
    s.elect(1)
    s.flow()
    s.engines[2].pressure(2)
    s.turn(2)
    records = s.end[2]
    s.submit(1, b"a")
    s.flow()
    assert s.status(1)["chosen_through"] == 1  # 1 and 3 are a quorum
    assert s.status(2)["accepted_last"] == 0
    assert s.end[2] == records, "its journal grows"
    s.engines[2].pressure(0)
    s.turn(2)
    s.pass_time(1_000_000)
    assert s.values(2) == [[b"a"]]


def test_a_node_at_its_journal_limit_accepts_no_new_value_and_learns_what_is_chosen() -> None:
    s = Script()
    s.elect(1)
    s.flow()
    s.engines[2].pressure(1)
    s.turn(2)
    s.submit(1, b"a")
    s.flow(lambda m: m.name in ("Chosen", "LearnAsk"))
    assert s.status(1)["chosen_through"] == 1  # 1 and 3 are a quorum
    assert s.said("Accepted")
    assert not [
        line for line in s.said("Accepted") if line.startswith("2→1") and "through=1" in line
    ]
    s.pass_time(1_000_000)
    assert s.values(2) == [[b"a"]]


def test_what_is_open_is_finished_although_every_journal_is_at_its_limit() -> None:
    """Or nothing could ever be settled, and no journal would ever have room again (simulator,
    default seed 3647).
    """
    s = Script()
    s.elect(1)
    s.submit(1, b"a")
    s.deliver("1→2", "Accept")
    s.deliver("1→3", "Accept")
    for n in s.engines:
        s.sync(n)
        s.restart(n)
        s.engines[n].pressure(1)
    for a, b in ((1, 2), (1, 3), (2, 3)):
        s.connect(a, b)
    s.pass_time(5_000_000)
    assert [s.values(n) for n in (1, 2, 3)] == [[[b"a"]]] * 3
    leader = next(n for n in s.engines if s.status(n)["leading"])
    s.submit(leader, b"b")
    s.pass_time(2_000_000)
    assert s.status(leader)["chosen_through"] == 1, "a new value, at the limit"
    for n in s.engines:
        s.engines[n].pressure(0)
    s.pass_time(2_000_000)
    assert [s.values(n) for n in (1, 2, 3)] == [[[b"a"], [b"b"]]] * 3


def test_a_full_journal_still_learns_that_what_it_holds_is_chosen() -> None:
    s = Script()
    s.elect(1)
    s.submit(1, b"a")
    s.deliver("1→2", "Accept")
    s.deliver("1→3", "Accept")
    s.sync(2)
    s.crash(1)
    s.engines[2].pressure(2)
    s.turn(2)
    records = s.end[2]
    s.restart(3, power=False)
    s.restart(1)
    for a, b in ((1, 2), (1, 3), (2, 3)):
        s.connect(a, b)
    s.pass_time(6_000_000)
    assert s.values(2) == [[b"a"]]
    assert s.end[2] - records < 400, "the value is written again"


def test_a_leader_at_its_journal_limit_hands_over_and_takes_nothing_alone() -> None:
    s = Script()
    s.elect(1)
    s.flow()
    s.engines[1].pressure(1)
    s.turn(1)
    s.pass_time(2_000_000)
    assert not s.status(1)["leading"]
    assert s.status(2)["leading"] or s.status(3)["leading"]
    alone = Script(nodes=1)
    alone.elect(1)
    alone.submit(1, b"a")
    alone.pass_time(100_000)
    assert alone.status(1)["chosen_through"] == 1
    alone.engines[1].pressure(1)
    end = alone.end[1]
    alone.submit(1, b"b")
    alone.pass_time(1_000_000)
    assert alone.status(1)["chosen_through"] == 1
    assert alone.end[1] - end < 4096, "no value enters the journal"
    alone.engines[1].pressure(0)
    alone.pass_time(1_000_000)
    assert alone.values(1) == [[b"a"], [b"b"]]


def test_a_node_that_resigned_leads_nothing_and_its_groups_go_on() -> None:
    s = Script(groups=3, balance=1)
    for group in s.groups:
        s.elect(group % 3 + 1, group)
    s.pass_time(2_000_000)
    assert s.leaders(0) == {1: 1, 2: 1, 3: 1}
    s.engines[1].resign()
    s.turn(1)
    s.pass_time(5_000_000)
    for group in s.groups:
        leaders = set(s.leaders(group).values())
        assert len(leaders) == 1
        assert leaders <= {2, 3}


def test_a_group_stopped_during_its_campaign_is_not_led() -> None:
    s = Script()
    s.flow()
    for _ in range(400):
        s.advance(1_000)
        s.flow(lambda m: m.name == "PrevoteReply")
        if s.pick("PrevoteReply", "→1"):
            break
    s.engines[1].stop_group(0)
    s.turn(1)
    s.pass_time(3_000_000)
    assert not s.status(1)["leading"]
    assert set(s.leaders().values()) <= {2, 3}


def test_what_a_forward_may_not_hold_is_refused_before_it_enters_a_record() -> None:
    s = Script()
    s.elect(1)
    s.flow()
    item = b"\x01\0\0\0\0\0\0\0z"
    end = s.end[1]
    for fields in (
        {"first_seq": 1, "count": 0, "nbytes": 0},
        {"first_seq": 0, "count": 1, "nbytes": len(item)},
        {"first_seq": (1 << 64) - 1, "count": 1, "nbytes": len(item)},
        {"first_seq": 1, "count": 2, "nbytes": len(item)},
        {"first_seq": 1, "count": 1, "nbytes": len(item), "incarnation": 9},
    ):
        given = {"low_water": 1, "incarnation": 1, **fields}
        s.put(2, 1, encode("Forward", 0, 0, item if fields["nbytes"] else b"", **given))
        s.flow()
    assert s.engines[1].counters()["hostile_messages"] == 5
    assert s.end[1] == end
    s.submit(2, b"fine")
    s.flow()
    assert s.values(1) == [[b"fine"]]


def test_a_body_never_grows_beyond_a_batch_but_for_one_large_value() -> None:
    limit = 4 * KIB
    s = Script(batch_bytes_max=limit)
    s.elect(1)
    s.flow()
    sizes = [10, 3000, 2000, 4000, 1, 9000, 4020, 4031, 100, 100, 100]
    for turn in range(3):
        s.submit(1, *(bytes([turn]) * size for size in sizes))
        s.submit(2, *(bytes([turn]) * size for size in sizes))
    s.pass_time(100_000)
    through = s.status(1)["chosen_through"]
    bodies = [s.body(1, i) or b"" for i in range(1, through + 1)]
    assert sum(len(one) for one in s.values(1) if isinstance(one, list)) == 6 * len(sizes)
    assert max(len(body) for body in bodies) > limit, "the large values are in here"
    for body, values in zip(bodies, s.values(1), strict=True):
        assert len(body) <= limit or len(values) == 1
