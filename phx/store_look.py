"""What stands in a store, for whoever may not change anything: also beside a running node.

Nothing is written, not even a lock: LMDB is told that nobody else needs to know of this reader. So
beside a running node only a few pages are looked at, at once; what the node wrote over meanwhile
fails its checksum, and is looked at again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import lmdb

from phx._core.chunk import ChunkDamage
from phx._core.chunk_index import floors_of
from phx.errors import Damaged, NotBootstrapped, StoreError
from phx.lmdb_files import LMDB_MAJOR, refuse_cut
from phx.store_folder import StoreIdentity, unpack_identity
from phx.store_trim import Floor

__all__ = ["StoreLook", "look"]

ATTEMPTS = 5
PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class StoreLook:
    """A store as it stands on the disk.

    Attributes:
        identity: whose it is.
        floors: where the settled log of each group begins and ends.
        chunks: how many there are, dead ones included.
        file_bytes: of LMDB's file as used.
    """

    identity: StoreIdentity
    floors: dict[int, Floor]
    chunks: int
    file_bytes: int


def look(folder: Path) -> StoreLook:
    """Look at the store in `folder` without a change to anything.

    Raises:
        NotBootstrapped: there is no store.
        Foreign: it is in another format version.
        Damaged: what was looked at is not what was written.
        StoreError: it cannot be read.
    """
    if not (folder / "data.mdb").exists():
        raise NotBootstrapped(f"{folder}: there is no store")
    for attempt in range(ATTEMPTS):
        try:
            return _look(folder)
        except Damaged:
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_S)
    raise AssertionError


def _look(folder: Path) -> StoreLook:
    try:
        env = lmdb.Environment(
            str(folder),
            max_dbs=3,
            readonly=True,
            lock=False,
            create=False,
            lib_version=LMDB_MAJOR,
        )
    except lmdb.InvalidError as error:
        raise Damaged(f"{folder}: the first pages of data.mdb are damaged: {error}") from error
    except (lmdb.Error, OSError) as error:
        raise StoreError(f"{folder}: {error}") from error
    try:
        refuse_cut(env, folder)
        with env.begin() as txn:
            meta, chunks = (
                env.open_db(name, txn=txn, create=False) for name in (b"meta", b"chunks")
            )
            identity, groups = (txn.get(key, db=meta) for key in (b"identity", b"groups"))
            count = txn.stat(chunks)["entries"]
        if identity is None or groups is None:
            raise NotBootstrapped(f"{folder}: the store was never completely made")
        return StoreLook(
            identity=unpack_identity(identity, folder),
            floors={group: Floor(*bounds) for group, bounds in floors_of(groups).items()},
            chunks=count,
            file_bytes=(env.info()["last_pgno"] + 1) * env.stat()["psize"],
        )
    except ChunkDamage as damage:
        raise Damaged(f"{folder}: {damage}") from damage
    except lmdb.NotFoundError:
        raise NotBootstrapped(f"{folder}: the store was never completely made") from None
    except lmdb.Error as error:
        raise Damaged(f"{folder}: {error}") from error
    finally:
        env.close()
