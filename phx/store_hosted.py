"""Which created groups a node hosts, or did: one row for each id that it ever hosted.

Guarantee. A row says that a group is hosted *before* anything of it is: so no record of its votes
lies in a journal that the next start would not know what to make of. It says that the group is gone
before anything of it goes: so no start takes it for one whose votes are lost. What a start finds
half done it does to its end (`prepare`, `clean`).

The log of a created group begins behind an instance that no other group of its id ever comes to:
`base_of` its generation. That instance is the creation itself: it counts as settled, and the
group's first members hold from there on as if their roster had been chosen at it. So a new group
has a row of the store, members (store_members.py) and a floor like any that was trimmed, and what
chunks and checkpoints still hold of an earlier group of the id lies below its floor.

A node that became a member later begins the log at the same instance, with the members that it was
told of when they had it for one (`HostedRow.joined`): as a node that joins a group of the
configuration, it votes when it has come to the change that named it, or past it by a checkpoint
(docs/design/membership.md, M4).

Rows stand twice in the table ``meta``, under ``hosted:`` and ``hosted.copy:`` and the group's id (4
bytes, big-endian), both written in one transaction. Bytes of a row, little-endian:

    offset  size  field
    0       8     magic       PHXHOST1; PHXHOST2 of one that the node came to later
    8       4     group
    12      4     generation  of the group that is hosted, or was last; from 1 on
    16      4     state       0: hosted; 1: gone, nothing of it is needed any more; 2: stopped
    20      4     bytes       of the roster
    24      …     roster      its first members: phx/_core/members.pxd
    …       …     joined      PHXHOST2 alone: a row of members (store_members.py)
    -4      4     crc         CRC-32C of all before
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from phx import store_members
from phx._core.codec import crc32c
from phx.errors import Damaged
from phx.membership import Membership, roster_of
from phx.store_members import MembersRow
from phx.store_trim import Floor
from phx.types import created_version, voter

if TYPE_CHECKING:
    from phx.store import Store

__all__ = [
    "PREFIXES",
    "HostedRow",
    "base_of",
    "clean",
    "first_members",
    "generation_at",
    "is_of",
    "join",
    "prepare",
    "read",
    "write",
]

PREFIXES = (b"hosted:", b"hosted.copy:")
MAGIC, MAGIC_JOINED = b"PHXHOST1", b"PHXHOST2"
HEAD = struct.Struct("<8sIIII")
GONE, STOPPED = 1, 2
BASE_BITS = 44
"""So many instances a group has for itself: at 100,000 a second they last for five years, and
there is room for 65,535 generations below the last instance that there can be."""
FIRST_FLOOR = 1


def base_of(generation: int) -> int:
    """The instance behind which the log of a group of this generation begins."""
    return ((generation - 1) << BASE_BITS) + 1


def generation_at(instance: int) -> int:
    """The generation in whose log an instance above its base is."""
    return ((instance - 2) >> BASE_BITS) + 1 if instance > 1 else 1


def first_members(generation: int, members: Mapping[int, str]) -> Membership:
    """Those that a group begins with: the same, to the last byte, at every node."""
    roster = roster_of(
        created_version(generation), {node: voter(at) for node, at in members.items()}
    )
    return Membership(roster, base_of(generation), FIRST_FLOOR, active=True)


def is_of(generation: int, told: Membership) -> bool:
    """Whether these are members of a group of this generation, chosen in its log."""
    return base_of(generation) < told.instance < base_of(generation + 1)


@dataclass(frozen=True, slots=True)
class HostedRow:
    """Attributes:
    generation: of the group that is hosted, or was last.
    roster: its first members.
    joined: the members that this node was told of when it came to it; None: it is one of the first,
        and began as such.
    gone: it is hosted no more, and nothing of it is needed.
    stopped: it takes no values.
    """

    generation: int
    roster: bytes
    gone: bool = False
    stopped: bool = False
    joined: MembersRow | None = None

    @property
    def base(self) -> int:
        return base_of(self.generation)

    @property
    def first(self) -> Membership:
        return Membership(self.roster, self.base, FIRST_FLOOR, active=True)

    @property
    def membership(self) -> Membership:
        """Those under which this node began it."""
        return self.first if self.joined is None else self.joined.membership


def keys_of(group: int) -> tuple[bytes, ...]:
    return tuple(prefix + group.to_bytes(4, "big") for prefix in PREFIXES)


def pack(group: int, row: HostedRow) -> bytes:
    state = GONE if row.gone else STOPPED if row.stopped else 0
    magic = MAGIC if row.joined is None else MAGIC_JOINED
    body = HEAD.pack(magic, group, row.generation, state, len(row.roster)) + row.roster
    if row.joined is not None:
        body += store_members.pack(group, row.joined)
    return body + crc32c(body).to_bytes(4, "little")


def unpack(packed: bytes) -> tuple[int, HostedRow]:
    """(group, row). Raises ValueError."""
    body, crc = packed[:-4], packed[-4:]
    if len(body) < HEAD.size or crc32c(body).to_bytes(4, "little") != crc:
        raise ValueError("a row of a hosted group is damaged")
    magic, group, generation, state, count = HEAD.unpack_from(body)
    end = HEAD.size + count
    joined = None
    if magic == MAGIC_JOINED:
        named, joined = store_members.unpack(body[end:])
        body = body[:end] if named == group else b""
    row = HostedRow(generation, body[HEAD.size :], state == GONE, state == STOPPED, joined)
    known = magic in (MAGIC, MAGIC_JOINED)
    if not known or state > STOPPED or not generation or len(row.roster) != count:
        raise ValueError("a row of a hosted group cannot be")
    _ = row.first  # raises, if it cannot be
    if joined is not None and not is_of(generation, joined.membership):
        raise ValueError("a row of a hosted group cannot be: its members are another group's")
    return group, row


def join(copies: Mapping[bytes, bytes], folder: Path) -> dict[int, HostedRow]:
    """The rows, by id, that these copies say together, by their keys. Raises Damaged, which names
    `folder`: of one no copy is whole."""
    found: dict[int, HostedRow] = {}
    bad: dict[int, str] = {}
    for key, packed in copies.items():
        prefix = next(one for one in PREFIXES if key.startswith(one))
        try:
            group, row = unpack(packed)
        except ValueError as error:
            bad[int.from_bytes(key[len(prefix) :], "big")] = str(error)
            continue
        known = found.get(group)
        if known is None or (known.generation, known.gone) < (row.generation, row.gone):
            found[group] = row
    for group, why in bad.items():
        if group not in found:
            raise Damaged(f"{folder}: group {group}: {why}, in every copy there is")
    return found


def read(store: Store) -> dict[int, HostedRow]:
    """By id. Raises Damaged: of one no copy is whole."""
    first, copy = map(store.remembered_under, PREFIXES)
    return join(first | copy, store.path)


def write(store: Store, group: int, row: HostedRow) -> None:
    """Durable on return. On the thread that writes to the store; raises StoreError."""
    store.remember(dict.fromkeys(keys_of(group), pack(group, row)))


def prepare(store: Store, group: int, row: HostedRow) -> None:
    """All that the store has of a group that is hosted is of this one. Idempotent; on the thread
    that writes to the store. Raises StoreError."""
    kept = store.members().get(group)
    if kept is not None and kept.membership.instance < row.base:
        store.forget_members(group)
    if store.bounds(group)[1] < row.base:
        store.raise_floors({group: Floor(row.base + 1, row.base)}, {group: row.membership})
    if row.joined is not None and not {*row.joined.left} <= {*store.left(group)}:
        store.keep_members({group: row.joined})


def clean(store: Store, group: int) -> None:
    """Keep nothing of a group that is gone: its floor is above all that is settled, and `trim`
    gives the room back. Idempotent; on the thread that writes to the store. Raises StoreError."""
    floor, settled = store.bounds(group)
    if floor <= settled:
        store.raise_floors({group: Floor(settled + 1, settled)})
    store.forget_members(group)
