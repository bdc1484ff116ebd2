"""Durable machines in a node: opened, committed, passed over, restored, closed."""

import asyncio
import gc
import shutil
import threading
import time
import warnings

import pytest

import phx
from phx import blocking, errors
from phx.checkpoint.catalog import Catalog
from phx.checkpoint.files import OsFiles
from phx.durable import generations
from phx.machine import StateMachine
from tests.api.cluster import all_applied, cluster, config_of, introduce, until
from tests.api.test_blocking import blocking_cluster
from tests.durable.durable_lab import LmdbSums, SqliteSums, digest_of

pytestmark = pytest.mark.usefixtures("no_leaks")

QUIET = {"interval_instances": 0, "interval_us": 0}
SELDOM = QUIET | {"machine_commit_us": 600_000_000}


class Noting:
    """Notes what it applied and committed in this life."""

    def __init__(self, group=0):
        super().__init__()
        self.instances = []
        self.commits = []
        self.closed = 0

    def apply(self, entry):
        if entry.value == b"raise":
            super().apply(phx.Entry(value=b"1 1"))  # half-done
            raise RuntimeError("asked to")
        self.instances.append(entry.instance)
        return super().apply(entry)

    def commit(self, applied):
        super().commit(applied)
        self.commits.append(applied)

    def close(self):
        self.closed += 1
        super().close()


class Lmdb(Noting, LmdbSums):
    map_bytes = 16 << 20


class Sqlite(Noting, SqliteSums):
    pass


class Memory(StateMachine):
    """The same in memory."""

    def __init__(self, group=0):
        self.sums = {}
        self.instances = []

    def apply(self, entry):
        self.instances.append(entry.instance)
        key, amount = map(int, entry.value.split())
        self.sums[key] = self.sums.get(key, 0) + amount
        return self.sums[key]

    def digest(self):
        return digest_of(self.sums)


KINDS = pytest.mark.parametrize("kind", [Lmdb, Sqlite])


def alone(folder, **checkpoints):
    return config_of(folder, 1, nodes=1, checkpoints=QUIET | checkpoints)


async def grown(node, group, count, machine=0):
    for n in range(count):
        await node.group(group).propose(b"%d %d" % (n % 7, n), machine=machine)


def grown_digest(*counts):
    sums = {}
    for count in counts:
        for n in range(count):
            sums[n % 7] = sums.get(n % 7, 0) + n
    return digest_of(sums)


def folder_of(config, group=0, machine=0):
    return config.dir / "machines" / f"{group}.{machine}"


async def copied_before_its_checkpoint(config, kind, copy, count):
    """`count` values, a copy of the machine's folder, as many values again and a checkpoint."""
    for bootstrap in (True, False):
        async with phx.Node(config, kind, bootstrap=bootstrap) as node:
            await node.wait_ready()
            await grown(node, 0, count)
            if not bootstrap:
                await node.group(0).checkpoint()
        if bootstrap:
            shutil.copytree(folder_of(config), copy)


def put_back(config, copy):
    """The machine is older than its checkpoint from here on."""
    shutil.rmtree(folder_of(config))
    shutil.copytree(copy, folder_of(config))


@KINDS
def test_what_was_applied_before_a_close_is_not_applied_again(run_once, tmp_path, kind):
    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, kind, bootstrap=True) as node:
            await node.wait_ready()
            await grown(node, 0, 30)
            machine = node.group(0).machine()
            at = node.group(0).status()
        assert machine.closed == 1
        assert machine.commits[-1] == at.applied_through
        async with phx.Node(config, kind) as node:
            await node.wait_ready()
            machine, other = node.group(0).machine(), node.group(1).machine()
            assert machine.applied == at.applied_through
            assert (machine.instances, other.instances) == ([], [])
            assert machine.digest() == grown_digest(30)
            again = node.group(0).status()
            assert (
                again.applied_through == again.chosen_through
            )  # the log was followed all the same
            await grown(node, 0, 9)
            assert len(machine.instances) == 9
            assert machine.digest() == grown_digest(30, 9)
        assert [one.name for one in sorted(folder_of(config).iterdir())] == ["00000001", "current"]

    run_once(main())


