"""Folders that a kill, an accident or somebody's malice left: looked at to the end."""

import contextlib
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from click.testing import CliRunner

from phx import errors
from phx.blocking import Node
from phx.cli.commands import phx as command
from phx.durable.sqlite import SqliteMachine
from phx.lmdb_files import LMDB_MAJOR
from phx.lmdb_pages import page_findings
from phx.store import Store
from phx.store_folder import read_identity
from phx.verify import examine
from tests.api.cluster import config_of

PAGE = 4096


class Lines(SqliteMachine):
    def __init__(self, group: int) -> None:
        pass

    def create(self, db):  # type: ignore[no-untyped-def]
        db.execute("CREATE TABLE line (text TEXT)")

    def apply(self, entry):  # type: ignore[no-untyped-def]
        self.db.execute("INSERT INTO line VALUES (?)", ("x" * 300,))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("node")
    quiet = {"interval_instances": 0, "interval_us": 0}
    config = config_of(root, 1, nodes=1, groups=1, checkpoints=quiet)
    with Node(config, Lines, bootstrap=True) as node:
        node.wait_ready()
        for _ in range(50):
            node.group(0).propose(b"1")
    return Path(config.dir)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "node"))


def paths_of(folder: Path) -> list[str]:
    return [one.path for one in examine(folder, whole=True).findings]


MACHINE = "machines/0.0/00000001"


def test_any_byte_of_the_head_of_a_database_is_missed_if_it_changes(folder: Path) -> None:
    file = folder / MACHINE / "state.db"
    data = file.read_bytes()
    for at in range(16):
        file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert paths_of(folder) == [f"{MACHINE}/state.db"], at


def test_a_copy_that_was_being_made_is_no_damage(folder: Path) -> None:
    data = (folder / MACHINE / "state.db").read_bytes()
    (folder / MACHINE / "view-12345678").write_bytes(data[: len(data) // 2])
    assert paths_of(folder) == []


def test_a_bootstrap_that_was_cut_short_is_no_damage(folder: Path) -> None:
    shutil.rmtree(folder / "journal")
    assert paths_of(folder) == ["journal"]
    (folder / "bootstrap").touch()
    assert paths_of(folder) == []


def test_what_does_not_belong_there_hides_nothing_else(folder: Path) -> None:
    (folder / "machines" / "note").write_text("hello")
    (folder / MACHINE / "data.mdb").mkdir()
    os.mkfifo(folder / MACHINE / "pipe")
    (folder / "checkpoints").symlink_to(folder)
    assert paths_of(folder) == ["checkpoints", "machines/note"]


def test_names_of_any_bytes_are_printed(folder: Path) -> None:
    odd = folder / "checkpoints" / os.fsdecode(b"\xff\n\x1b[1m")
    odd.mkdir(parents=True)
    result = CliRunner().invoke(command, ["verify", str(folder)])
    assert result.exit_code == 1
    assert r"checkpoints/\udcff\n\x1b[1m: does not belong here" in result.output


@pytest.mark.parametrize("table", [b"meta", b"chunks", b"indexes"])
@pytest.mark.parametrize("bit", range(8))
def test_a_flipped_bit_of_a_table_s_kind_is_found(folder: Path, table: bytes, bit: int) -> None:
    file = folder / "store" / "data.mdb"
    owner = read_identity(folder / "store", 1 << 20)
    data = bytearray(file.read_bytes())
    at = data.find(table)
    while at >= 0:
        data[at + len(table) + 4] ^= 1 << bit  # flags, behind pad
        at = data.find(table, at + 1)
    file.write_bytes(data)
    if bit not in (0, 7):  # mean nothing
        assert "store/data.mdb" in paths_of(folder)
    with contextlib.suppress(errors.StoreError):
        Store.open(folder / "store", cluster=owner.cluster, node=owner.node).close()


def test_keys_that_no_store_has_are_found(folder: Path) -> None:
    owner = read_identity(folder / "store", 1 << 20)
    with lmdb.open(
        str(folder / "store"), lib_version=LMDB_MAJOR, max_dbs=3, map_size=1 << 28
    ) as env:
        tables = env.open_db(b"chunks"), env.open_db(b"indexes")
        with env.begin(write=True) as txn:
            for table in tables:
                txn.put(b"\xff" * 12, b"x", db=table)
    assert "store/data.mdb" in paths_of(folder)
    with pytest.raises(errors.Damaged):
        Store.open(folder / "store", cluster=owner.cluster, node=owner.node)


# --- pages that lead in circles


def words(data: bytearray) -> tuple[int, int]:
    """Where the newest meta page has the tree of tables, and the root of that."""
    txns = [struct.unpack_from("<Q", data, number * PAGE + 144)[0] for number in (0, 1)]
    at = txns.index(max(txns)) * PAGE + 16 + 24 + 48
    return at, struct.unpack_from("<Q", data, at + 40)[0]


def a_large_number(folder: Path, data: bytearray) -> None:
    for number in (0, 1):
        struct.pack_into("<Q", data, number * PAGE + 32, 1 << 62)  # map
        struct.pack_into("<Q", data, number * PAGE + 136, 1 << 45)  # last page
        struct.pack_into("<Q", data, number * PAGE + 144, 0)  # transaction


def a_branch_of_itself(folder: Path, data: bytearray) -> None:
    at, root = words(data)
    struct.pack_into("<IHH", data, at, 0, 2, 32)
    page, upper, offsets = bytearray(PAGE), PAGE, []
    for key in (b"", b"a", b"b"):
        node = struct.pack("<HHHH", root, 0, 0, len(key)) + key
        upper -= len(node) + len(node) % 2
        page[upper : upper + len(node)] = node
        offsets.append(upper)
    struct.pack_into("<QHHHH3H", page, 0, root, 0, 1, 22, upper, *offsets)
    data[root * PAGE : root * PAGE + PAGE] = page


def values_that_hold_themselves(folder: Path, data: bytearray) -> None:
    for page in range(2, len(data) // PAGE):
        number, _, flags, lower, _ = struct.unpack_from("<QHHHH", data, page * PAGE)
        if (number, flags, lower) == (page, 2, 18):
            (offset,) = struct.unpack_from("<H", data, page * PAGE + 16)
            _, _, kind, key = struct.unpack_from("<HHHH", data, page * PAGE + offset)
            if kind == 6:
                at = page * PAGE + offset + 8 + key
                struct.pack_into("<IHH", data, at, 0, 0, 1)
                struct.pack_into("<Q", data, at + 40, page)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("harm", [a_large_number, a_branch_of_itself, values_that_hold_themselves])
def test_pages_that_lead_nowhere_are_left(
    tmp_path: Path, harm: Callable[[Path, bytearray], None]
) -> None:
    with lmdb.open(str(tmp_path), lib_version=LMDB_MAJOR, map_size=1 << 24, max_dbs=2) as env:
        many = env.open_db(b"many", dupsort=True)
        with env.begin(write=True) as txn:
            for number in range(2000):
                txn.put(b"k", b"%06d" % number + b"z" * 50, db=many)
    file = tmp_path / "data.mdb"
    assert page_findings(file) == []
    data = bytearray(file.read_bytes())
    before = bytes(data)
    harm(tmp_path, data)
    assert data != before
    file.write_bytes(data)
    assert page_findings(file)
