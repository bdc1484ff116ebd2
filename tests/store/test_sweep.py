"""Each byte of the files of a small node, damaged one at a time.

What must come of it: `phx verify` names it, or the byte means nothing; and a node that starts on it
repairs or refuses, and never serves anything else than what was written.

All bytes take hours, so every n-th is taken here; ``PHX_SWEEP_STEP=1`` takes all of them, or
another step (docs/howto/a-damaged-disk.md says how long that takes). To make the node small, its
journal files are cut behind what they hold: what a segment lacks at its end reads as zeros.
"""

import asyncio
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lmdb
import pytest

import phx
from phx import errors
from phx._core.members import write
from phx._core.survey import Survey
from phx.checkpoint.catalog import ROOT, Catalog, look, path_of
from phx.checkpoint.files import OsFiles
from phx.checkpoint.loading import Broken, need_sound
from phx.lmdb_files import LMDB_MAJOR
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.membership import Membership
from phx.node.doctor import Doctor
from phx.node.folder import Folder
from phx.store import Floor, MembersRow, Store
from phx.store_folder import read_identity
from phx.store_members import keys_of, pack
from phx.verify import content_findings, examine
from tests.api.cluster import config_of
from tests.durable.durable_lab import KINDS, feed

STEP = int(os.environ.get("PHX_SWEEP_STEP", "0"))
QUIET = {"interval_instances": 0, "interval_us": 0, "scrub_bytes_per_s": 0}
HEADER = 4096
LAST = 300  # instance of a durable machine
CHANGED = Membership(write(2, 1 << 20, 9, [(1, 1, b"127.0.0.1:1")]), 2, 1 << 20, True)
SPARE_BYTES = 512  # of zeros behind the last record, that are flipped as well

# What a machine refuses and nobody else can name: phx's own table has another name, and the file
# may be anybody's; a column of the machine's own has.
UNNAMED = "MDB_NOTFOUND|no database of a SqliteMachine|no such column"

pytestmark = [pytest.mark.usefixtures("no_leaks"), pytest.mark.timeout(1000 if STEP else 120)]


PARTS = range(64 if STEP else 1)
"""All bytes of a file are too many for one test."""


def steps(size: int, otherwise: int, part: int = 0, parts: int = 1, begin: int = 0) -> range:
    """Places in a file: all, or every so many of them; of these, those of a part."""
    step = STEP or otherwise
    return range((0 if STEP == 1 else begin) + part * step, size, step * parts)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 1_000])
def test_all_places_are_swept_and_none_twice(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "STEP", 1)
    assert list(steps(size, 61, begin=1)) == list(range(size))
    of_parts = [steps(size, 61, part, 64, begin=1) for part in range(64)]
    assert sorted(at for part in of_parts for at in part) == list(range(size))