@KINDS
def test_it_commits_in_time_though_nothing_comes(run_once, tmp_path, kind):
    config = alone(tmp_path, machine_commit_us=50_000)

    async def main():
        async with phx.Node(config, kind, bootstrap=True) as node:
            await node.wait_ready()
            machine = node.group(0).machine()
            await until(lambda: node.group(0).status().applied_through == machine.applied)
            before = len(machine.commits)
            await grown(node, 0, 5)
            at = node.group(0).status().applied_through
            began = time.monotonic()
            await until(lambda: machine.applied == at, seconds=5)
            assert time.monotonic() - began < 2
            assert 1 <= len(machine.commits) - before <= 6
            calm = len(machine.commits)
            await asyncio.sleep(0.2)
            assert len(machine.commits) == calm
            counters = node.status().applier
            assert counters["commits"] >= calm
            assert counters["commit_us_max"] <= counters["commit_us"]

    run_once(main())


@KINDS
def test_without_an_event_loop_it_commits_and_closes_on_the_thread_that_applies(tmp_path, kind):
    settings = {"checkpoints": QUIET | {"machine_commit_us": 50_000}}
    with blocking_cluster(tmp_path, kind, **settings) as nodes:
        for n in range(20):
            nodes[0].group(0).propose(b"%d %d" % (n % 7, n))
        machine = nodes[0].group(0).machine()
        at = nodes[0].group(0).status().applied_through
        end = time.monotonic() + 5
        while machine.applied < at:
            assert time.monotonic() < end
            time.sleep(0.01)
        nodes[0].group(0).propose(b"1 1")
        last = nodes[0].group(0).status().applied_through
    assert machine.applied >= last
    assert machine.closed == 1


@KINDS
def test_an_apply_that_raises_closes_the_machine_as_it_was_committed(run_once, tmp_path, kind):
    config = alone(tmp_path, **SELDOM)

    async def main():
        async with phx.Node(config, {0: kind, 1: kind}, bootstrap=True) as node:
            await node.wait_ready()
            group = node.group(0)
            await grown(node, 0, 10)
            await grown(node, 0, 10, machine=1)
            taken = await group.checkpoint()
            await grown(node, 0, 3, machine=1)
            machines = [group.machine(0), group.machine(1)]
            with pytest.raises(errors.StoppedUnknown):
                await group.propose(b"raise")
            assert [one.closed for one in machines] == [1, 1]
            with pytest.raises(errors.CheckpointFailed, match="asked to"):
                await group.checkpoint()
            await grown(node, 1, 3)  # the others go on
        assert [one.closed for one in machines] == [1, 1]
        assert [one.commits[-1] for one in machines] == [taken.frontier] * 2
        again = kind()
        assert again.open(folder_of(config) / "00000001") == taken.frontier
        assert again.digest() == grown_digest(10)
        again.close()

    run_once(main())


def test_machines_of_a_node_whose_thread_has_ended_are_closed(tmp_path):
    """It was never closed; whoever looks at its machine still does not keep the files."""
    config = alone(tmp_path)
    kept = []

    async def main():
        node = phx.Node(config, Lmdb, bootstrap=True)
        await node.open()
        await node.wait_ready()
        await grown(node, 0, 1)
        kept.append(node.group(0).machine())

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        thread.start()
        thread.join()
        gc.collect()
    assert kept[0].closed == 1
    with blocking.Node(config, Lmdb) as node:
        node.wait_ready()
        assert not node.group(0).status().stopped
        node.group(0).propose(b"1 1")


def test_a_commit_that_raises_stops_its_group_alone(run_once, tmp_path):
    class Fails(Sqlite):
        def commit(self, applied):
            if self.instances and self.fails:
                raise OSError(28, "no space")
            super().commit(applied)

        fails = False

    config = alone(tmp_path, machine_commit_us=20_000)

    async def main():
        async with phx.Node(config, Fails, bootstrap=True) as node:
            await node.wait_ready()
            machine = node.group(0).machine()
            machine.fails = True
            await grown(node, 0, 1)
            await until(lambda: node.group(0).status().stopped)
            assert machine.closed == 1
            with pytest.raises(errors.GroupStopped, match="commit raised OSError"):
                await node.group(0).propose(b"1 1")
            await grown(node, 1, 5)
            assert not node.group(1).status().stopped
        async with phx.Node(config, Fails) as node:
            await node.wait_ready()
            assert node.group(0).machine().digest() == grown_digest(1)

    run_once(main())


