"""Processes killed under load: every value that was acknowledged stays, on every node."""

import random
import time

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.slow]

KILLS = 12
RATE_PER_S = 600.0  # values of each node
OFTEN = {"interval_instances": 60, "interval_us": 0, "keep": 2}


def restored(cluster) -> bool:
    """Every node has checkpoints of every group, and began with one of them."""
    for node in cluster.ids:
        folder = cluster.data / f"node{node}" / "checkpoints"
        assert {one.name for one in folder.iterdir()} >= {str(g) for g in range(cluster.groups)}
        assert all(len(list((folder / str(g)).iterdir())) <= 3 for g in range(cluster.groups))
    began = [one["checkpoints"]["restored"] for one in cluster.each("status").values()]
    return began == [cluster.groups] * len(cluster.ids)


def written(cluster, seconds: float) -> None:
    time.sleep(seconds)
    assert all(worker.alive for worker in cluster.workers.values())


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(180)
def test_kills_under_load_lose_nothing(crew):
    chance = random.Random(20)
    cluster = crew(groups=6, checkpoints=OFTEN)
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.each("load", rate=RATE_PER_S)
    before = 0
    for kill in range(KILLS):
        written(cluster, chance.uniform(0.1, 0.6))
        victim = chance.choice(cluster.ids)
        cluster.kill(victim)
        time.sleep(chance.choice((0.0, 0.2, 1.2)))  # before, during and after the election
        cluster.start(victim)
        if chance.random() < 0.5:
            cluster.ready(nodes=[victim])
        cluster[victim].call("load", rate=RATE_PER_S)
        if kill % 5 == 4:
            cluster.ready()
            written(cluster, 0.3)
            assert cluster.acknowledged() > before, "nothing was committed in a while"
            before = cluster.acknowledged()
    cluster.ready()
    written(cluster, 0.5)
    cluster.each("stop_load")
    cluster.converged()
    assert cluster.nothing_lost() > 1_000
    assert restored(cluster)


@pytest.mark.timeout(120)
def test_the_whole_cluster_is_killed_and_loses_nothing(crew):
    """A system that keeps its log in memory, or answers before it syncs, loses data here."""
    cluster = crew(groups=4, checkpoints=OFTEN)
    cluster.start(bootstrap=True)
    for _ in range(3):
        cluster.ready()
        cluster.each("load", writers=4)
        time.sleep(1.0)
        cluster.kill()
        killed_at = cluster.acknowledged()
        cluster.start()
        cluster.ready()
        cluster.converged()
        assert cluster.nothing_lost() == killed_at
    assert killed_at > 500
    assert restored(cluster)


@pytest.mark.timeout(90)
def test_a_cluster_that_was_closed_cleanly_opens_with_everything(crew):
    cluster = crew(groups=4)
    cluster.start(bootstrap=True)
    for _ in range(2):
        cluster.ready()
        cluster.each("load", run=20)
        time.sleep(1.0)
        cluster.each("stop_load")
        cluster.converged()
        before = cluster.each("positions")
        cluster.close()
        cluster.start()
        cluster.ready()
        cluster.converged()
        after = cluster.each("positions")
        assert all(
            after[node][group][0] >= place[0]
            for node, places in before.items()
            for group, place in places.items()
        )
        assert cluster.nothing_lost() > 500


@pytest.mark.timeout(90)
def test_one_node_that_was_away_while_others_went_on_catches_up(crew):
    """What it missed has left the others' memory and journals: it comes from their stores."""
    # pending_bytes_max fits the small journal: twice of it and four segments are below its limit.
    limits = {"value_bytes_max": 64 << 10, "cache_bytes_max": 1 << 20, "pending_bytes_max": 4 << 20}
    cluster = crew(groups=2, limits=limits)
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.kill(3)
    cluster.each("load", run=20, value_bytes=2_000)
    time.sleep(4.0)
    cluster.each("stop_load")
    settled = [one["settle"] for one in cluster.each("status").values()]
    cluster.start(3)
    cluster.ready()
    cluster.converged()
    assert cluster.nothing_lost() > 500, settled


@pytest.mark.timeout(180)
def test_three_of_five_go_on_without_the_two_that_are_killed(crew):
    """Both at once, under load, each the leader of some groups: every group is led again by one
    that is left, and all that was acknowledged before is there, at the two as well in the end."""
    cluster = crew(5, groups=10, checkpoints=OFTEN)
    cluster.start(bootstrap=True)
    cluster.ready()
    led = cluster.led()
    cluster.each("load", writers=4)
    written(cluster, 1.0)
    gone, left = (1, 3), (2, 4, 5)
    assert set(led.values()) == {*gone, *left}
    cluster.each("mark", nodes=left)
    cluster.kill(*gone)
    before = cluster.acknowledged()
    places = cluster[2].call("positions")
    assert set(cluster.led(left, 60).values()) == set(left)
    cluster.ready()
    written(cluster, 1.0)
    after = cluster[2].call("positions")
    assert all(after[group][0] > places[group][0] for group in after)
    gaps = [max(one["longest_s"].values()) for one in cluster.each("report").values()]
    print(f"longest that a group of one node had nothing acknowledged: {max(gaps):.3f} s")
    assert max(gaps) < 20
    cluster.each("stop_load")
    cluster.converged()
    assert cluster.nothing_lost() > before > 500
    cluster.start(*gone)
    cluster.ready()
    cluster.converged()
    assert cluster.nothing_lost() > before