class Small:
    """A closed node of two groups: what a start must come to."""

    def __init__(self, root: Path) -> None:
        self.config = config_of(root, 1, nodes=1, checkpoints=QUIET)
        self.folder = self.config.dir
        with asyncio.Runner() as runner:
            runner.run(self.fill())
        for segment in (self.folder / "journal").iterdir():
            content = segment.read_bytes().rstrip(b"\0")
            if len(content) < HEADER:
                segment.unlink()  # a spare: nothing was ever in it
            else:
                os.truncate(segment, len(content) + SPARE_BYTES)
        self.write_members()
        self.store_id = read_identity(self.folder / "store", 1 << 20).store_id
        self.entries, self.floors, self.members, found = self.start(self.folder)
        assert self.members == {0: MembersRow(CHANGED)}
        assert found == 0
        assert examine(self.folder, whole=True).findings == []
        self.journal = self.survey(self.folder)

    async def fill(self) -> None:
        for life in range(2):
            async with phx.Node(self.config, KeyValue, bootstrap=not life) as node:
                await node.wait_ready()
                for group in (0, 1):
                    for n in range(4):
                        value = b"%d.%d" % (life, n) * 10
                        await node.group(group).propose(encode_set(b"%d" % n, value))
                if not life:
                    node._room._memberships.learned(0, CHANGED)
                await node.group(life).checkpoint()

    def write_members(self) -> None:
        """As if the members of group 0 had changed before its checkpoint (they are the same)."""
        owner = read_identity(self.folder / "store", 1 << 20)
        store = Store.open(self.folder / "store", cluster=owner.cluster, node=owner.node)
        try:
            store.note_members(0, CHANGED)
            store.write_members()  # (perhaps it was, in idle time)
            assert store.members() == {0: MembersRow(CHANGED)}
        finally:
            store.close()

    def survey(self, folder: Path) -> tuple[object, ...]:
        """What the replay of a journal would give."""
        found = Survey(
            folder / "journal",
            cluster=self.config.cluster_id,
            node=1,
            store_id=self.store_id,
        )
        return found.verdict, found.records, found.groups, found.incarnation, found.odd_records

    def start(
        self, folder: Path
    ) -> tuple[dict[tuple[int, int], bytes | None], dict[int, Floor], dict[int, MembersRow], int]:
        """What the store of a start serves of each group (None: `Damaged`), its rows, its members,
        and how often something was said to be lost. Raises what the start does."""
        where = Folder(folder)
        where.lock(create=False)
        try:
            doctor = Doctor(where, replace(self.config, dir=folder))
            where.examine(bootstrap=False)
            store = doctor.open_store(create=False)
            try:
                floors = store.floors()
                served: dict[tuple[int, int], bytes | None] = {}
                for group, floor in floors.items():
                    for instance in range(floor.kept_from, floor.settled_through + 1):
                        try:
                            served[group, instance] = store.entry(group, instance)
                        except errors.Damaged:
                            served[group, instance] = None
                lost = doctor.count + len(store.damaged())
                return served, floors, store.members(), lost
            finally:
                store.close()
        finally:
            where.unlock()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """In memory, if there is such a place: nothing here depends on what a sync does."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    folder = memory / f"phx-sweep-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def promises_of(survey: tuple[object, ...]) -> list[tuple[int, int]]:
    """(group, promise) of each."""
    return [(group, promise) for group, promise, *_ in survey[2]]  # type: ignore[attr-defined]


def copy_of(small: Small, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(small.folder, folder)
    return folder


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]


@pytest.mark.parametrize("part", PARTS)
def test_each_byte_of_the_store(small: Small, room: Path, part: int) -> None:
    folder = copy_of(small, room / "node")
    data = folder / "store" / "data.mdb"
    sound = data.read_bytes()
    found = unused = 0
    for at in steps(len(sound), 331, part, len(PARTS), begin=3):
        data.write_bytes(flipped(sound, at))
        named = examine(folder, whole=True).findings
        try:
            served, floors, members, said = small.start(folder)
        finally:
            if (folder / "quarantine").exists():  # it was moved, and made anew
                folder = copy_of(small, room / "node")
            data.write_bytes(sound)
        assert members == small.members, at
        for where, body in served.items():
            assert body is None or body == small.entries[where], (at, where)
        for group, floor in floors.items():
            assert floor.settled_through == small.floors[group].settled_through, at
        if None in served.values() or floors != small.floors or said:
            assert named, at
            assert {one.path.split("/")[0] for one in named} <= {"store", "journal"}, at
            found += 1
        elif not named:
            unused += 1
    assert found > 0
    assert unused > 0


def test_each_byte_of_the_members(small: Small, room: Path) -> None:
    """Of both copies of a row, and what LMDB has before them: node header and key."""
    folder = copy_of(small, room / "node")
    data = folder / "store" / "data.mdb"
    sound, row = data.read_bytes(), pack(0, MembersRow(CHANGED))
    live = values_of(folder)
    assert [live[key] for key in keys_of(0)] == [row, row]
    places = [found.start() for found in re.finditer(re.escape(row), sound)]
    assert len(places) >= 2
    found = 0
    for place in places:
        for at in range(place - 30, place + len(row), STEP or 3):
            data.write_bytes(flipped(sound, at))
            named = examine(folder, whole=True).findings
            try:
                _, floors, members, said = small.start(folder)
            finally:
                if (folder / "quarantine").exists():
                    folder = copy_of(small, room / "node")
                data.write_bytes(sound)
            assert members == small.members, at
            for group, floor in floors.items():
                assert floor.settled_through == small.floors[group].settled_through, at
            assert bool(named) == bool(said), at
            found += bool(named)
    print(f"{found} of {len(places)} places")
    assert found > 2 * len(row) // 3 * 9 // 10


def values_of(folder: Path) -> dict[bytes, bytes]:
    """What the store's table ``meta`` holds."""
    with (
        lmdb.open(
            str(folder / "store"), readonly=True, lock=False, max_dbs=3, lib_version=LMDB_MAJOR
        ) as env,
        env.begin(db=env.open_db(b"meta", create=False)) as txn,
        txn.cursor() as cursor,
    ):
        return dict(cursor)


def test_each_byte_of_the_journal(small: Small, room: Path) -> None:
    """A byte behind the last mark may pass for a write that was cut short: docs/design/journal.md
    says what that means. Nothing before it does."""
    folder = copy_of(small, room / "node")
    verdicts = tails = 0
    for segment in sorted((folder / "journal").iterdir()):
        sound = segment.read_bytes()
        for at in steps(len(sound), 173, begin=1):
            segment.write_bytes(flipped(sound, at))
            report = examine(folder, whole=False)
            if report.findings:
                verdicts += 1
                # The start refuses, or makes of it what verify has said.
                assert any(one.path.startswith("journal") for one in report.findings), at
            elif small.survey(folder) != small.journal:
                tails += 1
                assert report.journal is not None
                assert report.journal.cut_bytes > 0, at
                # What the last records say stands further up, too, until they are marked durable.
                assert promises_of(small.survey(folder)) == promises_of(small.journal), at
            segment.write_bytes(sound)
    assert verdicts > tails
    assert small.survey(folder) == small.journal


