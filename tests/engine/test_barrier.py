"""The runs of docs/design/membership.md, section 4; and what the rules M1 to M6 say."""

import struct

import pytest
from member_lab import (
    NOT_CAUGHT_UP,
    UNDER_WAY,
    Changing,
    named,
)  # fmt: skip

from phx._core.engine_door import Engine
from phx.sim.wire_text import encode


def led(nodes: int = 6, *learners: int, leader: int = 1, **options: int) -> Changing:
    """Members 1, 2, 3, of which `leader` leads; and learners that have it all."""
    s = Changing(nodes, **options)
    s.elect(leader)
    s.submit(leader, b"a")
    s.flow()
    if learners:
        s.learners(leader, *learners)
        assert s.leader() == leader
    s.lines.clear()
    return s


def accepted(s: Changing, source: int, dest: int, version: int, through: int) -> None:
    """An acknowledgement out of nowhere, of the ballot that `dest` leads in."""
    (first,) = {m.fixed["first"] for m in s.pick("Accept", f"{dest}→")}
    number = s.status(dest)["ballot"]
    s.put(source, dest, encode("Accepted", 0, number, config=version, first=first, through=through))


def instances(s: Changing, source: int) -> list[int]:
    return [int(line.split("instance=")[1].split()[0]) for line in s.said("Accept")
            if line.startswith(f"{source}→")]  # fmt: skip


def chosen(s: Changing, n: int) -> int:
    return s.status(n)["chosen_through"]


# --- M1, M2


def test_a_change_is_proposed_when_all_below_is_chosen_and_nothing_goes_above_it() -> None:
    s = led()
    s.submit(1, b"x")
    below = s.status(1)["accepted_last"]
    assert s.change(1, (1, 2)) == UNDER_WAY
    s.submit(1, b"y")
    assert max(instances(s, 1)) == below, "x is not chosen yet"
    s.deliver("1→2", "Accept")
    s.deliver("2→1", "Accepted")
    assert chosen(s, 1) == below
    assert max(instances(s, 1)) == below + 1, "and nothing above before that is chosen"
    assert s.version(1) == 1
    s.deliver("1→2", "Accept")
    s.deliver("2→1", "Accepted")
    assert s.version(1) == 2
    assert max(instances(s, 1)) == below + 1
    s.pass_time(500_000)
    assert [b"y"] in s.values(1)
    s.logs_agree()


def test_a_change_waits_for_what_phase_1_has_found() -> None:
    """L2 is told of an older value at 4, and is to change the members: not at 2, below it."""
    s = led()
    at = chosen(s, 1)
    for value in (b"p", b"q", b"r"):
        s.submit(1, value)
    s.drop("Accept", instance=at + 1)
    s.drop("Accept", instance=at + 2)
    s.drop("1→3")
    s.deliver("1→2", "Accept", instance=at + 3)
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    s.engines[2].pressure(2)  # its journal is full
    s.turn(2)
    for _ in range(300):
        s.advance(10_000, 2, 3)
        s.flow()
        if s.status(3)["leading"]:
            break
    assert s.status(3)["leading"]
    s.engines[2].pressure(0)
    s.turn(2)
    assert s.change(3, (2, 3)) == UNDER_WAY
    s.flow()
    s.pass_time(2_000_000)
    assert s.version(3) == 2
    since = s.membership(3)["instance"]
    assert since > at + 3
    s.logs_agree()


def stalled(s: Changing, leader: int, by: int) -> None:
    """`by` leads with all but `leader`, which stays where it is."""
    for n in s.nodes:
        if n != leader:
            s.disconnect(leader, n)
    for _ in range(400):
        s.advance(10_000, *[n for n in s.engines if n != leader])
        s.flow()
        if s.status(by)["leading"]:
            return
        for n in s.engines:
            if n not in (leader, by) and s.status(n)["leading"]:
                s.engines[n].transfer(0, by)
                s.turn(n)
    raise AssertionError("no leader")


