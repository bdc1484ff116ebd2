"""Checkpoints of a node: taken while groups go on, and what a start makes of them."""

import asyncio
import errno
import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest

import phx
from phx import errors
from phx.checkpoint import policy, taking
from phx.checkpoint.files import OsFiles
from phx.machine import CopyView
from phx.machines import Counter, KeyValue
from phx.machines.kv import encode_set
from phx.node import control, restorer, snapshots
from tests.api.cluster import Journal, cluster, config_of, introduce
from tests.api.test_blocking import blocking_cluster

pytestmark = pytest.mark.usefixtures("no_leaks")

QUIET = {"interval_instances": 0, "interval_us": 0}


class Seen(Counter):
    """Notes the instances that it applied in this life."""

    def __init__(self, group=0):
        super().__init__(group)
        self.instances = []

    def apply(self, entry):
        self.instances.append(entry.instance)
        return super().apply(entry)


def alone(folder, **checkpoints):
    return config_of(folder, 1, nodes=1, checkpoints=QUIET | checkpoints)


async def grown(node, group, count):
    for _ in range(count):
        await node.group(group).propose(b"1")


def of(config, group=0):
    return sorted((config.dir / "checkpoints" / str(group)).glob("*-*"))


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_start_applies_only_what_came_after_the_checkpoint(run_once, tmp_path):
    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 30)
            taken = await node.group(0).checkpoint()
            before = node.group(0).status()
            assert (taken.group, taken.frontier) == (0, before.applied_through)
            assert Path(taken.path) == of(config)[0]
            assert taken.bytes > 0
            await grown(node, 0, 7)
            await grown(node, 1, 3)
            digest, at = node.group(0).status().digest, node.group(0).status().digest_at
        async with phx.Node(config, Seen) as node:
            await node.wait_ready()
            machine, other = node.group(0).machine(), node.group(1).machine()
            assert (machine.total, other.total) == (37, 3)
            assert len(machine.instances) == 7
            assert machine.instances[0] > taken.frontier
            assert len(other.instances) == 3
            await grown(node, 0, 1)
            assert machine.total == 38
            status = node.group(0).status()
            assert status.applied_through == status.chosen_through
            if status.digest_at == at:
                assert status.digest == digest

    run_once(main())


def test_digests_of_replicas_agree_after_a_start_from_a_checkpoint(run_once, tmp_path):
    async def main():
        settings = {"checkpoints": QUIET}
        async with cluster(tmp_path, Seen, groups=1, **settings) as nodes:
            load = asyncio.ensure_future(grown(nodes[1], 0, 400))
            await asyncio.sleep(0.05)
            await nodes[2].group(0).checkpoint()
            await load
            await nodes[2].close()
            await grown(nodes[1], 0, 40)
            again = nodes[2] = phx.Node(config_of(tmp_path, 3, groups=1, **settings), Seen)
            await again.open()
            introduce(nodes)
            await again.wait_ready()
            await grown(again, 0, 5)
            await grown(nodes[0], 0, 5)
            for _ in range(500):
                found = [node.group(0).status() for node in nodes]
                if len({one.digest_at for one in found}) == 1:
                    break
                await asyncio.sleep(0.01)
            assert len({(one.digest_at, one.digest) for one in found}) == 1
            assert {node.group(0).machine().total for node in nodes} == {450}
            assert len(again.group(0).machine().instances) < 450

    run_once(main())


def test_it_is_one_state_whatever_is_applied_meanwhile(run_once, tmp_path):
    """Two machines that each value changes alike are equal in every checkpoint."""
    config = alone(tmp_path, keep=100)

    async def main():
        rounds, frontiers = [], set()
        async with phx.Node(config, {0: Seen, 1: Seen}, bootstrap=True) as node:
            group = node.group(0)

            async def both():
                while len(rounds) < 300 or len(frontiers) < 4:
                    rounds.append(await asyncio.gather(
                        group.propose_many([b"1"] * 5), group.propose_many([b"1"] * 5, machine=1)
                    ))  # fmt: skip

            with pytest.raises(errors.CheckpointFailed, match="nothing is applied yet"):
                await node.group(1).checkpoint()
            await group.propose(b"0")
            load = asyncio.ensure_future(both())
            while not load.done():
                frontiers.add((await group.checkpoint()).frontier)
            await load
        found = of(config)
        assert len(found) == len(frontiers)
        while found:  # start from every one of them, the newest first
            async with phx.Node(config, {0: Seen, 1: Seen}) as node:
                await node.wait_ready()
                machines = [node.group(0).machine(n) for n in (0, 1)]
                assert [one.total for one in machines] == [5 * len(rounds)] * 2
                frontier = int(found[-1].name.partition("-")[0])
                assert all(n > frontier for one in machines for n in one.instances)
            shutil.rmtree(found.pop())

    run_once(main())