def test_each_byte_of_the_checkpoints(small: Small, room: Path) -> None:
    folder = copy_of(small, room / "node")
    files = OsFiles(folder)
    there = sorted(path for path in (folder / ROOT).rglob("*") if path.is_file())
    assert len(there) == 4
    for path in there:
        sound = path.read_bytes()
        for at in steps(len(sound), 5):
            path.write_bytes(flipped(sound, at))
            named = examine(folder, whole=True).findings
            assert any(one.path.startswith(ROOT) for one in named), (path, at)
            refused = 0
            found = look(files, ROOT, small.config.cluster_id)
            for manifest in [one for group in found.groups.values() for one in group]:
                try:
                    need_sound(files, manifest, path_of(ROOT, manifest))
                except Broken:
                    refused += 1
            assert refused + len(found.findings) == 1, (path, at)
            path.write_bytes(sound)
    assert examine(folder, whole=True).findings == []
    assert sum(map(len, Catalog.scan(files, ROOT).values())) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_each_byte_of_the_files_of_a_durable_machine(kind: str, room: Path) -> None:
    """LMDB and SQLite checksum nothing: what a key or a value holds may change, and nobody sees it.
    All else is named, above all the number of the applied instance; a machine that opens on what
    is not named has no other one."""
    folder = room / "machine"
    machine = KINDS[kind]()
    assert machine.open(folder) == 0
    feed(machine, 1, LAST)
    machine.commit(LAST)
    whole = machine.digest()
    machine.close()
    (file,) = (path for path in folder.iterdir() if path.suffix in (".mdb", ".db")
               and path.name != "lock.mdb")  # fmt: skip
    sound = file.read_bytes()
    assert list(content_findings(file)) == []
    named = same = other = refused = 0
    odd = []
    for at in steps(len(sound), 61, begin=1):
        shutil.rmtree(folder)
        folder.mkdir()
        file.write_bytes(flipped(sound, at))
        if list(content_findings(file)):
            named += 1
            continue
        machine = KINDS[kind]()
        try:
            assert machine.open(folder) == LAST, at
            if machine.digest() == whole:
                same += 1
            else:
                other += 1
        except (ValueError, TypeError):  # of the machine's own: a key that is no number
            refused += 1
        except (errors.Damaged, sqlite3.OperationalError) as error:
            refused += 1
            if not re.search(UNNAMED, str(error)):
                odd.append((at, str(error)))
        finally:
            machine.close()
    print(f"{kind}: {named} named, {same} mean nothing, {other} other state, {refused} unreadable")
    assert odd == []
    assert named > 0
    assert same > 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["store", "journal", "checkpoints"])
def test_a_node_that_starts_on_it_serves_what_was_written_or_nothing(
    small: Small, room: Path, part: str
) -> None:
    """The whole node, so only some of the bytes, from all over the files."""

    async def state(folder: Path) -> dict[int, list[object] | None]:
        config = replace(small.config, dir=folder)
        async with phx.Node(config, KeyValue) as node:
            for _ in range(100):
                waiting = [
                    group
                    for group in (0, 1)
                    if group not in node.status().stopped and not node.ready([group])
                ]
                if not waiting or node.status().damage["holes"]:
                    break
                await asyncio.sleep(0.02)
            stopped = node.status().stopped
            return {
                group: None if group in stopped else node.group(group).machine().items()
                for group in (0, 1)
            }

    files = sorted(path for path in (small.folder / part).rglob("*") if path.is_file())
    with asyncio.Runner() as runner:
        whole = runner.run(state(copy_of(small, room / "node")))
        allowed = states()
        assert all(items == allowed[-1] for items in whole.values())
        refusals = stops = 0
        places = [
            (path.relative_to(small.folder), at)
            for path in files
            if path.name not in ("lock.mdb", "owner.lock")
            for at in steps(path.stat().st_size, path.stat().st_size // 6 + 1, begin=40)
        ]
        for name, at in places:
            folder = copy_of(small, room / "node")
            (folder / name).write_bytes(flipped((folder / name).read_bytes(), at))
            try:
                found = runner.run(state(folder))
            except (errors.StoreError, errors.ConfigError):
                refusals += 1
                continue
            for group, items in found.items():
                # Before a hole it has the state of some instance; never any other one.
                assert items is None or items in allowed, (name, at, group)
                stops += items is None
    print(f"{len(places)} starts, {refusals} refused, {stops} groups stopped")


def states() -> list[list[object]]:
    """What a machine may hold: after each of the values that `Small.fill` wrote, in their order."""
    held: dict[bytes, bytes] = {}
    found: list[list[object]] = [[]]
    for life in range(2):
        for n in range(4):
            held[b"%d" % n] = b"%d.%d" % (life, n) * 10
            found.append(list(held.items()))
    return found
