"""Whether a checkpoint is needed, which one is offered, and who is asked for it."""

from types import SimpleNamespace
from typing import Any

import pytest

from phx.transfer.choice import (
    FAILED_US,
    FAILURES_MAX,
    Log,
    Providers,
    believed,
    log_there,
    lowest_floor,
    offered,
    own_to_install,
)
from phx.transfer.messages import Offer

A, B = b"a" * 32, b"b" * 32


def choose(
    offers: dict[int, Offer], applied: int = 50, staged: bytes = b"", now_us: int = 0
) -> int | None:
    return Providers().choose(offers, applied=applied, now_us=now_us, staged=staged)


def test_only_what_helps_is_chosen() -> None:
    assert choose({}) is None
    assert choose({2: Offer(floor=90)}) is None
    assert choose({2: Offer(50, A, floor=40)}) is None  # not beyond what is applied
    assert choose({2: Offer(51, A, floor=52)}) == 2
    assert choose({2: Offer(51, A, floor=53)}) is None  # 52 would be missing
    assert choose({2: Offer(51, A, floor=53), 3: Offer(floor=52)}) == 2  # 3 has it


def test_the_order() -> None:
    best = Offer(100, A, busy=1)
    assert choose({2: best, 3: Offer(100, A, busy=0, leading=True)}) == 2
    assert choose({2: best, 3: Offer(90, B, busy=0)}) == 3
    assert choose({2: best, 3: Offer(101, B, busy=1)}) == 3
    assert choose({3: best, 2: best}) == 2
    assert choose({2: Offer(100, A, leading=True)}) == 2


def test_what_was_begun_is_gone_on_with_while_anybody_has_it() -> None:
    offers = {2: Offer(200, B), 3: Offer(100, A, leading=True, busy=3)}
    assert choose(offers, staged=A) == 3
    assert choose(offers, staged=b"c" * 32) == 2
    assert choose(offers, staged=A, applied=150) == 2


def test_who_failed_comes_last_for_a_while() -> None:
    providers = Providers()
    offers = {2: Offer(100, A), 3: Offer(100, A, leading=True, busy=9)}

    def chosen(now_us: int, staged: bytes = b"") -> int | None:
        return providers.choose(offers, applied=0, now_us=now_us, staged=staged)

    providers.failed(2, 1000)
    assert chosen(1000) == chosen(1000 + FAILED_US - 1) == 3
    assert chosen(1000 + FAILED_US) == 2
    providers.failed(2, 5000)
    providers.failed(3, 5000)
    assert chosen(5000) == 2  # somebody is better than nobody


def test_one_who_always_fails_does_not_hold_up_the_others() -> None:
    providers = Providers()
    offers = {2: Offer(100, A), 3: Offer(200, B)}
    asked = []
    for now_us in range(1, 6):
        node = providers.choose(offers, applied=0, now_us=now_us, staged=A)
        assert node is not None
        asked.append(node)
        if node == 2:
            providers.failed(2, now_us)
    assert asked == [2] * FAILURES_MAX + [3, 3]
    assert providers.choose(offers, applied=0, now_us=6 + FAILED_US, staged=A) == 2


@pytest.mark.parametrize(
    ("floors", "before", "there"),
    [
        ((90, 70), None, Log.GONE),
        ((90, 52), 40, Log.GONE),  # whatever became known: nobody has what comes next
        ((90, 51), None, Log.PERHAPS),  # 51 is what comes next
        ((90, 1), None, Log.PERHAPS),  # it has all, or knows no more than this node
        ((90, 1), 49, Log.CAME),
        ((90, 1), 50, Log.GONE),
        ((1, 1), None, Log.PERHAPS),
        ((1, 1), 49, Log.CAME),
        ((1, 51), 50, Log.NOBODY_AHEAD),
    ],
)
def test_whether_somebody_has_the_log(
    floors: tuple[int, int], before: int | None, there: Log
) -> None:
    offers = {node: Offer(floor=floor) for node, floor in enumerate(floors, 2)}
    assert log_there(offers, chosen=50, before=before) is there


def test_only_who_has_trimmed_what_is_needed_counts_for_the_lowest_floor() -> None:
    assert lowest_floor({2: Offer(floor=1), 3: Offer(floor=90), 4: Offer(floor=52)}, 50) == 52
    assert lowest_floor({2: Offer(floor=1), 3: Offer(floor=51)}, 50) == 1


def kept(frontier: int, content: bytes = A, light: bool = False) -> Any:
    return SimpleNamespace(frontier=frontier, content=content, light=light)


def test_one_of_its_own_has_to_be_beyond_what_is_chosen_and_to_reach_a_log() -> None:
    old, new, light = kept(60), kept(80), kept(90, light=True)
    assert own_to_install([light, new, old], applied=89, chosen=50, floor=61) is new
    assert own_to_install([old], applied=0, chosen=50, floor=61) is old
    assert own_to_install([old], applied=0, chosen=50, floor=62) is None
    assert own_to_install([light, old], applied=0, chosen=60, floor=1) is None


def test_a_light_one_of_its_own_will_do_if_all_of_it_is_applied() -> None:
    """Its state is in the machines' files, and nothing has to be made of the checkpoint."""
    light, old = kept(90, light=True), kept(60)
    assert own_to_install([light, old], applied=90, chosen=50, floor=61) is light
    assert own_to_install([light, old], applied=89, chosen=50, floor=61) is old
    assert own_to_install([light], applied=90, chosen=90, floor=61) is None
    assert own_to_install([light], applied=90, chosen=50, floor=92) is None


def test_the_newest_is_offered_or_the_one_that_was_begun() -> None:
    old, new = kept(60, A), kept(80, B)
    assert offered([new, old], floor=1, ident=b"") is new
    assert offered([new, old], floor=61, ident=A) is old
    assert offered([new, old], floor=62, ident=A) is new  # the log does not reach down to it
    assert offered([new, old], floor=82, ident=A) is None


def test_a_checkpoint_helps_wherever_it_is() -> None:
    providers = Providers()
    assert not providers.helps([kept(50), kept(90, light=True)], {}, applied=50, now_us=0)
    assert providers.helps([kept(51)], {}, applied=50, now_us=0)
    assert providers.helps([], {2: Offer(51, A, floor=52)}, applied=50, now_us=0)


def test_a_peer_in_doubt_gives_no_checkpoint() -> None:
    offers = {node: Offer(frontier=50, ident=bytes([node]) * 32, floor=9) for node in (2, 3, 4)}
    said = {node: [(8, 5, b"right")] for node in (2, 3)} | {4: [(8, 5, b"wrong")]}
    found = believed(offers, said, 3, anew=False)
    assert found[2] == offers[2]
    assert found[3] == offers[3]
    # What it says of the log counts.
    assert (found[4].frontier, found[4].ident, found[4].floor) == (0, b"", 9)
    assert believed(offers, said, 3, anew=True).keys() == {2, 3}
    assert believed(offers, {}, 3, anew=True) == offers