@KINDS
def test_replicas_in_memory_and_in_files_agree_whatever_is_started_again(run_once, tmp_path, kind):
    settings = {"checkpoints": QUIET | {"machine_commit_us": 20_000}, "groups": 1}
    kinds = [kind, Memory, kind]

    async def main():
        async with cluster(tmp_path, lambda group: None, nodes=0) as nodes:
            for node, one in enumerate(kinds, 1):
                made = phx.Node(config_of(tmp_path, node, **settings), one, bootstrap=True)
                await made.open()
                nodes.append(made)
            introduce(nodes)
            await asyncio.gather(*(node.wait_ready() for node in nodes))
            for turn in range(4):
                await grown(nodes[1], 0, 40)
                if turn % 2:
                    await nodes[2].group(0).checkpoint()
                await nodes[2].close()
                await grown(nodes[0], 0, 40)
                nodes[2] = phx.Node(config_of(tmp_path, 3, **settings), kind)
                await nodes[2].open()
                introduce(nodes)
                await nodes[2].wait_ready()
                await grown(nodes[2], 0, 10)
            await all_applied(nodes)
            found = {node.group(0).machine().digest() for node in nodes}
            assert found == {grown_digest(*[40, 40, 10] * 4)}
            assert len(nodes[2].group(0).machine().instances) <= 50

    run_once(main())


# --- checkpoints


def manifests(config, group=0):
    return Catalog.scan(OsFiles(config.dir), "checkpoints").get(group, [])


@KINDS
def test_they_are_light_where_all_is_durable_and_full_where_somebody_asked(
    run_once, tmp_path, kind
):
    config = alone(tmp_path, **SELDOM | {"interval_instances": 40, "keep": 9})

    async def main():
        async with phx.Node(config, kind, bootstrap=True) as node:
            await node.wait_ready()
            while node.status().checkpoints["taken"] < 2:
                await grown(node, 0, 10)
            machine = node.group(0).machine()
            light = manifests(config)
            assert all(one.light and not one.files for one in light)
            assert [one.frontier for one in reversed(light)] == machine.commits[: len(light)]
            taken = await node.group(0).checkpoint()
            assert taken.bytes > 0
            full = manifests(config)[0]
            assert (full.frontier, full.light) == (taken.frontier, False)
            assert machine.commits[-1] == taken.frontier
            await grown(node, 0, 3)
            digest = machine.digest()
        # Without its own files it is restored from the full one, and goes on from there.
        shutil.rmtree(folder_of(config))
        async with phx.Node(config, kind) as node:
            await node.wait_ready()
            again = node.group(0).machine()
            assert again.digest() == digest
            assert len(again.instances) == 3
            assert node.status().checkpoints["restored"] == 1
            await grown(node, 0, 1)
        # Light ones do not help: the whole log does.
        for one in manifests(config):
            if not one.light:
                shutil.rmtree(config.dir / "checkpoints/0" / f"{one.frontier:020d}-{one.ident[:8]}")
        shutil.rmtree(folder_of(config))
        async with phx.Node(config, kind) as node:
            await node.wait_ready()
            assert node.group(0).machine().instances[0] < light[-1].frontier
            assert node.status().checkpoints["restored"] == 0
            assert node.group(0).machine().digest() == digest  # the last one added nothing

    run_once(main())


@KINDS
@pytest.mark.parametrize("full", [True, False])
def test_a_start_from_a_checkpoint_below_it_passes_over_what_it_has(run_once, tmp_path, kind, full):
    """K of the checkpoint, then A of the machine, then the end of the log."""
    first = alone(tmp_path, **SELDOM | ({} if full else {"interval_instances": 30}))
    config = alone(tmp_path, **SELDOM)

    async def main():
        async with phx.Node(first, kind, bootstrap=True) as node:
            await node.wait_ready()
            await grown(node, 0, 20)
            if full:
                await node.group(0).checkpoint()
            while not node.status().checkpoints["taken"]:
                await grown(node, 0, 10)
        async with phx.Node(config, kind) as node:
            await node.wait_ready()
            await grown(node, 0, 5)
            digest, at = node.group(0).machine().digest(), node.group(0).status()
        taken = manifests(config)[0]
        assert taken.light is not full
        assert taken.frontier < at.applied_through
        async with phx.Node(config, kind) as node:
            await node.wait_ready()
            machine = node.group(0).machine()
            assert (machine.instances, machine.digest()) == ([], digest)
            assert node.status().checkpoints["restored"] == 1
            again = node.group(0).status()
            if again.digest_at == at.digest_at:
                assert again.digest == at.digest
            await grown(node, 0, 1)
            assert len(machine.instances) == 1

    run_once(main())


