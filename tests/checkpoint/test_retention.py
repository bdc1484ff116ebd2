"""What stays of a log below its cover: the tightest of three limits says."""

import math

import pytest

from phx.checkpoint.retention import Retention

MUCH = 1 << 40
HOUR_US = 3_600_000_000


def retention(instances=MUCH, nbytes=MUCH, us=HOUR_US):
    return Retention(hold_instances=instances, hold_bytes=nbytes, hold_us=us)


def of_ten(through):
    """Every instance takes ten bytes."""
    return lambda nbytes: max(1, through + 1 - nbytes // 10)


@pytest.mark.parametrize(
    ("hold", "floor"),
    [
        ({}, 1),
        ({"instances": 100}, 901),
        ({"instances": 0}, 1001),
        ({"instances": 999}, 2),
        ({"nbytes": 500}, 951),
        ({"nbytes": 0}, 1001),
        ({"nbytes": 9}, 1001),
        ({"instances": 100, "nbytes": 500}, 951),
        ({"instances": 10, "nbytes": 500}, 991),
    ],
)
def test_the_tightest_limit_decides(hold, floor):
    assert retention(**hold).wanted(7, 1000, 5.0, of_ten(1000)) == (floor, math.inf)


def test_what_has_become_old_is_not_held():
    held = retention(us=60_000_000)
    held.mark(7, 300, 0.0)
    held.mark(7, 300, 1.0)  # nothing new
    held.mark(7, 800, 30.0)
    held.mark(7, 1200, 50.0)
    held.mark(8, 5000, 0.0)

    def at(now_s, through=1000):
        return held.wanted(7, through, now_s, of_ten(through))

    assert at(59.9) == (1, 60.0)
    assert at(60.0) == (301, 90.0)
    assert at(60.0) == (301, 90.0)
    assert at(89.9) == (301, 90.0)
    assert at(90.0) == (801, 110.0)
    assert at(110.0) == (1001, math.inf)  # all that there is below the cover
    assert at(110.0, 1200) == (1201, math.inf)
    assert held.wanted(8, 10, 61.0, of_ten(10)) == (11, math.inf)


def test_no_time_is_waited_for_that_changes_nothing():
    held = retention(instances=100, us=60_000_000)
    for instance in range(0, 2000, 10):
        held.mark(7, instance, instance / 100)
    assert held.wanted(7, 1000, 20.0, of_ten(1000)) == (901, 9.1 + 60)
    assert held.wanted(7, 1000, 69.2, of_ten(1000)) == (921, 9.3 + 60)
    assert held.wanted(7, 1500, 69.3, of_ten(1500)) == (1401, 14.1 + 60)


def test_a_floor_that_could_not_be_reached_is_wanted_again():
    held = retention(us=60_000_000)
    held.mark(7, 300, 0.0)
    assert held.wanted(7, 1000, 60.0, of_ten(1000)).floor == 301
    assert held.wanted(7, 1000, 61.0, of_ten(1000)).floor == 301


def test_nothing_is_covered():
    assert retention(instances=0).wanted(7, 0, 1.0, of_ten(0)).floor == 1
