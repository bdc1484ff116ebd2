"""A node's folder, looked at from outside: what it holds, and what in it is not as it must be.

Guarantees. Nothing in the folder is changed, and nothing read is believed before its checksum: a
copy of a damaged folder can be looked at as well as a sound one. What is called damage in the
journal is what a node would not start with, by the same code; LMDB is asked only after its pages
were found sound, because it trusts them.

The node must not be running: what changes while it is read looks like damage.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lmdb

from phx import store_hosted, store_peers
from phx._core.ballot import counter_of, node_of
from phx._core.chunk import ChunkDamage, rosters_of, verify_chunk
from phx._core.chunk_index import ChunkIndex, floors_of
from phx._core.segment import parse_header
from phx._core.survey import Survey
from phx.checkpoint.catalog import QUARANTINE, ROOT, Finding, look, path_of, verify
from phx.checkpoint.files import OsFiles
from phx.durable.generations import Generations
from phx.durable.lmdb import applied_of
from phx.durable.sqlite import COPY as VIEW
from phx.durable.sqlite import FILE as DATABASE
from phx.durable.sqlite import applied_of as applied_in
from phx.durable.sqlite import is_checked
from phx.errors import Damaged, Locked, NotBootstrapped, StoreError
from phx.lmdb_files import LMDB_MAJOR
from phx.lmdb_pages import page_findings
from phx.store_facts import NAMES, Facts, join
from phx.store_folder import StoreIdentity, unpack_identity
from phx.store_hosted import HostedRow
from phx.store_members import MembersRow, load, of_journal
from phx.store_mend import Holes

__all__ = ["Finding", "GroupReport", "Report", "StoreReport", "examine"]

JOURNAL, STORE, MACHINES = "journal", "store", "machines"
SEGMENT_HEADER_BYTES = 4096
CHUNK_KEY_BYTES = 8


@dataclass(slots=True)
class GroupReport:
    """What the folder has of one group; None: nothing of that kind.

    Attributes:
        promise: highest ballot promised or accepted in the journal, as "counter.node".
        accepted, learned: first and last instance in the journal.
        journal_settled: the highest instance of which the journal says that the store has it; 0:
            of none.
        kept_from, settled_through: of the store.
        holes: first and last instances that the store knows to be damaged.
        checkpoints: their frontiers, newest first.
        members: node ids, by whoever of store, journal and newest checkpoint knows the latest.
        version, since: of these members, and the instance that they were chosen at; 0 where they
            never changed: they are those of a configuration.
        removed: store or journal say that this node is none of them any more.
    """

    group: int
    promise: str | None = None
    journal_records: int = 0
    journal_bytes: int = 0
    accepted: tuple[int, int] | None = None
    learned: tuple[int, int] | None = None
    journal_settled: int = 0
    kept_from: int | None = None
    settled_through: int | None = None
    holes: list[tuple[int, int]] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    members: tuple[int, ...] | None = None
    version: int = 0
    since: int = 0
    removed: bool = False


@dataclass(slots=True)
class StoreReport:
    """Of the store, as far as it could be read."""

    entries: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    file_bytes: int = 0


@dataclass(slots=True)
class Report:
    """What `examine` found.

    Attributes:
        identity: whose the folder is, by the store; else by a segment of the journal; None: nobody
            can say.
        findings: everything that is not as it must be.
        journal: None: it could not be opened.
        store: None: its pages are damaged.
        lives: what the store knows of the node's lives; None: nothing that can be believed.
        checkpoints, checkpoint_bytes, quarantined: how many, of what size; names put aside.
        rows: who the members of groups are, by the store, where they ever changed.
        journal_rows: and by the journal.
        created: the groups that were created and are or were hosted, by the store.
        rosters: the last change that a settled entry says, by group: its instance, and its bytes.
    """

    folder: Path
    identity: StoreIdentity | None = None
    findings: list[Finding] = field(default_factory=list)
    journal: Survey | None = None
    store: StoreReport | None = None
    groups: dict[int, GroupReport] = field(default_factory=dict)
    lives: Facts | None = None
    created: dict[int, HostedRow] = field(default_factory=dict)
    checkpoints: int = 0
    checkpoint_bytes: int = 0
    machines: int = 0
    quarantined: list[str] = field(default_factory=list)
    rows: dict[int, MembersRow] = field(default_factory=dict)
    journal_rows: dict[int, MembersRow] = field(default_factory=dict)
    rosters: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    def find(self, path: str, what: object) -> None:
        self.findings.append(Finding(path, str(what)))

    def group(self, number: int) -> GroupReport:
        return self.groups.setdefault(number, GroupReport(number))


def examine(folder: str | os.PathLike[str], *, whole: bool) -> Report:
    """Look at the folder of a node that does not run.

    Args:
        whole: read all that counts; False: not the bodies of settled entries, nor the files of
            checkpoints and machines.

    Raises:
        NotBootstrapped: it is not the folder of a node.
        Locked: the node runs, here or in another process.
        StoreError: it cannot be read at all.
    """
    report = Report(Path(folder))
    present = [name for name in (JOURNAL, STORE) if (report.folder / name).is_dir()]
    if not present:
        raise NotBootstrapped(f"{folder} is not the folder of a node: no journal, no store")
    try:
        with held(report.folder / "lock"):
            if not being_made(report.folder):
                with as_finding(report, STORE):
                    look_at_store(report, whole)
                with as_finding(report, JOURNAL):
                    look_at_journal(report)
            with as_finding(report, ROOT):
                look_at_checkpoints(report, whole)
            with as_finding(report, MACHINES):
                look_at_machines(report, whole)
            compare(report)
    except OSError as error:
        raise StoreError(f"{error.filename or folder}: {error.strerror or error}") from error
    report.groups = dict(sorted(report.groups.items()))
    return report


def being_made(folder: Path) -> bool:
    """It is a new node's that was stopped before its journal began: nothing is promised there."""
    journal = folder / JOURNAL
    begun = (folder / "bootstrap").exists()
    return begun and not (journal.is_dir() and any(journal.iterdir()))


