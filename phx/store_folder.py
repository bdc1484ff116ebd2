"""The folder of a store: who may open it, and whose it is.

One opener at a time, by a lock on a file. The identity is written once, in the transaction that
makes the store, and checked at every open: another cluster, node or format version is refused by
name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import lmdb

from phx._core.chunk import CLASS_BYTES, ChunkDamage, build_chunk, value_bytes
from phx._core.chunk_index import ChunkIndex
from phx._core.codec import crc32c
from phx.errors import Damaged, Foreign, Locked, NotBootstrapped, StoreError
from phx.lmdb_files import LMDB_MAJOR, refuse_cut
from phx.store_members import MembersRow, put
from phx.store_mend import own_tail

FORMAT_VERSION = 1
FORMAT_MEMBERS = 2
"""Of a store in which the members of some group changed: a phx that knows of no such rows would go
on under the members of its configuration, so it must not open it."""

ENTRY_ROOM = 64
"""More than an entry takes in a chunk besides its body, its share of the index included."""
GROUPS_HEAD, GROUPS_ROW, GROUPS_VERSION = struct.Struct("<IQ"), struct.Struct("<IIQQ"), 1
IDENTITY = struct.Struct("<8sIQI16sIII")
IDENTITY_MAGIC = b"PHXSTORE"
DAMAGE = (
    ChunkDamage,
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,  # of tables and keys that no store has
    lmdb.IncompatibleError,
    lmdb.BadValsizeError,
    OverflowError,
)


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Whose store it is; written when it is made, and once more when it gets rows of members.

    Attributes:
        cluster, node: ids of the cluster and of the node it was made for.
        store_id: 16 random bytes; a node whose disk was lost and made anew has another one.
        format_version: of everything that phx keeps in it.
        lmdb_version: of the LMDB that made the file.
    """

    cluster: int
    node: int
    store_id: bytes
    format_version: int
    lmdb_version: tuple[int, int, int]

    def with_members(self) -> StoreIdentity:
        """Of the store once it has rows of members."""
        return replace(self, format_version=FORMAT_MEMBERS)

    def pack(self) -> bytes:
        body = IDENTITY.pack(
            IDENTITY_MAGIC,
            self.format_version,
            self.cluster,
            self.node,
            self.store_id,
            *self.lmdb_version,
        )
        return body + crc32c(body).to_bytes(4, "little")


def take_lock(folder: Path, create: bool) -> int:
    """A descriptor that keeps every other opener out, of this process or another."""
    if not create and not (folder / "data.mdb").exists():
        raise NotBootstrapped(f"{folder}: there is no store")
    try:
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"{folder}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        if error.errno == errno.EWOULDBLOCK:
            raise Locked(f"{folder}: the store is open already") from None
        raise StoreError(f"{folder}: {error}") from error
    return lock


def open_env(folder: Path, map_bytes: int, create: bool) -> lmdb.Environment:
    try:
        env = lmdb.Environment(
            str(folder),
            map_size=map_bytes,
            max_dbs=3,
            create=create,
            lib_version=LMDB_MAJOR,
            metasync=True,
            sync=True,
            map_async=False,
            writemap=False,
            readahead=True,
            mode=0o644,
        )
    except lmdb.InvalidError as error:
        raise Damaged(
            f"{folder}: the first pages of data.mdb are damaged, or were not written by "
            f"LMDB {LMDB_MAJOR}.x: {error}"
        ) from error
    except (lmdb.Error, OSError) as error:
        raise StoreError(f"{folder}: {error}") from error
    refuse_cut(env, folder)
    return env


def obtain_identity(
    env: lmdb.Environment, folder: Path, cluster: int, node: int, create: bool
) -> StoreIdentity:
    """Write the identity of a new store, or check that of an old one."""
    try:
        meta = env.open_db(b"meta", create=create)
    except lmdb.NotFoundError:
        raise NotBootstrapped(f"{folder}: the store was never completely made") from None
    with env.begin() as txn:
        packed = txn.get(b"identity", db=meta)
    if create and packed is not None:
        raise StoreError(f"{folder}: there is a store already")
    if packed is None and not create:
        raise NotBootstrapped(f"{folder}: the store was never completely made")
    if packed is None:
        identity = StoreIdentity(cluster, node, os.urandom(16), FORMAT_VERSION, env.lib_version())
        make_tables(env, meta, identity)
        sync_folder(folder)
        sync_folder(folder.parent)
        return identity
    return check_identity(packed, folder, cluster, node)


def make_tables(
    env: lmdb.Environment,
    meta: Any,
    identity: StoreIdentity,
    groups: bytes | None = None,
    members: Mapping[int, MembersRow] | None = None,
) -> None:
    """Everything that an opened store must have, in one synced transaction.

    Args:
        groups: the table of groups; default: an empty one.
        members: rows of groups whose members ever changed.
    """
    if groups is None:
        groups = ChunkIndex(identity.store_id).groups_packed()
    with env.begin(write=True) as txn:
        env.open_db(b"chunks", txn=txn)
        env.open_db(b"indexes", txn=txn)
        txn.put(b"groups", groups, db=meta)
        put(txn, meta, members or {})
        if members:
            identity = identity.with_members()
        txn.put(b"identity", identity.pack(), db=meta)


