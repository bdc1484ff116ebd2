"""One test per rule of Paxos Made Simple (Lamport 2001), and per rule that phx adds to it."""

import struct

from script import Script

from phx.sim.wire_text import (
    ENTRY_CHOSEN,
    FLAG_LAST,
    NOOP,
    Message,
    align8,
    ballot,
    encode,
    runs_of,
    value,
)  # fmt: skip


def reported(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Entries of a Promise: instance, ballot, flags, body."""
    out = b""
    for instance, number, flags, body in entries:
        entry = struct.pack("<QQII", instance, number, len(body), flags) + body
        out += entry.ljust(align8(len(entry)), b"\0")
    return out


def accept(number: int, instance: int, body: bytes, first: int = 1, watermark: int = 0) -> bytes:
    return encode(
        "Accept", 0, number, body, instance=instance, first=first, watermark=watermark,
        nbytes=len(body),
    )  # fmt: skip


def preparing(nodes: int = 3) -> tuple[Script, int]:
    """A cluster in which node 1 has sent its Prepare, and nothing has been answered."""
    s = Script(nodes)
    s.flow()
    for _ in range(100):
        s.advance(10_000, 1)  # for the others no time passes
        s.flow(lambda m: m.name == "Prepare")
        if s.pick("1→2", "Prepare"):
            return s, s.status(1)["ballot"]
    raise AssertionError("no Prepare")


# --- P1: promises


def test_p1a_no_acceptance_below_the_promise() -> None:
    s = Script()
    s.put(1, 3, encode("Prepare", 0, ballot(5, 1), first=1))
    s.lines.clear()
    s.put(2, 3, accept(ballot(4, 2), 1, value(b"x")))
    assert s.lines == ["3→2 Refuse g0 b(4.2) promised=5.1 reason=ballot"]
    assert s.recorded(3) == ["PROMISE g0 b(5.1)"]


def test_a_promise_is_not_given_below_a_promise() -> None:
    s = Script()
    s.put(1, 3, encode("Prepare", 0, ballot(5, 1), first=1))
    s.lines.clear()
    s.put(2, 3, encode("Prepare", 0, ballot(5, 2), first=1))  # higher by its node
    s.put(1, 3, encode("Prepare", 0, ballot(5, 1), first=1))
    assert s.lines == [
        "3→2 Promise g0 b(5.2) first=1 chosen=0 after=durable",
        "3→1 Refuse g0 b(5.1) promised=5.2 reason=ballot",
    ]


def test_an_acceptance_is_a_promise_too() -> None:
    s = Script()
    s.put(1, 3, accept(ballot(5, 1), 1, value(b"x")))
    assert s.recorded(3) == ["PROMISE g0 b(5.1)", "ACCEPT g0 1 b(5.1)"]
    s.lines.clear()
    s.put(2, 3, accept(ballot(4, 2), 2, value(b"y")))
    assert s.said("Refuse") == ["3→2 Refuse g0 b(4.2) promised=5.1 reason=ballot"]


def test_a_promise_is_for_every_instance_not_only_from_first() -> None:
    s = Script()
    s.put(1, 3, encode("Prepare", 0, ballot(5, 1), first=100))
    s.lines.clear()
    s.put(2, 3, accept(ballot(4, 2), 1, value(b"x")))
    assert s.said("Refuse") == ["3→2 Refuse g0 b(4.2) promised=5.1 reason=ballot"]


def test_a_prepare_waits_until_its_own_promise_is_durable() -> None:
    s = Script()
    s.flow()
    s.lazy.add(1)
    for _ in range(20):
        s.advance(10_000, 1)
        s.flow()
    prepares = s.pick("1→2", "Prepare") + s.pick("1→3", "Prepare")
    assert len(prepares) == 2
    assert all(m.after == s.end[1] > s.durable[1] for m in prepares)
    s.crash(1)  # the power fails: the promise was never on disk
    s.start(1)
    assert s.status(1)["promised"] == 0
    assert not s.pick("Prepare")


def test_a_leader_counts_its_own_promise_only_when_durable() -> None:
    s = Script(5)
    s.flow()
    s.lazy.add(1)
    for _ in range(20):
        s.advance(10_000, 1)
        s.flow()
    number = s.status(1)["ballot"]
    for member in (2, 3):
        s.put(member, 1, encode("Promise", 0, number, flags=FLAG_LAST, first=1, floor=1))
    assert not s.status(1)["leading"]  # two others and itself are three of five, but not yet
    s.sync(1)
    assert s.status(1)["leading"]


# --- P2: which value


def test_p2c_the_value_of_the_highest_ballot_is_adopted() -> None:
    s, number = preparing(5)
    low, high = value(b"low", 2), value(b"high", 3)
    s.put(2, 1, encode("Promise", 0, number, reported((1, ballot(0, 2) + 1, 0, low)),
                       FLAG_LAST, first=1, floor=1, count=1))  # fmt: skip
    s.put(3, 1, encode("Promise", 0, number, reported((1, ballot(0, 3) + 1, 0, high)),
                       FLAG_LAST, first=1, floor=1, count=1))  # fmt: skip
    accepts = s.pick("1→2", "Accept")
    assert [(m.instance, m.ballot, m.body) for m in accepts] == [(1, number, high)]


def test_adoption_is_per_instance() -> None:
    s, number = preparing(5)
    one, two, other = value(b"one", 2), value(b"two", 3), value(b"other", 2)
    s.put(2, 1, encode("Promise", 0, number,
                       reported((1, 9, 0, one), (2, 3, 0, other)),
                       FLAG_LAST, first=1, floor=1, count=2))  # fmt: skip
    s.put(3, 1, encode("Promise", 0, number, reported((2, 8, 0, two)),
                       FLAG_LAST, first=1, floor=1, count=1))  # fmt: skip
    assert [m.body for m in s.pick("1→2", "Accept")] == [one, two]


def test_the_leaders_own_acceptance_counts_among_the_reported() -> None:
    s = Script()
    own = value(b"own", 9)
    s.put(2, 1, accept(ballot(1, 2), 1, own))
    s.drop()
    s.elect(1)
    s.flow()
    assert s.values(3) == [[b"own"]]


def test_chosen_beats_any_ballot() -> None:
    s, number = preparing(5)
    chosen, later = value(b"chosen", 2), value(b"later", 3)
    s.put(2, 1, encode("Promise", 0, number, reported((1, 0, ENTRY_CHOSEN, chosen)),
                       FLAG_LAST, first=1, floor=1, count=1))  # fmt: skip
    s.put(3, 1, encode("Promise", 0, number, reported((1, 9, 0, later)),
                       FLAG_LAST, first=1, floor=1, count=1))  # fmt: skip
    assert [m.body for m in s.pick("1→2", "Accept")] == [chosen]


def test_gaps_become_no_ops_and_only_gaps() -> None:
    s, number = preparing(5)
    body = value(b"three", 2)
    s.submit(1, b"new")
    s.put(2, 1, encode("Promise", 0, number, reported((3, 9, 0, body)),
                       FLAG_LAST, first=1, floor=1, count=1))  # fmt: skip
    s.put(3, 1, encode("Promise", 0, number, flags=FLAG_LAST, first=1, floor=1))
    s.flow(lambda m: m.name == "Prepare")
    accepts = s.pick("1→2", "Accept") or [m for m in s.waiting if m.name == "Accept"]
    assert not accepts
    assert s.values(1) == ["no-op", "no-op", [b"three"], [b"new"]]
    assert s.engines[1].counters()["gap_fills"] == 2


def test_nothing_is_proposed_at_or_below_what_a_promise_says_is_chosen() -> None:
    """A floor is not "nothing accepted here": it is learned before anything is proposed."""
    s, number = preparing()
    s.submit(1, b"new")
    s.lines.clear()
    s.put(2, 1, encode("Promise", 0, number, flags=FLAG_LAST, first=1, chosen=7, floor=8))
    assert s.said("Accept") == []
    assert s.said("LearnAsk") == ["1→2 LearnAsk g0 first=1 last=7"]
    assert not s.status(1)["leading"]


def test_a_promise_counts_only_whole() -> None:
    s, number = preparing()
    page = reported((1, 9, 0, value(b"one")))
    rest = reported((2, 9, 0, value(b"two")))
    fields = {"first": 1, "floor": 1, "reply": 4, "count": 1}
    s.put(2, 1, encode("Promise", 0, number, page, **fields))
    assert not s.status(1)["leading"]
    # The last page of another answer does not complete this one, nor does a page out of turn.
    s.put(2, 1, encode("Promise", 0, number, rest, FLAG_LAST, **{**fields, "reply": 5, "page": 1}))
    s.put(2, 1, encode("Promise", 0, number, rest, FLAG_LAST, **{**fields, "page": 2}))
    assert not s.status(1)["leading"]
    s.put(2, 1, encode("Promise", 0, number, rest, FLAG_LAST, **{**fields, "page": 1}))
    assert s.status(1)["leading"]
    assert [m.instance for m in s.pick("1→2", "Accept")] == [1, 2]


def test_a_long_promise_comes_in_pages_and_is_whole() -> None:
    s = Script()
    for i in range(1, 9):
        s.put(2, 3, accept(ballot(1, 2), i, value(b"%d" % i * 100_000, 2, i)))
    s.drop()
    s.lines.clear()
    s.put(1, 3, encode("Prepare", 0, ballot(2, 1), first=1))
    pages = s.pick("3→1", "Promise")
    assert len(pages) > 1
    assert [m.page for m in pages] == list(range(len(pages)))
    assert [bool(m.flags & FLAG_LAST) for m in pages] == [False] * (len(pages) - 1) + [True]
    assert [e.instance for m in pages for e in m.entries()] == list(range(1, 9))


# --- phase 2


def test_acceptances_of_another_ballot_are_not_counted() -> None:
    s = Script()
    number = s.elect(1)
    s.submit(1, b"a")
    s.drop("Accept")
    for other in (ballot(1, 2), number - (1 << 20), number + (1 << 20)):
        s.put(2, 1, encode("Accepted", 0, other, first=1, through=1))
    assert s.status(1)["chosen_through"] == 0
    s.put(2, 1, encode("Accepted", 0, number, first=1, through=1))
    assert s.status(1)["chosen_through"] == 1


def test_the_leaders_own_vote_counts_when_durable() -> None:
    s = Script()
    number = s.elect(1)
    s.lazy.add(1)
    s.submit(1, b"a")
    assert len(s.pick("Accept")) == 2  # they need not wait for it
    assert all(m.after == 0 for m in s.pick("Accept"))
    s.put(2, 1, encode("Accepted", 0, number, first=1, through=1))
    assert s.status(1)["chosen_through"] == 0
    s.sync(1)
    assert s.status(1)["chosen_through"] == 1


def test_a_stale_leaders_acceptance_is_not_counted() -> None:
    """2 leads now; an Accepted of the ballot that 1 led in arrives late at 1, and at 2."""
    s = Script()
    old = s.elect(1)
    s.submit(1, b"a")
    s.drop("1→3", "Accept")
    s.deliver("1→2", "Accept")
    (late,) = s.pick("2→1", "Accepted")
    s.drop()
    s.crash(1)
    s.pass_time(2_000_000)
    assert s.leaders() == {2: 2, 3: 2}
    s.submit(2, b"b")
    before = s.status(2)["chosen_through"]
    s.put(3, 2, encode("Accepted", 0, old, first=1, through=50))
    assert s.status(2)["chosen_through"] == before
    s.restart(1)
    s.put(2, 1, late.raw)
    assert s.status(1)["chosen_through"] == 0
    s.pass_time(500_000)
    assert s.values(1) == s.values(2) == s.values(3)


# --- after a crash


def test_a_restarted_leader_never_continues_its_ballot() -> None:
    s = Script()
    old = s.elect(1)
    s.lazy.add(1)
    s.submit(1, b"a")
    s.deliver("1→2", "Accept")
    s.lazy.clear()
    s.restart(1)  # its own acceptance is lost
    s.drop("2→1", "Accepted")
    assert s.status(1)["promised"] == old
    s.submit(1, b"b")
    s.pass_time(3_000_000)
    assert [b"a"] in s.values(1)
    numbers = {m.split("b(")[1].split(")")[0] for m in s.said("Accept")}
    assert len(numbers) >= 2  # 1.1, and one above it


def test_acceptances_survive_a_crash_of_the_power() -> None:
    s = Script()
    body = value(b"x")
    s.put(1, 2, accept(ballot(3, 1), 2, body))
    s.restart(2)
    s.advance(2_000_000)
    s.drop()
    s.put(3, 2, encode("Prepare", 0, ballot(4, 3), first=1))
    (promise,) = s.pick("2→3", "Promise")
    (entry,) = promise.entries()
    assert (entry.instance, entry.ballot, entry.body) == (2, ballot(3, 1), body)


def test_nothing_leaves_before_the_replayed_state_is_durable_again() -> None:
    s = Script()
    s.elect(1)
    s.crash(2, power=False)
    s.lazy.add(2)
    s.start(2)
    s.connect(1, 2)
    s.advance(50_000)
    s.put(1, 2, encode("PreVote", 0, 0))
    made: list[Message] = s.pick("2→")
    assert all(m.after > s.durable[2] for m in made)


def test_chosen_entries_are_only_accepted_after_a_restart() -> None:
    s = Script()
    s.elect(1)
    for text in (b"a", b"b"):
        s.submit(1, text)
        s.flow()
    assert s.status(2)["chosen_through"] == 2
    s.restart(2)
    assert s.status(2)["chosen_through"] == 0
    assert s.status(2)["accepted_last"] == 2
    s.pass_time(500_000)
    assert s.values(2) == [[b"a"], [b"b"]]
    assert [line for line in s.recorded(2) if line.startswith("CHOSEN")] == []  # no need to write


def test_values_proposed_again_are_byte_identical() -> None:
    s = Script()
    s.elect(1)
    s.submit(1, b"a", b"b")
    (sent,) = s.pick("1→3", "Accept")
    s.deliver("1→3", "Accept")
    s.drop()
    s.crash(1)
    s.pass_time(2_000_000)
    assert s.body(2, 1) == sent.body
    assert [run.node for run in runs_of(sent.body)] == [1]


def test_hostile_ballots_are_ignored() -> None:
    s = Script()
    s.put(2, 3, encode("Prepare", 0, ballot((1 << 44) - 1, 2), first=1))
    s.put(2, 3, encode("Prepare", 0, ballot(5, 1), first=1))  # not the sender's
    s.put(2, 3, accept(ballot(5, 1), 1, value(b"x")))
    s.put(2, 3, accept(ballot(1, 2), 1, NOOP + b"tail"))  # unsound value
    assert s.engines[3].counters()["hostile_messages"] == 4
    assert [line for line in s.recorded(3) if line.startswith("ACCEPT")] == []
