"""``phx verify`` and ``phx inspect``: whole folders, damaged ones, and copies of both."""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import pytest
from click.testing import CliRunner

import phx
from phx import errors, store_hosted
from phx import verify as look
from phx._core.codec import encode_record
from phx._core.journal_door import Journal
from phx._core.members import write
from phx._core.survey import Survey
from phx.blocking import Node
from phx.checkpoint.catalog import ROOT, path_of
from phx.checkpoint.catalog import look as look_at
from phx.checkpoint.files import OsFiles
from phx.checkpoint.manifest import encode
from phx.cli.commands import phx as command
from phx.durable.generations import Generations
from phx.durable.sqlite import SqliteMachine
from phx.lmdb_files import LMDB_MAJOR
from phx.machines import Counter
from phx.membership import Membership
from phx.store import MembersRow, Store
from phx.store_folder import read_identity
from phx.store_members import pack
from phx.verify import examine
from tests.api.cluster import config_of
from tests.store.store_lab import Log

VALUES = 40
HEADER = 4096
QUIET = {"interval_instances": 0, "interval_us": 0}
MACHINE = "machines/0.0/00000001"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A node's folder as it lay there while the node was idle, and as the node left it."""
    root = tmp_path_factory.mktemp("node")
    config = config_of(root, 1, nodes=1, checkpoints=QUIET)

    async def main() -> None:
        async with phx.Node(config, Counter, bootstrap=True) as node:
            for group in range(2):
                for _ in range(VALUES):
                    await node.group(group).propose(b"1")
            await node.group(0).checkpoint()
            await asyncio.to_thread(node._room.peers.add, 9, "127.0.0.1:0")
            await asyncio.sleep(0.3)  # the mark that says how far the log is durable
            shutil.copytree(config.dir, root / "idle", ignore=shutil.ignore_patterns("control"))

    with asyncio.Runner() as runner:
        runner.run(main())
    return {"idle": root / "idle", "closed": config.dir}


@pytest.fixture(params=["idle", "closed"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders[request.param], tmp_path / "node"))


@pytest.fixture
def closed(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["closed"], tmp_path / "node"))


@pytest.fixture
def idle(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["idle"], tmp_path / "node"))


def prints(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
    }


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << at % 8]))


def found_in(folder: Path) -> list[str]:
    """The path of every finding."""
    return [finding.path for finding in examine(folder, whole=True).findings]


def paths_of(folder: Path) -> set[str]:
    return set(found_in(folder))


# --- sound folders


def test_a_sound_folder_has_no_findings_and_nothing_in_it_changes(folder: Path) -> None:
    before = prints(folder)
    report = examine(folder, whole=True)
    assert report.findings == []
    assert prints(folder) == before
    assert report.checkpoints == 1
    assert sorted(report.groups) == [0, 1]
    owner = read_identity(folder / "store", 1 << 20)
    assert report.identity == owner


def test_what_was_chosen_is_in_the_journal_or_in_the_store(folders: dict[str, Path]) -> None:
    idle, closed = (examine(folders[name], whole=False) for name in ("idle", "closed"))
    for one in idle.groups.values():
        assert one.accepted is not None
        assert one.accepted[1] >= VALUES
        assert one.promise is not None
        assert one.promise.endswith(".1")
    for group, one in closed.groups.items():
        assert one.settled_through == idle.groups[group].accepted[1]  # type: ignore[index]
        assert one.kept_from == 1
    (frontier,) = idle.groups[0].checkpoints
    assert VALUES <= frontier <= closed.groups[0].settled_through  # type: ignore[operator]
    assert idle.groups[0].members == (1,)
    assert idle.groups[1].checkpoints == []


def test_a_folder_that_is_open_is_left_alone(tmp_path: Path) -> None:
    config = config_of(tmp_path, 1, nodes=1)

    async def main() -> None:
        async with phx.Node(config, Counter, bootstrap=True):
            with pytest.raises(errors.Locked):
                examine(config.dir, whole=True)

    with asyncio.Runner() as runner:
        runner.run(main())
    assert examine(config.dir, whole=True).findings == []


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.NotBootstrapped):
        examine(tmp_path, whole=True)


# --- damage: each byte, or so many that every kind of place is met


