"""A node with durable machines is killed at each of its steps: they are what the log says."""

import asyncio
import shutil
from pathlib import Path

import dying
import pytest
from durable_worker import PLACES, config_of, machines

import phx

WORKER = Path(__file__).with_name("durable_worker.py")

pytestmark = pytest.mark.processes

RUNNING = [
    ("before-open", 2), ("after-open", 1), ("after-open", 2), ("after-begin", 2),
    ("before-switch", 1), ("after-switch", 1), ("after-switch", 2), ("after-sweep", 2),
    ("before-commit", 1), ("after-commit", 1), ("before-commit", 12), ("after-commit", 13),
    ("before-apply", 90), ("after-apply", 91), ("before-freeze", 1), ("after-freeze", 2),
    ("before-rename", 3), ("after-rename", 4), ("before-fsync", 40), ("before-close", 1),
    ("after-close", 1), ("after-close", 2),
]  # fmt: skip
# When its files were lost: with a checkpoint that has them.
RESTORING = [
    ("after-begin", 1), ("before-restore", 1), ("after-restore", 1), ("after-restore", 2),
    ("before-switch", 1), ("after-switch", 1), ("before-switch", 2), ("after-sweep", 3),
    ("after-rename", 1), ("after-open", 1), ("after-commit", 1), ("before-apply", 3),
]  # fmt: skip


async def found(folder, kind):
    """By place: the digest; how many values are in the log."""
    async with phx.Node(config_of(folder), machines(kind), bootstrap=True) as node:
        await dying.recovered(node, (0, 1))
        digests = {(g, m): node.group(g).machine(m).digest() for g, m in PLACES}
        counts = dict.fromkeys(PLACES, 0)
        for group in (0, 1):
            for instance in range(1, node.group(group).status().chosen_through + 1):
                for entry in await node.group(group).entry(instance):
                    counts[group, entry.machine] += 1
    return digests, counts


def check(folder, kind, before, told, promised):
    """Durable machines, and the same node with all of them in memory, which applies the log. No
    promise is lost, either."""
    promised.look(folder)
    digests, counts = asyncio.run(found(folder, kind))
    assert digests == asyncio.run(found(folder, "memory"))[0]
    promised.look(folder)
    assert all(counts[place] - before[place] >= told[place] for place in PLACES)
    return counts


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["lmdb", "sqlite"])
def test_killed_at_any_step_it_has_what_a_node_in_memory_has(tmp_path, lives, kind):
    counts, promised = dict.fromkeys(PLACES, 0), dying.Promises()
    for step, times in RUNNING:
        if step.endswith(("begin", "switch")):  # these are steps of a machine that begins
            shutil.rmtree(tmp_path / "machines", ignore_errors=True)
        told = dying.killed(lives, PLACES, tmp_path, kind, step, times)
        counts = check(tmp_path, kind, counts, told, promised)
    assert min(counts.values()) > 100


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", ["lmdb", "sqlite"])
def test_killed_at_any_step_of_a_restore_it_is_done_again(tmp_path, lives, kind):
    counts, promised = dict.fromkeys(PLACES, 0), dying.Promises()
    told = dying.killed(lives, PLACES, tmp_path, kind, "before-close", 1)
    counts = check(tmp_path, kind, counts, told, promised)
    for step, times in RESTORING:
        shutil.rmtree(tmp_path / "machines")
        told = dying.killed(lives, PLACES, tmp_path, kind, step, times)
        counts = check(tmp_path, kind, counts, told, promised)
    assert min(counts.values()) > 20


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["lmdb", "sqlite"])
@pytest.mark.parametrize("step", ["before-commit", "after-commit"])
def test_killed_at_a_commit_it_counts_every_value_once(tmp_path, lives, kind, step):
    told = dying.killed(lives, PLACES, tmp_path, kind, step, 5)
    check(tmp_path, kind, dict.fromkeys(PLACES, 0), told, dying.Promises())
