"""A store that is lost, damaged or older than its journal: made anew from what the journal says."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lmdb
import pytest

import phx
from phx import errors, store_folder
from phx._core.codec import encode_record
from phx._core.journal_door import Journal
from phx._core.members import write
from phx.checkpoint.catalog import ROOT, look, path_of
from phx.checkpoint.files import OsFiles
from phx.checkpoint.manifest import encode
from phx.lmdb_files import LMDB_MAJOR
from phx.machines import Counter
from phx.membership import Membership
from phx.node import doctor
from phx.node.doctor import Doctor
from phx.node.folder import Folder
from phx.store import Floor, MembersRow, Store
from phx.store_folder import read_identity
from phx.store_members import keys_of
from phx.verify import examine
from tests.ports import at_ports

from .cluster import all_applied, cluster, config_of, introduce, until
from .members_lab import joining

pytestmark = pytest.mark.usefixtures("no_leaks")
RECORD_MEMBERS = 11
QUIET = {"interval_instances": 0, "interval_us": 0, "interval_bytes": 0}


def alone(folder: Path) -> phx.Config:
    return config_of(folder, 1, nodes=1, checkpoints=QUIET)


async def add(node: phx.Node, group: int, count: int) -> None:
    for _ in range(count):
        await node.group(group).propose(b"1")


def put_back(copy: Path, config: phx.Config) -> None:
    shutil.rmtree(config.dir / "store")
    shutil.copytree(copy, config.dir / "store")


def test_an_older_store_does_not_keep_the_groups_from_settling(run_once, tmp_path):
    """The journal says more of group 0 is settled than the store knows: what was between is gone,
    and nobody settles behind such a gap."""

    async def main():
        config = alone(tmp_path)
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await add(node, 0, 5)
            await add(node, 1, 5)
        shutil.copytree(config.dir / "store", tmp_path / "older")
        async with phx.Node(config, Counter) as node:
            await node.wait_ready()
            await add(node, 0, 5)
            await node.group(0).checkpoint()
        put_back(tmp_path / "older", config)
        async with phx.Node(config, Counter) as node:
            await node.wait_ready()
            before = node.group(0).status().applied_through
            await add(node, 0, 5)
            await add(node, 1, 5)
            assert node.group(0).machine().total == 15
            assert node.group(1).machine().total == 10
            await until(
                lambda: all(
                    node.group(group).status().settled_through
                    == node.group(group).status().chosen_through
                    for group in (0, 1)
                ),
                seconds=20,
            )
            assert node.status().store_error is None
            assert node.group(0).status().applied_through > before

    run_once(main())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A closed node of two groups: a checkpoint and 5 values behind it in 0, and in 1 none."""
    folder = tmp_path_factory.mktemp("lost")
    config = alone(folder)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await add(node, 0, 5)
            await node.group(0).checkpoint()
            await add(node, 1, 3)
        async with phx.Node(config, Counter) as node:  # what is settled is in the checkpoint
            await node.wait_ready()

    with asyncio.Runner() as runner:
        runner.run(main())
    return folder


@pytest.fixture
def config(made, tmp_path):
    shutil.copytree(made, tmp_path / "copy")
    return alone(tmp_path / "copy")


def opened(config: phx.Config) -> tuple[bytes, dict[int, Floor], list[str]]:
    """Of the store that a start comes to: its id, its rows, and what the doctor said."""
    folder = Folder(config.dir)
    folder.lock(create=False)
    try:
        one = Doctor(folder, config)
        assert folder.examine(bootstrap=False) is False
        store = one.open_store(create=False)
        try:
            return store.identity.store_id, store.floors(), list(one.found)
        finally:
            store.close()
    finally:
        folder.unlock()


def flip_in(path: Path, at: int, bit: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ bit]))


def key_of(config: phx.Config, name: bytes) -> bytes:
    """The value of a key of the store's table ``meta``."""
    path = str(config.dir / "store")
    with (
        lmdb.Environment(path, readonly=True, lock=False, max_dbs=3, lib_version=LMDB_MAJOR) as env,
        env.begin(db=env.open_db(b"meta", create=False)) as txn,
    ):
        return txn.get(name)


