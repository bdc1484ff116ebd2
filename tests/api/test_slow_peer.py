"""A peer that takes nothing any more: it costs the others neither memory nor their callers."""

import asyncio

import pytest

import phx
from phx.bench.meter import memory_bytes
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.testing.processes import Spec, Worker, free_ports

from .cluster import config_of, until

MIB = 1 << 20
VALUE = encode_set(b"key", bytes(16 << 10))  # one key: machines stay small
QUEUE_BYTES = 2 * MIB
WRITTEN_MIB = 128


async def write(node, mib):
    """So much, with little of it in flight."""
    group = node.group(0)
    count = mib * MIB // len(VALUE)
    for at in range(0, count, 32):
        await group.propose_many([VALUE] * min(32, count - at), timeout=30)


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_a_stopped_peer_costs_no_memory_and_nobody_waits_for_it(run_once, tmp_path):
    at = {node: f"127.0.0.1:{port}" for node, port in enumerate(free_ports(3), 1)}

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
            before = memory_bytes()[1]
            await write(leader, WRITTEN_MIB)
            grown = memory_bytes()[1] - before
            # Whoever holds it all for the peer grows by all of it. (What a busy disk keeps under
            # way, and what an allocator does not give back, differs from run to run.)
            assert grown < WRITTEN_MIB * MIB // 2, grown
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