@contextmanager
def as_finding(report: Report, part: str) -> Iterator[None]:
    """What cannot be read of one part keeps nobody from looking at the others."""
    try:
        yield
    except OSError as error:
        report.find(part, f"cannot be read: {error.strerror or error}")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Nobody opens the node meanwhile. A folder without the file, or not ours, is a copy."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"{path.parent} is open, here or in another process") from None
        yield
    finally:
        os.close(lock)


# --- the store


def look_at_store(report: Report, whole: bool) -> None:
    path = report.folder / STORE
    data = path / "data.mdb"
    if not data.is_file():
        report.find(f"{STORE}/data.mdb", "is missing")
        return
    wrong = page_findings(data)
    for one in wrong:
        report.find(f"{STORE}/data.mdb", one)
    if wrong:
        return
    report.store = StoreReport(file_bytes=data.stat().st_size)
    try:
        with closing(read_only(path)) as env, env.begin(buffers=True) as txn:
            read_store(report, report.store, env, txn, whole)
    except (lmdb.Error, Damaged) as error:
        report.find(f"{STORE}/data.mdb", error)


def read_only(path: Path, tables: int = 3) -> lmdb.Environment:
    """LMDB that makes no lock file and changes nothing, for so many tables at a time."""
    return lmdb.Environment(
        str(path), readonly=True, lock=False, create=False, max_dbs=tables, lib_version=LMDB_MAJOR
    )