def content(store: Path) -> dict[tuple[bytes, bytes], bytes]:
    """All that LMDB says is there, but for where the scrubber goes on: any place will do."""
    found = {}
    with (
        lmdb.open(str(store), readonly=True, lock=False, max_dbs=3, lib_version=LMDB_MAJOR) as env,
        env.begin() as txn,
    ):
        for name in (b"meta", b"chunks", b"indexes"):
            with txn.cursor(env.open_db(name, txn, create=False)) as cursor:
                found.update({(name, key): value for key, value in cursor})
    found.pop((b"meta", b"scrub"), None)
    return found


@pytest.mark.timeout(300)  # a folder is looked at thousands of times
def test_flipped_bits_of_the_store_are_found_or_say_nothing(folders: dict[str, Path]) -> None:
    folder = folders["closed"]
    data = folder / "store" / "data.mdb"
    before, size = content(folder / "store"), data.stat().st_size
    found = 0
    # Everything in the first pages, where trees are; elsewhere every 97th byte.
    for at in [*range(0, 8 * 4096, 13), *range(8 * 4096, size, 97)]:
        flip(data, at)
        try:
            paths = paths_of(folder)
            assert paths <= {"store/data.mdb", "journal"}, at
            if paths:
                found += 1
            else:
                assert content(folder / "store") == before, at
        finally:
            flip(data, at)
    assert found > 100
    assert examine(folder, whole=True).findings == []


@pytest.mark.parametrize("table", [b"meta", b"chunks", b"indexes"])
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_of_a_table_s_kind_is_found(closed: Path, table: bytes, bit: int) -> None:
    file = closed / "store" / "data.mdb"
    owner = read_identity(closed / "store", 1 << 20)
    data = bytearray(file.read_bytes())
    at = data.find(table)
    while at >= 0:
        data[at + len(table) + 4] ^= 1 << bit  # flags, behind pad
        at = data.find(table, at + 1)
    file.write_bytes(data)
    if bit not in (0, 7):  # mean nothing
        assert "store/data.mdb" in found_in(closed)
    with contextlib.suppress(errors.StoreError):
        Store.open(closed / "store", cluster=owner.cluster, node=owner.node).close()


def test_keys_that_no_store_has_are_found(closed: Path) -> None:
    owner = read_identity(closed / "store", 1 << 20)
    with lmdb.open(
        str(closed / "store"), lib_version=LMDB_MAJOR, max_dbs=3, map_size=1 << 28
    ) as env:
        tables = env.open_db(b"chunks"), env.open_db(b"indexes")
        with env.begin(write=True) as txn:
            for table in tables:
                txn.put(b"\xff" * 12, b"x", db=table)
    assert "store/data.mdb" in found_in(closed)
    with pytest.raises(errors.Damaged):
        Store.open(closed / "store", cluster=owner.cluster, node=owner.node)


@pytest.mark.timeout(300)
def test_flipped_bits_of_the_journal_are_found_or_look_like_a_torn_tail(idle: Path) -> None:
    sound = examine(idle, whole=False).journal
    assert sound is not None
    (name, _, base, end, size) = sound.segments[-1]
    segment = idle / "journal" / name
    found = tails = 0
    for at in [*range(96), *range(HEADER, HEADER + end - base, 11)]:
        flip(segment, at)
        report = examine(idle, whole=False)
        if report.findings:
            found += 1
            assert {one.path for one in report.findings} <= {"journal", f"journal/{name}"}, at
        else:
            assert report.journal is not None
            if report.journal.records != sound.records:
                tails += 1
                assert report.journal.cut_bytes > 0, at
        flip(segment, at)
    assert size > end - base
    assert found > 20 * max(tails, 1)


def test_flipped_bits_of_a_checkpoint_are_found_by_name(idle: Path) -> None:
    for path in sorted((idle / "checkpoints" / "0").glob("*/*")):
        for at in range(0, path.stat().st_size, 7):
            flip(path, at)
            (found, *_) = paths_of(idle)
            assert Path(found).parts[:2] == ("checkpoints", "0")
            flip(path, at)


