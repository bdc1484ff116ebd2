"""Three nodes in one process, on ports that the system picks."""

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from itertools import combinations, permutations

import phx
from phx.machine import StateMachine
from phx.testing.proxy import Mesh

TIMING = {"heartbeat_us": 50_000, "lease_us": 400_000, "election_us": 50_000}


class Journal(StateMachine):
    """Keeps what it applied; its result is how many values it has seen. b"raise" raises."""

    def __init__(self, group=0):
        self.values = []
        self.entries = []
        self.raises = False

    def apply(self, entry):
        if entry.value == b"raise" and self.raises:
            raise RuntimeError("asked to")
        self.values.append(entry.value)
        self.entries.append(entry)
        return len(self.values)


def config_of(folder, node, nodes=3, groups=2, **changes):
    given = {
        "cluster": "test",
        "node": node,
        "dir": folder / f"node{node}",
        "groups": groups,
        "members": dict.fromkeys(range(1, nodes + 1), "127.0.0.1:0"),
        "timing": TIMING,
        "journal": {
            "segment_bytes": 2 << 20,
            "journal_bytes_max": 32 << 20,
            "settle_bytes": 8 << 20,
        },
    }
    return phx.Config(**(given | changes))


def introduce(nodes: Iterable) -> None:
    """Tell every node where the others are."""
    ports = {node.config.node: node.port for node in nodes}
    for node in nodes:
        for other, port in ports.items():
            if other != node.config.node:
                node.set_address(other, f"127.0.0.1:{port}")


@asynccontextmanager
async def meshed(nodes: Iterable):
    """From now on these talk with each other through a Mesh only, which a test can hold.

    Not for uvloop and no_leaks at once: it keeps its threads that look names up.
    """
    at = {node.config.node: node for node in nodes}
    pairs = list(combinations(at, 2))
    mesh = Mesh({number: node.port for number, node in at.items()})
    await mesh.start()
    try:
        for one, other in permutations(at, 2):
            at[one].set_address(other, f"127.0.0.1:{mesh.port(other)}")
        await until(lambda: all(talked(mesh, *pair) for pair in pairs), seconds=30)
        yield mesh
    finally:
        await mesh.close()


def talked(mesh: Mesh, one: int, other: int) -> int:
    """How much these two have told each other, in bytes."""
    return sum(link.bytes_forwarded for pair in mesh.between(one, other) for link in pair)


@asynccontextmanager
async def cluster(folder, machines=Journal, *, nodes=3, ready=True, **changes):
    """Open `nodes` nodes, make them known to each other, close those that are still open."""
    made = [
        phx.Node(config_of(folder, node, nodes, **changes), machines, bootstrap=True)
        for node in range(1, nodes + 1)
    ]
    try:
        await asyncio.gather(*(node.open() for node in made))
        introduce(made)
        if ready:
            await asyncio.gather(*(node.wait_ready(timeout=20) for node in made))
        yield made
    finally:
        await asyncio.gather(*(node.close() for node in made))


async def until(holds: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until `holds()`."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.005)


async def syncs_at_rest(nodes) -> list[int]:
    """The journals' syncs of each, once what was proposed before brings no more: marks and settling
    come a little after their values."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        before = [node.status().journal["syncs"] for node in nodes]
        await asyncio.sleep(0.3)
        if [node.status().journal["syncs"] for node in nodes] == before:
            return before
    raise AssertionError("the journals find no rest")


async def all_applied(nodes, group=0) -> None:
    """Wait until every node has applied what any of them knows to be chosen."""

    def settled():
        states = [node.group(group).status() for node in nodes]
        return len({(s.applied_through, s.digest) for s in states}) == 1 and all(
            s.applied_through == s.chosen_through for s in states
        )

    await until(settled)
