"""Where everything is only slow, asking and sending again must not make it slower."""

from itertools import pairwise

from script import Script

from phx.sim.wire_text import Message, encode

RESEND_US = 300_000  # the default


def times_said(s: Script, what: str, span_us: int, held: str) -> list[int]:
    """When lines with `what` appear while messages `held` do not arrive, in ms from now."""
    start, found, seen = s.now, [], len(s.lines)
    while s.now < start + span_us:
        s.advance(10_000)
        s.flow(lambda m: m.name == held)
        found += [(s.now - start) // 1000 for line in s.lines[seen:] if what in line]
        seen = len(s.lines)
    return found


def pauses(times: list[int]) -> list[int]:
    return [after - before for before, after in pairwise(times)]


def test_who_gets_no_answer_asks_ever_more_seldom() -> None:
    s = Script()
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    s.submit(1, b"a")
    s.flow()
    s.connect(1, 3)
    s.connect(2, 3)
    asked = pauses(times_said(s, "LearnAsk", 6_000_000, "Learn"))
    assert len(asked) >= 4
    assert asked == sorted(asked)
    assert asked[-1] >= 4 * RESEND_US // 1000 - 10
    # What was chosen since is asked for at once, and the count begins anew.
    s.flow()
    assert s.values(3) == [[b"a"]]


def test_a_leader_that_gets_no_acknowledgement_sends_ever_more_seldom() -> None:
    s = Script()
    s.elect(1)
    s.pass_time(200_000)
    s.submit(1, b"a")
    sent = pauses(times_said(s, "1→3 Accept ", 6_000_000, "Accepted"))
    assert len(sent) >= 3
    assert sent == sorted(sent)
    assert sent[-1] >= 4 * RESEND_US // 1000 - 10


def test_nobody_helps_a_candidate_that_lacks_what_is_no_longer_in_memory() -> None:
    """Two laggards took turns in phase 1, each ending the other's before it had learned from the
    store what the third knew; the third, put off by both, never tried (TSan stress, seed 1)."""
    s = Script(cache_bytes_max=2_000)
    s.elect(1)
    s.disconnect(1, 3)
    s.disconnect(2, 3)
    for _ in range(8):
        s.submit(1, bytes(1_000))
        s.flow()
    assert s.status(1)["chosen_through"] == 8
    s.connect(2, 3)
    s.disconnect(1, 2)
    s.disconnect(1, 3)
    mark = len(s.lines)

    def slow(m: Message) -> bool:
        return m.name == "Learn" or (m.name == "PreVote" and m.source == 2)

    s.pass_time(3_000_000, slow)
    assert "behind" in s.said("PreVoteReply", since=mark)[0]
    assert not s.said("Prepare", since=mark)
    s.pass_time(3_000_000, lambda m: m.name == "Learn")  # the store of 2 is still slow
    assert s.status(2)["leading"]


def test_nobody_is_put_off_for_ever_by_one_that_is_ahead() -> None:
    """2 is ahead of 1 and says so each time, but neither leads nor tells what it knows. With the
    votes of 3 and 4 the others are a majority: phase 1 finds out what is chosen."""
    s = Script(nodes=5)
    answers = [(2, 3, 5), (3, 1, 0), (4, 1, 0)]  # member, behind or ok, chosen there

    def refused() -> int:
        """How often 1 was put off before it began phase 1."""
        attempts = 0
        for _ in range(3_000):
            s.advance(10_000, 1)
            asked = s.pick("1→2", "PreVote")
            prepared = s.pick("Prepare")
            s.drop()
            if prepared:
                return attempts
            if asked:
                attempts += 1
                for member, verdict, chosen in answers:
                    reply = encode(
                        "PreVoteReply", 0, asked[0].ballot, chosen=chosen, promised=0,
                        verdict=verdict, leader=0,
                    )  # fmt: skip
                    s.put(member, 1, reply)
        raise AssertionError("it never tried")

    s.drop()
    assert 1 < refused() < 10


def test_time_in_which_the_process_stood_still_is_not_the_disk_s() -> None:
    """A node that was stopped for six seconds while it synced took its disk for one that needs as
    long, and gave the next candidate, which died, a minute (torture, seed 20261127)."""
    s = Script()
    s.elect(1)
    s.lazy.add(3)
    s.submit(1, b"a")
    s.deliver("Accept", "1→3")
    assert s.durable[3] < s.end[3]
    for _ in range(600):  # of the others; 3 is stopped
        s.advance(10_000, 1, 2)
        s.flow(lambda m: 3 in (m.source, m.dest))
    s.drop("3→")
    s.drop("→3")
    s.lazy.clear()
    s.sync(3)
    s.advance(10_000)
    s.pass_time(1_000_000)
    s.crash(1)
    while not s.deliver("Prepare", "2→3"):
        s.advance(10_000)
        s.flow(lambda m: m.name == "Prepare")
    s.crash(2)
    s.restart(1)
    mark, began = len(s.lines), s.now
    while not any(line.startswith("3") for line in s.said("PreVote", since=mark)):
        assert s.now < began + 8_000_000, "it waits for a candidate that is gone"
        s.advance(10_000)
        s.flow(lambda m: m.name in ("PreVote", "Prepare"))
