"""Damage of the settled log of a node that runs: found, waited for in its group, and mended."""

import asyncio
import shutil
import threading
import time
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import phx
from phx import errors
from phx.checkpoint.files import OsFiles
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.node import mender as mender_module
from phx.node.mender import Mender, ask_each
from phx.store import Hole, Store
from phx.transfer.messages import ENTRIES_WANTED, Ends, Entry, Fetch, Greeting
from phx.transfer.receiver import Asker
from phx.transfer.sender import Bucket, Sender
from phx.verify import examine

from .catch_up import QUIET, reopen, trim
from .cluster import all_applied, cluster, config_of, until

pytestmark = pytest.mark.usefixtures("no_leaks")
COUNT = 20


def key(n: int) -> bytes:
    return b"a key that nobody else has %04d" % n


async def written(config: phx.Config) -> dict[tuple[int, int], bytes]:
    """A node with COUNT values in each of two groups, all settled; every body in its store."""
    async with phx.Node(config, KeyValue, bootstrap=True) as node:
        for group in (0, 1):
            for n in range(COUNT):
                await node.group(group).propose(encode_set(key(group * COUNT + n), b"v"))
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=1)
    try:
        return {
            (group, instance): store.entry(group, instance) or b""
            for group, through in store.settled().items()
            for instance in range(1, through + 1)
        }
    finally:
        store.close()


def flip(config: phx.Config, pattern: bytes) -> None:
    """In every place where it stands; the pages that are not used any more do not matter."""
    path = config.dir / "store" / "data.mdb"
    content = bytearray(path.read_bytes())
    at = content.find(pattern)
    assert at >= 0
    while at >= 0:
        content[at + 3] ^= 1
        at = content.find(pattern, at + 1)
    path.write_bytes(content)


class Peer:
    """Somebody who has the log: a Sender, without a socket."""

    def __init__(self, bodies: dict[tuple[int, int], bytes], folder: Path) -> None:
        self.bodies = bodies
        self.files = OsFiles(folder)
        self.asked: list[tuple[int, int, int, int]] = []
        self.gives = threading.Event()

    def entries(self, fetch: Fetch):
        run = []
        for instance in range(fetch.above + 1, fetch.through + 1):
            if (fetch.group, instance) not in self.bodies:
                break
            run.append(Entry(instance, self.bodies[fetch.group, instance]))
        return [run] if run else None

    def ask(self, node: int, group: int, first: int, last: int) -> list[Entry]:
        self.asked.append((node, group, first, last))
        if node == 2 or not self.gives.is_set():
            return []  # not to be reached
        sender = Sender(self.files, Ends(1, node, 1), self, Bucket(1 << 30), 0)
        asker = Asker(Ends(1, 1, node), Fetch(ENTRIES_WANTED, group, first - 1, last), 0)
        to_sender, now_us = asker.hello(Greeting(1, bytes(16))), 0
        while not asker.ended:
            now_us += 1000
            asker.feed(sender.feed(to_sender, now_us), now_us)
            to_sender = b""
        return asker.entries


def test_an_applier_waits_for_a_damaged_entry_in_its_group_alone(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, checkpoints=QUIET)
        bodies = await written(config)
        flip(config, key(7))
        flip(config, key(12))
        (bad, worse) = (next(at for at, body in bodies.items() if key(n) in body) for n in (7, 12))
        peer = Peer(bodies, tmp_path)
        async with phx.Node(config, KeyValue) as node:
            await node.wait_ready([1])
            await until(lambda: node.status().damage["holes"] == 2)
            await node.group(1).propose(encode_set(b"and", b"on"))
            status = node.status()
            assert status.damage["found"] == 1
            assert "group 0 instance" in status.damage["last"]
            assert status.store_error is None
            assert node.group(0).status().applied_through < bad[1]
            with pytest.raises(errors.Damaged):
                await node.group(0).entry(bad[1])
            (entry,) = await node.group(0).entry(bad[1] + 1)
            assert key(8) in entry.value
            mender = node._room._doctor.mender
            mender.fetch = ask_each(peer.ask, lambda: (2, 3))
            mender.wake()
            await until(lambda: peer.asked)
            peer.gives.set()
            await node.wait_ready(timeout=20)
            assert node.group(0).machine().get(key(7)) == b"v"
            assert node.group(0).status().applied_through >= worse[1]
            damage = node.status().damage
            assert (damage["holes"], damage["mended"]) == (0, 2)
            assert {one[:2] for one in peer.asked} == {(2, 0), (3, 0)}
            aside = list((config.dir / "quarantine").glob("chunk-*/value"))
            assert len(aside) == 1
        async with phx.Node(config, KeyValue) as node:
            await node.wait_ready()
            assert node.status().damage["found"] == 0
            assert node.group(0).machine().get(key(12)) == b"v"

    run_once(main())