def test_who_adopts_a_change_proposes_nothing_above_it_and_drops_what_was_told_above() -> None:
    """1 proposes m at i in its ballot, and 3 alone hears of it. 2 leads with 3, and adopts m. It
    has also been told of a value above, of a lower ballot, which it does not propose again."""
    s = led()
    at = chosen(s, 1)
    s.change(1, (1, 2))
    s.deliver("1→3", "Accept")
    s.drop()
    (m,) = [r for r in s.journal[3] if r.kind == 2 and r.index == at + 1]
    assert m.body[0] == 2
    # A value above in a ballot below: as a leader before had proposed it to 3 alone.
    low = m.ballot - (1 << 20)
    above = s.engines[1].entry(0, at)
    assert above is not None
    s.lines.clear()
    stalled_with_report(s, at + 2, low, above)
    assert s.version(2) == 2
    assert at + 2 not in [i for i in instances(s, 2) if i > at + 1 and s.version(2) == 1]
    sent = [line for line in s.said("Accept") if line.startswith("2→") and " v2 " not in line]
    assert all(f"instance={at + 2}" not in line for line in sent), sent
    body = s.find(2, 0, at + 2)
    assert body != above
    s.logs_agree()


def stalled_with_report(s: Changing, instance: int, number: int, body: bytes) -> None:
    """2 leads; the Promise of 3 tells of one acceptance more than 3 has."""
    entry = struct.pack("<QQII", instance, number, len(body), 0) + body
    entry = entry.ljust((len(entry) + 7) & ~7, b"\0")
    for n in (2, 3):
        s.disconnect(1, n)
    for _ in range(400):
        s.advance(10_000, 2, 3)
        s.flow(lambda m: m.name == "Promise" and m.source == 3)
        if promises := s.pick("3→2", "Promise"):
            m = promises[0]
            s.drop("3→2", "Promise")
            fields = {k: v for k, v in m.fixed.items() if k != "_"} | {"count": m.count + 1}
            s.put(3, 2, encode("Promise", 0, m.ballot, m.rest + entry, flags=m.flags, **fields))
            break
    s.flow()
    s.pass_time(500_000)


# --- M3: who decides what


def test_the_members_before_decide_the_change_itself() -> None:
    """{1, 2, 3} → {3, 4, 5}: m is accepted by 3, 4, 5 only; 1 and 2 may choose something else."""
    s = led(5, 4, 5, leader=1)
    s.engines[1].transfer(0, 3)
    s.turn(1)
    s.pass_time(1_000_000)
    assert s.leader() == 3
    s.lines.clear()
    before = s.version(3)
    at = chosen(s, 3)
    assert s.change(3, (3, 4, 5)) == UNDER_WAY
    assert {m.dest for m in s.pick("Accept")} <= {1, 2}, "learners are not asked"
    for n in (4, 5):
        for version in (before, before + 1):
            accepted(s, n, 3, version, at + 1)
    assert s.version(3) == before
    assert chosen(s, 3) == at


def test_the_members_before_decide_nothing_above_the_change() -> None:
    """{1, 2, 3} → {4, 5, 6}: 1 and 2 would call something chosen above, and 4 and 5 another."""
    s = led(6, 4, 5, 6)
    assert s.change(1, (4, 5, 6)) == UNDER_WAY
    s.deliver("1→2", "Accept")
    s.deliver("2→1", "Accepted")
    at = s.membership(1)["instance"]
    assert not s.status(1)["leading"]
    s.submit(1, b"late")
    s.advance(10_000, 1)
    s.deliver("1→2")
    s.deliver("2→1")
    assert chosen(s, 1) == at
    assert max(instances(s, 1)) == at
    s.drop()
    s.pass_time(4_000_000)
    assert s.leader() in (4, 5, 6)
    assert all(s.removed(n) for n in (1, 2, 3))
    s.logs_agree()


def test_a_vote_of_who_is_no_member_any_more_is_not_counted() -> None:
    """{1} → {2, 3, 4}: 1 accepts what 2 proposes, and 2 would call it chosen."""
    s = Changing(4, (1,))
    s.elect(1)
    s.learners(1, 2, 3, 4)
    s.change(1, (2, 3, 4))
    s.pass_time(10_000)
    s.pass_time(3_000_000)
    leader = s.leader()
    s.submit(leader, b"x")
    at = chosen(s, leader)
    assert {m.dest for m in s.pick("Accept")} <= {2, 3, 4}
    accepted(s, 1, leader, s.version(leader), at + 1)
    assert chosen(s, leader) == at