def remake(
    folder: Path,
    map_bytes: int,
    identity: StoreIdentity,
    settled: Mapping[int, int],
    members: Mapping[int, MembersRow] | None = None,
) -> None:
    """Make a store in the place of one that is lost: with its identity, without any entry.

    Complete, and durable, on return; before that, whoever opens it is told that it was never
    completely made. There must be none in the folder, but for one that was left like that.

    Args:
        settled: the last instance that counts as settled, of each group; nothing is kept of any.
        members: of each group whose members ever changed, those that hold there, or later ones.

    Raises StoreError.
    """
    index = ChunkIndex(identity.store_id)
    for group, through in settled.items():
        index.stage_floor(group, through + 1, through)
    groups = index.groups_packed()
    lock = take_lock(folder, create=True)
    try:
        env = open_env(folder, map_bytes, create=True)
        try:
            make_tables(env, env.open_db(b"meta"), identity, groups, members)
        except lmdb.Error as error:
            raise StoreError(f"{folder}: {error}") from error
        finally:
            env.close()
        sync_folder(folder)
        sync_folder(folder.parent)
    finally:
        os.close(lock)


def fill(
    folder: Path,
    cluster: int,
    node: int,
    floors: Mapping[int, tuple[int, int]],
    members: Mapping[int, MembersRow],
    entries: Iterable[tuple[int, int, bytes]],
    map_bytes: int,
) -> None:
    """Make a store, with an identity of its own, of a log that comes from elsewhere.

    Complete, and durable, on return; before that, whoever opens it is told that it was never
    completely made.

    Args:
        floors: lowest instance kept and last one settled, of every group.
        members: rows of the groups whose members ever changed.
        entries: (group, instance, body), ascending: of each group all of those instances.
        map_bytes: more than LMDB's file will have.

    Raises StoreError; ValueError: an entry does not follow the one before it.
    """
    lock = take_lock(folder, create=True)
    try:
        env = open_env(folder, map_bytes, create=True)
        try:
            version: tuple[int, int, int] = env.lib_version()
            identity = StoreIdentity(cluster, node, os.urandom(16), FORMAT_VERSION, version)
            meta = env.open_db(b"meta")
            chunks, indexes = env.open_db(b"chunks"), env.open_db(b"indexes")
            for number, value in enumerate(chunks_of(identity.store_id, entries), 1):
                with env.begin(write=True) as txn:
                    key = number.to_bytes(8, "big")
                    txn.put(key, value, db=chunks, append=True)
                    txn.put(key, own_tail(value), db=indexes, append=True)
            make_tables(env, meta, identity, pack_groups(floors), members)
        except lmdb.Error as error:
            raise StoreError(f"{folder}: {error}") from error
        finally:
            env.close()
        sync_folder(folder)
    finally:
        os.close(lock)


def chunks_of(store_id: bytes, entries: Iterable[tuple[int, int, bytes]]) -> Iterator[bytes]:
    """The log in chunks, numbered from 1 on."""
    number, gathered, spent = 1, list[tuple[int, int, bytes]](), 0
    for one in chain(entries, [None]):
        if one is not None:
            gathered.append(one)
            spent += len(one[2]) + ENTRY_ROOM
        while gathered and (one is None or spent > CLASS_BYTES[-1]):
            size = value_bytes(spent + ENTRY_ROOM, len(gathered[0][2]) + 2 * ENTRY_ROOM)
            value, taken = build_chunk(number, size, store_id, gathered)
            if not taken:
                raise ValueError(f"an entry of group {gathered[0][0]} does not fit in a chunk")
            yield value
            number += 1
            gathered = gathered[taken:]
            spent = sum(len(body) + ENTRY_ROOM for _, _, body in gathered)


def pack_groups(floors: Mapping[int, tuple[int, int]]) -> bytes:
    """The table of groups: phx/_core/chunk_index.pxd."""
    body = GROUPS_HEAD.pack(GROUPS_VERSION, len(floors))
    body += b"".join(GROUPS_ROW.pack(group, 0, *floors[group]) for group in sorted(floors))
    return crc32c(body).to_bytes(4, "little") + body


def read_identity(folder: Path, map_bytes: int) -> StoreIdentity:
    """Whose store it is, for whoever does not know. Raises as `Store.open` does."""
    lock = take_lock(folder, create=False)
    try:
        env = open_env(folder, map_bytes, create=False)
        try:
            with env.begin(db=env.open_db(b"meta", create=False)) as txn:
                packed = txn.get(b"identity")
        except lmdb.NotFoundError:
            packed = None
        finally:
            env.close()
    finally:
        os.close(lock)
    if packed is None:
        raise NotBootstrapped(f"{folder}: the store was never completely made")
    return unpack_identity(packed, folder)


def check_identity(packed: bytes, folder: Path, cluster: int, node: int) -> StoreIdentity:
    identity = unpack_identity(packed, folder)
    if (identity.cluster, identity.node) != (cluster, node):
        raise Foreign(
            f"{folder}: the store belongs to node {identity.node} of cluster "
            f"{identity.cluster:#x}, not to node {node} of cluster {cluster:#x}"
        )
    return identity


def unpack_identity(packed: bytes, folder: Path) -> StoreIdentity:
    body, crc = packed[:-4], packed[-4:]
    if len(packed) < 16 or crc32c(body).to_bytes(4, "little") != crc or body[:8] != IDENTITY_MAGIC:
        raise Damaged(f"{folder}: the identity of the store is damaged")
    version = int.from_bytes(body[8:12], "little")
    if version not in (FORMAT_VERSION, FORMAT_MEMBERS) or len(body) != IDENTITY.size:
        raise Foreign(
            f"{folder}: the store has format version {version}; this is phx for versions "
            f"{FORMAT_VERSION} and {FORMAT_MEMBERS}"
        )
    _, _, cluster, node, store_id, *lmdb_version = IDENTITY.unpack(body)
    major, minor, patch = lmdb_version
    return StoreIdentity(cluster, node, store_id, version, (major, minor, patch))


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Whatever says that a store is not what was written is Damaged."""
    try:
        yield
    except DAMAGE as error:
        raise Damaged(f"{path}: {error}") from error
