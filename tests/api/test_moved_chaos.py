"""A created group moves about, at random, while its nodes die and clients go on; one generation of
its id after the other."""

import asyncio
import random
import time
from collections import Counter as Tally
from contextlib import suppress

import pytest

import phx
from phx import errors
from phx._core.driver import DriverError
from phx.verify import examine
from tests.ports import at_ports

from .catch_up import QUIET, trim
from .cluster import config_of, until
from .created_lab import hosts
from .members_lab import counters, kill

GROUP = 7
STUCK_S = 120.0
"""Longer than any call of it takes, on whatever machine."""


class Fleet:
    """Six nodes, of which at most one is down."""

    def __init__(self, folder, seed):
        self.chance = random.Random(seed)
        members = at_ports(*range(1, 7))
        self.configs = {
            node: config_of(
                folder, node, groups=1, directory=True, members=members, checkpoints=QUIET
            )
            for node in members
        }
        self.nodes = {}
        self.down = 0
        self.ending = False

    async def open(self):
        for number, config in self.configs.items():
            self.nodes[number] = phx.Node(config, counters, bootstrap=True)
        await asyncio.gather(*(node.open() for node in self.nodes.values()))
        await asyncio.gather(*(node.wait_ready(timeout=60) for node in self.nodes.values()))

    def up(self):
        return [node for number, node in self.nodes.items() if number != self.down]

    def hosting(self):
        return [node for node in self.up() if hosts(node, GROUP)]

    async def kill_some(self):
        while not self.ending:
            await asyncio.sleep(self.chance.uniform(0.3, 2.0))
            self.down = self.chance.choice(list(self.nodes))
            if self.chance.random() < 0.7:
                kill(self.nodes[self.down])
            else:
                await self.nodes[self.down].close()
            await asyncio.sleep(self.chance.uniform(0.0, 1.0))
            self.nodes[self.down] = phx.Node(self.configs[self.down], counters)
            await self.nodes[self.down].open()
            self.down = 0

    async def insist(self, call, those, over=lambda: False):
        """At one of those that there are, until it is done, or is so."""
        until_s = time.monotonic() + STUCK_S
        while not over():
            assert time.monotonic() < until_s, "it is stuck"
            if there := those():
                with suppress(errors.PhxError):
                    return await call(self.chance.choice(there))
            await asyncio.sleep(0.05)
        return None

    def are_members(self, wanted):
        rows = [node._room._hosting.rows().get(GROUP) for node in self.up()]
        return any(row is not None and row.active and {*row.nodes} == wanted for row in rows)


async def client(fleet, found, over):
    while not over.is_set():
        if there := fleet.hosting():
            try:
                await fleet.chance.choice(there).group(GROUP).propose(b"1", timeout=5)
            except errors.Unknown:
                found["perhaps"] += 1
            except errors.ResultNotKept:
                found["done"] += 1
            except errors.Rejected:
                pass
            else:
                found["done"] += 1
        await asyncio.sleep(0.005)


async def move_about(fleet, members):
    """Until everybody has been a member once: who left does not come back."""
    fresh = [number for number in fleet.nodes if number not in members]
    fleet.chance.shuffle(fresh)
    while fresh:
        leaving = fleet.chance.sample(sorted(members), min(fleet.chance.randint(1, 3), len(fresh)))
        coming, fresh = fresh[: len(leaving)], fresh[len(leaving) :]
        members = (members - {*leaving}) | {*coming}
        if fleet.chance.random() < 0.5:  # those that come get a checkpoint
            for node in fleet.hosting():
                with suppress(errors.PhxError, DriverError):  # it left, or was killed
                    await trim(node, GROUP)
        within = fleet.chance.choice([1, 5, 20])

        async def move(node, members=members, within=within):
            await node.move_group(GROUP, members, timeout=within)

        await fleet.insist(move, fleet.hosting, lambda members=members: fleet.are_members(members))


@pytest.mark.parametrize("seed", [1, 2])
def test_a_group_that_moves_while_nodes_die_loses_and_doubles_nothing(run_once, tmp_path, seed):
    async def main():
        fleet = Fleet(tmp_path, seed)
        await fleet.open()
        killing = asyncio.ensure_future(fleet.kill_some())
        try:
            for generation in range(1, 5):
                members = {*fleet.chance.sample(sorted(fleet.nodes), 3)}
                made = await fleet.insist(
                    lambda node, members=members: node.create_group(GROUP, members, timeout=20),
                    fleet.up,
                )
                assert made.generation == generation
                found, over = Tally(), asyncio.Event()
                clients = [asyncio.ensure_future(client(fleet, found, over)) for _ in range(3)]
                await move_about(fleet, members)
                over.set()
                await asyncio.gather(*clients)
                read = await fleet.insist(
                    lambda node: node.group(GROUP).propose(b"0", timeout=10), fleet.hosting
                )
                assert found["done"] <= read.value <= found["done"] + found["perhaps"]
                await fleet.insist(
                    lambda node: node.delete_group(GROUP, timeout=20),
                    fleet.up,
                    lambda: all(
                        one.phase == "gone" for n in fleet.up() for one in n.created_groups()
                    ),
                )
            fleet.ending = True
            await killing
            hostings = [node._room._hosting for node in fleet.nodes.values()]
            await until(lambda: all(one.is_gone(GROUP, 4) for one in hostings), seconds=60)
            assert [one.failed for one in hostings] == [{}] * 6
        finally:
            fleet.ending = True
            await asyncio.gather(killing, return_exceptions=True)
            await asyncio.gather(*(node.close() for node in fleet.nodes.values()))
        for config in fleet.configs.values():
            report = await asyncio.to_thread(examine, config.dir, whole=True)
            assert report.findings == []

    run_once(main())
