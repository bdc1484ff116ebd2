"""Who the members of groups are, and who they are to be, as nodes tell each other."""

import pytest

from phx.membership import roster_of
from phx.transfer.changing import (
    Answer,
    Telling,
    ask_change,
    ask_join,
    ask_members,
    pack_answer,
    pack_change,
    pack_members,
    unpack_answer,
    unpack_change,
    unpack_members,
    wants,
)
from phx.transfer.messages import (
    CHANGE,
    CHANGE_WANTED,
    LIMITS,
    MEMBERS,
    MEMBERS_WANTED,
    Declined,
    Ends,
    Greeting,
    Hostile,
    Stalled,
    join_group,
    pack_refused,
)
from phx.types import voter
from tests.checkpoint.checkpoint_lab import membership

HERE, THERE = Ends(7, 1, 2), Ends(7, 2, 1)
GREETING = Greeting(incarnation=3, store_id=b"s" * 16)
ROWS = [
    (0, membership(10, 2, (1, 2, 4), active=True), ()),
    (9, membership(20, 3, (1, 4, 5)), (2, 3)),
    (1_048_575, membership(30, 4, (4, 5, 6)), (1,)),
]
ROSTER = roster_of(2, {1: voter("a:1"), 4: voter("b:2")})


def test_what_is_said_of_groups_is_what_is_heard():
    page = unpack_members(pack_members(ROWS))
    assert page.members == {group: told for group, told, _ in ROWS}
    assert page.left == {group: left for group, _, left in ROWS}
    assert page.next is None
    assert unpack_members(pack_members([], 77)).members == {}
    assert unpack_members(pack_members(ROWS, 77)).chosen == 77


def test_what_does_not_fit_is_gone_on_with():
    many = {group: membership(10, 2, (1, 2, 4)) for group in range(0, 9000, 3)}
    found, first, pages = {}, 0, 0
    while first is not None:
        payload = pack_members((g, many[g], ()) for g in sorted(many) if g >= first)
        assert len(payload) <= LIMITS[MEMBERS]
        page = unpack_members(payload)
        found |= page.members
        first, pages = page.next, pages + 1
    assert found == many
    assert pages > 1


def test_members_that_no_node_says():
    whole = pack_members(ROWS)
    for end in range(len(whole)):
        try:
            page = unpack_members(whole[:end])
        except Hostile:
            continue
        assert len(page.members) < len(ROWS)
    for bad in (
        pack_members(ROWS[::-1]),
        pack_members([ROWS[0], ROWS[0]]),
        whole + b"x",
        b"\0" * 16 + whole[16:],
        whole[:4] + b"\1" + whole[5:],
    ):
        with pytest.raises(Hostile):
            unpack_members(bad)


def test_a_change_and_its_answer():
    assert unpack_change(pack_change(9, ROSTER)) == (9, ROSTER)
    assert unpack_answer(pack_answer(Answer(3, 7))) == (3, 7)
    for bad in (b"", b"1234567", pack_answer(Answer(65, 0))):
        with pytest.raises(Hostile):
            unpack_answer(bad)
    with pytest.raises(Hostile):
        unpack_change(b"\0\0\0\0")


def talk(question, telling, pieces=1 << 20):
    """What the asker is answered."""
    for at in range(0, len(question.hello), pieces):
        answer = telling.feed(question.hello[at : at + pieces], 1)
    for at in range(0, len(answer), pieces):
        question.feed(answer[at : at + pieces], 1)
    assert telling.done
    return question.answer


@pytest.mark.parametrize("pieces", [1, 31, 1 << 20])
def test_both_sides(pieces):
    asked = []

    def change(group, roster):
        asked.append((group, roster))
        return Answer(0, 2)

    def telling():
        return Telling(THERE, lambda group: pack_members(ROWS[group > 0 :]), change)

    question = ask_change(HERE, GREETING, 9, ROSTER, 0)
    assert wants(question.hello) == CHANGE_WANTED
    assert unpack_answer(talk(question, telling(), pieces)) == Answer(0, 2)
    assert asked == [(9, ROSTER)]
    question = ask_members(HERE, GREETING, 1, 0)
    assert wants(question.hello) == MEMBERS_WANTED
    assert set(unpack_members(talk(question, telling(), pieces)).members) == {9, 1_048_575}
    assert join_group(ask_join(HERE, GREETING, 5, 0).hello) == 5


def test_who_says_something_else_is_cut():
    def telling():
        return Telling(THERE, lambda group: b"", lambda group, roster: Answer(0, 0))

    other = ask_change(HERE, GREETING, 9, ROSTER, 0).hello
    first = ask_change(HERE, GREETING, 8, ROSTER, 0).hello
    mixed = first[: -len(HERE.frame(CHANGE, pack_change(8, ROSTER)))]
    mixed += HERE.frame(CHANGE, pack_change(9, ROSTER))
    with pytest.raises(Hostile, match="another group"):
        telling().feed(mixed, 1)
    with pytest.raises(Hostile):
        telling().feed(HERE.frame(CHANGE, pack_change(9, ROSTER)), 1)
    with pytest.raises(Hostile):
        telling().feed(Ends(8, 1, 2).frame(CHANGE, b"") + other, 1)
    with pytest.raises(Stalled):
        telling().feed(b"", 1 << 40)
    question = ask_members(HERE, GREETING, 0, 0)
    with pytest.raises(Declined, match="busy"):
        question.feed(THERE.frame(3, pack_refused(5, "busy")), 1)
    with pytest.raises(Stalled):
        ask_members(HERE, GREETING, 0, 0).feed(b"", 1 << 40)