def test_a_learner_answers_nothing_and_is_not_counted() -> None:
    s = led(4, 4)
    s.submit(1, b"x")
    at = chosen(s, 1)
    (accept,) = s.pick("1→2", "Accept")
    s.put(1, 4, accept.raw)
    assert s.status(4)["accepted_last"] == at
    assert not s.pick("4→1", "Accepted")
    ahead = s.status(1)["ballot"] + (1 << 21)
    s.put(1, 4, encode("Prepare", 0, ahead, config=2, first=at + 1))
    assert not s.pick("4→1", "Promise")
    assert s.status(4)["promised"] < ahead
    accepted(s, 4, 1, 2, at + 1)
    assert chosen(s, 1) == at, "1 and a learner are no quorum of three"


@pytest.mark.parametrize("name", ["Accept", "Prepare", "PreVote"])
def test_a_message_of_members_before_is_refused_by_its_version(name: str) -> None:
    s = led()
    s.submit(1, b"x")
    (late,) = s.pick("1→2", "Accept")
    s.flow()
    s.change(1, (1, 2))
    s.pass_time(500_000)
    assert s.version(2) == 2
    before = s.status(2)
    s.lines.clear()
    number = before["promised"] + (1 << 20) - before["promised"] % (1 << 20) + 1
    if name == "Accept":
        s.put(1, 2, late.raw)
    else:
        at = {"chosen" if name == "PreVote" else "first": before["chosen_through"] + 1}
        s.put(1, 2, encode(name, 0, number, **at))
    (said,) = s.said("Refuse")
    assert said.startswith("2→1 Refuse g0 v2")
    assert "reason=config" in said
    assert s.status(2)["promised"] == before["promised"]


def test_a_version_that_is_not_known_is_asked_for_and_not_answered() -> None:
    """Else a member votes above i that forgets it when it learns what is below."""
    s = led(4, 4)
    assert s.change(1, (1, 2, 4)) == UNDER_WAY
    s.deliver("1→3", "Accept")
    s.drop("1→2")
    s.deliver("3→1", "Accepted")
    s.drop("Chosen")
    assert s.version(1) == 3
    assert s.version(2) == 2
    promised = s.status(2)["promised"]
    prepares = s.deliver("1→2", "Prepare")
    assert prepares
    assert prepares[0].config == 3
    assert not s.pick("2→1", "Promise")
    assert s.status(2)["promised"] == promised
    assert s.pick("2→1", "ConfigAsk")
    s.pass_time(1_000_000)
    assert s.version(2) == 3
    s.logs_agree()


# --- M4: promises and acceptances of the new members


def minority(power: bool) -> Changing:
    """3 has led, and holds what nobody else heard of, at i and above; then 1 has led, and has m
    chosen at i with 2. 3 learns it."""
    s = led(5, 4, 5)
    s.engines[1].transfer(0, 3)
    s.turn(1)
    s.pass_time(1_000_000)
    assert s.leader() == 3
    for n in (1, 2, 4, 5):
        s.disconnect(3, n)
    for value in (b"x", b"w", b"v"):
        s.submit(3, value)
    s.pass_time(3_000_000)
    leader = s.leader()
    assert leader in (1, 2)
    assert s.change(leader, (3, 4, 5)) == UNDER_WAY
    s.flow()
    at = s.membership(leader)["instance"]
    assert s.status(3)["accepted_last"] > at
    s.connect(3, leader)
    s.pass_time(1_500_000)
    assert s.version(3) == s.version(leader) == 3
    s.restart(3, power)
    return s


@pytest.mark.parametrize("power", [True, False])
def test_what_was_accepted_above_the_change_is_dropped_also_by_a_replay(power: bool) -> None:
    s = minority(power)
    at, floor = s.membership(3)["instance"], s.membership(3)["floor"]
    assert s.version(3) == 3
    last = chosen(s, 3)
    assert last >= at
    assert s.status(3)["accepted_last"] == last
    assert s.status(3)["promised"] >= floor
    s.connect(3, 4)
    s.put(4, 3, encode("Prepare", 0, 1 << 20 | 4, config=3, first=last + 1))
    s.put(4, 3, encode("Accept", 0, 1 << 20 | 4, config=3, instance=last + 1, first=1))
    assert not s.pick("3→4", "Promise")
    assert s.status(3)["accepted_last"] == last