def test_holes_of_an_earlier_life_are_fetched_too(run_once, tmp_path):
    async def main():
        config = config_of(tmp_path, 1, nodes=1, checkpoints=QUIET)
        bodies = await written(config)
        flip(config, key(7))
        async with phx.Node(config, KeyValue) as node:
            await until(lambda: node.status().damage["holes"] == 1)
        report = examine(config.dir, whole=False)
        ((first, last),) = report.groups[0].holes
        assert key(7) in bodies[0, first]
        assert first == last
        assert [one.what for one in report.findings] == [
            f"group 0: instances {first} to {first} wait to be fetched"
        ]
        peer = Peer(bodies, tmp_path)
        peer.gives.set()
        async with phx.Node(config, KeyValue) as node:
            assert node.status().damage["holes"] == 1
            node._room._doctor.mender.fetch = ask_each(peer.ask, lambda: (3,))
            node._room._doctor.mender.wake()
            await node.wait_ready(timeout=20)
            assert node.status().damage["holes"] == 0
            assert len(list((config.dir / "quarantine").iterdir())) == 1

    run_once(main())


class Crash(BaseException):
    """The process is gone."""


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torn")
    config = config_of(folder, 1, nodes=1, checkpoints=QUIET)
    with asyncio.Runner() as runner:
        bodies = runner.run(written(config))
    flip(config, key(7))
    return config, bodies


@pytest.mark.parametrize("die_at", range(9))
def test_a_mending_that_is_cut_short_anywhere_is_done_at_the_next_start(
    torn, tmp_path, monkeypatch, die_at
):
    """At the level of the store: what a mender does, step by step, until the process is gone."""
    config, bodies = torn
    config = config_of(tmp_path, 1, nodes=1)
    config.dir.parent.mkdir(exist_ok=True)
    shutil.copytree(torn[0].dir, config.dir)
    peer = Peer(bodies, tmp_path)
    peer.gives.set()
    begun = []
    with monkeypatch.context() as patch:
        for where, name in (
            (OsFiles, "make_folder"),
            (OsFiles, "create"),
            (OsFiles, "sync"),
            (Store, "note"),
            (Store, "_put_meta"),
            (Store, "mend"),
            (Store, "_put_chunk"),
        ):
            patch.setattr(where, name, counted(getattr(where, name), name, begun, die_at))
        died = False
        try:
            see_to(config, peer)
        except Crash:
            died = True
        assert died == (len(begun) > die_at)
    see_to(config, peer)
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=1)
    try:
        assert store.holes() == []
        assert store.verify() == len(bodies)
        assert all(store.entry(*at) == body for at, body in bodies.items())
    finally:
        store.close()


def counted(do, name, begun, die_at):
    def step(*given, **named):
        begun.append(name)
        if len(begun) > die_at:
            raise Crash
        return do(*given, **named)

    return step


class Now:
    """What is asked for is done at once."""

    def __init__(self, value):
        self.value = value

    def result(self):
        return self.value

    def add_done_callback(self, call):
        pass