def read_store(
    report: Report, found: StoreReport, env: lmdb.Environment, txn: lmdb.Transaction, whole: bool
) -> None:
    where = f"{STORE}/data.mdb"
    try:
        meta, chunks, indexes = (
            env.open_db(name, txn, create=False) for name in (b"meta", b"chunks", b"indexes")
        )
    except lmdb.NotFoundError as error:
        report.find(where, f"a table is missing: {error}")
        return
    for name, table in ((b"meta", meta), (b"chunks", chunks), (b"indexes", indexes)):
        if odd := sorted(flag for flag, on in table.flags().items() if on):
            report.find(where, f"table {name.decode()} is of another kind: {', '.join(odd)}")
            return
    packed = txn.get(b"identity", db=meta)
    if packed is None:
        report.find(where, "the identity is missing: it was never completely made")
        return
    identity = report.identity = unpack_identity(bytes(packed), report.folder / STORE)
    index = ChunkIndex(identity.store_id)
    copies = (txn.get(name, db=meta) for name in NAMES)
    try:
        packed_copies = [None if one is None else bytes(one) for one in copies]
        report.lives, wrong = join(packed_copies, report.folder / STORE)
    except Damaged as damage:
        wrong = str(damage)
    if wrong:
        report.find(where, wrong)
    try:
        with txn.cursor(meta) as cursor:
            pairs = ((bytes(key), row) for key, row in cursor)
            created = {
                key: bytes(row) for key, row in pairs if key.startswith(store_hosted.PREFIXES)
            }
        report.created = store_hosted.join(created, report.folder / STORE)
    except Damaged as damage:
        report.find(where, damage)
    try:
        told = txn.get(store_peers.NAME, db=meta)
        if told is not None:
            store_peers.unpack(bytes(told), report.folder / STORE)
    except Damaged as damage:
        report.find(where, damage)
    try:
        members = load(txn, meta, report.folder / STORE)
        report.rows = members.rows
        for said in members.wrong:
            report.find(where, said)
    except Damaged as damage:
        report.find(where, damage)
    sound = read_tails(report, txn, chunks, indexes, index)
    if whole:
        read_chunks(report, txn, chunks, indexes, identity.store_id)
    found.chunks = len(index.chunk_list())
    found.chunk_bytes = sum(one[1] for one in index.chunk_list())
    found.entries = sum(one[3] for one in index.chunk_list())
    noted = txn.get(b"holes", db=meta)
    for group, first, last in Holes.unpack(None if noted is None else bytes(noted)).all():
        report.group(group).holes.append((first, last))
        report.find(where, f"group {group}: instances {first} to {last} wait to be fetched")
    groups = txn.get(b"groups", default=b"", db=meta)
    try:
        for group, (kept_from, through) in floors_of(groups).items():
            one = report.group(group)
            one.kept_from, one.settled_through = kept_from, through
        if sound:
            index.seal(groups)
    except ChunkDamage as damage:
        report.find(where, damage)


def read_tails(
    report: Report, txn: lmdb.Transaction, chunks: Any, indexes: Any, index: ChunkIndex
) -> bool:
    """Fill the index; are all the tails sound, one for each chunk?"""
    where = f"{STORE}/data.mdb"
    sound = True
    with txn.cursor(chunks) as cursor:
        there = {bytes(key) for key in cursor.iternext(values=False)}
    with txn.cursor(indexes) as cursor:
        for key, tail in cursor:
            number = int.from_bytes(key, "big")
            if len(key) != CHUNK_KEY_BYTES:
                report.find(where, f"an index has the impossible key {bytes(key).hex()}")
                there.discard(bytes(key))
                sound = False
                continue
            if bytes(key) not in there:
                report.find(where, f"chunk {number} is missing, its index is there")
                sound = False
            there.discard(bytes(key))
            try:
                index.load(number, tail)
            except ChunkDamage as damage:
                report.find(where, f"index of a chunk: {damage}")
                sound = False
    for key in sorted(there):
        report.find(where, f"the index of chunk {int.from_bytes(key, 'big')} is missing")
        sound = False
    return sound


def read_chunks(
    report: Report, txn: lmdb.Transaction, chunks: Any, indexes: Any, store_id: bytes
) -> None:
    where = f"{STORE}/data.mdb"
    with txn.cursor(chunks) as cursor:
        for key, value in cursor:
            number = int.from_bytes(key, "big")
            if len(key) != CHUNK_KEY_BYTES:
                report.find(where, f"a chunk has the impossible key {bytes(key).hex()}")
                continue
            try:
                verify_chunk(number, value, store_id)
                for group, instance, roster in rosters_of(number, value, store_id):
                    before = report.rosters.get(group, (0, b""))
                    report.rosters[group] = max(before, (instance, roster))
            except ChunkDamage as damage:
                report.find(where, damage)
                continue
            tail = txn.get(key, db=indexes)
            if tail is not None and value[len(value) - len(tail) :] != tail:
                report.find(where, f"chunk {number} and its index do not match")


# --- the journal