def test_what_is_missing_is_found(idle: Path) -> None:
    shutil.move(idle / "store", idle / "away")
    assert paths_of(idle) == {"store/data.mdb"}
    report = examine(idle, whole=True)
    assert report.identity is not None  # by the journal
    assert report.identity.node == 1
    assert report.groups[1].accepted is not None
    shutil.move(idle / "away", idle / "store")
    shutil.rmtree(idle / "journal")
    assert paths_of(idle) == {"journal"}


def test_a_damaged_journal_still_says_what_it_holds(idle: Path) -> None:
    sound = examine(idle, whole=False)
    assert sound.journal is not None
    name, _, base, end, _ = sound.journal.segments[-1]
    flip(idle / "journal" / name, HEADER + (end - base) // 2 + 8)
    hurt = examine(idle, whole=False)
    assert hurt.journal is not None
    code, text = hurt.journal.verdict  # type: ignore[misc]
    assert code == "damaged"
    assert text.startswith(f"{name}, position ")
    assert sound.journal.records - 3 <= hurt.journal.records < sound.journal.records
    for group, one in hurt.groups.items():
        assert one.promise == sound.groups[group].promise
        assert one.accepted is not None


def test_the_journal_of_another_store_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    other = config_of(tmp_path / "other", 1, nodes=1)

    async def main() -> None:
        async with phx.Node(other, Counter, bootstrap=True) as node:
            await node.group(0).propose(b"1")

    with asyncio.Runner() as runner:
        runner.run(main())
    mixed = Path(shutil.copytree(folders["closed"], tmp_path / "mixed"))
    shutil.rmtree(mixed / "journal")
    shutil.copytree(other.dir / "journal", mixed / "journal")
    (found,) = examine(mixed, whole=True).findings
    assert found.what.startswith("foreign: ")


def test_a_store_that_is_older_than_the_journal_is_found(tmp_path: Path) -> None:
    config = config_of(tmp_path, 1, nodes=1)

    async def life(bootstrap: bool) -> None:
        async with phx.Node(config, Counter, bootstrap=bootstrap) as node:
            for _ in range(VALUES):
                await node.group(0).propose(b"1")

    with asyncio.Runner() as runner:
        runner.run(life(True))
        shutil.copytree(config.dir / "store", tmp_path / "old")
        runner.run(life(False))
    now = examine(config.dir, whole=True)
    assert now.findings == []
    assert now.groups[0].journal_settled == now.groups[0].settled_through
    shutil.rmtree(config.dir / "store")
    shutil.move(tmp_path / "old", config.dir / "store")
    (found,) = examine(config.dir, whole=True).findings
    assert found.path == "store"
    assert "older" in found.what


ROSTER = write(2, 1 << 20, 9, [(1, 1, b"a:1"), (4, 1, b"b:1")])


def open_store(folder: Path) -> Store:
    owner = read_identity(folder / "store", 1 << 20)
    return Store.open(folder / "store", cluster=owner.cluster, node=owner.node)


def change_members(folder: Path) -> int:
    """The members of group 0 change in the last instance that is settled; which that is."""
    store = open_store(folder)
    try:
        at = store.settled()[0] + 1
        log = Log()
        log.add([(0, at, ROSTER)])
        store.note_members(0, Membership(ROSTER, at, 5 << 20))
        store.settle(log.plan())
    finally:
        store.close()
    return at


def alter(folder: Path, **rows: bytes | None) -> None:
    """Put or delete values of the store, by a part of their key."""
    with (
        lmdb.open(str(folder / "store"), max_dbs=3, lib_version=LMDB_MAJOR) as env,
        env.begin(write=True, db=env.open_db(b"meta", create=False)) as txn,
    ):
        for name, value in rows.items():
            key = f"members{name}:".replace("_", ".").encode() + bytes(4)
            if value is None:
                assert txn.delete(key)
            else:
                txn.put(key, value)


def test_members_that_changed_are_shown(closed: Path) -> None:
    at = change_members(closed)
    report = examine(closed, whole=True)
    assert report.findings == []
    one = report.groups[0]
    assert (one.members, one.version, one.since, one.removed) == ((1, 4), 2, at, False)
    assert report.groups[1].since == 0
    assert f"1,4 (v2 from {at})" in CliRunner().invoke(command, ["inspect", str(closed)]).stdout
    facts = json.loads(CliRunner().invoke(command, ["inspect", str(closed), "--json"]).stdout)
    assert facts["groups"][0]["members_since"] == at
    assert facts["groups"][0]["members_version"] == 2


def test_a_tombstone_is_shown(closed: Path) -> None:
    store = open_store(closed)
    try:
        store.note_members(0, Membership(ROSTER, 1000, 5 << 20), removed=True)
        store.write_members()
    finally:
        store.close()
    report = examine(closed, whole=True)
    assert report.findings == []
    assert report.groups[0].removed
    assert "without this node" in CliRunner().invoke(command, ["inspect", str(closed)]).stdout


def test_settled_behind_a_change_without_its_row_is_found(closed: Path) -> None:
    at = change_members(closed)
    alter(closed, **{"": None, "_copy": None})
    (found,) = examine(closed, whole=True).findings
    assert found.path == "store"
    assert "its members are those of the configuration: a settled entry says" in found.what
    assert found.what.endswith(f"that they changed at {at}")


def test_a_created_group_that_is_gone_needs_no_row_of_its_members(closed: Path) -> None:
    """They changed, and then it was deleted, or went on elsewhere: the log may lie there still."""
    change_members(closed)
    alter(closed, **{"": None, "_copy": None})
    store = open_store(closed)
    try:
        first = store_hosted.first_members(1, {1: "a:1"})
        store_hosted.write(store, 0, store_hosted.HostedRow(1, first.roster, gone=True))
    finally:
        store.close()
    assert examine(closed, whole=True).findings == []


def test_a_row_that_is_older_than_what_is_settled_is_found(closed: Path) -> None:
    at = change_members(closed)
    older = pack(0, MembersRow(Membership(write(2, 1, 9, [(1, 1, b"a:1")]), at - 1, 5 << 20)))
    alter(closed, **{"": older, "_copy": older})
    (found,) = examine(closed, whole=True).findings
    assert f"its members are those of instance {at - 1}: a settled entry" in found.what


def test_a_row_with_other_members_than_the_log_is_found(closed: Path) -> None:
    at = change_members(closed)
    other = pack(0, MembersRow(Membership(write(2, 1, 9, [(1, 1, b"a:1")]), at, 5 << 20)))
    alter(closed, **{"": other, "_copy": other})
    (found,) = examine(closed, whole=True).findings
    assert f"group 0 has other members than the log says at {at}" in found.what


def test_a_row_that_is_older_than_a_checkpoint_says_is_found(closed: Path) -> None:
    files = OsFiles(closed)
    (manifest,) = look_at(files, ROOT).groups[0]
    told = Membership(ROSTER, manifest.frontier, 5 << 20)
    changed = replace(manifest, membership=told, config=2, members=told.nodes)
    (closed / path_of(ROOT, manifest)).rename(closed / path_of(ROOT, changed))
    (closed / path_of(ROOT, changed) / "manifest").write_bytes(encode(changed))
    (found,) = examine(closed, whole=True).findings
    assert "a checkpoint says that they changed" in found.what


def test_a_damaged_copy_of_a_row_is_found_and_hides_nothing(closed: Path) -> None:
    at = change_members(closed)
    alter(closed, _copy=b"x" * 50)
    report = examine(closed, whole=True)
    (found,) = report.findings
    assert "group 0: a row of members is damaged" in found.what
    assert report.groups[0].since == at
    alter(closed, **{"": b"x" * 50})
    assert any("in every copy" in one.what for one in examine(closed, whole=True).findings)


def test_a_store_that_cannot_be_read_is_not_called_an_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path, 1, nodes=1, groups=1)
    for bootstrap in (True, False):  # the second life notes in the journal what is settled
        with Node(config, Counter, bootstrap=bootstrap) as node:
            node.group(0).propose(b"1")
    assert examine(config.dir, whole=True).groups[0].journal_settled > 0

    def refuse(path: Path) -> list[str]:
        raise OSError(errno.EIO, "planted")

    monkeypatch.setattr(look, "page_findings", refuse)
    assert found_in(Path(config.dir)) == ["store"]


