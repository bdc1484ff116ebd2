"""Reads at every node while a leader is killed, cut off without a word, or stopped and woken.

Each group has one writer, which writes 1, 2, 3, … to a register. A read that began when n had been
written, or read, has to see n or more: nothing else is needed for a register of one writer.
"""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from phx.testing.processes import Cluster, WorkerFailed

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

WORKER = str(Path(__file__).with_name("read_worker.py"))
GROUPS = 4
FAULT_S = 3.0
TIMEOUT_S = 1.5
OPTIONS = {"timing": {"heartbeat_us": 50_000, "lease_us": 400_000, "election_us": 50_000}}


class Load:
    """Writers and readers of a cluster, and what they saw."""

    def __init__(self, nodes: Cluster, seed: int) -> None:
        self.nodes = nodes
        self.random = random.Random(seed)
        self.known = dict.fromkeys(range(GROUPS), 0)
        self.over = False
        self.avoid: set[int] = set()  # by writers: a call there may wait for ever
        self.answered: Counter[tuple[int, str]] = Counter()
        self.failed: Counter[tuple[int, str]] = Counter()

    async def write(self, group: int) -> None:
        value = 0
        while not self.over:
            node = self.random.choice([n for n in self.nodes.ids if n not in self.avoid])
            value += 1
            try:
                error = await self.nodes[node].call(
                    "write", 30.0, group=group, value=value, timeout=TIMEOUT_S
                )
            except WorkerFailed:
                error = "died"
            if error is None:
                self.known[group] = max(self.known[group], value)
            await asyncio.sleep(0.002)

    async def read(self, node: int, group: int, how: str) -> None:
        while not self.over:
            floor = self.known[group]
            try:
                value, error = await self.nodes[node].call(
                    "read", 30.0, group=group, how=how, timeout=TIMEOUT_S
                )
            except WorkerFailed:
                await asyncio.sleep(0.1)
                continue
            if error is None:
                assert value >= floor, f"{how} at node {node}: {value} after {floor}"
                self.known[group] = max(self.known[group], value)
                self.answered[node, how] += 1
            else:
                self.failed[node, error] += 1
            await asyncio.sleep(0.005)


async def play(fault: str, folder) -> None:
    async with Cluster(
        3, GROUPS, "kv", WORKER, folder=folder, proxies=True, options=OPTIONS
    ) as nodes:
        await nodes.start()
        led = await nodes.led()
        victim = max(led, key=lambda node: len(led[node]))
        others = [node for node in nodes.ids if node != victim]
        load = Load(nodes, seed=sum(map(ord, fault)))
        tasks = [asyncio.create_task(load.write(group)) for group in range(GROUPS)]
        tasks += [
            asyncio.create_task(load.read(node, group, how))
            for node in nodes.ids
            for group in range(GROUPS)
            for how in ("linearizable", "quorum")
        ]
        await asyncio.sleep(1.5)
        calm = Counter(load.answered)
        assert all(calm[node, how] > 20 for node in nodes.ids for how in ("linearizable", "quorum"))
        load.avoid.add(victim)
        await begin(nodes, fault, victim)
        await asyncio.sleep(FAULT_S)
        during = load.answered - calm
        for node in others:
            assert during[node, "linearizable"] > 20, (during, load.failed)
        await end(nodes, fault, victim)
        load.avoid.clear()
        for group in range(GROUPS):
            await until_read(nodes, load, victim, group)
        load.over = True
        await asyncio.gather(*tasks)
        for node in nodes.ids:
            for group in range(GROUPS):
                seen = await nodes[node].call("barrier", 30.0, group=group, timeout=20.0)
                assert seen >= load.known[group]
        await nodes.close()


async def begin(nodes: Cluster, fault: str, victim: int) -> None:
    assert nodes.mesh is not None
    if fault == "kill":
        nodes[victim].kill()
        await nodes[victim].wait()
    elif fault == "drop":
        nodes.mesh.isolate(victim)
    else:
        nodes[victim].pause()


async def end(nodes: Cluster, fault: str, victim: int) -> None:
    assert nodes.mesh is not None
    if fault == "kill":
        await nodes.start(victim)
    elif fault == "drop":
        nodes.mesh.heal(victim)
    else:
        nodes[victim].resume()


async def until_read(nodes: Cluster, load: Load, node: int, group: int) -> None:
    """It answers again, with all that is known."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        floor = load.known[group]
        value, error = await nodes[node].call(
            "read", 30.0, group=group, how="linearizable", timeout=5.0
        )
        if error is None:
            assert value >= floor
            return
    raise AssertionError(f"node {node} does not answer reads of group {group} any more")


@pytest.mark.parametrize("fault", ["kill", "drop", "stop"])
def test_no_read_anywhere_misses_what_was_complete(fault: str, tmp_path) -> None:
    asyncio.run(play(fault, tmp_path))
