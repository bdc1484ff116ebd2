"""The same without a loop."""

import gc
import os
import resource
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain

import pytest

import phx
from phx import blocking, errors
from phx.blocking import Cell, Node
from phx.machines import Counter
from tests.durable.durable_lab import SqliteSums

from .cluster import Journal, config_of, introduce

pytestmark = pytest.mark.usefixtures("no_leaks")

DESCRIPTORS = 2048  # that a test of high numbers needs


@contextmanager
def blocking_cluster(folder, machines=Journal, *, nodes=3, **changes):
    made = [
        Node(config_of(folder, node, nodes, **changes), machines, bootstrap=True)
        for node in range(1, nodes + 1)
    ]
    try:
        for node in made:
            node.open()
        introduce(made)
        for node in made:
            node.wait_ready(timeout=20)
        yield made
    finally:
        for node in made:
            node.close()


def wait(holds, seconds=10.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def test_the_same_names_without_await(tmp_path):
    with blocking_cluster(tmp_path) as nodes:
        group = nodes[0].group(0)
        first = group.propose(b"a")
        assert first.value == 1
        assert [result.value for result in group.propose_many([b"b", b"c"])] == [2, 3]
        assert group.propose_many([]) == []
        assert [entry.value for entry in group.entry(first.instance)] == [b"a"]
        with pytest.raises(errors.NotChosenYet):
            group.entry(10_000)
        assert nodes[0].ready([0])
        assert group.status().leader in (1, 2, 3)
        assert nodes[0].status().groups == 2
        assert [one.id for one in nodes[0].groups] == [0, 1]
        with pytest.raises(errors.NotInCluster):
            nodes[0].group(5)
        with pytest.raises(errors.ValueTooLarge):
            group.propose(b"x" * (1 << 20) + b"x")
        wait(lambda: all(node.group(0).machine().values == [b"a", b"b", b"c"] for node in nodes))


def test_the_two_kinds_have_the_same_names():
    for ours, twin in ((phx.Node, Node), (phx.Group, phx.blocking.Group)):
        names = {name for name in dir(ours) if not name.startswith("_")}
        assert names == {name for name in dir(twin) if not name.startswith("_")}


def test_many_threads_propose_at_once(tmp_path):
    with blocking_cluster(tmp_path) as nodes:

        def write(thread):
            group = nodes[thread % 3].group(thread % 2)
            return [group.propose(b"%d %d" % (thread, n)).value for n in range(30)]

        with ThreadPoolExecutor(12) as pool:
            counts = list(pool.map(write, range(12)))
        for parity in (0, 1):
            assert sorted(chain(*counts[parity::2])) == list(range(1, 181))
            machines = [node.group(parity).machine() for node in nodes]
            wait(lambda of=machines: all(len(one.values) == 180 for one in of))
            assert machines[0].values == machines[1].values == machines[2].values


def test_callers_that_wait_when_the_node_closes_are_told(tmp_path):
    with blocking_cluster(tmp_path) as nodes:
        nodes[1].close()
        nodes[2].close()
        told = []

        def call():
            try:
                nodes[0].group(0).propose(b"x", timeout=None)
            except errors.PhxError as error:
                told.append(error)

        threads = [threading.Thread(target=call) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait(lambda: nodes[0].group(0).status().waiting_values == 5)
        nodes[0].close(timeout=0.2)
        for thread in threads:
            thread.join(5)
        assert [type(error) for error in told] == [errors.ClosedUnknown] * 5
        nodes[0].close()
        with pytest.raises(errors.Closed):
            nodes[0].group(0).propose(b"y")


def test_a_failing_apply_stops_its_group(tmp_path):
    with blocking_cluster(tmp_path) as nodes:
        nodes[0].group(0).machine().raises = True
        with pytest.raises(errors.StoppedUnknown):
            nodes[0].group(0).propose(b"raise")
        with pytest.raises(errors.GroupStopped):
            nodes[0].group(0).propose(b"x")
        assert nodes[0].group(1).propose(b"x").value == 1
        assert nodes[1].group(0).propose(b"x").value == 2


def test_a_machine_that_exits_stops_its_group_and_no_thread(tmp_path, caplog):
    class Exits(Journal):
        def apply(self, entry):
            if entry.value == b"exit":
                raise SystemExit(3)
            return super().apply(entry)

    with Node(config_of(tmp_path, 1, nodes=1), Exits, bootstrap=True) as node:
        with pytest.raises(errors.StoppedUnknown):
            node.group(0).propose(b"exit")
        assert node.group(1).propose(b"x").value == 1
    assert "an error on the applying thread" in caplog.text


@pytest.mark.parametrize("ever", [False, True])
def test_an_error_between_two_turns_ends_no_applying(tmp_path, caplog, ever):
    """Once, or again and again: callers get their results, durable machines their last commit."""

    class Sums(SqliteSums):
        def __init__(self, group):
            super().__init__()
            self.commits = []
            made.append(self)

        def commit(self, applied):
            self.commits.append(applied)
            super().commit(applied)

    made = []
    config = config_of(tmp_path, 1, nodes=1, checkpoints={"machine_commit_us": 600_000_000})
    node = Node(config, Sums, bootstrap=True)
    with node:
        node.wait_ready()
        applier, errors_left = node._room.applier, [1] if not ever else [1] * 10_000
        wait_s = applier.wait_s

        def fails():
            if errors_left:
                errors_left.pop()
                raise MemoryError("asked to")
            return wait_s()

        applier.wait_s = fails
        for number in range(3):
            node.group(0).propose(b"1 %d" % number)
    assert "an error on the applying thread" in caplog.text
    assert made[0].commits[-1] == 3
    with pytest.raises(Exception, match=r"open|closed"):
        made[0].db.execute("SELECT 1")


def test_an_applying_thread_that_ends_too_early_lets_go_of_its_machines(tmp_path, monkeypatch):
    class Sums(SqliteSums):
        def __init__(self, group):
            super().__init__()
            self.closed = 0
            made.append(self)

        def close(self):
            self.closed += 1
            super().close()

    made = []

    def ends(self):
        until = time.monotonic() + 20
        while not self._room.states[0].durable and time.monotonic() < until:
            time.sleep(0.01)
        raise MemoryError("asked to")

    monkeypatch.setattr(blocking.ApplierThread, "_serve", ends)
    node = Node(config_of(tmp_path, 1, nodes=1), Sums, bootstrap=True)
    node.open()
    until = time.monotonic() + 20
    while not made[0].closed and time.monotonic() < until:
        time.sleep(0.01)
    assert made[0].closed == 1
    with pytest.raises(MemoryError):
        node.close(timeout=0.1)


def test_time_is_up(tmp_path):
    with Node(config_of(tmp_path, 1), Journal, bootstrap=True) as node:
        with pytest.raises(errors.Rejected) as caught:
            node.group(0).propose(b"x", timeout=0.3)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(errors.NotReady):
            node.wait_ready(timeout=0.1)


def test_a_node_that_nobody_closed_is_closed_when_it_is_collected(tmp_path):
    node = Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True)
    node.open()
    assert node.group(0).propose(b"x").value == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del node
        gc.collect()
    assert [one.category for one in caught] == [ResourceWarning]
    with Node(config_of(tmp_path, 1, nodes=1), Journal) as node:
        node.wait_ready()
        assert node.group(0).machine().values == [b"x"]


def test_collecting_it_waits_for_nobody_for_long(tmp_path):
    """Whoever collects garbage may hold any lock: a view and a restore that are stuck, at once."""
    gate, stuck = threading.Event(), threading.Semaphore(0)

    class Stuck(Counter):
        def snapshot(self, writer):
            if slow:
                stuck.release()
                gate.wait(30)
            super().snapshot(writer)

        def restore(self, reader):
            if slow:
                stuck.release()
                gate.wait(30)
            super().restore(reader)

    slow = False
    config = config_of(tmp_path, 1, nodes=1, groups=2, checkpoints={"interval_us": 0})
    with Node(config, Stuck, bootstrap=True) as node:
        node.group(0).propose(b"1")
        node.group(0).checkpoint()
    slow = True
    node = Node(config, Stuck)
    node.open()
    node.group(1).propose(b"1")
    node._room._snapshots.ask(1)
    for _ in range(2):
        assert stuck.acquire(timeout=20)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            began = time.monotonic()
            del node
            gc.collect()
            took_s = time.monotonic() - began
    finally:
        gate.set()
    assert took_s < 3


def test_opening_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(errors.NotBootstrapped):
        Node(config_of(tmp_path, 1), Journal).open()
    with Node(config_of(tmp_path, 1, nodes=1), Journal, bootstrap=True):
        node = Node(config_of(tmp_path, 1, nodes=1), Journal)
        with pytest.raises(errors.Locked):
            node.open()
        node.close()


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux's /proc")
@pytest.mark.parametrize("groups", [1, 300])
def test_a_node_has_six_threads_however_many_groups(tmp_path, groups):
    before, known = set(os.listdir("/proc/self/task")), set(threading.enumerate())
    with blocking_cluster(tmp_path, nodes=1, groups=groups):
        assert len(set(os.listdir("/proc/self/task")) - before) == 6  # two of them are native
        names = sorted(one.name for one in set(threading.enumerate()) - known)
        assert names == ["phx-applier", "phx-control", "phx-snapshot", "phx-store"]


@pytest.fixture
def above_1023():
    """Descriptors that are opened from here on have higher numbers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < DESCRIPTORS:
        if 0 <= hard < DESCRIPTORS:
            pytest.skip(f"no more than {hard} descriptors are allowed here")
        resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))
    held = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(1100)]
    yield
    for one in held:
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("above_1023")
def test_descriptors_may_have_any_number(tmp_path):
    """select.select takes none above 1023."""

    class Slow(Journal):
        def apply(self, entry):
            time.sleep(0.002)
            return super().apply(entry)

    with blocking_cluster(tmp_path, Slow, nodes=1, groups=1) as nodes:
        for _ in range(2):
            assert len(nodes[0].group(0).propose_many([b"x"] * 30)) == 30


def test_a_cell_holds_one_outcome():
    cell = Cell()
    assert not cell.done()
    cell.set_result(3)
    assert cell.done()
    assert cell.wait() == 3
    failed = Cell()
    failed.set_exception(ValueError("why"))
    with pytest.raises(ValueError, match="why"):
        failed.wait()
