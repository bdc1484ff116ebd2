"""A node that trims its log is killed at each step of that: what it has is enough, and whole."""

import asyncio
import random
import time
from pathlib import Path

import dying
import pytest
from trim_worker import HELD, PLACES, config_of, machines

import phx
from phx.checkpoint.catalog import ROOT, Catalog
from phx.checkpoint.files import OsFiles
from phx.errors import NoLongerKept
from phx.store import Store
from phx.verify import examine

WORKER = Path(__file__).with_name("trim_worker.py")
pytestmark = pytest.mark.processes

STEPS = [
    ("before-_victim", 4), ("after-_victim", 12), ("before-rename", 5), ("after-rename", 8),
    ("after-rename", 9), ("after-rename", 21), ("after-sync", 40), ("before-remove", 3),
    ("after-remove", 9), ("before-add", 7), ("after-add", 8), ("before-covered", 6),
    ("after-covered", 9), ("before-_raise", 7), ("after-_raise", 1), ("after-_raise", 12),
    ("before-_put_floors", 2), ("after-_put_floors", 1), ("after-_put_floors", 7),
    ("before-_tell", 5), ("after-_tell", 1), ("after-_tell", 9), ("before-settle", 4),
    ("after-settle", 5), ("before-trim", 6), ("after-trim", 7), ("after-_delete_chunks", 1),
    ("before-_delete_chunks", 2), ("after-_delete_chunks", 3), ("after-trim", 25),
]  # fmt: skip


def floors_of(folder):
    """The floors of what lies in the folder; C1 and C2 hold there."""
    assert examine(folder, whole=True).findings == []
    store = Store.open(folder / "store", cluster=config_of(folder).cluster_id, node=1)
    try:
        floors = store.floors()
    finally:
        store.close()
    found = Catalog.scan(OsFiles(folder), ROOT)
    for group, floor in floors.items():
        usable = [
            one.frontier for one in found.get(group, ()) if one.frontier >= floor.kept_from - 1
        ]
        assert floor.kept_from == 1 or usable
        assert floor.kept_from - 1 <= floor.settled_through
        # What is kept of the log goes down to what the oldest of them lacks, and what is held.
        if usable and floor.kept_from > 1:
            assert floor.kept_from <= min(usable) + 1 - HELD
    return {group: floor.kept_from for group, floor in floors.items()}


async def look(folder, floors):
    """Open it once more: every machine has all that it needs. By place, how many values."""
    async with phx.Node(config_of(folder), machines) as node:
        await dying.recovered(node, range(3))
        assert not node.status().stopped
        counts = {}
        for group, machine in PLACES:
            count, odd = node.group(group).machine(machine).digest().split()
            assert int(odd) == 0, (group, machine)
            counts[group, machine] = int(count)
        for group in range(3):
            status = node.group(group).status()
            assert status.floor >= floors.get(group, 1)
            for instance in range(status.floor, status.chosen_through + 1):
                try:
                    await node.group(group).entry(instance)
                except NoLongerKept:  # it has gone on trimming
                    assert instance < node.group(group).status().floor
            if status.floor > 1:
                with pytest.raises(NoLongerKept):
                    await node.group(group).entry(status.floor - 1)
        return counts


def check(folder, told, before, promised):
    """Nothing that was acknowledged is lost; floors and promises never fall."""
    promised.look(folder)
    floors = floors_of(folder)
    counts = asyncio.run(look(folder, floors))
    assert all(counts[place] >= told[place] for place in PLACES)
    after = floors_of(folder)
    promised.look(folder)
    assert all(after[group] >= floors[group] >= before.get(group, 1) for group in floors)
    return after


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_any_step_of_trimming_it_has_all_that_is_needed(tmp_path, lives):
    floors, promised = {}, dying.Promises()
    for step, times in STEPS:
        told = dying.killed(lives, PLACES, tmp_path, step, times)
        floors = check(tmp_path, told, floors, promised)
    assert min(floors.values()) > 50


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killed_at_any_time_while_it_trims(tmp_path, lives):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance, floors, promised = random.Random(seed), {}, dying.Promises()
    for _ in range(25):
        lives.begin(tmp_path, "after-trim", 1000000)
        first = lives.line()
        time.sleep(chance.uniform(0.0, 0.7))
        lives.kill()
        code, rest = lives.end()
        assert code in (-9, 0), lives.errors()
        floors = check(tmp_path, dying.told_of(first + rest, PLACES), floors, promised)
    assert min(floors.values()) > 50


@pytest.mark.timeout(60)
@pytest.mark.parametrize("step", ["after-_put_floors", "before-_put_floors"])
def test_killed_around_the_raising_of_a_floor(tmp_path, lives, step):
    told = dying.killed(lives, PLACES, tmp_path, step, 3)
    check(tmp_path, told, {}, dying.Promises())
