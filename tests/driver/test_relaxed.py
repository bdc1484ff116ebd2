"""Relaxed groups in real drivers: what left is held against the calls of the disk."""

import time
from pathlib import Path
from typing import Any

import pytest
from driver_lab import US, Lab

from phx._core.driver import NO_SYNC
from phx.testing.trace import check_all

IDLE = {"settle_idle_us": 60 * US}  # settling syncs, too


def traced(lab: Lab, folder: Path) -> list[Path]:
    paths = []
    for node, member in lab.members.items():
        member.trace_path = str(folder / f"{node}-{time.time_ns()}.trace")
        paths.append(Path(member.trace_path))
    return paths


def leading(lab: Lab, group: int) -> Any:
    """Who leads; a leadership may be lost for a moment on a busy machine."""
    while (leader := lab.led(group)) not in lab.members:
        lab.wait_led((group,))
    return lab.members[leader]


def work(lab: Lab, group: int, count: int) -> None:
    """One value after the other, at the leader."""
    for number in range(count):
        member = leading(lab, group)
        before = len(member.values[group])
        member.submit([b"%d" % number], group)
        lab.until(lambda m=member, n=before: len(m.values[group]) > n)  # type: ignore[misc]


def syncs(lab: Lab) -> list[int]:
    journals: list[Any] = [one.driver.status()["journal"] for one in lab.running()]
    return [int(journal["syncs"]) for journal in journals]


def relax(lab: Lab, group: int, within_us: int = NO_SYNC) -> None:
    for member in lab.running():
        assert member.driver.durability(group, within_us) > 0


def test_frames_of_relaxed_groups_leave_written_and_all_others_durable(lab, tmp_path):
    """Three modes on one journal, with changes between them and of the leader."""
    nodes: Lab = lab(3, groups=3, **IDLE)
    traces = traced(nodes, tmp_path)
    nodes.start()
    nodes.wait_led((0, 1, 2))
    relax(nodes, 0)
    relax(nodes, 1, 5_000)
    for group in (0, 1, 2):
        work(nodes, group, 30)
    for group in (0, 1):
        leader = leading(nodes, group)
        leader.driver.transfer(group, leader.node % 3 + 1)
        nodes.until(lambda g=group, n=leader.node: nodes.led(g) not in (0, n))  # type: ignore[misc]
        work(nodes, group, 10)
    relax(nodes, 0, 0)
    work(nodes, 0, 10)
    nodes.stop()
    reports = check_all(traces)
    assert all(report.closed and report.exposures > 20 for report in reports)


def test_values_of_a_group_that_never_syncs_cost_no_sync(lab):
    nodes: Lab = lab(3, **IDLE)
    nodes.start()
    nodes.wait_led()
    work(nodes, 0, 3)
    relax(nodes, 0)
    nodes.pause(0.2)
    before = syncs(nodes)
    work(nodes, 0, 100)
    assert syncs(nodes) == before
    positions = [one.driver.durability(0, 0) for one in nodes.running()]
    nodes.until(
        lambda: all(
            one.driver.durable_lsn() >= position
            for one, position in zip(nodes.running(), positions, strict=True)
        )
    )
    assert all(after > one for after, one in zip(syncs(nodes), before, strict=True))


@pytest.mark.parametrize("within_us", [NO_SYNC, 60 * US])
def test_a_stop_syncs_what_was_only_written_and_says_so(lab, within_us):
    nodes: Lab = lab(3, **IDLE)
    nodes.start()
    nodes.wait_led()
    relax(nodes, 0, within_us)
    work(nodes, 0, 20)
    before = syncs(nodes)
    drivers = [one.driver for one in nodes.running()]
    assert not any(driver.clean for driver in drivers)
    nodes.stop()
    assert all(driver.clean for driver in drivers)
    assert before
    nodes.start()
    nodes.wait_led()
    work(nodes, 0, 1)
    nodes.until(lambda: all(len(one.values[0]) == 21 for one in nodes.running()))


def test_a_node_settles_what_is_only_written_once_it_is_durable(lab):
    nodes: Lab = lab(3, settle_idle_us=50_000)
    nodes.start()
    nodes.wait_led()
    relax(nodes, 0)
    work(nodes, 0, 20)
    nodes.until(lambda: all(len(one.kept.get(0, ())) >= 20 for one in nodes.running()))
    for member in nodes.running():
        status = member.driver.group_status(0)
        assert status["settled_through"] == status["chosen_through"]