@pytest.mark.parametrize("what", ["manifest", "machine-0"])
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(run_once, tmp_path, what, caplog):
    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            for _ in range(2):
                await grown(node, 0, 10)
                await node.group(0).checkpoint()
            await grown(node, 0, 1)
        older, newer = of(config)
        flip(newer / what)
        async with phx.Node(config, Seen) as node:
            await node.wait_ready()
            assert node.group(0).machine().total == 21
            assert len(node.group(0).machine().instances) == 11
            assert of(config) == [older]
            assert list((config.dir / "quarantine").iterdir())
            said = "the manifest's digest" if what == "manifest" else "damaged checkpoint"
            assert said in caplog.text
        for one in of(config):
            shutil.rmtree(one)
        async with phx.Node(config, Seen) as node:
            await node.wait_ready()
            assert len(node.group(0).machine().instances) == 21

    run_once(main())


def test_a_machine_that_cannot_be_restored_gets_the_log(run_once, tmp_path, caplog):
    class Refuses(Seen):
        def restore(self, reader):
            self.total = 1_000_000
            raise ValueError("another version")

    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 10)
            await node.group(0).checkpoint()
        async with phx.Node(config, Refuses) as node:
            await node.wait_ready()
            assert node.group(0).machine().total == 10
            assert "cannot be restored" in caplog.text
        assert len(of(config)) == 1
        async with phx.Node(config, {0: Seen, 7: Seen}) as node:
            await node.wait_ready()
            assert node.group(0).machine(0).total == 10
            assert "machines [0], the group has [0, 7]" in caplog.text

    run_once(main())


def test_checkpoints_come_by_themselves_and_the_oldest_go(run_once, tmp_path):
    config = alone(tmp_path, interval_instances=40, keep=2)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 100)
            for _ in range(10):
                await grown(node, 0, 40)
                await asyncio.sleep(0.02)
            for _ in range(300):
                if node.status().checkpoints["taken"] >= 4:
                    break
                await grown(node, 0, 1)
                await asyncio.sleep(0.01)
            assert node.status().checkpoints["taken"] >= 4
            assert len(of(config)) == 2
            assert not of(config, 1)

    run_once(main())


def test_a_group_that_is_seldom_used_gets_one_in_time_and_no_second_for_nothing(run_once, tmp_path):
    config = alone(tmp_path, interval_us=1_000_000)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 1, 3)
            for _ in range(500):
                if of(config, 1):
                    break
                await asyncio.sleep(0.02)
            assert len(of(config, 1)) == 1
            await asyncio.sleep(2.5)
            assert node.status().checkpoints["taken"] == 1
            assert not of(config, 0)

    run_once(main())


def test_what_cannot_be_taken_says_why(run_once, tmp_path):
    async def main():
        async with phx.Node(alone(tmp_path), Journal, bootstrap=True) as node:
            await node.group(0).propose(b"x")
            with pytest.raises(errors.CheckpointFailed, match="machine 0 of group 0 gives no view"):
                await node.group(0).checkpoint()
            node.group(1).machine().raises = True
            with pytest.raises(errors.StoppedUnknown):
                await node.group(1).propose(b"raise")
            with pytest.raises(errors.CheckpointFailed, match="stopped"):
                await node.group(1).checkpoint()
            assert "group 1" in node.status().checkpoint_error
            late = node.group(0)
        with pytest.raises(errors.Closed):
            await late.checkpoint()

    run_once(main())


