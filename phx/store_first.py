"""Who the members of version 1 are, as the configuration of a node had them when it began.

A group whose members never changed has those of the configuration, at every node that hosts it. So
they are remembered: a configuration that names others later, or one of a node that joined the
cluster, which has no say in version 1 (none are written of it), must not begin a group.

Two rows of the table ``meta``, under ``first`` and ``first.copy``, written in one transaction, and
the file ``first`` in the folder of the node, which outlives the store; never changed. Bytes of
each, little-endian:

    offset  size  field
    0       8     magic      PHXFIRST
    8       …     node ids, 4 bytes each, ascending
    -4      4     crc        CRC-32C of all before
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from phx._core.codec import crc32c
from phx.errors import StoreError

if TYPE_CHECKING:
    from phx.store import Store

__all__ = ["FILE", "NAMES", "keep", "read", "read_file", "write"]

FILE = "first"
NAMES = (b"first", b"first.copy")
MAGIC = b"PHXFIRST"
BYTES_MAX = 4096


def read(store: Store) -> frozenset[int] | None:
    """Their ids; none: the node joined; None: it is not known, or no copy is whole."""
    for packed in map(store.remembered, NAMES):
        if packed is not None and (ids := unpack(packed)) is not None:
            return ids
    return None


def write(store: Store, ids: Iterable[int]) -> None:
    """Durable on return. On the thread that writes to the store; raises StoreError."""
    store.remember(dict.fromkeys(NAMES, pack(ids)))


def read_file(folder: Path) -> frozenset[int] | None:
    """As `read`."""
    with suppress(OSError), (folder / FILE).open("rb") as file:
        return unpack(file.read(BYTES_MAX))
    return None


def keep(folder: Path, ids: Iterable[int]) -> None:
    """Write the file. Durable on return: complete, or as it was. Raises StoreError."""
    new = folder / f"{FILE}.new"
    try:
        with new.open("wb") as file:
            file.write(pack(ids))
            file.flush()
            os.fsync(file.fileno())
        new.replace(folder / FILE)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"{folder / FILE}: {error}") from error


def pack(ids: Iterable[int]) -> bytes:
    body = MAGIC + b"".join(one.to_bytes(4, "little") for one in sorted(ids))
    return body + crc32c(body).to_bytes(4, "little")


def unpack(packed: bytes) -> frozenset[int] | None:
    body, crc = packed[:-4], packed[-4:]
    ids = body[len(MAGIC) :]
    whole = body.startswith(MAGIC) and crc32c(body).to_bytes(4, "little") == crc
    if not whole or len(ids) % 4:
        return None
    return frozenset(one for (one,) in struct.iter_unpack("<I", ids))
