"""What a node knows of itself and of its peers, and what it says of it."""

from phx.checkpoint.digests import Agreed, Comparison

EVERY = 8


def at(number: int, state: bytes = b"right") -> Agreed:
    return Agreed(EVERY * number, 100 + number, state)


def compared(members: int = 3) -> Comparison:
    return Comparison(members, EVERY)


def test_a_peer_is_asked_for_what_is_new_since_it_said_something() -> None:
    one = compared()
    assert one.news(2) == []
    one.note(7, at(1))
    one.note(5, at(1))
    assert one.news(2) == [(7, 0), (5, 0)]
    one.heard(7, 2, [at(1)])
    assert one.news(2) == [(5, 0)]
    assert one.news(3) == [(7, 0), (5, 0)]
    one.note(7, at(2))
    assert one.news(2) == [(7, EVERY), (5, 0)]
    assert one.unjudged() == [5, 7]
    assert one.unjudged() == []


def test_a_verdict_is_told_once() -> None:
    one = compared()
    one.note(7, at(1))
    one.note(7, at(2, b"wrong"))
    for node in (2, 3):
        one.heard(7, node, [at(1), at(2)])
    known = one.known(7)
    verdict = one.judge(known)
    assert verdict == ("odd", "state", EVERY, 2 * EVERY, (2, 3))
    assert one.news_is(7, known, verdict)
    assert one.stands(7, verdict)
    again = one.known(7)
    assert not one.news_is(7, again, one.judge(again))


def test_a_verdict_on_a_state_that_is_gone_is_not_told() -> None:
    one = compared()
    one.note(7, at(1, b"wrong"))
    for node in (2, 3):
        one.heard(7, node, [at(1)])
    known = one.known(7)
    verdict = one.judge(known)
    one.forget(7)
    assert not one.news_is(7, known, verdict)
    assert one.noted(7, 0) == []
    one.note(7, at(1))
    assert one.judge(one.known(7)).kind == "equal"


def test_what_was_told_of_another_state_does_not_stand() -> None:
    one = compared()
    one.note(7, at(1, b"wrong"))
    for node in (2, 3):
        one.heard(7, node, [at(1)])
    known = one.known(7)
    verdict = one.judge(known)
    assert one.news_is(7, known, verdict)
    one.forget(7)
    assert not one.stands(7, verdict)


def test_an_answer_far_beyond_is_heard_later() -> None:
    one = compared()
    one.note(7, at(1))
    one.heard(7, 2, [at(1), at(1 << 20)])
    one.note(7, at(2))
    assert one.news(2) == [(7, EVERY)]
