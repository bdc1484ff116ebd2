"""Real processes under load, killed and started again: every trace of every life is right."""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from crew import Crew, needs_proc, needs_strace, until

from phx.testing.trace import check, check_all
from phx.testing.trace_file import Kind, read

pytestmark = [pytest.mark.processes, pytest.mark.slow]

MEMORY = Path("/dev/shm")  # a sync takes no time there: the poll thread does it itself


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which every node of this test leaves its traces."""
    folder = tmp_path / "traces"
    folder.mkdir()
    monkeypatch.setenv("PHX_TRACE_DIR", str(folder))
    return folder


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system in memory, where there is one."""
    folder = tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else tmp_path)
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[list[Crew]]:
    """Clusters put in here are ended."""
    made: list[Crew] = []
    yield made
    for one in made:
        one.end()


def loaded(crew: list[Crew], cluster: Crew, rate: float = 400.0) -> Crew:
    crew.append(cluster)
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.each("load", rate=rate)
    return cluster


@pytest.mark.timeout(120)
def test_nodes_that_are_killed_under_load_leave_traces_that_are_right(
    crew, traces, memory, tmp_path
):
    chance = random.Random(3)
    cluster = loaded(crew, Crew(tmp_path, groups=4, data=memory))
    kills = 4
    for kill in range(kills):
        time.sleep(chance.uniform(0.2, 0.6))
        victim = cluster.ids[kill % 3]
        cluster.kill(victim)
        time.sleep(chance.choice((0.0, 0.2, 1.0)))
        cluster.start(victim)
        cluster[victim].call("load", rate=400.0)
    cluster.ready()
    time.sleep(0.5)
    cluster.each("stop_load")
    cluster.converged()
    assert cluster.nothing_lost() > 100
    cluster.close()
    found = check_all(sorted(traces.iterdir()))
    print(*found, sep="\n")
    assert len(found) == 3 + kills
    assert sum(one.closed for one in found) == 3
    assert {one.node: one.incarnation for one in found if one.closed} == {1: 3, 2: 2, 3: 2}
    assert all(one.started and one.turns for one in found)
    # The first write of a journal that was opened again is the journal thread's.
    assert all(one.syncs_thread for one in found if one.incarnation > 1)
    total = {
        name: sum(getattr(one, name) for one in found)
        for name in ("records", "writes", "frames", "received", "held", "exposures", "syncs_inline")
    }
    assert min(total[name] for name in ("records", "frames", "received", "exposures")) > 1_000, (
        total
    )
    assert min(total["writes"], total["held"]) > 100, total
    assert total["syncs_inline"] > 100 or not MEMORY.is_dir(), total


@pytest.mark.timeout(90)
@pytest.mark.strace
@needs_strace
@needs_proc
def test_a_slow_disk_and_a_failing_one_leave_traces_that_are_right(crew, traces, memory, tmp_path):
    """Frames wait for the journal thread's syncs; of a sync that failed nothing is said."""
    cluster = loaded(crew, Crew(tmp_path, groups=4, data=memory), rate=200.0)
    cluster.trace(1, "delay_enter=20000")
    time.sleep(1.5)
    cluster.trace(2, "error=EIO:when=20+")
    until(lambda: cluster[2].call("status")["poisoned"], 20, "node 2 is poisoned")
    time.sleep(1.0)
    cluster.kill()
    slow, failed, _ = check_all(sorted(traces.iterdir()))
    assert slow.node == 1
    assert slow.syncs_thread > 20
    assert slow.held > 20
    events = list(read(failed.path))
    poisoned = next(one.number for one in events if one.kind == Kind.POISON)
    assert failed.node == 2
    assert not [e for e in events if e.kind == Kind.DURABLE and e.number > poisoned]


@pytest.mark.timeout(60)
def test_a_trace_ends_at_its_limit_and_the_node_goes_on(crew, traces, tmp_path, monkeypatch):
    monkeypatch.setenv("PHX_TRACE_MIB", "1")
    cluster = Crew(tmp_path, 1, groups=2)
    crew.append(cluster)
    cluster.start(bootstrap=True)
    cluster.ready()
    cluster.each("load", run=20, value_bytes=1_000)
    (path,) = traces.iterdir()
    until(lambda: os.path.getsize(path) > 1 << 20, 30, "a trace of 1 MiB")
    until(lambda: "the trace ends here" in cluster[1].tail(), 10, "a line about it")
    before = cluster.acknowledged()
    until(lambda: cluster.acknowledged() > before, 10, "values are chosen after it")
    cluster.close()
    assert os.path.getsize(path) < 2 << 20
    found = check(path)
    assert not found.closed
    assert found.turns > 10
    assert [one.kind for one in read(path)][-1] == Kind.LIMIT


@pytest.mark.timeout(60)
def test_a_folder_for_traces_that_is_not_there_is_an_error(crew, tmp_path, monkeypatch):
    monkeypatch.setenv("PHX_TRACE_DIR", str(tmp_path / "nowhere"))
    cluster = Crew(tmp_path, 1)
    crew.append(cluster)
    with pytest.raises(Exception, match=r"trace file .*nowhere.* No such file"):
        cluster.start(bootstrap=True)