@KINDS
def test_a_group_of_a_durable_machine_and_one_in_memory_is_one_state(run_once, tmp_path, kind):
    from phx.machines import Counter

    class Both(Counter):
        def apply(self, entry):
            return super().apply(phx.Entry(value=b"1"))

    often = alone(tmp_path, **SELDOM | {"interval_instances": 40, "keep": 9})

    async def main():
        async with phx.Node(often, {0: Both, 1: kind}, bootstrap=True) as node:
            await node.wait_ready()
            while node.status().checkpoints["taken"] < 2:
                await grown(node, 0, 10)
                await grown(node, 0, 10, machine=1)
            assert all(not one.light and len(one.files) == 2 for one in manifests(often))
        config = alone(tmp_path, **SELDOM)
        async with phx.Node(config, {0: Both, 1: kind}) as node:
            await node.wait_ready()
            await grown(node, 0, 3)
            await grown(node, 0, 4, machine=1)
            totals = node.group(0).machine(0).total, node.group(0).machine(1).digest()
            frontier = manifests(config)[0].frontier
        for lost in (False, True):
            if lost:
                shutil.rmtree(folder_of(config, machine=1))
            async with phx.Node(config, {0: Both, 1: kind}) as node:
                await node.wait_ready()
                found = node.group(0).machine(0), node.group(0).machine(1)
                assert (found[0].total, found[1].digest()) == totals
                assert bool(found[1].instances) is lost
                assert all(one > frontier for one in found[1].instances)

    run_once(main())


# --- damage


def spoil(folder, kind):
    (made,) = folder.glob("0*/data.mdb" if kind is Lmdb else "0*/state.db")
    made.write_bytes(b"\xff" * 8192)
    for beside in made.parent.glob("*-wal"):
        beside.unlink()


@KINDS
@pytest.mark.parametrize("what", ["files", "current", "lost current", "generation"])
@pytest.mark.parametrize("taken", [True, False])
def test_a_damaged_machine_is_put_aside_and_restored(run_once, tmp_path, kind, what, taken, caplog):
    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, kind, bootstrap=True) as node:
            await node.wait_ready()
            await grown(node, 0, 10)
            if taken:
                await node.group(0).checkpoint()
            await grown(node, 0, 6)
        folder = folder_of(config)
        if what == "files":
            spoil(folder, kind)
        elif what == "current":
            (folder / "current").write_bytes(b"0000\n")
        elif what == "lost current":
            (folder / "current").unlink()
        else:
            shutil.rmtree(folder / "00000001")
        async with phx.Node(config, kind) as node:
            await node.wait_ready()
            machine = node.group(0).machine()
            assert machine.digest() == grown_digest(10, 6)
            assert len(machine.instances) == (6 if taken else 16)
        assert "the files of machine 0 are damaged" in caplog.text
        (aside,) = (config.dir / "quarantine").iterdir()
        assert aside.name.startswith("machine-0.0-")
        assert (aside / "0.0" / "current").exists() == (what != "lost current")
        assert (aside / "0.0" / "00000001").exists() == (what != "generation")
        async with phx.Node(config, kind) as node:
            await node.wait_ready()
            assert node.group(0).machine().instances == []

    run_once(main())


def test_a_machine_that_cannot_be_opened_now_stops_its_group_and_loses_nothing(run_once, tmp_path):
    class NotNow(Sqlite):
        def open(self, folder):
            if "0.0" in str(folder):
                raise PermissionError(13, "not now")
            return super().open(folder)

    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Sqlite, bootstrap=True) as node:
            await node.wait_ready()
            await grown(node, 0, 10)
        async with phx.Node(config, NotNow) as node:
            await until(lambda: node.group(0).status().stopped)
            await node.wait_ready()
            await grown(node, 1, 1)
        assert not (config.dir / "quarantine").exists()
        async with phx.Node(config, Sqlite) as node:
            await node.wait_ready()
            assert node.group(0).machine().instances == []
            assert node.group(0).machine().digest() == grown_digest(10)

    run_once(main())


