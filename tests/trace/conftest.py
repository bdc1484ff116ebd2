"""Makes scribe, crew and the cluster of the API's tests importable here; records traces."""

import asyncio
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parent.parent / "crash"))
sys.path.append(str(Path(__file__).resolve().parent.parent / "api"))

from cluster import cluster
from scribe import Scribe

import phx


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


async def work(folder: Path) -> None:
    """Values of three nodes in two groups, one of them too large to share a batch; a node that
    gives its leaderships away, and wants none; one that is late; a clean end."""
    async with cluster(folder) as nodes:
        for number in range(30):
            await asyncio.gather(
                *(node.group(number % 2).propose(b"%d" % number) for node in nodes)
            )
        await nodes[0].group(0).propose(bytes(200_000))
        nodes[1].set_priority(0)
        await late(nodes[2])
        await nodes[1].resign_all()
        await nodes[1].group(1).propose_many([b"many"] * 100)


async def late(node: phx.Node) -> None:
    """It turns callers away, and its machine takes its time for a moment."""
    driver, machine = node._room.driver, node.group(0).machine()
    apply = machine.apply

    def slow(entry: phx.Entry) -> object:
        time.sleep(0.02)
        return apply(entry)

    machine.apply = slow
    driver.turning_away(True)
    for _ in range(3):  # what is late is told with what comes next
        await node.group(0).propose(b"late")
    driver.turning_away(False)
    del machine.apply


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Traces of three nodes that worked together in this process, by node."""
    folder = tmp_path_factory.mktemp("recorded")
    traces = folder / "traces"
    traces.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHX_TRACE_DIR", str(traces))
        asyncio.run(work(folder))
    return sorted(traces.iterdir())
