"""Nothing is acknowledged that is not synced on a majority: slow syncs, and failing ones.

SIGKILL keeps the page cache, so it says little about this. strace makes fdatasync slow, or fail.
"""

import statistics
import time

import pytest
from crew import needs_proc, needs_strace, until

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.strace,
    needs_strace,
    needs_proc,
]

DELAY = "delay_enter=1000000"  # one second, before the call
GROUPS = 6


def started(crew):
    cluster = crew(groups=GROUPS)
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.led()
    return cluster


def propose(cluster, nodes, tag: str, timeout_s: float, groups=range(GROUPS)):
    """One value in every group at each of these nodes, all at once; value to what became of it."""
    asked = {}
    for node in nodes:
        for group in groups:
            value = f"{tag}/{node}/{group}"
            number = cluster[node].ask("propose", group=group, value=value, timeout_s=timeout_s)
            asked[value] = (cluster[node], number)
    return {
        value: worker.answer(number, timeout_s + 20) for value, (worker, number) in asked.items()
    }


def logs(cluster, node: int) -> set[str]:
    return {value for group in range(GROUPS) for value in cluster[node].call("log", group=group)}


def one_by_one(cluster, node: int, groups, count: int, tag: str) -> list[float]:
    """Latencies of values proposed one after another, in seconds."""
    found = []
    for number in range(count):
        group = groups[number % len(groups)]
        answer = cluster[node].call("propose", group=group, value=f"{tag}/{number}", timeout_s=20)
        assert answer["error"] is None, answer
        found.append(answer["seconds"])
    return found


@pytest.mark.timeout(120)
def test_two_slow_disks_delay_every_acknowledgement(crew):
    cluster = started(crew)
    quick = propose(cluster, cluster.ids, "quick", 20.0)
    assert statistics.median(one["seconds"] for one in quick.values()) < 0.5
    traces = [cluster.trace(node, DELAY) for node in (1, 2)]
    began = time.monotonic()
    slow = propose(cluster, cluster.ids, "slow", 25.0)
    took = time.monotonic() - began
    chosen = {value: one for value, one in slow.items() if one["error"] is None}
    print(
        f"{len(chosen)} of {len(slow)} chosen in {took:.1f} s: "
        f"{sorted(round(one['seconds'], 2) for one in chosen.values())}; "
        f"{sorted(one['error'] for one in slow.values() if one['error'])}"
    )
    for trace in traces:
        trace.end()
    early = {value: one["seconds"] for value, one in chosen.items() if one["seconds"] < 1.0}
    assert not early, "acknowledged before any majority can have synced"
    assert chosen, "nothing was acknowledged at all"
    cluster.ready()
    propose(cluster, cluster.ids, "after", 20.0)
    cluster.converged()
    found = logs(cluster, 3)
    assert set(chosen) <= found
    rejected = {value for value, one in slow.items() if one["outcome"] == "rejected"}
    assert not rejected & found, "rejected, and yet chosen"


@pytest.mark.timeout(120)
def test_an_election_ends_although_disks_are_slow(crew):
    """An election needs two syncs one after the other: here two seconds, longer than a lease."""
    cluster = started(crew)
    for node in (1, 2):
        cluster.trace(node, DELAY)
    cluster.kill(3)
    answers = propose(cluster, (1, 2), "new", 25.0)
    print(sorted((round(one["seconds"], 1), one["error"] or "") for one in answers.values()))
    assert all(one["error"] is None for one in answers.values())
    assert all(one["seconds"] >= 1.0 for one in answers.values())


@pytest.mark.timeout(120)
def test_a_slow_disk_of_one_follower_changes_nothing(crew):
    cluster = started(crew)
    leaders = cluster.led()
    mine = {node: [group for group, leader in leaders.items() if leader == node] for node in (1, 2)}
    assert all(mine.values())
    medians = {}
    # The cost of being traced stands on both sides.
    for name, inject in (("before", "delay_enter=1"), ("slow", DELAY)):
        trace = cluster.trace(3, inject)
        for node in (1, 2):
            spent = one_by_one(cluster, node, mine[node], 40, f"{name}{node}")
            medians[name, node] = statistics.median(spent)
            print(
                f"{name}, node {node}: median {medians[name, node] * 1e3:.2f} ms, "
                f"longest {max(spent) * 1e3:.1f} ms"
            )
            assert max(spent) < 0.9, "a value waited for the slow disk"
        trace.end()
    for node in (1, 2):
        assert medians["slow", node] < 4 * medians["before", node] + 0.01
    cluster.converged()


@pytest.mark.timeout(120)
def test_two_failing_disks_stop_every_acknowledgement(crew):
    cluster = started(crew)
    for answer in propose(cluster, cluster.ids, "good", 20.0).values():
        assert answer["error"] is None
    traces = [cluster.trace(node, "error=EIO") for node in (1, 2)]
    bad = propose(cluster, cluster.ids, "bad", 3.0)
    assert all(one["error"] for one in bad.values()), "acknowledged with two failing disks"
    stopped = {"NodeFailed", "NodeFailedUnknown"}  # a poisoned node says so at once
    for value, one in bad.items():
        healthy = value.startswith("bad/3/")
        expected = {"NoQuorum", "TimedOut", "TimedOutUnknown"}
        assert one["error"] in expected | (set() if healthy else stopped), (value, one)
    for node in (1, 2):
        until(lambda node=node: cluster[node].call("status")["poisoned"], 5, f"node {node} says so")
        assert any("poison" in line or "journal" in line for line in cluster[node].lines())
    assert not cluster[3].call("status")["poisoned"]
    for trace in traces:
        trace.end()

    # A disk that works again does not mend a poisoned node: nobody knows what it holds.
    worse = propose(cluster, (1, 3), "worse", 2.0)
    assert all(one["error"] for one in worse.values())
    cluster.kill(1, 2)
    cluster.start(1, 2)
    cluster.ready()
    for answer in propose(cluster, cluster.ids, "again", 20.0).values():
        assert answer["error"] is None
    cluster.converged()
    for node in cluster.ids:
        found = logs(cluster, node)
        for tag in ("good", "again"):
            assert {
                f"{tag}/{one}/{group}" for one in cluster.ids for group in range(GROUPS)
            } <= found
        rejected = {
            value for value, one in {**bad, **worse}.items() if one["outcome"] == "rejected"
        }
        assert not rejected & found, "rejected, and yet chosen"
