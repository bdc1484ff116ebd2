"""What the store knows of its node's lives, besides the journal: so that a lost journal can be
told, and lived without (docs/design/protocol.md, "Rejoin").

The bytes under the key ``facts`` of the table ``meta``, little-endian:

    offset  size  field
    0       8     magic      PHXFACT1
    8       8     ceiling
    16      4     incarnation
    20      4     lost
    24      8     lease_us
    32      4     groups     how many follow, 4 bytes each
    36      4     peers      how many follow, 20 bytes each: node, store id
    …
    -4      4     crc        CRC-32C of all before
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phx._core.codec import crc32c
from phx.errors import Damaged

if TYPE_CHECKING:
    from phx.store import Store

__all__ = ["CEILING_STEP", "Facts", "read", "unpack", "write"]

KEY = b"facts"
CEILING_STEP = 1 << 20
COUNTER_MAX = (1 << 44) - 1

MAGIC = b"PHXFACT1"
HEAD = struct.Struct("<8sQIIQII")
PEER = struct.Struct("<I16s")


@dataclass(frozen=True, slots=True)
class Facts:
    """One state of the facts. All of them only grow.

    Attributes:
        ceiling: no promise of the node, in any group, has a counter above it (0 to 2**44 - 1).
        incarnation: of the node's last life, or higher.
        lost: the life that found the journal lost; 0: none ever did. A journal that does not know
            this life was made after the loss and never became whole.
        lease_us: longest lease that any life may have granted.
        groups: ids of all that were ever hosted, ascending.
        peers: store ids (16 bytes) of the nodes that were met.
    """

    ceiling: int = CEILING_STEP
    incarnation: int = 1
    lost: int = 0
    lease_us: int = 0
    groups: tuple[int, ...] = ()
    peers: Mapping[int, bytes] = field(default_factory=dict)

    def pack(self) -> bytes:
        head = HEAD.pack(
            MAGIC,
            self.ceiling,
            self.incarnation,
            self.lost,
            self.lease_us,
            len(self.groups),
            len(self.peers),
        )
        groups = struct.pack(f"<{len(self.groups)}I", *self.groups)
        peers = b"".join(PEER.pack(node, ident) for node, ident in sorted(self.peers.items()))
        body = head + groups + peers
        return body + crc32c(body).to_bytes(4, "little")

    def next_life(self, *, above: int, lease_us: int, groups: Iterable[int]) -> Facts:
        """Those of a life that is about to start, and that is none of `above` lives."""
        return replace(
            self,
            incarnation=max(self.incarnation, above) + 1,
            lease_us=max(self.lease_us, lease_us),
            groups=tuple(sorted({*self.groups, *groups})),
        )

    def raised(self, ceiling: int) -> Facts:
        return replace(self, ceiling=max(self.ceiling, min(ceiling, COUNTER_MAX)))

    def found_lost(self) -> Facts:
        """The journal before this life is not to be believed any more."""
        return replace(self, lost=self.incarnation)


def unpack(packed: bytes, folder: Path) -> Facts:
    """Raises Damaged; `folder` is named there."""
    body, crc = packed[:-4], packed[-4:]
    if len(body) < HEAD.size or crc32c(body).to_bytes(4, "little") != crc:
        raise Damaged(f"{folder}: what the store knows of the node's lives is damaged")
    magic, ceiling, incarnation, lost, lease_us, n_groups, n_peers = HEAD.unpack_from(body)
    if (
        magic != MAGIC
        or ceiling > COUNTER_MAX
        or len(body) != HEAD.size + 4 * n_groups + PEER.size * n_peers
    ):
        raise Damaged(f"{folder}: what the store knows of the node's lives cannot be")
    groups = struct.unpack_from(f"<{n_groups}I", body, HEAD.size)
    peers = dict(PEER.iter_unpack(body[HEAD.size + 4 * n_groups :]))
    return Facts(ceiling, incarnation, lost, lease_us, groups, peers)


def read(store: Store) -> Facts | None:
    """What the store has; None: nothing. Raises Damaged."""
    packed = store.remembered(KEY)
    return None if packed is None else unpack(packed, store.path)


def write(store: Store, facts: Facts) -> None:
    """Durable on return. On the thread that writes to the store; raises StoreError."""
    store.remember(KEY, facts.pack())