# --- durable machines


@pytest.mark.parametrize("kind", ["lmdb", "sqlite"])
def test_files_of_durable_machines_are_looked_at(idle: Path, kind: str) -> None:
    root = idle / "machines" / "0.0"
    root.mkdir(parents=True)
    generations = Generations(root)
    made = generations.begin()
    fill(made, kind)
    generations.switch(made)
    before = prints(idle)
    report = examine(idle, whole=True)
    assert (report.findings, report.machines) == ([], 1)
    assert prints(idle) == before
    file = next(path for path in made.iterdir() if path.name in ("data.mdb", "state.sqlite"))
    data = bytearray(file.read_bytes())
    data[100:2000] = b"\xff" * 1900
    file.write_bytes(data)
    assert f"machines/0.0/{made.name}/{file.name}" in paths_of(idle)
    (root / "current").write_bytes(b"00000009\n")
    assert "machines/0.0" in paths_of(idle)


def fill(folder: Path, kind: str) -> None:
    if kind == "lmdb":
        with lmdb.open(str(folder), lib_version=LMDB_MAJOR) as env, env.begin(write=True) as txn:
            for key in range(100):
                txn.put(b"%d" % key, bytes(100))
        (folder / "lock.mdb").unlink()
    else:
        opened = sqlite3.connect(folder / "state.sqlite")
        opened.execute("CREATE TABLE line (text TEXT)")
        opened.executemany("INSERT INTO line VALUES (?)", [("x" * 50,)] * 200)
        opened.commit()
        opened.close()