def look_at_journal(report: Report) -> None:
    path = report.folder / JOURNAL
    if not path.is_dir() or not any(path.iterdir()):
        if (report.folder / "recovered").exists():
            return  # it begins with the first start
        report.find(JOURNAL, "is missing: the promises of this node are lost")
        return
    identity = report.identity or identity_by_segments(path)
    if identity is None:
        report.find(JOURNAL, "no segment has a sound header")
        return
    report.identity = identity
    survey = report.journal = Survey(
        path, cluster=identity.cluster, node=identity.node, store_id=identity.store_id
    )
    if survey.verdict is not None:
        code, text = survey.verdict
        name, _, rest = text.partition(".segment")
        at = f"{JOURNAL}/{name}.segment" if rest else JOURNAL
        report.find(at, f"{code}: {rest.lstrip(',: ') or text}")
    if survey.odd_records:
        report.find(JOURNAL, f"{survey.odd_records} records of a kind that is not known")
    try:
        report.journal_rows = of_journal(survey.members)
    except ValueError as error:
        report.find(JOURNAL, f"members that cannot be: {error}")
    for group, promise, records, size, accepted, learned, settled in survey.groups:
        one = report.group(group)
        one.promise = f"{counter_of(promise)}.{node_of(promise)}" if promise else None
        one.journal_records, one.journal_bytes = records, size
        one.accepted, one.learned = accepted, learned
        one.journal_settled = settled


def identity_by_segments(path: Path) -> StoreIdentity | None:
    for file in sorted(path.iterdir()):
        with suppress(OSError), file.open("rb") as opened:
            header = parse_header(opened.read(SEGMENT_HEADER_BYTES))
            if header is not None:
                return StoreIdentity(
                    header["cluster"], header["node"], header["store_id"], 0, (0, 0, 0)
                )
    return None


# --- checkpoints and machines


def look_at_checkpoints(report: Report, whole: bool) -> None:
    files = OsFiles(report.folder)
    cluster = report.identity.cluster if report.identity is not None else None
    survey = look(files, ROOT, cluster)
    report.findings += survey.findings
    for group, found in survey.groups.items():
        one = report.group(group)
        one.checkpoints = [manifest.frontier for manifest in found]
        one.members = found[0].members
        if told := found[0].membership:
            one.version, one.since = told.version, told.instance
        report.checkpoints += len(found)
        for manifest in found:
            report.checkpoint_bytes += manifest.size_bytes
            if whole:
                report.findings += verify(files, path_of(ROOT, manifest))
    aside = report.folder / QUARANTINE
    if aside.is_dir():
        report.quarantined = sorted(path.name for path in aside.iterdir())


def look_at_machines(report: Report, whole: bool) -> None:
    """Generations that count, and what is in them if it is LMDB's or SQLite's."""
    root = report.folder / MACHINES
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        where = f"{MACHINES}/{path.name}"
        if not path.is_dir():
            report.find(where, "does not belong here")
            continue
        try:
            current = Generations(path).current()
        except Damaged as damage:
            report.find(where, damage)
            continue
        if current is None:
            continue  # in the making when the node stopped
        report.machines += 1
        for file in sorted(current.iterdir()) if whole else ():
            inside = f"{where}/{current.name}/{file.name}"
            for what in content_findings(file):
                report.find(inside, what)


def content_findings(file: Path) -> Iterator[str]:
    if not file.is_file() or file.name.startswith(VIEW):
        return  # (a copy that was being made when the node died: whoever opens it next removes it)
    if file.name == "data.mdb":
        wrong = page_findings(file)
        yield from wrong if wrong else lmdb_findings(file.parent)
        return
    with file.open("rb") as opened:
        begin = opened.read(16)
    if begin == b"SQLite format 3\x00" or file.name == DATABASE:
        yield from sqlite_findings(file)


def lmdb_findings(folder: Path) -> Iterator[str]:
    """Of files whose pages are sound."""
    try:
        with closing(read_only(folder)) as env:
            tables = env.stat()["entries"]
            if applied_of(env, folder) is None:
                return
        with closing(read_only(folder, tables)) as env, env.begin() as txn:
            for name in list(txn.cursor().iternext(values=False)):
                env.open_db(name, txn, create=False)
    except (lmdb.Error, Damaged) as error:
        yield str(error)


