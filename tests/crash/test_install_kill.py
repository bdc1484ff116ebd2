"""A node is killed at each step of fetching and installing: it has the old state or the new.

All steps, before and after each, take minutes: ``PHX_EVERY_STEP=1``. Without it each ninth step is.
"""

import asyncio
import os
from pathlib import Path

import pytest
from install_worker import config_of, machines

import phx
from phx._core.member_table import CHANGE_UNDER_WAY, MemberTable
from phx._core.members import write
from phx.store import Floor
from phx.verify import examine
from tests.api.cluster import until
from tests.ports import free_ports

WORKER = Path(__file__).with_name("install_worker.py")
pytestmark = pytest.mark.processes


async def worker(lives, folder, ports, target, step, when="before"):
    """Run it; its exit code and what it said."""
    lives.begin(folder, ",".join(map(str, ports)), target, step, when)
    code, out = await asyncio.to_thread(lives.end)
    assert code in (0, -9), (step, when, lives.errors())
    return code, dict(line.split(None, 1) for line in out.splitlines())


async def add(node, first, count):
    for number in range(first, first + count):
        for machine in (0, 1):
            await node.group(0).propose(b"%d" % number, machine=machine, timeout=20)


class Three:
    """Two nodes that run, and the folder of a third that lies below their floors."""

    def __init__(self, folder, ports, lives):
        self.lives = lives
        self.folder = folder / "node3"
        self.ports = ports
        self.nodes = [phx.Node(config_of(folder / f"node{n}", n, ports), machines, bootstrap=True)
                      for n in (1, 2, 3)]  # fmt: skip
        self.count = 0
        self.promised = 0
        self.instance = 0  # where the members of version 2 begin

    async def begin(self):
        await asyncio.gather(*(node.open() for node in self.nodes))
        await asyncio.gather(*(node.wait_ready(timeout=20) for node in self.nodes))
        await self.add(20)
        await self.nodes[2].group(0).checkpoint()  # its own is older
        await self.add(20)
        self.promised = self.nodes[2].group(0).status().promised
        await self.nodes[2].close()
        await self.change()

    async def change(self):
        """By a value that the third has never heard of; the members are the same."""
        two = [node.group(0) for node in self.nodes[:2]]
        tables = [MemberTable(node._room.driver) for node in self.nodes[:2]]

        rows = [(n, 1, b"127.0.0.1:%d" % port) for n, port in enumerate(self.ports, 1)]
        roster = write(2, 1, 0, rows)

        def asked():
            return any(table.change(0, roster) == CHANGE_UNDER_WAY for table in tables)

        await until(asked)
        await until(lambda: all(one.members().version == 2 and one.members().active for one in two))
        said = tables[0].of(0)
        assert said is not None
        self.instance = said[1]

    async def add(self, count):
        await add(self.nodes[0], self.count, count)
        self.count += count

    async def go_on(self):
        """The two leave the third behind; where they are."""
        await self.add(5)
        for node in self.nodes[:2]:
            await node.wait_ready(timeout=20)
            frontier = (await node.group(0).checkpoint()).frontier
            floor = Floor(frontier + 1, frontier)
            asked = node._room._keeper.ask(lambda store, f=floor: store.raise_floors({0: f}))
            await asyncio.wrap_future(asked)
            node._room.driver.floored(0, frontier + 1, frontier)
        await self.add(3)
        return self.nodes[0].group(0).status().applied_through

    async def live(self, target):
        """The third comes back, and is where the others are; how many steps that took."""
        code, said = await worker(self.lives, self.folder, self.ports, target, 0)
        assert code == 0
        applied, promised, *digests = said["state"].split()
        assert int(applied) >= target
        assert int(promised) >= self.promised
        self.promised = int(promised)
        assert digests == [said_of(self.nodes[0], machine) for machine in (0, 1)]
        report = examine(self.folder, whole=True)
        assert report.findings == []
        assert (report.groups[0].version, report.groups[0].since) == (2, self.instance)
        return int(said["steps"])

    async def close(self):
        await asyncio.gather(*(node.close() for node in self.nodes))


def said_of(node, machine):
    return node.group(0).machine(machine).digest().decode().replace(" ", "/")


async def go_through(tmp_path, lives, first, every):
    """Kill it before and after each step first, first + every, ...; then let it go on."""
    three, kills = Three(tmp_path, free_ports(3), lives), 0
    try:
        await three.begin()
        steps = await three.live(await three.go_on())
        assert steps > 50
        for step in range(first, steps + 1, every):
            for when in ("before", "after"):
                target = await three.go_on()
                code, _ = await worker(lives, three.folder, three.ports, target, step, when)
                kills += code == -9
                assert examine(three.folder, whole=True).findings == [], (step, when)
                await three.live(target)
        print(f"{steps} steps, {kills} kills")
        assert kills >= (steps - first) // every
    finally:
        await three.close()


RUNS = [(first, 12) for first in range(1, 13)] if "PHX_EVERY_STEP" in os.environ else [(4, 9)]


@pytest.mark.timeout(390)
@pytest.mark.parametrize(("first", "every"), RUNS)
def test_killed_at_a_step_it_has_the_old_state_or_the_new(tmp_path, lives, first, every):
    asyncio.run(go_through(tmp_path, lives, first, every))