def lose(config: phx.Config, how: str) -> None:
    data = config.dir / "store" / "data.mdb"
    match how:
        case "folder":
            shutil.rmtree(data.parent)
        case "file":
            data.unlink()
        case "page":
            flip_in(data, 10)  # it does not say any more that it describes the file
        case "identity" | "groups" | "members":
            value = key_of(config, keys_of(0)[0] if how == "members" else how.encode())
            content = data.read_bytes()
            at = content.find(value)
            while at >= 0:
                flip_in(data, at + 9)
                at = content.find(value, at + 1)


TOLD = Membership(write(2, 1 << 20, 9, [(1, 1, b"a:1"), (4, 1, b"b:1")]), 3, 5 << 20)


def move_members(config: phx.Config) -> None:
    """As if the members of group 0 had changed at instance 3, before its checkpoint was taken."""
    files = OsFiles(config.dir)
    (manifest,) = look(files, ROOT).groups[0]
    changed = replace(manifest, membership=TOLD, config=2, members=TOLD.nodes)
    (config.dir / path_of(ROOT, manifest)).rename(config.dir / path_of(ROOT, changed))
    (config.dir / path_of(ROOT, changed) / "manifest").write_bytes(encode(changed))
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
    try:
        store.note_members(0, TOLD)
        assert store.write_members() == 1
    finally:
        store.close()


def rows_of(config: phx.Config) -> dict[int, MembersRow]:
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
    try:
        return store.members()
    finally:
        store.close()


def members_of(config: phx.Config) -> dict[int, Membership]:
    return {group: row.membership for group, row in rows_of(config).items()}


@pytest.mark.parametrize("how", ["folder", "groups", "members"])
def test_a_store_that_is_made_anew_has_the_members(config, how):
    """Its groups are settled past their change; and it is what a node that loses its journal next
    would count by."""
    move_members(config)
    lose(config, how)
    _, rows, said = opened(config)
    assert len(said) == 1
    assert "the store is lost" in said[0]
    assert rows[0].settled_through >= TOLD.instance
    assert members_of(config) == {0: TOLD}
    assert opened(config)[2] == []


def put_empty(config: phx.Config) -> None:
    """In the place of the store, one of the same id that knows of nothing."""
    shutil.copytree(config.dir / "store", config.dir / "older")
    move_members(config)
    shutil.rmtree(config.dir / "store")
    (config.dir / "older").rename(config.dir / "store")
    store_id, _, _ = opened(config)
    (config.dir / "store" / "data.mdb").unlink()
    made = store_folder.StoreIdentity(
        config.cluster_id, config.node, store_id, store_folder.FORMAT_VERSION, (0, 9, 0)
    )
    store_folder.remake(config.dir / "store", 1 << 20, made, {})


def test_an_older_store_gets_the_members_with_the_rows(config):
    put_empty(config)
    _, rows, said = opened(config)
    assert "the store is an older one" in said[0]
    assert rows[0].settled_through >= TOLD.instance
    assert members_of(config) == {0: TOLD}


def test_a_journal_that_cannot_be_read_at_the_moment_is_not_passed_over(config, monkeypatch):
    """Its replay may find it sound a moment later: a store whose rows were not raised would begin
    below what the journal says is settled."""
    put_empty(config)

    def failing(*args, **kwargs):
        return SimpleNamespace(verdict=("io", "segment 1: Too many open files"), incarnation=1)

    with monkeypatch.context() as patch:
        patch.setattr(doctor, "Survey", failing)
        with pytest.raises(errors.StoreError, match="Too many open files"):
            opened(config)
    _, rows, said = opened(config)
    assert "the store is an older one" in said[0]
    assert rows[0].settled_through >= TOLD.instance


def tell_journal(config: phx.Config, told: Membership, flags: int = 0) -> None:
    """A record of the members of group 0, as an engine writes it that counts them."""
    owner = read_identity(config.dir / "store", 1 << 20)
    journal = Journal(
        config.dir / "journal",
        cluster=owner.cluster,
        node=owner.node,
        store_id=owner.store_id,
        segment_bytes=config.journal.segment_bytes,
        journal_bytes_max=config.journal.journal_bytes_max,
        body_bytes_max=1 << 20,
    )
    body = flags.to_bytes(8, "little") + told.roster
    journal.append(encode_record(RECORD_MEMBERS, 0, told.instance, told.floor, body))
    journal.sync()
    journal.close()