def test_a_full_disk_fails_the_checkpoint_and_nothing_else(run_once, tmp_path):
    async def main():
        config = alone(tmp_path, reserve_bytes=1 << 40)
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 3)
            with pytest.raises(errors.CheckpointFailed, match="must stay free"):
                await node.group(0).checkpoint()
            await grown(node, 0, 3)
            assert node.group(0).machine().total == 6
            assert not of(config)
            assert node.status().checkpoints["failed"] == 1

    run_once(main())


def test_a_view_that_fails_leaves_nothing_and_is_closed(run_once, tmp_path):
    class View:
        closed = 0

        def snapshot(self, writer):
            writer.write(b"half")
            raise RuntimeError("asked to")

        def close(self):
            View.closed += 1

    class Fails(Seen):
        def freeze(self):
            return View()

    async def main():
        config = alone(tmp_path)
        async with phx.Node(config, Fails, bootstrap=True) as node:
            await grown(node, 0, 3)
            with pytest.raises(RuntimeError, match="asked to"):
                await node.group(0).checkpoint()
            assert View.closed == 1
            assert not of(config)
            assert not list((config.dir / "checkpoints" / "staging").iterdir())

    run_once(main())


def test_closing_ends_a_checkpoint_that_is_being_written(run_once, tmp_path):
    class Large(Seen):
        def snapshot(self, writer):
            for _ in range(1000):
                writer.write(bytes(1 << 20))

    async def main():
        config = alone(tmp_path, write_bytes_per_s=1 << 20)
        async with phx.Node(config, Large, bootstrap=True) as node:
            await grown(node, 0, 1)
            await grown(node, 1, 1)
            taking = asyncio.ensure_future(node.group(0).checkpoint())
            waiting = asyncio.ensure_future(node.group(1).checkpoint())
            await asyncio.sleep(0.3)
        for future in (taking, waiting):
            with pytest.raises(errors.CheckpointFailed, match="close"):
                await future
        assert not of(config)

    run_once(main())


def test_they_come_by_the_bytes_of_the_log_too(run_once, tmp_path):
    config = alone(tmp_path, interval_bytes=200_000, keep=100)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await node.wait_ready()
            await grown(node, 1, 300)  # small ones
            value, sent = b"1" + b" " * 9_999, 0
            while node.status().checkpoints["taken"] < 3:
                await node.group(0).propose(value)
                sent += len(value)
                assert sent < 2_000_000
            assert sent > 400_000
        frontiers = [int(one.name[:20]) for one in of(config)]
        assert all(after - before >= 20 for before, after in pairwise(frontiers))
        assert not of(config, 1)

    run_once(main())


def test_without_an_event_loop(tmp_path):
    with blocking_cluster(tmp_path, KeyValue, checkpoints=QUIET) as nodes:
        for n in range(20):
            nodes[0].group(0).propose(encode_set(b"k%d" % n, b"v"))
        taken = nodes[1].group(0).checkpoint()
        assert taken.frontier > 0


def test_checkpoints_of_another_life_are_refused(run_once, tmp_path):
    """A new log begins at 1: under a checkpoint at 30 its first 30 instances would vanish."""
    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 30)
            await node.group(0).checkpoint()
        for name in ("journal", "store"):
            shutil.rmtree(config.dir / name)
        for _ in range(2):
            with pytest.raises(errors.Damaged, match="checkpoints"):
                await phx.Node(config, Seen, bootstrap=True).open()

    run_once(main())


def test_what_is_read_differently_the_second_time_is_not_taken(run_once, tmp_path, monkeypatch):
    config = alone(tmp_path)
    reads = 0

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 9)
            await node.group(0).checkpoint()
        good = restorer.StoppableFiles.read

        def second(files, path):
            nonlocal reads
            reads += 1
            if reads == 2:
                flip(config.dir / path, -2)
            return good(files, path)

        monkeypatch.setattr(restorer.StoppableFiles, "read", second)
        async with phx.Node(config, Seen) as node:
            await node.wait_ready()
            assert node.group(0).machine().total == 9
            assert len(node.group(0).machine().instances) == 9
        assert reads == 2

    run_once(main())