def see_to(config: phx.Config, peer: Peer) -> None:
    """Open the store, read all of it, and mend what is found."""
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=1)
    try:
        mender = Mender(
            store, OsFiles(config.dir), lambda action: Now(action(store)), lambda _: None, 0
        )
        mender.begin()
        store.on_damage = mender.suspect
        for chunk in store.chunks():
            if store.check(chunk)[0] is not None and chunk not in store.damaged():
                mender.suspect(chunk)
        mender.fetch = ask_each(peer.ask, lambda: (3,))
        for chunk in store.damaged():
            assert mender._heal(chunk)
        mender.end()
    finally:
        store.close()


class Two:
    """A store of two damaged chunks, one hole in each; mending one raises an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.left = {1: Hole(1, 5, 5), 2: Hole(2, 6, 6)}
        self.raised = 0

    def damaged(self):
        return sorted(self.left)

    def holes(self):
        return list(self.left.values())

    def holes_of(self, chunk):
        return [self.left[chunk]] if chunk in self.left else []

    def mend(self, chunk, bodies):
        if chunk == 1:
            self.raised += 1
            raise self.error
        del self.left[chunk]


def test_a_chunk_that_cannot_be_mended_does_not_keep_others_from_it(tmp_path, monkeypatch):
    monkeypatch.setattr(mender_module, "PAUSE_S", 0.01)
    store = Two(ValueError("of no use"))

    def ask(action):
        done = Future()
        try:
            done.set_result(action(store))
        except Exception as error:
            done.set_exception(error)
        return done

    mender = Mender(store, OsFiles(tmp_path), ask, lambda _: None, 0)
    mender.fetch = lambda group, first, last: [Entry(first, b"v")]
    mender.begin()
    try:
        end = time.monotonic() + 5
        while store.raised < 2 or len(store.left) > 1:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert list(store.left) == [1]
    finally:
        mender.end()


def test_it_is_told_of_each_hole_that_no_peer_gives(tmp_path):
    store = Two(ValueError("never"))
    store.left = {1: Hole(1, 5, 7), 2: Hole(2, 6, 6)}
    told = []
    mender = Mender(store, OsFiles(tmp_path), Now, lambda _: None, 0)
    mender.lost = lambda *hole: told.append(hole)
    mender.fetch = ask_each(lambda node, group, first, last: [], lambda: (2, 3))
    assert [mender._heal(chunk) for chunk in (1, 2)] == [False, False]
    assert told == [(1, 5, 7), (2, 6, 6)]


@asynccontextmanager
async def hurt(folder):
    """Three nodes with COUNT values; the third is closed, and one of those it has is damaged."""
    async with cluster(folder, KeyValue, checkpoints=QUIET) as nodes:
        for n in range(COUNT):
            await nodes[0].group(0).propose(encode_set(key(n), b"v"))
        await all_applied(nodes)
        await nodes[2].close()
        flip(nodes[2].config, key(7))
        yield nodes


def test_a_hole_that_all_others_have_trimmed_is_passed_with_a_checkpoint(run_once, tmp_path):
    async def main():
        async with hurt(tmp_path) as nodes:
            for node in nodes[:2]:
                await trim(node)
            again = await reopen(tmp_path, nodes, 3, checkpoints=QUIET)
            for n in range(5):
                await nodes[0].group(0).propose(encode_set(b"%d" % n, b"and on"))
            await again.wait_ready(timeout=20)
            assert again.status().damage["holes"] == 0
            assert again.status().transfers["installed"] == 1
            assert again.group(0).machine().get(key(7)) == b"v"
            await nodes[0].group(0).propose(encode_set(b"and", b"on"))
            await all_applied(nodes)

    run_once(main())


def test_a_replica_fetches_what_is_damaged_from_the_others(run_once, tmp_path):
    """While it is asked for by a peer, too: that one hears nothing bad."""

    async def main():
        async with hurt(tmp_path) as nodes:
            again = await reopen(tmp_path, nodes, 3, checkpoints=QUIET)
            await again.wait_ready(timeout=20)
            await until(lambda: again.status().damage["mended"] == 1)
            assert again.status().damage["holes"] == 0
            assert again.group(0).machine().get(key(7)) == b"v"
            await nodes[0].group(0).propose(encode_set(b"and", b"on"))
            await all_applied(nodes)

    run_once(main())