LATER = Membership(write(3, 2 << 20, 9, [(4, 1, b"b:1")]), 5, 8 << 20, active=True)


@pytest.mark.parametrize("how", ["folder", "older"])
@pytest.mark.parametrize("flags", [1, 1 | 4])
def test_a_store_that_is_made_anew_has_the_members_that_the_journal_says(config, how, flags):
    """They may be later ones than any checkpoint's: what is settled behind them is not judged by
    those of before."""
    move_members(config)
    store_id, before, _ = opened(config)
    assert before[0].settled_through >= LATER.instance
    tell_journal(config, LATER, flags)
    tell_journal(config, TOLD)  # whatever the order
    shutil.rmtree(config.dir / "store")
    if how == "older":
        made = store_folder.StoreIdentity(
            config.cluster_id, config.node, store_id, store_folder.FORMAT_VERSION, (0, 9, 0)
        )
        store_folder.remake(config.dir / "store", 1 << 20, made, {})
    _, rows, said = opened(config)
    assert len(said) == 1
    assert rows[0].settled_through == before[0].settled_through
    assert rows_of(config) == {0: MembersRow(LATER, removed=flags > 1)}
    report = examine(config.dir, whole=True)
    assert (report.groups[0].since, report.groups[0].removed) == (LATER.instance, flags > 1)


def test_a_store_with_older_members_than_the_journal_is_found(config):
    move_members(config)
    opened(config)
    assert examine(config.dir, whole=True).findings == []
    tell_journal(config, LATER)
    (found,) = examine(config.dir, whole=True).findings
    assert "the journal says that they changed at 5" in found.what


def test_a_damaged_copy_of_the_members_is_said_and_made_anew(config):
    move_members(config)
    data = config.dir / "store" / "data.mdb"
    row = key_of(config, keys_of(0)[0])
    flip_in(data, data.read_bytes().rfind(row) + 50)
    _, _, said = opened(config)
    assert len(said) == 1
    assert "the other one is whole" in said[0]
    assert members_of(config) == {0: TOLD}
    assert opened(config)[2] == []


def test_members_of_which_a_copy_is_damaged_do_for_a_start_without_room(config, monkeypatch):
    move_members(config)
    data = config.dir / "store" / "data.mdb"
    row = key_of(config, keys_of(0)[0])
    flip_in(data, data.read_bytes().rfind(row) + 50)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "write_members", lambda store: full())
        assert "the other one is whole" in opened(config)[2][0]
    assert "the other one is whole" in opened(config)[2][0]
    assert opened(config)[2] == []


def full() -> int:
    raise errors.StoreError("planted")


@pytest.mark.parametrize("how", ["folder", "file", "page", "identity", "groups"])
def test_a_lost_store_is_made_anew_with_the_same_id(config, how):
    before, floors, said = opened(config)
    assert said == []
    lose(config, how)
    store_id, rows, said = opened(config)
    assert store_id == before
    assert {group: floor.settled_through for group, floor in floors.items()} == {
        group: floor.settled_through for group, floor in rows.items()
    }
    assert all(row.kept_from == row.settled_through + 1 for row in rows.values())
    assert len(said) == 1
    assert "the store is lost" in said[0]
    aside = [path.name for path in (config.dir / "quarantine").glob("store-*/store/data.mdb")]
    assert aside == ([] if how in ("folder", "file") else ["data.mdb"])
    assert opened(config) == (store_id, rows, [])


