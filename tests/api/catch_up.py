"""What tests of catching up share: nodes that were away, floors raised by hand, big states."""

import asyncio
import random
from hashlib import blake2b

import phx
from phx.machine import CopyView, StateMachine
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.store import Floor
from tests.api.cluster import all_applied, config_of, introduce

QUIET = {"interval_instances": 0, "interval_bytes": 0, "interval_us": 0}


class Big(StateMachine):
    """A counter whose snapshot is large: the same bytes for the same count."""

    mib = 24

    def __init__(self, group=0):
        self.count = 0

    def apply(self, entry):
        self.count += 1
        return self.count

    def digest(self):
        return b"%d" % self.count

    def freeze(self):
        view = type(self)()
        view.count = self.count
        return CopyView(view)

    def snapshot(self, writer):
        writer.write(self.count.to_bytes(8, "little"))
        chance = random.Random(self.count)
        for _ in range(self.mib):
            writer.write(chance.randbytes(1 << 20))

    def restore(self, reader):
        self.count = int.from_bytes(reader.read(8), "little")
        chance = random.Random(self.count)
        for _ in range(self.mib):
            assert reader.read(1 << 20) == chance.randbytes(1 << 20)


async def raise_floor(node, group, frontier):
    """The log below a checkpoint goes, as if trimming had come to it."""
    floor = Floor(frontier + 1, frontier)
    asked = node._room._keeper.ask(lambda store: store.raise_floors({group: floor}))
    await asyncio.wrap_future(asked)
    node._room.driver.floored(group, frontier + 1, frontier)


async def trim(node, group=0):
    """Take a checkpoint, and let the log below it go; its frontier."""
    frontier = (await node.group(group).checkpoint()).frontier
    await raise_floor(node, group, frontier)
    return frontier


def settings(count, size=100, seed=0, keys=500):
    chance = random.Random(seed)
    return [encode_set(f"k{chance.randrange(keys)}", chance.randbytes(size)) for _ in range(count)]


async def fill(node, count, group=0, size=100, seed=0):
    values = settings(count, size, seed)
    for at in range(0, count, 50):
        await node.group(group).propose_many(values[at : at + 50], timeout=30)


async def leave_behind(nodes, away=1, count=100):
    """Close the last nodes, and go on without them; the others, all of which have it all."""
    stay = nodes[:-away]
    await fill(nodes[0], count)
    await all_applied(nodes)
    await asyncio.gather(*(node.close() for node in nodes[len(stay) :]))
    await fill(nodes[0], count, seed=1)
    await all_applied(stay)
    return stay


async def reopen(folder, nodes, number, machines=KeyValue, **changes):
    """Open a node once more, and tell all where it is."""
    node = phx.Node(config_of(folder, number, **changes), machines)
    await node.open()
    nodes[number - 1] = node
    introduce(nodes)
    return node


def digests(nodes, group=0):
    return {blake2b(node.group(group).machine().digest()).digest() for node in nodes}


def transfers(node):
    return node.status().transfers


def want(node, group=0):
    """What the node's fetcher knows of a group that it wants; None: nothing is wanted."""
    return node._room._transfers.fetcher.wanted().get(group)
