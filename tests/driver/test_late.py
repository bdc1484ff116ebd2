"""How late a node applies, and what the others hear of it."""

import time

import pytest

LATE_S = 0.3


@pytest.fixture
def three(lab):
    made = lab(3)
    made.start()
    made.wait_led()
    return made


def hold(three, node, seconds):
    """Values are chosen that this node takes from its driver, and is done with after so long."""
    held = three.members[node].driver
    three.members[three.led()].submit([b"%d" % number for number in range(20)])
    pump_others(three, node, lambda: held.take(1 << 20))
    end = time.monotonic() + seconds
    pump_others(three, node, lambda: time.monotonic() > end)
    held.take(1 << 20)


def others(three, node):
    return [member.driver for member in three.running() if member.node != node]


def pump_others(three, node, reached, seconds=5.0):
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        for member in three.running():
            if member.node != node:
                member.pump(0.002)


def test_others_hear_how_late_a_node_applies_that_turns_callers_away(three):
    node = three.led() % 3 + 1
    three.members[node].driver.turning_away(True)
    hold(three, node, LATE_S)
    pump_others(three, node, lambda: all(d.behind_us() for d in others(three, node)))
    for driver in others(three, node):
        assert LATE_S * 1e6 * 0.9 < driver.behind_us() < 1e6
    assert three.members[node].driver.behind_us() == 0
    # It came for more, and there was nothing: it is in time again.
    three.members[node].driver.take(1 << 20)
    three.members[node].driver.take(1 << 20)
    pump_others(three, node, lambda: not any(d.behind_us() for d in others(three, node)))


def nobody_waits(three, node, seconds):
    hold(three, node, seconds)
    end = time.monotonic() + 0.5  # five heartbeats
    while time.monotonic() < end:
        pump_others(three, node, lambda: True)
        assert not any(driver.behind_us() for driver in others(three, node))
        time.sleep(0.01)


def test_nobody_waits_for_a_node_that_turns_nobody_away(three):
    nobody_waits(three, three.led() % 3 + 1, LATE_S)


def test_nobody_waits_for_a_node_that_is_ill(three):
    """Over a second late: it would hold up everybody for as long as it takes."""
    node = three.led() % 3 + 1
    three.members[node].driver.turning_away(True)
    nobody_waits(three, node, 1.3)


def test_nobody_waits_for_a_node_that_is_gone(three):
    node = three.led() % 3 + 1
    three.members[node].driver.turning_away(True)
    hold(three, node, LATE_S)
    pump_others(three, node, lambda: all(d.behind_us() for d in others(three, node)))
    three.stop(node)
    pump_others(three, node, lambda: not any(d.behind_us() for d in others(three, node)))