def test_ballots_of_the_new_members_are_above_the_one_in_which_the_change_was_counted() -> None:
    """Not above the packer's alone: an epoch would fall. 1 proposes m, and nobody hears of it; 2
    leads, and its program hears of that; 1 leads again, adopts m, and has it chosen."""
    s = led()
    packed = s.status(1)["ballot"]
    assert s.change(1, (1, 2)) == UNDER_WAY
    s.drop("Accept")
    at = s.status(1)["accepted_last"]
    stalled(s, 1, 2)
    second = s.status(2)["ballot"]
    assert second > packed
    for n in (2, 3):
        s.connect(1, n)
    for n in (1, 3):
        s.disconnect(2, n)
    s.events[1].clear()
    for _ in range(400):
        s.advance(10_000, 1, 3)
        s.flow()
        if s.version(1) == 2 or s.version(3) == 2:
            break
    member = s.membership(1)
    if member["instance"] != at:
        pytest.fail("the change was not adopted")
    counted = member["floor"]
    assert counted > second
    told = [e[3] for e in s.events[1] if e[0] == 2 and e[5] == 1]
    assert counted not in told, "it claims nothing in a ballot that proposes nothing of its own"
    for n in (1, 3):
        s.connect(2, n)
    s.pass_time(10_000_000)
    assert s.membership(2)["floor"] == counted, "whoever tells of it says the same"
    assert s.membership(3)["floor"] == counted
    assert s.status(s.leader())["ballot"] > counted
    assert s.removed(3)


# --- M5, M6


def test_a_change_to_members_that_are_far_is_refused() -> None:
    s = Changing(2, (1,))
    s.elect(1)
    assert s.change(1, (1, 2)) == NOT_CAUGHT_UP
    s.submit(1, b"still here")
    s.flow()
    assert [b"still here"] in s.values(1)


def test_old_members_stay_until_the_new_ones_are_active() -> None:
    """Else they are deleted when m is chosen; one of the new ones had it all, and dies."""
    s = led(6, 4, 5, 6)
    assert s.change(1, (4, 5, 6)) == UNDER_WAY
    s.flow(lambda m: m.dest > 3)
    assert s.versions() == {1: 3, 2: 3, 3: 3, 4: 2, 5: 2, 6: 2}
    assert not any(s.removed(n) for n in (1, 2, 3))
    s.drop()
    for n in (4, 5, 6):
        s.disconnect(1, n)  # who led and knows most is away
        s.disconnect(2, n)
    s.restart(3)
    s.pass_time(6_000_000)
    assert s.leader() in (4, 5, 6), "one old member that knows is enough"
    assert s.removed(3)
    assert not s.removed(1)
    for n in (4, 5, 6):
        s.connect(1, n)
        s.connect(2, n)
    s.pass_time(3_000_000)
    assert all(s.removed(n) for n in (1, 2, 3))
    s.logs_agree()


def test_a_group_of_one_whose_new_member_is_lost_waits_for_it() -> None:
    s = Changing(2, (1,))
    s.elect(1)
    s.learners(1, 2)
    assert s.change(1, (2,)) == UNDER_WAY
    s.disconnect(1, 2)
    s.pass_time(2_000_000)
    at = s.membership(1)["instance"]
    assert s.version(1) == 3
    s.restart(1)
    s.submit(1, b"lost?")
    s.pass_time(5_000_000)
    assert chosen(s, 1) == at, "it is no quorum of {2}"
    assert not s.removed(1)
    s.connect(1, 2)
    s.pass_time(3_000_000)
    assert s.leader() == 2
    assert s.removed(1)
    s.logs_agree()


# --- restarts, checkpoints


def test_a_restart_knows_the_members_that_the_journal_knows() -> None:
    """Not those of its configuration file: 1 and 2 were a quorum of those."""
    s = led(5, 4, 5)
    assert s.change(1, (3, 4, 5)) == UNDER_WAY
    s.pass_time(3_000_000)
    at = {n: chosen(s, n) for n in (1, 2)}
    for n in (3, 4, 5):
        s.crash(n)
    for n in (1, 2):
        s.restart(n)
    s.pass_time(5_000_000)
    assert all(s.version(n) == 3 for n in (1, 2))
    assert {n: chosen(s, n) for n in (1, 2)} == at
    assert not s.said("PreVote", since=len(s.lines) - 1)
    for n in (3, 4, 5):
        s.restart(n)
    s.pass_time(3_000_000)
    assert s.leader() in (3, 4, 5)
    assert all(s.version(n) == 3 for n in s.nodes)