def test_a_file_that_cannot_be_opened_now_is_not_damage(run_once, tmp_path, monkeypatch):
    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 9)
            await node.group(0).checkpoint()

        def none_left(files, path):
            raise OSError(errno.EMFILE, "too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(restorer.StoppableFiles, "read", none_left)
            async with phx.Node(config, Seen) as node:
                await node.wait_ready()
                assert len(node.group(0).machine().instances) == 9
        assert len(of(config)) == 1
        async with phx.Node(config, Seen) as node:
            await node.wait_ready()
            assert not node.group(0).machine().instances

    run_once(main())


def test_a_restore_that_exits_stops_nobody_else(run_once, tmp_path):
    class Exits(Seen):
        def __init__(self, group=0):
            super().__init__(group)
            self.group = group

        def restore(self, reader):
            if self.group < 2:
                raise SystemExit(3)
            super().restore(reader)

    config = config_of(tmp_path, 1, nodes=1, groups=4, checkpoints=QUIET)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            for group in range(4):
                await grown(node, group, 5)
                await node.group(group).checkpoint()
        async with phx.Node(config, Exits) as node:
            await node.wait_ready()
            assert [len(one.machine().instances) for one in node.groups] == [5, 5, 0, 0]

    run_once(main())


def test_a_group_that_cannot_be_restored_at_all_stops(run_once, tmp_path):
    made = 0

    def factory(group):
        nonlocal made
        made += 1
        if made > 2:
            raise RuntimeError("no more")
        return Refusing() if made else Seen()

    class Refusing(Seen):
        def restore(self, reader):
            raise ValueError("another version")

    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 5)
            await node.group(0).checkpoint()
        async with phx.Node(config, factory) as node:
            await node.wait_ready()
            with pytest.raises(errors.GroupStopped, match="could not be restored"):
                await node.group(0).propose(b"1")
            assert node.status().stopped == (0,)
            await grown(node, 1, 2)

    run_once(main())


@pytest.mark.parametrize("where", ["snapshot", "freeze"])
def test_a_view_that_exits_fails_its_checkpoint_and_no_other(tmp_path, where):
    class Exits(Seen):
        exits = True

        def freeze(self):
            if Exits.exits and where == "freeze":
                Exits.exits = False
                raise SystemExit(3)
            return super().freeze()

        def snapshot(self, writer):
            if Exits.exits and where == "snapshot":
                Exits.exits = False
                raise SystemExit(3)
            super().snapshot(writer)

    with blocking_cluster(tmp_path, Exits, nodes=1, checkpoints=QUIET) as (node,):
        node.group(0).propose(b"1")
        with pytest.raises(errors.CheckpointFailed, match="SystemExit"):
            node.group(0).checkpoint()
        node.group(1).propose(b"1")
        assert node.group(0).checkpoint().frontier > 0


def test_closing_does_not_wait_for_a_long_restore(run_once, tmp_path):
    class Slow(Seen):
        def restore(self, reader):
            for _ in range(10_000):
                time.sleep(0.002)
                reader.read(1)
                if self.total < 0:
                    break

        def snapshot(self, writer):
            writer.write(bytes(100_000))

    config = alone(tmp_path)

    async def main():
        async with phx.Node(config, Slow, bootstrap=True) as node:
            await grown(node, 0, 1)
            await node.group(0).checkpoint()
        async with phx.Node(config, Slow):
            await asyncio.sleep(0.1)
            began = time.monotonic()
        assert time.monotonic() - began < 8

    run_once(main())


def held_by(gate):
    """Machines that are not restored before it opens."""

    class Held(Seen):
        def restore(self, reader):
            gate.wait(20)
            super().restore(reader)

    return Held


def test_one_of_a_group_that_is_being_restored_waits_for_it_and_holds_up_no_other(
    run_once, tmp_path
):
    config = alone(tmp_path)
    gate = threading.Event()

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await node.wait_ready()
            await grown(node, 0, 5)
            await grown(node, 1, 1)
            before = await node.group(0).checkpoint()
        async with phx.Node(config, held_by(gate)) as node:
            await node.wait_ready([1])
            taking = asyncio.ensure_future(node.group(0).checkpoint())
            await asyncio.sleep(0)
            other = await asyncio.wait_for(node.group(1).checkpoint(), 10)
            assert other.group == 1
            done, _ = await asyncio.wait([taking], timeout=1)
            assert not done
            gate.set()
            taken = await taking
            assert taken.group == 0
            assert taken.frontier >= before.frontier
            assert node.group(0).machine().total == 5

    run_once(main())