def copied(file: Path, folder: Path) -> Path:
    """A copy of a SQLite database with its log: whoever opens the file itself may change it."""
    for suffix in ("", "-wal"):
        with suppress(FileNotFoundError):
            shutil.copyfile(f"{file}{suffix}", f"{folder}/copy{suffix}")
    return folder / "copy"


def sqlite_findings(file: Path) -> Iterator[str]:
    with TemporaryDirectory(prefix="phx-verify.") as folder:
        copy = copied(file, Path(folder))
        try:
            with closing(sqlite3.connect(copy)) as opened:
                for (said,) in opened.execute("PRAGMA integrity_check(20)"):
                    if said != "ok":
                        yield said
                checked = is_checked(opened)
                if checked:
                    applied_in(opened, file)
                elif checked is not None:
                    yield (
                        "the number of the applied instance has no checksum, and cannot be "
                        "checked: an older phx made the file; the next start adds one"
                    )
        except (sqlite3.Error, Damaged) as error:
            yield str(error)
        except UnicodeDecodeError as error:  # of what SQLite says of a schema that is damaged
            yield f"the schema is no text: {error}"


# --- all of it together


def compare(report: Report) -> None:
    """What one part of the folder says of another."""
    compare_lives(report)
    compare_members(report)
    read = not any(one.path.split("/")[0] == STORE for one in report.findings)
    for one in report.groups.values():
        if read and (one.settled_through or 0) < one.journal_settled:
            report.find(
                STORE,
                f"group {one.group} is settled through {one.settled_through or 0}, and the journal "
                f"says {one.journal_settled}: the store is an older one, or not this node's",
            )
        kept, created = one.kept_from or 1, report.created.get(one.group)
        if one.removed or (
            created is not None and (created.gone or kept == created.base + 1)
        ):  # there is to be nothing of it, or it begins there
            continue
        if kept > 1 and not any(frontier >= kept - 1 for frontier in one.checkpoints):
            report.find(
                STORE,
                f"group {one.group} begins with instance {kept}, and no checkpoint has what was "
                "before it",
            )


def compare_members(report: Report) -> None:
    """Who is settled past a change of members has a row of them, or of later ones."""
    for number in sorted({*report.rows, *report.rosters, *report.journal_rows, *report.groups}):
        one, row = report.group(number), report.rows.get(number)
        said = report.journal_rows.get(number)
        journal = said.membership.instance if said is not None else 0
        created = report.created.get(number)
        # (Nothing is needed of a group that is gone, and its log may lie there still, or as long as
        # the next one of its id is not begun.)
        through = one.settled_through or 0
        if created is not None and (created.gone or through < created.base):
            through = 0
        known = row.membership if row is not None else None
        kept = known.instance if known is not None else 0
        passed, roster = report.rosters.get(number, (0, b""))
        for who, instance in (
            ("a settled entry", passed),
            ("a checkpoint", one.since),
            ("the journal", journal),
        ):
            if kept < instance <= through:
                report.find(
                    STORE,
                    f"group {number} is settled through {through}, and its members are those of "
                    f"{f'instance {kept}' if kept else 'the configuration'}: {who} says that they "
                    f"changed at {instance}",
                )
        if known is not None and passed == kept and roster != known.roster:
            report.find(STORE, f"group {number} has other members than the log says at {passed}")
        for source in (row, said):
            if source is not None and source.membership.instance >= one.since:
                told = source.membership
                one.removed = source.removed or (one.removed and told.instance == one.since)
                one.members, one.version, one.since = told.nodes, told.version, told.instance


def compare_lives(report: Report) -> None:
    """The store is told of lives and of promises before the journal is."""
    journal, lives = report.journal, report.lives
    if journal is None or journal.verdict is not None or lives is None:
        return
    if journal.incarnation > lives.spare:
        report.find(
            STORE,
            f"the journal is of life {journal.incarnation}, and the store allows for lives up to "
            f"{lives.spare}: it is an older one",
        )
    if journal.incarnation < lives.lost:
        report.find(
            JOURNAL,
            f"it was lost in life {lives.lost}, of which this one does not know: the promises of "
            "this node are lost",
        )
    if journal.counter > lives.ceiling:
        report.find(
            STORE,
            f"a promise may have the counter {journal.counter}, and the store says that "
            f"none is above {lives.ceiling}: it is an older one",
        )
