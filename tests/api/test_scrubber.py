"""What lies on the disk is read again: each kind of damage is found, and what comes of it."""

import asyncio
import errno
import shutil
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

import phx
from phx import errors
from phx.checkpoint.catalog import ROOT, Catalog
from phx.checkpoint.files import OsFiles
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.node import scrubber
from phx.node.scrubber import CHECKPOINTS, CHUNKS, OVER, PAGES, SEGMENTS, Place, Scrubber, Told
from phx.store import Store

from .cluster import all_applied, cluster, config_of, until

pytestmark = pytest.mark.usefixtures("no_leaks")
QUIET = {"interval_instances": 0, "interval_us": 0, "scrub_bytes_per_s": 0}
FAST = {**QUIET, "scrub_bytes_per_s": 1 << 34}
VALUE = b"a value that stands in one place only "


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A closed node: two groups, each with a chunk and a checkpoint."""
    config = config_of(tmp_path_factory.mktemp("scrub"), 1, nodes=1, checkpoints=QUIET)

    async def main():
        async with phx.Node(config, KeyValue, bootstrap=True) as node:
            for group in (0, 1):
                for n in range(10):
                    await node.group(group).propose(encode_set(b"%d" % n, VALUE + b"%d" % group))
                await node.group(group).checkpoint()

    with asyncio.Runner() as runner:
        runner.run(main())
    return config.dir


class Journal:
    """Two closed segments, of which the second has a bad record."""

    def segments(self):
        return [(4096, 8192), (8192, 12288)]

    def check(self, lsn, bytes_max):
        return -1 if lsn == 10240 else min(bytes_max, 1024)


class Lab:
    def __init__(self, folder: Path, monkeypatch=None):
        self.folder = folder
        self.files = OsFiles(folder)
        self.store = Store.open(folder / "store", cluster=cluster_id(), node=1)
        self.catalog = Catalog.open(self.files, ROOT)
        self.said: list[tuple[str, object]] = []
        self.made = self.again()

    def again(self, rate=1 << 40, round_s=3600.0) -> Scrubber:
        say = self.said.append
        told = Told(
            page=lambda what: say(("page", what)),
            chunk=lambda chunk: say(("chunk", chunk)),
            checkpoint=lambda manifest, why: say(("checkpoint", manifest.group)),
            journal=lambda lsn: say(("journal", lsn)),
        )
        return Scrubber(
            self.store,
            self.catalog,
            Journal(),
            self.ask,
            told,
            bytes_per_s=rate,
            round_s=round_s,
        )

    def ask(self, action):
        done: Future = Future()
        done.set_result(action(self.store))
        return done

    def round(self, made: Scrubber | None = None) -> list[int]:
        """Scrub to the end of a round; the parts in their order."""
        made = made or self.made
        parts = []
        for _ in range(1000):
            made.step()
            parts.append(made.place.part)
            if parts[-1] == OVER:
                return parts
        raise AssertionError("it does not end")


def cluster_id() -> int:
    return config_of(Path(), 1, nodes=1).cluster_id


@pytest.fixture
def lab(made, tmp_path):
    shutil.copytree(made, tmp_path / "node")
    labs = []

    def make() -> Lab:
        labs.append(Lab(tmp_path / "node"))
        return labs[-1]

    make.folder = tmp_path / "node"
    yield make
    for one in labs:
        one.store.close()


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_a_round_goes_over_all_there_is(lab):
    one = lab()
    parts = one.round()
    assert parts == sorted(parts)
    assert set(parts) == {CHUNKS, CHECKPOINTS, SEGMENTS, OVER}
    assert one.said == [("journal", 10240)]
    sizes = sum(path.stat().st_size for path in (lab.folder / "checkpoints").rglob("[0-9a-z]*.bin"))
    assert one.made.counters["bytes"] >= sizes
    assert one.made.counters["rounds"] == 1
    assert one.made.step() > 3500  # the next one begins an hour after this one did


def test_a_damaged_chunk_is_told(lab):
    data = lab.folder / "store" / "data.mdb"
    content = data.read_bytes()
    at = content.find(VALUE + b"1")
    while at >= 0:
        flip(data, at + 3)
        at = content.find(VALUE + b"1", at + 1)
    one = lab()
    one.round()
    assert [what for what, _ in one.said] == ["chunk", "journal"]


def test_each_byte_of_a_checkpoint_is_looked_at(lab):
    """Of the files and of the manifest."""
    one = lab()
    files = [p for p in (lab.folder / "checkpoints" / "0").rglob("*") if p.is_file()]
    assert len(files) == 2
    for file in files:
        content = file.read_bytes()
        for at in range(0, len(content), max(1, len(content) // 200)):
            flip(file, at)
            one.said.clear()
            one.made.place, one.made._steps = Place(CHECKPOINTS), None
            one.round()
            assert one.said == [("checkpoint", 0), ("journal", 10240)], (file.name, at)
            file.write_bytes(content)
    files[0].unlink()
    one.said.clear()
    one.made.place, one.made._steps = Place(CHECKPOINTS), None
    one.round()
    assert one.said[0] == ("checkpoint", 0)


def test_a_sector_of_a_checkpoint_that_cannot_be_read_is_damage_and_the_round_goes_on(
    lab, monkeypatch
):
    one = lab()
    read = one.files.read

    def bad(path):
        if "/0/" in path and not path.endswith("manifest"):
            raise OSError(errno.EIO, "bad sector")
        return read(path)

    monkeypatch.setattr(one.files, "read", bad)
    assert one.round()[-1] == OVER
    assert one.said == [("checkpoint", 0), ("journal", 10240)]


def test_that_there_are_too_many_open_files_is_no_damage(lab, monkeypatch):
    """Nothing of a checkpoint is given up for what this process lacks."""
    one = lab()

    def bad(path):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(one.files, "read", bad)
    assert one.round()[-1] == OVER
    assert one.said == [("journal", 10240)]


def test_a_damaged_page_is_told(lab):
    one = lab()
    flip(lab.folder / "store" / "data.mdb", 10)  # a meta page says that it is something else
    one.made.step()
    assert [what for what, _ in one.said] == ["page"]


def test_a_restart_goes_on_where_it_was(lab, monkeypatch):
    monkeypatch.setattr(scrubber, "KEEP_S", 0.0)
    one = lab()
    one.made._keep_s = 0.0
    seen = []
    while one.made.place.part != SEGMENTS:
        one.made.step()
        seen.append(one.made.place)
    assert one.again().place == seen[-1]
    for place in (seen[1], seen[-2]):
        one.made.place = place
        one.made._keep()
        again = one.again()
        assert again.place == place
        again.step()
        assert again.place == seen[seen.index(place) + 1]
    one.round()
    again = one.again()
    assert again.place.part == OVER
    assert again.ended_us > 0
    assert again.step() > 3500
    assert one.again(round_s=0.0).step() < 1.0  # and when its time has come it begins anew
    one.store.remember({scrubber.NAME: b"nonsense"})
    assert one.again().place == Place(PAGES)


def test_no_more_is_read_in_a_second_than_allowed(lab):
    one = lab()
    made = one.again(rate=1 << 16)
    began = time.monotonic()
    made.step()  # pages
    assert made.step() > 0.5  # a chunk of 64 KiB
    assert made.counters["bytes"] == (64 << 10) - 16
    assert made._free_s > began + 0.5
    place = made.place
    assert made.step() > 0.0  # nothing before that
    assert made.place == place
    assert one.again(rate=0).step() >= 3600
    assert one.again(rate=0).counters["bytes"] == 0


def test_a_node_puts_a_damaged_checkpoint_aside_and_takes_another(run_once, made, tmp_path):
    async def main():
        shutil.copytree(made, tmp_path / "node1")
        config = config_of(tmp_path, 1, nodes=1, checkpoints=FAST)
        async with phx.Node(config, KeyValue) as node:
            await node.wait_ready()
            await until(lambda: node.status().damage["scrubs"] == 1)
            assert node.status().damage["found"] == 0
            (path,) = [p for p in (config.dir / "checkpoints" / "1").rglob("*") if is_file(p)]
            flip(path, 20)
            await node.group(1).propose(encode_set(b"x", b"y"))
            one = node._room._doctor.scrubber
            one._round_s = 0.0
            node._room._snapshots._idle_s = 0.0
            await node.group(1).checkpoint()  # it wakes the thread
            await until(lambda: node.status().damage["found"] == 1)
            assert "a damaged checkpoint" in node.status().damage["last"]
            one._round_s = 3600.0
            await until(lambda: node.status().checkpoints["taken"] == 2)
            aside = list((config.dir / "quarantine").rglob("manifest"))
            assert len(aside) == 1
            assert len(list((config.dir / "checkpoints" / "1").iterdir())) >= 1
        async with phx.Node(config, KeyValue) as node:
            await node.wait_ready()
            assert node.group(1).machine().get(b"x") == b"y"

    run_once(main())


def is_file(path: Path) -> bool:
    return path.is_file() and path.name != "manifest"


def test_the_journal_of_a_node_is_read_again_and_what_is_damaged_is_written_anew(
    run_once, tmp_path
):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, checkpoints=FAST)
        async with phx.Node(config, KeyValue, bootstrap=True) as node:
            for n in range(40):  # 4 MiB in segments of 2 MiB
                await node.group(0).propose(encode_set(b"%d" % n, bytes(100_000)))
            check = node._room._doctor._segments
            segments = check.segments()
            assert segments
            begin, end = segments[0]
            at = begin
            while at < end:
                nbytes = check.check(at, 1 << 16)
                assert nbytes > 0
                at += nbytes
            assert at == end
            assert check.check(end + (1 << 40), 1 << 16) == 0
            (segment, *_) = sorted((config.dir / "journal").glob("*.segment"))
            with segment.open("r+b") as file:
                file.seek(4096 + (1 << 20))
                whole = file.read(8)
                file.seek(4096 + (1 << 20))
                file.write(b"\xff" * 8)
            at = begin
            while (nbytes := check.check(at, 1 << 16)) > 0 and at < end:
                at += nbytes
            assert nbytes == -1
            with segment.open("r+b") as file:
                file.seek(4096 + (1 << 20))
                file.write(whole)
            node._room._doctor.scrubber._told.journal(at)
            assert "journal is damaged" in node.status().damage["last"]
            await until(lambda: all(start > begin for start, _ in check.segments()))

    run_once(main())


def test_with_a_full_disk_only_the_newest_checkpoints_stay(run_once, tmp_path, monkeypatch):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, checkpoints={**QUIET, "keep": 3})
        async with phx.Node(config, KeyValue, bootstrap=True) as node:
            for n in range(3):
                for group in (0, 1):
                    await node.group(group).propose(encode_set(b"%d" % n, b"v"))
                    await node.group(group).checkpoint()
            there = lambda: len(list((config.dir / "checkpoints").glob("[01]/*")))  # noqa: E731
            assert there() == 6
            reserve = config.checkpoints.reserve_bytes
            for free, left in ((reserve - 1, 6), (reserve // 2 - 1, 2), (0, 2)):
                monkeypatch.setattr(OsFiles, "free_bytes", lambda _, free=free: free)
                with pytest.raises(errors.CheckpointFailed, match="must stay free"):
                    await node.group(0).checkpoint()
                assert there() == left
                assert "must stay free" in node.status().checkpoint_error
            monkeypatch.undo()
            await node.group(0).checkpoint()
            assert node.status().checkpoint_error is None

    run_once(main())


def test_a_value_that_the_journal_lost_is_settled_all_the_same(run_once, tmp_path):
    """It is chosen, and not settled, so the others have it."""

    async def main():
        async with cluster(tmp_path, KeyValue, groups=1, checkpoints=QUIET) as nodes:
            for n in range(40):
                await nodes[0].group(0).propose(encode_set(b"%d" % n, bytes([n]) * 100_000))
            await all_applied(nodes)
            hurt = nodes[2]
            (segment, *_) = sorted((hurt.config.dir / "journal").glob("*.segment"))
            with segment.open("r+b") as file:
                file.seek(4096 + (1 << 20))
                file.write(b"\xff" * 8)
            hurt._room.driver.settle_now()
            await until(lambda: hurt.status().damage["mended"] == 1)
            await until(lambda: hurt.group(0).status().settled_through >= 40, seconds=20)
            assert "the journal: group 0 instance" in hurt.status().damage["last"]
            store = hurt._room._store
            other = nodes[0]._room
            for instance in range(1, hurt.group(0).status().settled_through + 1):
                body = other.driver.read(0, instance)
                if isinstance(body, bytes):
                    assert store.entry(0, instance) == body
            assert store.verify() > 0
            assert hurt.status().store_error is None

    run_once(main())
