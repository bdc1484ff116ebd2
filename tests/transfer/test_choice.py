"""Who is asked for a checkpoint."""

from phx.transfer.choice import FAILED_US, FAILURES_MAX, Providers
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
