"""Nodes that come and go: for tests of members that change."""

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest

import phx
from phx import errors
from phx.machines import Counter
from phx.types import voter
from tests.ports import free_address

from .cluster import config_of


def addresses(nodes):
    return {node.config.node: f"127.0.0.1:{node.port}" for node in nodes}


def voters(nodes):
    return {n: voter(at) for n, at in addresses(nodes).items()}


def leader_of(nodes, group=0):
    return next(node for node in nodes if node.group(group).is_leader)


async def have_lead(nodes, wanted, group=0):
    """As soon as it may."""
    while not wanted.group(group).is_leader:
        with suppress(errors.TransferFailed, errors.NotLeader, StopIteration):
            await leader_of(nodes, group).group(group).transfer_leadership(wanted.config.node)
        await asyncio.sleep(0.05)


def counters(group):
    return Counter()


def kill(node):
    """It says goodbye to nobody, and settles nothing."""
    node._finalizer.detach()
    node._finalizer = None
    node._room.abandon()


class Joining:
    """A node that starts as a member as soon as it is one; its address is known before."""

    def __init__(self, folder, number, nodes, groups=2, machines=counters, **changes):
        self.number, self.at = number, free_address()
        config = config_of(
            folder,
            number,
            members={number: self.at},
            join=list(addresses(nodes).values()),
            groups=groups,
            **changes,
        )
        self.node = phx.Node(config, machines, bootstrap=True)
        self.opening = asyncio.ensure_future(self.node.open())

    async def opened(self):
        await self.opening
        return self.node

    async def close(self):
        if not self.opening.done():
            self.opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await self.opening
        await self.node.close()


@asynccontextmanager
async def joining(folder, numbers, nodes, **changes):
    made = [Joining(folder, number, nodes, **changes) for number in numbers]
    try:
        yield made
    finally:
        await asyncio.gather(*(one.close() for one in made))
