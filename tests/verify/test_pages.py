"""The pages of an LMDB file, as LMDB writes them and as damage leaves them."""

import random
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from phx.lmdb_files import LMDB_MAJOR
from phx.lmdb_pages import page_findings

PAGE = 4096
SIZES = [0, 3, 50, 1000, 3000, 70_000]


def written(folder: Path, seed: int, turns: int) -> Path:
    """Tables that were put to and deleted from for a while: plain ones, and two of many values."""
    chance = random.Random(seed)
    with lmdb.open(str(folder), max_dbs=4, map_size=1 << 28, lib_version=LMDB_MAJOR) as env:
        plain = [env.open_db(b"one"), env.open_db(b"two")]
        many = env.open_db(b"many", dupsort=True)
        fixed = env.open_db(b"fixed", dupsort=True, dupfixed=True, integerkey=True)
        for _ in range(turns):
            with env.begin(write=True) as txn:
                for _ in range(chance.randrange(400)):
                    key, table = chance.randrange(3000), chance.choice(plain)
                    if chance.random() < 0.4:
                        txn.delete(b"%d" % key, db=table)
                    else:
                        txn.put(b"%d" % key, bytes(chance.choice(SIZES)), db=table)
                    txn.put(b"%d" % (key % 7), b"%d" % chance.randrange(2000), db=many)
                    value = chance.randrange(5000).to_bytes(8, "little")
                    txn.put((key % 5).to_bytes(8, "little"), value, db=fixed)
    return folder / "data.mdb"


@pytest.mark.parametrize("seed", range(6))
def test_what_lmdb_writes_is_sound(tmp_path: Path, seed: int) -> None:
    for turns in (1, 30):
        folder = tmp_path / str(turns)
        folder.mkdir()
        assert page_findings(written(folder, seed, turns)) == []


def test_a_new_file_is_sound_and_an_empty_one_is_not(tmp_path: Path) -> None:
    lmdb.open(str(tmp_path), lib_version=LMDB_MAJOR).close()
    assert page_findings(tmp_path / "data.mdb") == []
    (tmp_path / "empty").write_bytes(b"")
    assert page_findings(tmp_path / "empty") == ["0 bytes: not even two pages"]


def test_a_file_that_was_cut_is_found(tmp_path: Path) -> None:
    path = written(tmp_path, 1, 10)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    (found,) = page_findings(path)
    assert found.endswith("bytes")
    path.write_bytes(data[: PAGE + 10])
    assert page_findings(path) == [f"{PAGE + 10} bytes: not even two pages"]


def page_of(data: bytes, flags: int) -> int:
    """The highest page with these flags and content; pages that nobody uses have them, too."""
    for page in reversed(range(2, len(data) // PAGE)):
        number, _, found, lower, _ = struct.unpack_from("<QHHHH", data, page * PAGE)
        if number == page and found == flags and lower > 24:
            return page
    raise AssertionError("there is none")


def sound_pages(path: Path) -> bytes:
    """Of a file in which nothing was ever deleted: every page is in use."""
    env = lmdb.open(str(path.parent), map_size=1 << 24, lib_version=LMDB_MAJOR)
    with env, env.begin(write=True) as txn:
        for key in range(2000):
            txn.put(b"%06d" % key, b"x" * 90)
    assert page_findings(path) == []
    return path.read_bytes()


def test_keys_that_change_are_found_in_leaves_and_branches(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    data = sound_pages(path)
    for flags, word in ((1, "keys"), (2, "keys")):
        page = page_of(data, flags)
        at = data.rindex(b"0", page * PAGE, data.rindex(b"00", page * PAGE, (page + 1) * PAGE))
        bad = bytearray(data)
        bad[at] = ord("9")
        path.write_bytes(bad)
        assert any(word in one and f"page {page} " in one for one in page_findings(path)), flags


def test_a_page_in_the_place_of_another_is_found(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    data = bytearray(sound_pages(path))
    leaf = page_of(data, 2)
    other = leaf - 1
    data[leaf * PAGE : (leaf + 1) * PAGE] = data[other * PAGE : (other + 1) * PAGE]
    path.write_bytes(data)
    assert f"page {leaf} says that it is page {other}" in page_findings(path)


def test_a_page_that_is_used_and_free_is_found(tmp_path: Path) -> None:
    path = written(tmp_path, 3, 5)
    data = bytearray(path.read_bytes())
    txns = [
        struct.unpack_from("<Q", data, number * PAGE + 16 + 24 + 96 + 8)[0] for number in (0, 1)
    ]
    newest = txns.index(max(txns))
    free_root, main_root = (
        struct.unpack_from("<Q", data, newest * PAGE + 16 + 24 + 48 * tree + 40)[0]
        for tree in (0, 1)
    )
    (node,) = struct.unpack_from("<H", data, free_root * PAGE + 16)
    first = free_root * PAGE + node + 8 + 8 + 8  # header of the node, its key, the count
    struct.pack_into("<Q", data, first, main_root)
    path.write_bytes(data)
    found = page_findings(path)
    assert f"page {main_root} is used and free" in found
    assert any("neither used nor free" in one for one in found)


def test_rubbish_never_raises(tmp_path: Path) -> None:
    path = written(tmp_path, 5, 8)
    data = path.read_bytes()
    chance = random.Random(5)
    found = 0
    for _ in range(400):
        bad = bytearray(data)
        for _ in range(chance.choice([1, 3, 200])):
            at = chance.randrange(len(bad) // PAGE) * PAGE + chance.choice([8, 64, 4000])
            at -= chance.randrange(8)
            bad[at : at + 4] = chance.randbytes(4)
        path.write_bytes(bad)
        found += bool(page_findings(path))
    assert found > 100


# --- pages that lead in circles


def table_of_tables(data: bytearray) -> tuple[int, int]:
    """Where the newest meta page has the tree of tables, and the root of that."""
    txns = [struct.unpack_from("<Q", data, number * PAGE + 144)[0] for number in (0, 1)]
    at = txns.index(max(txns)) * PAGE + 16 + 24 + 48
    return at, struct.unpack_from("<Q", data, at + 40)[0]


def a_large_number(data: bytearray) -> None:
    for number in (0, 1):
        struct.pack_into("<Q", data, number * PAGE + 32, 1 << 62)  # map
        struct.pack_into("<Q", data, number * PAGE + 136, 1 << 45)  # last page
        struct.pack_into("<Q", data, number * PAGE + 144, 0)  # transaction


def a_branch_of_itself(data: bytearray) -> None:
    at, root = table_of_tables(data)
    struct.pack_into("<IHH", data, at, 0, 2, 32)
    page, upper, offsets = bytearray(PAGE), PAGE, []
    for key in (b"", b"a", b"b"):
        node = struct.pack("<HHHH", root, 0, 0, len(key)) + key
        upper -= len(node) + len(node) % 2
        page[upper : upper + len(node)] = node
        offsets.append(upper)
    struct.pack_into("<QHHHH3H", page, 0, root, 0, 1, 22, upper, *offsets)
    data[root * PAGE : root * PAGE + PAGE] = page


def values_that_hold_themselves(data: bytearray) -> None:
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
    tmp_path: Path, harm: Callable[[bytearray], None]
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
    harm(data)
    assert data != before
    file.write_bytes(data)
    assert page_findings(file)
