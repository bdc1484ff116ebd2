"""Relaxed groups when the power of machines goes, and when processes die; others on the same
journal lose nothing in either case."""

import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crew import until

from phx.testing.powerfs import Power

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no /dev/fuse"),
]

RELAXED = [0, 1]
MODES = {"interval_us": 60_000_000, "groups": {"0": "none", "1": "interval"}}
FSYNC_US = 5_000


class Machine:
    """What one node runs on: a disk of its own that loses what was not synced, and a boot id."""

    def __init__(self, node: int, power: Power) -> None:
        self.node, self.power = node, power
        self.boot = 1
        self.chance = random.Random(node)

    def boot_id(self) -> str:
        return str(uuid.UUID(int=(self.node << 32) + self.boot))

    def fails(self, cluster: Any, keep: float) -> int:
        """Its power goes, and comes back; how many sectors are lost."""
        self.power.off()
        worker = cluster.workers[self.node]
        worker.kill()
        self.power.release()
        cluster.kill(self.node)
        self.boot += 1
        return self.power.cut(self.chance.getrandbits(32), keep)["lost_sectors"]


@pytest.fixture
def machines(tmp_path: Path, crew, monkeypatch) -> Iterator[Callable]:
    """A cluster, each node on a machine of its own."""
    mounted: list[Power] = []
    made = []

    def make(**options: Any):
        cluster = crew(groups=4, durability=MODES, **options)
        made.append(cluster)
        found = {}
        for node in cluster.ids:
            try:
                power = Power(tmp_path / f"machine{node}", FSYNC_US).__enter__()
            except PermissionError as error:
                pytest.skip(f"may not mount here: {error}")
            mounted.append(power)
            found[node] = Machine(node, power)
        config, launch = cluster.config, cluster.launch

        def config_of(node: int) -> dict[str, Any]:
            return config(node) | {"dir": str(found[node].power.point / f"node{node}")}

        def launched(node: int, **how: Any):
            monkeypatch.setenv("PHX_BOOT_ID", found[node].boot_id())
            return launch(node, **how)

        cluster.config, cluster.launch = config_of, launched
        return cluster, found

    yield make
    for cluster in made:
        cluster.end()
    for power in mounted:
        power.__exit__()


def warned(cluster, node: int) -> int:
    """How often a start of this node found that its relaxed groups may lack something."""
    return sum(f"of groups {RELAXED} may be lost" in line for line in cluster[node].lines())


def suspects(cluster, node: int) -> list[int]:
    return cluster[node].call("suspects")


@pytest.mark.timeout(150)
def test_one_machine_fails_again_and_again_under_load_and_nothing_is_lost(machines):
    cluster, found = machines()
    cluster.start(bootstrap=True)
    cluster.ready()
    lost = 0
    for node, keep in ((1, 0.0), (2, 0.5), (1, 0.9)):
        cluster.each("load", writers=4, value_bytes=200)
        time.sleep(0.8)
        lost += found[node].fails(cluster, keep)
        cluster.start(node)
        assert warned(cluster, node) == found[node].boot - 1
        until(lambda n=node: suspects(cluster, n) == [], 40, "it has rejoined")
        cluster.each("stop_load", nodes=[one for one in cluster.ids if one != node])
        cluster.ready()
        cluster.converged()
        cluster.nothing_lost()
    assert cluster.acknowledged() > 100
    assert lost > 0, "nothing was ever unsynced: this shows nothing"


@pytest.mark.timeout(90)
def test_a_process_that_is_killed_votes_at_once_and_has_all_that_it_told(machines):
    cluster, _ = machines()
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.kill(3)
    cluster.each("load", writers=4, value_bytes=200)  # chosen by 1 and 2
    time.sleep(1.0)
    cluster.kill(1)
    cluster.kill(2)
    cluster.start(1, 2)
    assert suspects(cluster, 1) == suspects(cluster, 2) == []
    assert warned(cluster, 1) == warned(cluster, 2) == 0
    cluster.ready()
    cluster.converged()
    assert cluster.nothing_lost() > 50


@pytest.mark.timeout(90)
def test_where_a_majority_fails_relaxed_groups_stand_still_and_the_others_lost_nothing(machines):
    cluster, found = machines()
    cluster.start(bootstrap=True)
    cluster.ready()
    for number in range(5):
        for group in range(4):
            done = cluster[1].call("propose", group=group, value=f"v{number}", timeout_s=20.0)
            assert done["error"] is None
    for node in cluster.ids:
        found[node].fails(cluster, 0.0)
    cluster.start()
    assert [suspects(cluster, node) for node in cluster.ids] == [RELAXED] * 3
    for group in (2, 3):
        done = cluster[1].call("propose", group=group, value="after", timeout_s=30.0)
        assert done["error"] is None
        expected = [*(f"v{number}" for number in range(5)), "after"]
        assert cluster[1].call("log", group=group) == expected
    for group in RELAXED:
        done = cluster[1].call("propose", group=group, value="after", timeout_s=3.0)
        assert done["error"] is not None
    assert [suspects(cluster, node) for node in cluster.ids] == [RELAXED] * 3
