"""Damage in the store: found, named, never served, never hidden."""

import os
import shutil

import lmdb
import pytest
from store_lab import (
    CLUSTER,
    NODE,
    Log,
    block,
    body_of,
    entries_of,
    flip,
    opened,
    read_all,
    settled,
    settled_singly,
)

from phx import errors
from phx.store import Store

pytestmark = pytest.mark.usefixtures("no_leaks")


def test_a_flipped_byte_is_detected_and_named(tmp_path):
    settled(tmp_path / "s")
    flip(tmp_path / "s", body_of(2, 17), 60)
    with opened(tmp_path / "s") as store:  # the index is sound
        with pytest.raises(errors.Damaged, match="chunk 1, group 2 instance 17"):
            store.entry(2, 17)
        with pytest.raises(errors.Damaged, match="chunk 1, group 2 instance 17"):
            store.read(2, 1, 1 << 20)
        with pytest.raises(errors.Damaged, match="chunk 1, group 2 instance 17"):
            store.verify()
        assert store.entry(2, 16) == body_of(2, 16)
        assert [i for i, _ in entries_of(store.read(2, 1, 1 << 20, 16))] == list(range(1, 17))
        assert len(read_all(store, 1)) == 50


def test_damage_is_not_merged_away(tmp_path):
    log = settled_singly(tmp_path / "s", 20)
    flip(tmp_path / "s", body_of(1, 5))
    with opened(tmp_path / "s") as store:
        before = store._index.chunk_list()
        for _ in range(2):
            with pytest.raises(errors.Damaged, match="chunk 5, group 1 instance 5"):
                store.merge()
        assert store._index.chunk_list() == before
        assert store.entry(1, 6) == body_of(1, 6)
        log.add(block([1], 21, 21))
        store.settle(log.plan())  # and settling goes on
        assert store.settled() == {1: 21}


def test_a_damaged_index_is_refused_at_open(tmp_path):
    log = Log()
    log.add(block([1], 1, 5))
    with opened(tmp_path / "s", create=True) as store:
        store.settle(log.plan())
        with store._env.begin() as txn:
            tail = txn.get((1).to_bytes(8, "big"), db=store._indexes)
    content = (tmp_path / "s" / "data.mdb").read_bytes()
    assert content.count(tail) == 2  # by itself, and at the end of its chunk
    for where in (content.index(tail), content.rindex(tail)):
        bad = bytearray(content)
        bad[where + 8] ^= 4
        shutil.copytree(tmp_path / "s", tmp_path / "bad")
        (tmp_path / "bad" / "data.mdb").write_bytes(bad)
        with pytest.raises(errors.Damaged, match="chunk 1"), opened(tmp_path / "bad") as store:
            store.verify()  # a copy that is not used at open shows here
        shutil.rmtree(tmp_path / "bad")


@pytest.mark.parametrize("table", [b"chunks", b"indexes"])
def test_a_missing_chunk_is_refused_at_open(tmp_path, table):
    settled_singly(tmp_path / "s", 3)
    env = lmdb.Environment(str(tmp_path / "s"), max_dbs=3, lib_version=0)
    with env.begin(write=True) as txn:
        assert txn.delete((2).to_bytes(8, "big"), db=env.open_db(table, txn=txn))
    env.close()
    with pytest.raises(errors.Damaged, match="chunk 2"):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)


def test_a_file_cut_short_is_refused(tmp_path):
    settled(tmp_path / "s", [1], 500)
    size = (tmp_path / "s" / "data.mdb").stat().st_size
    os.truncate(tmp_path / "s" / "data.mdb", size - 4096)
    with pytest.raises(errors.Damaged, match=f"has {size - 4096} of {size} bytes"):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)


def test_a_file_of_noise_is_refused(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "data.mdb").write_bytes(os.urandom(8192))
    with pytest.raises(errors.Damaged):
        Store.open(tmp_path / "s", cluster=CLUSTER, node=NODE)