class Lines(SqliteMachine):
    def create(self, db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE line (text TEXT)")

    def apply(self, entry: phx.Entry) -> None:
        self.db.execute("INSERT INTO line VALUES (?)", ("x" * 300,))


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("node")
    config = config_of(root, 1, nodes=1, groups=1, checkpoints=QUIET)
    with Node(config, lambda group: Lines(), bootstrap=True) as node:
        node.wait_ready()
        for _ in range(50):
            node.group(0).propose(b"1")
    return Path(config.dir)


@pytest.fixture
def durable(lines: Path, tmp_path: Path) -> Path:
    """The folder of a node with a durable machine."""
    return Path(shutil.copytree(lines, tmp_path / "node"))


def test_a_database_whose_first_bytes_changed_is_still_looked_at(durable: Path) -> None:
    file = durable / MACHINE / "state.db"
    data = file.read_bytes()
    for at in range(16):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert found_in(durable) == [f"{MACHINE}/state.db"], at


def test_a_copy_that_was_being_made_is_no_damage(durable: Path) -> None:
    data = (durable / MACHINE / "state.db").read_bytes()
    (durable / MACHINE / "view-12345678").write_bytes(data[: len(data) // 2])
    assert found_in(durable) == []


def test_a_bootstrap_that_was_cut_short_is_no_damage(durable: Path) -> None:
    shutil.rmtree(durable / "journal")
    assert found_in(durable) == ["journal"]
    (durable / "bootstrap").touch()
    assert found_in(durable) == []


def test_what_does_not_belong_there_hides_nothing_else(durable: Path) -> None:
    (durable / "machines" / "note").write_text("hello")
    (durable / MACHINE / "data.mdb").mkdir()
    os.mkfifo(durable / MACHINE / "pipe")
    (durable / "checkpoints").symlink_to(durable)
    assert found_in(durable) == ["checkpoints", "machines/note"]


def test_names_of_any_bytes_are_printed(durable: Path) -> None:
    odd = durable / "checkpoints" / os.fsdecode(b"\xff\n\x1b[1m")
    odd.mkdir(parents=True)
    result = CliRunner().invoke(command, ["verify", str(durable)])
    assert result.exit_code == 1
    assert r"checkpoints/\udcff\n\x1b[1m: does not belong here" in result.output


# --- the commands


def asked(*words: object) -> Any:
    return CliRunner().invoke(command, list(map(str, words)))


def test_commands_print_and_exit(idle: Path) -> None:
    done = asked("verify", idle)
    assert (done.exit_code, done.stdout.count("\n")) == (0, 1)
    assert done.stdout.endswith("0 findings\n")
    shown = asked("inspect", idle)
    assert shown.exit_code == 0
    assert "node 1 of cluster" in shown.stdout
    told = json.loads(asked("inspect", idle, "--group", 1, "--json").stdout)
    assert [one["group"] for one in told["groups"]] == [1]
    assert told["groups"][0]["accepted"][1] >= VALUES
    assert asked("inspect", idle, "--group", 77).exit_code == 1
    assert asked("verify", idle / "store").exit_code == 1


def test_findings_are_a_line_each_and_exit_code_1(idle: Path) -> None:
    (manifest,) = (idle / "checkpoints" / "0").glob("*/manifest*")
    flip(manifest, 20)
    done = asked("verify", idle)
    assert done.exit_code == 1
    line, summary = done.stdout.splitlines()
    assert line.startswith(f"checkpoints/0/{manifest.parent.name}/{manifest.name}: ")
    assert summary.endswith("1 findings")
    told = asked("verify", idle, "--json")
    assert told.exit_code == 1
    assert len(json.loads(told.stdout)["findings"]) == 1
    shown = asked("inspect", idle)
    assert shown.exit_code == 1
    assert manifest.name in shown.stderr
    assert "node 1 of cluster" in shown.stdout


def test_a_survey_locks_nobody_out_and_makes_nothing(idle: Path, tmp_path: Path) -> None:
    owner = read_identity(idle / "store", 1 << 20)
    names = sorted(path.name for path in (idle / "journal").iterdir())
    survey = Survey(
        idle / "journal", cluster=owner.cluster, node=owner.node, store_id=owner.store_id
    )
    assert survey.verdict is None
    assert sorted(path.name for path in (idle / "journal").iterdir()) == names
    empty = tmp_path / "empty"
    empty.mkdir()
    missing = Survey(empty, cluster=1, node=1, store_id=bytes(16))
    assert missing.verdict is not None
    assert missing.verdict[0] == "missing"
    with pytest.raises(FileNotFoundError):
        Survey(tmp_path / "nothing", cluster=1, node=1, store_id=bytes(16))


# --- the values of a journal


def test_a_survey_has_the_values_that_are_wanted(tmp_path: Path) -> None:
    sid, path = bytes(range(16)), tmp_path / "journal"
    path.mkdir()
    journal = Journal(path, create=True, cluster=7, node=3, store_id=sid)
    records = [
        encode_record(2, 1, 5, 99, b"five"),
        encode_record(2, 1, 5, 12, b"older"),
        encode_record(3, 1, 6, 0, b"learned"),
        encode_record(2, 1, 4, 12, b"four"),
        encode_record(1, 2, 0, 40, b""),
        encode_record(2, 2, 1, 41, b""),
    ]
    journal.append(b"".join(records))
    journal.sync()
    journal.close()

    def values(**above: dict[int, int]) -> list[tuple[int, int, int, bytes]]:
        return Survey(path, cluster=7, node=3, store_id=sid, **above).values

    assert values() == []
    assert values(above={1: 4}) == [
        (1, 5, 99, b"five"),
        (1, 5, 12, b"older"),
        (1, 6, 0, b"learned"),
        (2, 1, 41, b""),
    ]
    assert len(values(above={})) == 5
    assert values(above={1: 6, 2: 1}) == []
    assert Survey(path, cluster=8, node=3, store_id=sid, above={}).values == []


def test_a_survey_says_which_groups_are_suspect(tmp_path: Path) -> None:
    """The last loss counts, and that a group is whole after it, in whichever order."""
    sid, path, above = bytes(range(16)), tmp_path / "journal", bytes(8)
    path.mkdir()
    journal = Journal(path, create=True, cluster=7, node=3, store_id=sid)
    records = [
        encode_record(10, 1, 4, 0, above),
        encode_record(10, 2, 4, 0, above),
        encode_record(10, 2, 4, 99, b""),
        encode_record(10, 3, 5, 99, b""),
        encode_record(10, 3, 5, 0, above),
        encode_record(10, 4, 5, 99, b""),
        encode_record(10, 4, 6, 0, above),
        encode_record(10, 4, 5, 0, above),
        encode_record(2, 5, 1, 41, b""),
    ]
    journal.append(b"".join(records))
    journal.sync()
    journal.close()
    survey = Survey(path, cluster=7, node=3, store_id=sid)
    assert survey.verdict is None
    assert survey.doubtful == [1, 4]
