"""What the store knows of its node's lives, besides the journal: so that a lost journal can be
told, and lived without (docs/design/protocol.md, "Rejoin").

They stand twice in the table ``meta``, under the keys ``facts`` and ``facts.copy``. Both are
written in one transaction, so neither is ever older than the other, and one that is whole is what
was written last: any single byte may be wrong. (An older ceiling would be a lower one, and what
was promised above it could be promised differently; so a second copy that is written later than
the first would be no cure.) Of two that are whole and differ the greater of each fact counts: all
of them only grow, or, as `allowed` and `relaxed`, cannot do harm. The bytes of each, little-endian:

    offset  size  field
    0       8     magic      PHXFACT2; PHXFACT3 where groups are relaxed
    8       8     ceiling
    16      4     incarnation
    20      4     spare
    24      4     lost
    28      4     allowed
    32      8     lease_us
    40      4     groups     how many follow, 4 bytes each
    44      4     peers      how many follow, 20 bytes each: node, store id
    …             of PHXFACT3: boot (16), how many groups are relaxed (4), and these, 4 bytes each
    -4      4     crc        CRC-32C of all before
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from phx._core.codec import crc32c
from phx.errors import Damaged

if TYPE_CHECKING:
    from phx.store import Store

__all__ = ["CEILING_STEP", "NAMES", "Facts", "forget", "join", "read", "unpack", "write"]

NAMES = (b"facts", b"facts.copy")
CEILING_STEP = 1 << 20
COUNTER_MAX = (1 << 44) - 1
SPARE_LIVES = 8

MAGIC, MAGIC_RELAXED = b"PHXFACT2", b"PHXFACT3"
HEAD = struct.Struct("<8sQIIIIQII")
PEER = struct.Struct("<I16s")
RELAXED = struct.Struct("<16sI")


@dataclass(frozen=True, slots=True)
class Facts:
    """One state of the facts. All but `allowed`, `boot` and `relaxed` only grow.

    Attributes:
        ceiling: no promise of the node, in any group, has a counter above it (0 to 2**44 - 1).
        incarnation: of the node's last life that the store was told of, or higher.
        lost: the life that found the journal lost; 0: none ever did. A journal that does not know
            this life was made after the loss and never became whole.
        lease_us: longest lease that any life may have granted.
        groups: ids of all that were ever hosted, ascending.
        peers: store ids (16 bytes) of the nodes that were met.
        spare: no life above this one was ever begun. Those up to it may have been, while the store
            could not be written: the journal knows which.
        allowed: the loss, by its number in `lost`, with which the node may start whatever its
            configuration says of lost journals; 0: none.
        relaxed: ids of groups of which something may have been told that was written, and is not
            durable (docs/design/durability.md), ascending.
        boot: what the system called its run then (16 bytes); b"": nobody knows.
    """

    ceiling: int = CEILING_STEP
    incarnation: int = 1
    lost: int = 0
    lease_us: int = 0
    groups: tuple[int, ...] = ()
    peers: Mapping[int, bytes] = field(default_factory=dict)
    spare: int = 0
    allowed: int = 0
    relaxed: tuple[int, ...] = ()
    boot: bytes = b""

    def pack(self) -> bytes:
        head = HEAD.pack(
            MAGIC_RELAXED if self.relaxed else MAGIC,
            self.ceiling,
            self.incarnation,
            self.spare,
            self.lost,
            self.allowed,
            self.lease_us,
            len(self.groups),
            len(self.peers),
        )
        groups = struct.pack(f"<{len(self.groups)}I", *self.groups)
        peers = b"".join(PEER.pack(node, ident) for node, ident in sorted(self.peers.items()))
        body = head + groups + peers
        if self.relaxed:
            body += RELAXED.pack(self.boot, len(self.relaxed))
            body += struct.pack(f"<{len(self.relaxed)}I", *self.relaxed)
        return body + crc32c(body).to_bytes(4, "little")

    def next_life(self, *, above: int, lease_us: int, groups: Iterable[int]) -> Facts:
        """Those of a life that is about to start, and that is none of `above` lives.

        With a journal the life is the one after the last that the journal knows, if that is
        higher; so `spare` is raised, too.
        """
        incarnation = max(self.incarnation, above) + 1
        return replace(
            self,
            incarnation=incarnation,
            spare=max(self.spare + 1, incarnation + SPARE_LIVES),
            lease_us=max(self.lease_us, lease_us),
            groups=tuple(sorted({*self.groups, *groups})),
        )

    def spare_life(self, *, above: int, lease_us: int, groups: Iterable[int]) -> Facts | None:
        """Those of a life that may start without the store being told, after one life `above`
        which the journal, which is whole, does not go; None: the store has to be told first.

        Whoever loses the journal of that life, too, then begins above `spare`.
        """
        if (
            max(self.incarnation, above) >= self.spare
            or lease_us > self.lease_us
            or not set(groups) <= set(self.groups)
        ):
            return None
        return replace(self, incarnation=max(self.incarnation, above) + 1)

    def raised(self, ceiling: int) -> Facts:
        return replace(self, ceiling=max(self.ceiling, min(ceiling, COUNTER_MAX)))

    def may_lack(self, boot: bytes) -> tuple[int, ...]:
        """In a run of the system of this id: groups of which something may have been told that the
        machine took along when it failed."""
        return self.relaxed if self.boot != boot or not self.boot else ()

    def relaxing(self, groups: Collection[int], boot: bytes) -> Facts:
        """These and no others are relaxed, in this run of the system."""
        return replace(self, relaxed=tuple(sorted(groups)), boot=boot if groups else b"")

    def doubted(self) -> Facts:
        """What was only written may be gone, though the system goes on."""
        return replace(self, boot=b"")

    def found_lost(self) -> Facts:
        """No journal is to be believed any more that does not know the life that these are of: one
        that can be none of those which the lost journal alone knew."""
        life = max(self.incarnation, self.spare) + 1
        allowed = life if self.allowed and self.allowed == self.lost else 0
        return replace(self, incarnation=life, spare=life + SPARE_LIVES, lost=life, allowed=allowed)

    def joined(self, other: Facts) -> Facts:
        """The greater of each."""
        return Facts(
            max(self.ceiling, other.ceiling),
            max(self.incarnation, other.incarnation),
            max(self.lost, other.lost),
            max(self.lease_us, other.lease_us),
            tuple(sorted({*self.groups, *other.groups})),
            {**self.peers, **other.peers},
            max(self.spare, other.spare),
            max(self.allowed, other.allowed),
            tuple(sorted({*self.relaxed, *other.relaxed})),
            self.boot if self.boot == other.boot else b"",
        )


def unpack(packed: bytes, folder: Path) -> Facts:
    """Raises Damaged; `folder` is named there."""
    body, crc = packed[:-4], packed[-4:]
    if len(body) < HEAD.size or crc32c(body).to_bytes(4, "little") != crc:
        raise Damaged(f"{folder}: what the store knows of the node's lives is damaged")
    magic, ceiling, incarnation, spare, lost, allowed, lease_us, n_groups, n_peers = (
        HEAD.unpack_from(body)
    )
    at = HEAD.size + 4 * n_groups
    end = at + PEER.size * n_peers
    relaxed, boot = _relaxed(body[end:]) if magic == MAGIC_RELAXED else ((), b"")
    rest = RELAXED.size + 4 * len(relaxed) if magic == MAGIC_RELAXED else 0
    if (
        magic not in (MAGIC, MAGIC_RELAXED)
        or ceiling > COUNTER_MAX
        or len(body) != end + rest
        or (magic == MAGIC_RELAXED and not relaxed)
    ):
        raise Damaged(f"{folder}: what the store knows of the node's lives cannot be")
    groups = struct.unpack_from(f"<{n_groups}I", body, HEAD.size)
    peers = dict(PEER.iter_unpack(body[at:end]))
    return Facts(ceiling, incarnation, lost, lease_us, groups, peers, spare, allowed, relaxed, boot)


def _relaxed(body: bytes) -> tuple[tuple[int, ...], bytes]:
    """What follows the peers; no groups: that cannot be."""
    if len(body) < RELAXED.size:
        return (), b""
    boot, count = RELAXED.unpack_from(body)
    if len(body) != RELAXED.size + 4 * count:
        return (), b""
    return struct.unpack_from(f"<{count}I", body, RELAXED.size), boot.strip(b"\0") and boot


def join(copies: Iterable[bytes | None], folder: Path) -> tuple[Facts | None, str]:
    """What the copies say together, and what is wrong with one of them ("": nothing).

    None: there is no copy. Raises Damaged if none of those that are there is whole; `folder` is
    named there.
    """
    there = list(copies)
    whole: Facts | None = None
    wrong, why = 0, f"{folder}: a copy of what the store knows of the node's lives is missing"
    for packed in there:
        try:
            if packed is None:
                wrong += 1
                continue
            found = unpack(packed, folder)
        except Damaged as damage:
            wrong, why = wrong + 1, str(damage)
            continue
        if whole is not None and whole != found:
            wrong, why = wrong + 1, f"{folder}: the copies of what the store knows differ"
        whole = found if whole is None else whole.joined(found)
    if whole is None and any(packed is not None for packed in there):
        raise Damaged(why)
    return whole, why if whole is not None and wrong else ""


def read(store: Store) -> Facts | None:
    """What the store has; None: nothing. Raises Damaged: no copy is whole."""
    return join(map(store.remembered, NAMES), store.path)[0]


def write(store: Store, facts: Facts) -> None:
    """Durable on return. On the thread that writes to the store; raises StoreError."""
    packed = facts.pack()
    store.remember(dict.fromkeys(NAMES, packed))


def forget(store: Store) -> None:
    """There are none any more. On the thread that writes to the store; raises StoreError."""
    store.remember(dict.fromkeys(NAMES))
