"""What the poll thread publishes for reads: before anybody hears of it."""

import time

import pytest
from driver_lab import US

from phx._core.published import ReadPoints


def leased(member) -> int:
    return member.driver.points.leased(0)


def test_what_a_follower_hears_is_published_at_the_leader(lab) -> None:
    nodes = lab(3, heartbeat_us=50_000, lease_us=400_000, balance=0)
    nodes.start()
    members = list(nodes.members.values())
    nodes.until(lambda: any(leased(one) >= 0 for one in members))
    first = next(one for one in members if leased(one) >= 0)
    others = [one.driver for one in members if one is not first]
    heard, looked, end = 0, 0, time.monotonic() + 20
    for number in range(300):
        first.driver.submit(0, 0, [b"%d" % number], first.driver.now_us() + 10 * US)
        until = heard + 1
        while heard < until and time.monotonic() < end:
            for driver in others:
                for batch in driver.take(1 << 20):
                    point = leased(first)
                    if point >= 0:
                        looked += 1
                        assert point >= batch.last
                    heard = max(heard, batch.last)
    assert looked >= 300


def test_nothing_is_led_before_anything_is_published() -> None:
    points = ReadPoints([3, 5], [1, 2, 3])
    assert (points.leased(3), points.leased(5)) == (-2, -2)
    assert (points.known(3), points.heard_us(2)) == (0, 0)
    with pytest.raises(KeyError):
        points.leased(4)
    with pytest.raises(KeyError):
        points.heard_us(4)


def test_who_is_alone_has_no_lease_and_who_needs_nobody_has_one(lab) -> None:
    alone = lab(1)
    alone.start()
    (one,) = alone.members.values()
    alone.until(lambda: leased(one) >= 0)
    one.driver.submit(0, 0, [b"x"], one.driver.now_us() + 10 * US)
    alone.until(lambda: leased(one) >= 1)
    assert one.driver.points.known(0) >= 1


def test_a_lease_ends_by_the_clock_of_whoever_reads(lab) -> None:
    """Its peers are gone: no turn of the poll thread has to come first."""
    nodes = lab(3, heartbeat_us=50_000, lease_us=400_000, balance=0)
    nodes.start()
    members = list(nodes.members.values())
    nodes.until(lambda: any(leased(one) >= 0 for one in members))
    first = next(one for one in members if leased(one) >= 0)
    for one in members:
        if one is not first:
            nodes.stop(one.node)
    nodes.until(lambda: leased(first) < 0)
