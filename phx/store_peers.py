"""Where the other nodes are, as their node was told while it ran; kept in the store.

One row of the table ``meta``, under the key ``peers``. No promise depends on it: where it is
damaged, the addresses of the configuration are what there is. Bytes, little-endian:

    offset  size  field
    0       8     magic      PHXPEER1
    8       4     count
    12      …     count times: node u32, address_bytes u16, file_bytes u16, address, file
    -4      4     crc        CRC-32C of all before
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phx._core.codec import crc32c
from phx.errors import Damaged

if TYPE_CHECKING:
    from phx.store import Store

__all__ = ["NAME", "Learned", "read", "unpack", "write"]

NAME = b"peers"
MAGIC = b"PHXPEER1"
HEAD = struct.Struct("<8sI")
ENTRY = struct.Struct("<IHH")


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned of one node.

    Attributes:
        address: "host:port", where it is.
        file: what the configuration said of it when that was learned; "": nothing.
    """

    address: str
    file: str


def pack(peers: Mapping[int, Learned]) -> bytes:
    parts = [HEAD.pack(MAGIC, len(peers))]
    for node, one in sorted(peers.items()):
        address, file = one.address.encode(), one.file.encode()
        parts += [ENTRY.pack(node, len(address), len(file)), address, file]
    body = b"".join(parts)
    return body + crc32c(body).to_bytes(4, "little")


def unpack(packed: bytes, folder: Path) -> dict[int, Learned]:
    """Raises Damaged; `folder` is named there."""
    body, crc = packed[:-4], packed[-4:]
    if len(body) < HEAD.size or crc32c(body).to_bytes(4, "little") != crc:
        raise Damaged(f"{folder}: what the store knows of the peers' addresses is damaged")
    magic, count = HEAD.unpack_from(body)
    found: dict[int, Learned] = {}
    at = HEAD.size
    try:
        for _ in range(count):
            node, address_bytes, file_bytes = ENTRY.unpack_from(body, at)
            at += ENTRY.size
            texts = body[at : at + address_bytes], body[at + address_bytes :][:file_bytes]
            at += address_bytes + file_bytes
            found[node] = Learned(*(text.decode() for text in texts))
    except (struct.error, ValueError):
        at = -1
    if magic != MAGIC or at != len(body):
        raise Damaged(f"{folder}: what the store knows of the peers' addresses cannot be")
    return found


def read(store: Store) -> dict[int, Learned]:
    """What the store has. Raises Damaged."""
    packed = store.remembered(NAME)
    return {} if packed is None else unpack(packed, store.path)


def write(store: Store, peers: Mapping[int, Learned]) -> None:
    """Durable on return. On the thread that writes to the store; raises StoreError."""
    store.remember({NAME: pack(peers) if peers else None})