@pytest.mark.parametrize("restore", [False, True])
def test_without_room_for_a_new_generation_nothing_is_opened_or_closed_for_it(
    run_once, tmp_path, monkeypatch, restore
):
    config = alone(tmp_path)
    begin, made = generations.Generations.begin, []

    class Told(Sqlite):
        def __init__(self, group=0):
            super().__init__(group)
            self.calls = []
            made.append(self)

        def open(self, folder):
            self.calls.append("open")
            return super().open(folder)

        def close(self):
            self.calls.append("close")
            super().close()

    def full(self):
        if self._folder.name == "0.0":
            raise OSError(28, "no space")
        return begin(self)

    async def main():
        if restore:  # it is behind the checkpoint
            await copied_before_its_checkpoint(config, Sqlite, tmp_path / "copy", 5)
            put_back(config, tmp_path / "copy")
        with monkeypatch.context() as patch:
            patch.setattr(generations.Generations, "begin", full)
            async with phx.Node(config, Told, bootstrap=not restore) as node:
                if restore:  # what it has goes on, with the log
                    await node.wait_ready()
                    assert node.group(0).machine().digest() == grown_digest(5, 5)
                else:
                    await until(lambda: node.group(0).status().stopped)
        assert all(one.calls in ([], ["open", "close"]) for one in made)
        assert any(one.calls for one in made)
        async with phx.Node(config, Sqlite) as node:
            await node.wait_ready()
            await grown(node, 0, 1)
            assert not node.group(0).status().stopped

    run_once(main())


def test_machines_without_the_log_that_they_follow_are_refused(run_once, tmp_path):
    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Sqlite, bootstrap=True) as node:
            await node.wait_ready()
        shutil.rmtree(config.dir / "journal")
        shutil.rmtree(config.dir / "store")
        with pytest.raises(errors.Damaged, match="machines"):
            await phx.Node(config, Sqlite, bootstrap=True).open()

    run_once(main())


def test_a_checkpoint_of_a_machine_of_another_kind_does_not_serve(run_once, tmp_path, caplog):
    from phx.machines import Counter

    config = alone(tmp_path)

    class Durable(SqliteSums):
        def __init__(self, group):
            super().__init__()

        def apply(self, entry):
            return super().apply(phx.Entry(value=b"0 1"))

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            for _ in range(5):
                await node.group(0).propose(b"1")
            await node.group(0).checkpoint()
        async with phx.Node(config, Durable) as node:
            await node.wait_ready()
            assert node.group(0).machine().digest() == digest_of({0: 5})
        assert "another kind" in caplog.text

    run_once(main())


def test_a_restore_that_fails_leaves_the_machine_with_what_it_had(
    run_once, tmp_path, monkeypatch, caplog
):
    """The machine is older than the checkpoint (its folder was put back from a copy)."""
    config = alone(tmp_path)

    async def main():
        await copied_before_its_checkpoint(config, Lmdb, tmp_path / "copy", 10)
        async with phx.Node(config, Lmdb) as node:
            await node.wait_ready()
            await grown(node, 0, 2)
        put_back(config, tmp_path / "copy")

        def refuse(self, reader):
            reader.read(100)
            raise ValueError("another version")

        with monkeypatch.context() as patch:
            patch.setattr(Lmdb, "restore", refuse)
            async with phx.Node(config, Lmdb) as node:
                await node.wait_ready()
                machine = node.group(0).machine()
                assert machine.digest() == grown_digest(10, 10, 2)
                assert len(machine.instances) == 12
                assert "cannot be restored" in caplog.text
        assert [one.name for one in folder_of(config).glob("0*")] == ["00000001"]
        put_back(config, tmp_path / "copy")
        async with phx.Node(config, Lmdb) as node:
            await node.wait_ready()
            machine = node.group(0).machine()
            assert machine.digest() == grown_digest(10, 10, 2)
            assert len(machine.instances) == 2
        assert [one.name for one in folder_of(config).glob("0*")] == ["00000002"]
        assert generations.Generations(folder_of(config)).current().name == "00000002"

    run_once(main())
