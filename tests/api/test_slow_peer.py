"""A peer that takes nothing any more: it costs the others neither memory nor their callers."""

import asyncio
import ctypes
import gc

import pytest

import phx
from phx.bench.meter import memory_bytes
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.testing.processes import Spec, Worker
from tests.ports import at_ports

from .cluster import config_of, until

MIB = 1 << 20
VALUE = encode_set(b"key", bytes(16 << 10))  # one key: machines stay small
QUEUE_BYTES = 2 * MIB


async def write(node, mib):
    """So much, with little of it in flight."""
    group = node.group(0)
    count = mib * MIB // len(VALUE)
    for at in range(0, count, 32):
        await group.propose_many([VALUE] * min(32, count - at), timeout=30)


def held_bytes():
    """Of this process, without what its allocator keeps of freed memory, where it can be told to
    give that back."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    return memory_bytes()[1]


def busy(node):
    status = node.status()
    return status.settle["pending"] or status.journal["queued_bytes"] > 0


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_stopped_peer_costs_no_memory_and_nobody_waits_for_it(run_once, tmp_path):
    at = at_ports(1, 2, 3)

    def config(node):
        return config_of(
            tmp_path,
            node,
            groups=1,
            members=at,
            priority=0 if node == 3 else 100,
            limits={"peer_queue_bytes_max": QUEUE_BYTES, "cache_bytes_max": 4 * MIB},
        )

    def spec():
        third = config(3)
        given = {
            "cluster": third.cluster, "node": 3, "members": {str(n): a for n, a in at.items()},
            "dir": str(third.dir), "groups": 1, "priority": 0,
        }  # fmt: skip
        return Spec(3, given, "kv", bootstrap=True)

    async def main():
        worker = await Worker.start(spec(), tmp_path / "worker.log", "phx.cli.worker")
        nodes = [phx.Node(config(n), lambda group: KeyValue(), bootstrap=True) for n in (1, 2)]
        try:
            await asyncio.gather(*(node.open() for node in nodes), worker.ready())
            await asyncio.gather(*(node.wait_ready(timeout=30) for node in nodes))
            await until(lambda: any(n.group(0).is_leader for n in nodes), seconds=30)
            leader = next(n for n in nodes if n.group(0).is_leader)
            await write(leader, 48)  # (what everything takes once is taken)
            worker.pause()
            before = held_bytes()
            await write(leader, 96)
            # (What a busy disk has under way is for nobody's sake but its own.)
            await until(lambda: not any(busy(node) for node in nodes), seconds=30)
            grown = held_bytes() - before
            # Both nodes' queues to it may be full; beyond, 96 MiB would be held for it.
            assert grown < 2 * QUEUE_BYTES + 24 * MIB, grown
            for node in nodes:
                assert node.status().peers[3].detail["queued_bytes"] <= 2 * QUEUE_BYTES
            worker.resume()
            through = leader.group(0).status().applied_through
            for _ in range(600):
                applied, _ = (await worker.call("positions"))["0"]
                if applied >= through:
                    break
                await asyncio.sleep(0.1)
            assert applied >= through
        finally:
            worker.resume()
            await worker.close()
            await asyncio.gather(*(node.close() for node in nodes))

    run_once(main())
