"""The power of the whole cluster goes: what was not synced is lost, what was acknowledged stays."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phx.testing.powerfs import Power

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse"),
]

# How long a sync takes: what is acknowledged before its sync has returned is lost, and found out.
FSYNC_US = 20_000


@pytest.fixture
def powered(tmp_path: Path, crew) -> Iterator[Callable]:
    """A cluster whose folders lose what was not synced; and the power switch."""
    mounted = []

    def make(fsync_us: int, **options):
        try:
            power = Power(tmp_path / "power", fsync_us).__enter__()
        except PermissionError as error:
            pytest.skip(f"may not mount here: {error}")
        mounted.append(power)
        cluster = crew(data=power.point, **options)
        made.append(cluster)
        return cluster, power

    made = []
    yield make
    for cluster in made:
        cluster.end()  # before the mount goes
    for power in mounted:
        power.__exit__()


def power_goes(cluster, power, chance: random.Random, keep: float) -> dict[str, int]:
    """All processes end at once, and with them all that was not durable at that moment."""
    power.off()
    for worker in cluster.workers.values():
        worker.kill()
    power.release()
    cluster.kill()
    return power.cut(chance.getrandbits(32), keep)


@pytest.mark.timeout(150)
def test_power_goes_again_and_again_under_load(powered):
    cluster, power = powered(FSYNC_US, groups=4)
    chance = random.Random(4)
    cluster.start(bootstrap=True)
    lost = 0
    for keep in (0.0, 0.5, 0.9, 0.0):
        cluster.ready()
        cluster.each("load", writers=8, value_bytes=200)
        time.sleep(chance.uniform(0.5, 1.2))
        lost = power_goes(cluster, power, chance, keep)["lost_sectors"]
        cluster.start()
        cluster.ready()
        cluster.converged()
        cluster.nothing_lost()
    assert cluster.acknowledged() > 500
    assert lost > 0, "nothing was ever unsynced: this shows nothing"


@pytest.mark.timeout(90)
def test_power_goes_while_nodes_start(powered):
    """Replay, carrying over and settling are cut short; then the cluster comes up as it was."""
    cluster, power = powered(2_000, groups=4)
    chance = random.Random(5)
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.each("load", run=10, value_bytes=500, rate=3_000.0)
    time.sleep(1.0)
    for keep in (0.5, 0.0, 0.9, 0.3):
        power_goes(cluster, power, chance, keep)
        for node in cluster.ids:
            cluster.launch(node).ask("open")
        time.sleep(chance.uniform(0.3, 1.0))
    power_goes(cluster, power, chance, 0.0)
    cluster.start()
    cluster.ready()
    cluster.converged()
    assert cluster.nothing_lost() > 200


@pytest.mark.timeout(90)
def test_what_only_acceptances_know_is_there_when_a_cluster_has_converged(powered):
    """Which values were chosen, no log says after this: a leader finds it out, at the disks' pace,
    and nodes agree long before."""
    cluster, power = powered(2_000, groups=2)
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.each("load", run=10, value_bytes=200, rate=1_000.0)
    time.sleep(1.0)
    power_goes(cluster, power, random.Random(7), 0.0)
    power.slow(1_500_000)
    cluster.start()
    cluster.ready()
    cluster.converged()
    assert cluster.nothing_lost() > 50
    power.slow(0)


@pytest.mark.timeout(90)
def test_power_goes_while_a_cluster_is_born(powered):
    """A bootstrap that was cut short is begun anew, and no peer remembers a store that is gone."""
    cluster, power = powered(2_000, groups=4)
    chance = random.Random(6)
    for keep in (0.0, 0.5, 0.0, 0.5):
        for node in cluster.ids:
            cluster.launch(node, bootstrap=True).ask("open")
        time.sleep(chance.uniform(0.2, 0.8))
        power_goes(cluster, power, chance, keep)
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.each("load")
    time.sleep(0.5)
    cluster.each("stop_load")
    cluster.converged()
    assert cluster.nothing_lost() > 10