def test_one_that_is_asked_for_as_soon_as_the_node_listens_holds_up_no_other(
    run_once, tmp_path, monkeypatch
):
    config = alone(tmp_path)
    gate = threading.Event()
    listen = control.Control.listen

    def busy(self):
        listen(self)
        self._take(0)
        time.sleep(0.3)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 1)
            await grown(node, 1, 1)
            await node.group(0).checkpoint()
        monkeypatch.setattr(control.Control, "listen", busy)
        async with phx.Node(config, held_by(gate)) as node:
            await node.wait_ready([1])
            try:
                await asyncio.wait_for(node.group(1).checkpoint(), 5)
            finally:
                gate.set()

    run_once(main())


def test_it_is_captured_once(tmp_path, monkeypatch):
    """The applying thread takes a turn while the other one has just been given what it wanted."""
    made, closed = [], []

    class View(CopyView):
        def close(self):
            closed.append(self)
            super().close()

    class Noting(Counter):
        def freeze(self):
            made.append(View(Counter()))
            return made[-1]

    plain = snapshots.Snapshots._await

    def slow(self, seconds):
        if (taken := plain(self, seconds)) is not None:
            self._wake()
            time.sleep(0.2)
        return taken

    monkeypatch.setattr(snapshots.Snapshots, "_await", slow)
    settings = {"groups": 1, "checkpoints": QUIET}
    with blocking_cluster(tmp_path, Noting, nodes=1, **settings) as nodes:
        for _ in range(2):
            nodes[0].group(0).propose(b"1")
            nodes[0].group(0).checkpoint()
    assert len(made) == 2
    assert closed == made


def test_after_a_failure_it_is_tried_again(run_once, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "RETRY_S", 0.1)
    config = alone(tmp_path, interval_instances=40, interval_us=3_600_000_000)

    async def main():
        async with phx.Node(config, Seen, bootstrap=True) as node:
            await grown(node, 0, 5)
            await node.group(0).checkpoint()
            fails = 2

            def full(*args, **others):
                nonlocal fails
                fails -= 1
                if fails >= 0:
                    raise OSError(errno.ENOSPC, "full")
                return taking.take(*args, **others)

            monkeypatch.setattr(snapshots, "take", full)
            await grown(node, 0, 60)
            for _ in range(500):
                if node.status().checkpoints["taken"] == 2:
                    break
                await asyncio.sleep(0.02)
            status = node.status().checkpoints
            assert (status["taken"], status["failed"]) == (2, 2)

    run_once(main())


def test_room_that_goes_while_it_is_written_ends_a_checkpoint(run_once, tmp_path, monkeypatch):
    class Large(Seen):
        def snapshot(self, writer):
            for _ in range(64):
                writer.write(bytes(1 << 20))

    free = [1 << 40, 1 << 40, 0]  # at first, after 8 MiB, after 16 MiB
    monkeypatch.setattr(OsFiles, "free_bytes", lambda files: free.pop(0) if free else 0)

    async def main():
        config = alone(tmp_path, write_bytes_per_s=1 << 40, reserve_bytes=1 << 20)
        async with phx.Node(config, Large, bootstrap=True) as node:
            await grown(node, 0, 1)
            with pytest.raises(errors.CheckpointFailed, match="must stay free"):
                await node.group(0).checkpoint()
            assert not free
            assert not of(config)
            assert not list((config.dir / "checkpoints" / "staging").iterdir())

    run_once(main())


def test_they_are_written_no_faster_than_they_may_be(run_once, tmp_path):
    class Large(Seen):
        def snapshot(self, writer):
            for _ in range(4):
                writer.write(bytes(1 << 20))

    async def main():
        config = alone(tmp_path, write_bytes_per_s=8 << 20)
        async with phx.Node(config, Large, bootstrap=True) as node:
            await grown(node, 0, 1)
            taken = await node.group(0).checkpoint()
            assert taken.bytes == 4 << 20
            assert taken.seconds > 0.4

    run_once(main())