def test_a_node_goes_on_where_its_store_is_lost(run_once, tmp_path):
    """From the checkpoint that reaches the new beginning of the log, in each group."""

    async def main():
        config = alone(tmp_path)
        async with phx.Node(config, Counter, bootstrap=True) as node:
            for group in (0, 1):
                await add(node, group, 5)
                await node.group(group).checkpoint()
        shutil.rmtree(config.dir / "store")
        async with phx.Node(config, Counter) as node:
            await node.wait_ready()
            await add(node, 0, 2)
            await add(node, 1, 3)
            totals = [node.group(group).machine().total for group in (0, 1)]
            assert totals == [7, 8]
            damage = node.status().damage
            assert damage["found"] == 1
            assert "the store is lost" in damage["last"]
        async with phx.Node(config, Counter) as node:  # and what is settled since is kept
            await node.wait_ready()
            assert [node.group(group).machine().total for group in (0, 1)] == totals
            assert node.status().damage["found"] == 0

    run_once(main())


def test_a_group_without_a_checkpoint_stops_and_the_others_go_on(run_once, config):
    async def main():
        shutil.rmtree(config.dir / "store")
        async with phx.Node(config, Counter) as node:
            await until(lambda: node.status().stopped == (1,))
            await node.wait_ready([0])
            await add(node, 0, 1)
            with pytest.raises(errors.GroupStopped):
                await add(node, 1, 1)

    run_once(main())


def test_a_node_with_a_lost_store_votes_and_says_what_is_chosen(run_once, tmp_path):
    """What it forgot it had chosen is not open: two of three, it and one that saw nothing of it,
    would decide it again."""

    async def main():
        async with cluster(tmp_path, Counter, checkpoints=QUIET) as nodes:
            for group in (0, 1):
                await add(nodes[0], group, 5)
            await all_applied(nodes)
            through = nodes[2].group(0).status().chosen_through
            config = nodes[2].config
            await nodes[2].group(0).checkpoint()
            await nodes[2].close()
            shutil.rmtree(config.dir / "store")
            async with phx.Node(config, Counter) as again:
                status = again.group(0).status()
                assert status.chosen_through >= through
                assert status.settled_through >= through
                assert status.promised > 0

    run_once(main())


def assert_not_behind(config: phx.Config) -> None:
    """A store that is settled past the change of members knows them (S1)."""
    store = Store.open(config.dir / "store", cluster=config.cluster_id, node=config.node)
    try:
        assert store.settled().get(0, 0) < TOLD.instance or 0 in store.members()
    finally:
        store.close()


class Crash(BaseException):
    """The process is gone."""


def steps_of(monkeypatch, die_at: int) -> list[str]:
    """Die before the n-th step of a repair; the names of those that were begun."""
    begun: list[str] = []

    def counted(where, name):
        do = getattr(where, name)

        def step(*given, **named):
            begun.append(name)
            if len(begun) > die_at:
                raise Crash
            return do(*given, **named)

        monkeypatch.setattr(where, name, step)

    for name in ("make_folder", "rename", "sync"):
        counted(OsFiles, name)
    for name in ("take_lock", "open_env", "make_tables", "sync_folder"):
        counted(store_folder, name)
    counted(Store, "_put_floors")
    counted(doctor, "put_aside")
    counted(doctor, "remake")
    return begun


@pytest.mark.parametrize("how", ["folder", "groups", "older"])
def test_a_repair_that_is_cut_short_anywhere_is_done_at_the_next_start(
    config, tmp_path, monkeypatch, how
):
    move_members(config)
    store_id, floors, _ = opened(config)
    wanted = {group: floor.settled_through for group, floor in floors.items()}
    if how == "older":  # of the same store, before anything was settled
        (config.dir / "store" / "data.mdb").unlink()
        identity = lambda: read_identity(config.dir / "store", 1 << 20)  # noqa: E731
        with pytest.raises(errors.NotBootstrapped):
            identity()
        made = store_folder.StoreIdentity(
            config.cluster_id, config.node, store_id, store_folder.FORMAT_VERSION, (0, 9, 0)
        )
        store_folder.remake(config.dir / "store", 1 << 20, made, {})
        assert identity() == made
    else:
        lose(config, how)
    for die_at in range(100):
        again = alone(Path(shutil.copytree(config.dir.parent, tmp_path / f"at{die_at}")))
        with monkeypatch.context() as patched:
            begun = steps_of(patched, die_at)
            try:
                opened(again)
            except Crash:
                died = True
            else:
                died = False
        if not died or how == "older":
            assert_not_behind(again)
        found, rows, _ = opened(again)
        assert found == store_id, begun
        assert members_of(again) == {0: TOLD}, begun
        assert {group: row.settled_through for group, row in rows.items()} == wanted, begun
        assert opened(again)[2] == [], begun
        if not died:
            break
    assert die_at >= {"folder": 6, "groups": 10, "older": 1}[how], begun


