"""Who the members of version 1 are, as the configuration of a node had them when it began.

A group whose members never changed has those of the configuration, at every node that hosts it. So
they are remembered: a configuration that names others later, or one of a node that joined the
cluster, which has no say in version 1 (none are written of it), must not begin a group.

Two rows of the table ``meta``, under ``first`` and ``first.copy``, written in one transaction and
never changed. Bytes of each, little-endian:

    offset  size  field
    0       8     magic      PHXFIRST
    8       …     node ids, 4 bytes each, ascending
    -4      4     crc        CRC-32C of all before
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

from phx._core.codec import crc32c

if TYPE_CHECKING:
    from phx.store import Store

__all__ = ["NAMES", "read", "write"]

NAMES = (b"first", b"first.copy")
MAGIC = b"PHXFIRST"


def read(store: Store) -> frozenset[int] | None:
    """Their ids; none: the node joined; None: it is not known, or no copy is whole."""
    for packed in map(store.remembered, NAMES):
        if packed is None:
            continue
        body, crc = packed[:-4], packed[-4:]
        ids = body[len(MAGIC) :]
        whole = body.startswith(MAGIC) and crc32c(body).to_bytes(4, "little") == crc
        if whole and len(ids) % 4 == 0:
            return frozenset(one for (one,) in struct.iter_unpack("<I", ids))
    return None


def write(store: Store, ids: Iterable[int]) -> None:
    """Durable on return. On the thread that writes to the store; raises StoreError."""
    body = MAGIC + b"".join(one.to_bytes(4, "little") for one in sorted(ids))
    store.remember(dict.fromkeys(NAMES, body + crc32c(body).to_bytes(4, "little")))