def test_the_first_record_of_a_change_counts_whatever_comes_after() -> None:
    """The journal is replayed in any order: the highest version wins."""
    s = led(4, 4)
    assert s.change(1, (1, 2, 4)) == UNDER_WAY
    s.pass_time(2_000_000)
    s.crash(1, power=False)
    s.journal[1].sort(key=lambda r: -r.index if r.kind == 11 else 0)
    s.restart(1, power=False)
    assert s.version(1) == 3
    assert named(s.membership(1)["value"]) == {1, 2, 4}


def test_who_installs_a_checkpoint_is_of_the_members_that_it_says() -> None:
    """Else it goes on with the old ones: 2 was away, and comes back to 1 and 3, which are none."""
    s = led(5, 4, 5)
    for n in (1, 3, 4, 5):
        s.disconnect(2, n)
    assert s.change(1, (2, 4, 5)) == UNDER_WAY
    s.pass_time(3_000_000)
    leader = s.leader()
    s.submit(leader, b"b")
    s.pass_time(500_000)
    through = chosen(s, leader)
    for n in (1, 3, 4, 5):
        s.engines[n].floor(0, chosen(s, n) + 1)
        s.kept[n][0] = chosen(s, n) + 1
        s.turn(n)
    s.connect(2, leader)
    s.pass_time(1_000_000)
    assert chosen(s, 2) < through, "the log is gone"
    known = s.membership(leader)
    promised = s.status(2)["promised"]
    told = (known["version"], known["value"], known["instance"], known["floor"], known["active"])
    assert s.engines[2].change_known(0, *told) == 0
    s.turn(2)
    assert s.version(2) == 3
    s.put(
        leader, 2, encode("Prepare", 0, s.status(leader)["ballot"] + (1 << 21), config=3, first=9)
    )
    assert not s.pick(f"2→{leader}", "Promise"), "it does not have what is below yet"
    s.drop()
    s.kept[2][0] = through + 1
    assert s.engines[2].install(0, through, s.status(leader)["ballot"]) == 0
    s.turn(2)
    s.restart(2)
    s.pass_time(2_000_000)
    assert s.version(2) == 3
    assert s.status(2)["promised"] > promised
    s.crash(next(n for n in (4, 5) if n != s.leader()))
    s.submit(s.leader(), b"c")
    s.pass_time(1_000_000)
    assert chosen(s, 2) > through, "it votes, as one of two of three"
    s.logs_agree()


# --- who has counted a change, and leads no more when the turn ends


def counted(s: Changing) -> tuple[int, int]:
    """Node 1 has proposed members 1 and 2, and hears that it is chosen, in a turn that still runs.
    Its ballot, and the instance."""
    number, at = s.status(1)["ballot"], chosen(s, 1) + 1
    assert s.change(1, (1, 2)) == UNDER_WAY
    s.deliver("1→2", "Accept")
    (answer,) = s.pick("2→1", "Accepted")
    s.drop()
    s.engines[1].receive(2, answer.raw)
    assert chosen(s, 1) == at - 1, "it is passed at the end of the turn"
    return number, at


def passed(s: Changing, number: int, at: int) -> None:
    s.turn(1)
    assert not s.status(1)["halted"]
    assert s.version(1) == 2
    assert chosen(s, 1) == at
    assert s.membership(1)["floor"] == number
    s.pass_time(3_000_000)
    assert {s.version(n) for n in (1, 2)} == {2}
    s.submit(s.leader(), b"after")
    s.flow()
    assert [b"after"] in s.values(1)
    s.logs_agree()


def test_who_gives_the_group_away_with_a_counted_change_goes_on() -> None:
    s = led()
    number, at = counted(s)
    s.engines[1].transfer(0, 2)
    passed(s, number, at)


def test_who_prepares_again_with_a_counted_change_goes_on() -> None:
    """3 has promised more, to somebody who does not lead."""
    s = led()
    number, at = counted(s)
    higher = ((number >> 20) + 5) << 20 | 3
    s.engines[1].receive(3, encode("Refuse", 0, number, promised=higher, reason=1))
    assert s.status(1)["promised"] > higher
    passed(s, number, at)


def test_who_stops_with_a_counted_change_goes_on() -> None:
    s = led()
    number, at = counted(s)
    s.engines[1].stop_group(0)
    s.turn(1)
    assert not s.status(1)["halted"]
    assert (s.version(1), chosen(s, 1), s.membership(1)["floor"]) == (2, at, number)