def test_without_a_whole_journal_no_store_is_made(config):
    for segment in sorted((config.dir / "journal").iterdir()):
        content = bytearray(segment.read_bytes())
        content[4096 + 40] ^= 1
        segment.write_bytes(content)
    lose(config, "groups")
    before = sorted((config.dir / "store").iterdir())
    with pytest.raises(errors.Damaged, match="store"):
        opened(config)
    assert sorted((config.dir / "store").iterdir()) == before
    assert not (config.dir / "quarantine").exists()


def test_nothing_is_made_beside_the_journal_of_another(config, tmp_path):
    shutil.rmtree(config.dir / "store")
    other = config_of(tmp_path / "copy", 2, nodes=2, dir=config.dir)
    with pytest.raises(errors.Foreign, match="node 1"):
        opened(other)
    assert not (config.dir / "store").exists()


def test_a_node_that_lost_its_store_and_its_checkpoints_comes_back_under_load(run_once, tmp_path):
    """In its own folder, with its own promises: from a checkpoint of another node and the log."""

    async def main():
        async with cluster(tmp_path, Counter, checkpoints=QUIET) as nodes:
            stop = asyncio.Event()
            added = [0, 0]

            async def load(group: int) -> None:
                while not stop.is_set():
                    await nodes[0].group(group).propose(b"1")
                    added[group] += 1

            for group in (0, 1):
                await add(nodes[0], group, 20)
            await all_applied(nodes)
            lost = nodes.pop()
            await lost.close()
            clients = [asyncio.ensure_future(load(group)) for group in (0, 1)]
            for name in ("store", "checkpoints", "machines"):
                shutil.rmtree(lost.config.dir / name, ignore_errors=True)
            again = phx.Node(lost.config, Counter)
            nodes.append(again)
            await again.open()
            introduce(nodes)
            await again.wait_ready(timeout=30)
            stop.set()
            await asyncio.gather(*clients)
            await until(
                lambda: (
                    [again.group(group).machine().total for group in (0, 1)]
                    == [20 + count for count in added]
                ),
                seconds=20,
            )
            assert again.status().damage["found"] == 1
            assert again.status().stopped == ()
            assert again.status().transfers["fetched"] == 2

    run_once(main())


# --- nodes whose file names nobody but themselves


@pytest.mark.parametrize("number", [1, 2], ids=["began", "joined"])
def test_who_is_named_alone_in_its_file_gets_its_groups_back_from_the_others(
    run_once, tmp_path, number
):
    """Where the others are went with the store; that there are some says the journal. It is the
    one that the cluster began with, or one that joined."""

    async def main():
        first = config_of(tmp_path, 1, nodes=1, members=at_ports(1))
        async with phx.Node(first, Counter, bootstrap=True) as one:
            await one.wait_ready(timeout=20)
            async with joining(tmp_path, [2, 3], [one]) as made:
                for each in made:
                    assert (await one.add_member(each.number, each.at)).failed == {}
                nodes = [one, *[await each.opened() for each in made]]
                await asyncio.gather(*(node.wait_ready(timeout=20) for node in nodes))
                await add(one, 0, 20)
                await all_applied(nodes)
                lost = nodes.pop(number - 1)
                await lost.close()  # it settles everything
                for name in ("store", "checkpoints"):
                    shutil.rmtree(lost.config.dir / name, ignore_errors=True)
                async with phx.Node(lost.config, lambda group: Counter()) as again:
                    await until(lambda: not again.group(0).status().restoring, seconds=20)
                    assert again.group(0).status().stopped is False
                    await nodes[0].group(0).propose(b"1", timeout=20)
                    await until(lambda: again.group(0).machine().total == 21, seconds=20)

    run_once(main())