def test_a_leader_whose_change_loses_against_another_value_goes_on() -> None:
    """1 proposes m at i. 2 has led above it since, unheard, and 3 accepted x at i of it. 1 prepares
    again above both, as nobody leads there, and adopts x: of m nothing is left."""
    s = led()
    body = s.engines[1].entry(0, chosen(s, 1))
    assert body is not None
    at = chosen(s, 1) + 1
    assert s.change(1, (1, 2)) == UNDER_WAY
    s.drop("Accept")
    number = s.status(1)["ballot"]
    higher = ((number >> 20) + 1) << 20 | 2
    s.put(3, 1, encode("Refuse", 0, number, promised=higher, reason=1))
    again = s.status(1)["ballot"]
    assert again > higher
    s.drop("Prepare", "1→2")
    s.deliver("Prepare", "1→3")
    (m,) = s.pick("Promise", "3→1")
    s.drop("Promise")
    entry = struct.pack("<QQII", at, higher, len(body), 0) + body
    entry = entry.ljust((len(entry) + 7) & ~7, b"\0")
    fields = {k: v for k, v in m.fixed.items() if k != "_"} | {"count": m.count + 1}
    s.put(3, 1, encode("Promise", 0, again, m.rest + entry, flags=m.flags, **fields))
    s.flow()
    assert s.find(1, 0, at) == body
    assert s.version(1) == 1
    s.submit(1, b"after")
    s.pass_time(1_000_000)
    assert [b"after"] in s.values(1)
    assert s.change(1, (1, 2)) == UNDER_WAY
    s.pass_time(1_000_000)
    assert s.version(1) == 2
    s.logs_agree()


def test_who_leads_only_to_end_a_change_learns_that_others_have_ended_it() -> None:
    """1 proposes m, and 2 accepts it. 2 leads, or 3, and adopts m, unheard; then the third of them
    has it chosen with 1, and both are of the new members. Nobody refuses that ballot any more."""
    s = led(3)
    assert s.change(1, (1, 2, 3)) == UNDER_WAY
    s.deliver("1→2", "Accept")
    s.drop()
    for n in (2, 3):
        s.disconnect(1, n)
    for _ in range(400):
        s.advance(10_000, 2, 3)
        s.flow(lambda m: m.name == "Accept")
        if any(s.status(n)["leading"] for n in (2, 3)):
            break
    (first,) = [n for n in (2, 3) if s.status(n)["leading"]]
    third = 5 - first
    s.disconnect(2, 3)
    s.connect(1, third)
    for _ in range(400):
        s.advance(10_000, 1, third)
        s.flow()
        if s.version(1) == s.version(third) == 2:
            break
    assert s.versions() == {1: 2, first: 1, third: 2}
    assert s.status(first)["leading"]
    s.connect(1, first)
    s.connect(2, 3)
    s.pass_time(5_000_000)
    assert s.versions() == {1: 2, 2: 2, 3: 2}
    assert {chosen(s, n) for n in s.nodes} == {chosen(s, s.leader())}
    s.logs_agree()


class Stored(Changing):
    """A store tells a node that starts what it knows of the members."""

    known: tuple[int, bytes, int, int, bool] | None = None

    def remember(self, n: int, engine: Engine) -> None:
        super().remember(n, engine)
        if self.known is not None:
            assert engine.change_known(0, *self.known) == 0


def test_a_floor_told_by_a_store_drops_no_vote_of_the_new_members() -> None:
    """Floors differ by who tells them. One member has passed the change in a lower one than another
    who counted it later; it has voted in a ballot between the two; its store says the higher."""
    s = Stored(3)
    s.elect(1)
    assert s.change(1, (1, 2, 3)) == UNDER_WAY
    s.pass_time(2_000_000)
    leader = s.leader()
    n = next(x for x in (2, 3) if x != leader)
    member = s.membership(n)
    s.submit(leader, b"x")
    at = s.status(leader)["accepted_last"]
    s.deliver(f"{leader}→{n}", "Accept", instance=at)
    assert s.status(n)["accepted_last"] == at
    assert chosen(s, n) < at
    s.drop()
    other = ((s.status(leader)["ballot"] >> 20) + 1) << 20 | 3
    s.known = (member["version"], member["value"], member["instance"], other, True)
    for _ in range(2):
        s.restart(n)
        assert s.version(n) == 2
        assert s.status(n)["accepted_last"] == at, "its vote may be the one that made x chosen"
