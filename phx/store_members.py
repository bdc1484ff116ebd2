"""What the store knows of its groups' members: one row for each group whose members ever changed.

Guarantee (S1). *A store that says that a group is settled through j has the members that hold for
j + 1*: the row of a membership value at i is written in the transaction in which settled_through
passes i, or in an earlier one, and never in a later one. So no crash leaves a store that
answers for i and knows older members.

Why it must. What is settled is forgotten by the journal, and the journal itself may be lost. A node
without its journal rejoins with what the store says: settled_through becomes what it knows to be
chosen, so it votes above i (after it has led once, docs/design/protocol.md, "Rejoin"). Under the
members before i it would count, and be counted in, quorums of members that have nothing to say
there any more; two disjoint quorums above i choose two values (`a restart forgets the version`,
docs/design/membership.md, section 4). The entry at i cannot tell: `raise_floors` passes it without
a copy, and trimming removes it. The row stays: it is no entry, and nothing but a later row of the
group takes its place.

A row is never ahead without need, but may be: who knows newer members than its log does refuses the
old ones and asks (M3), and votes above i only when it knows i to be chosen (M4).

*Removed.* A node that is no member any more keeps the row for ever, marked as removed (a
tombstone): whoever comes back after a year and asks for votes is told who the members are. A later
row of the group, in which this node is a member again, takes its place.

Rows stand twice in the table ``meta``, under ``members:`` and ``members.copy:`` and the group's id
(4 bytes, big-endian), both written in one transaction. Of two that are whole and differ the later
counts (`phx.membership.newer`); so any single byte may be wrong. Where neither is whole the store
is damaged, and made anew from its journal (docs/design/store.md). Bytes of a row, little-endian:

    offset  size  field
    0       8     magic      PHXMBRS1
    8       4     group
    12      4     flags      1: active, 2: removed
    16      8     instance   i
    24      8     floor
    32      4     bytes      of the roster
    36      …     roster     phx/_core/members.pxd
    …       …     left       ids of nodes that were members before, 4 bytes each, ascending
    -4      4     crc        CRC-32C of all before
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lmdb

from phx._core.codec import crc32c
from phx.errors import Damaged
from phx.membership import Membership, newer, nodes_of

__all__ = ["KeptMembers", "MembersRow", "keys_of", "later", "load", "of_journal", "passing", "put"]

PREFIXES = (b"members:", b"members.copy:")
MAGIC = b"PHXMBRS1"
HEAD = struct.Struct("<8sIIQQI")
ACTIVE, REMOVED = 1, 2
JOURNAL_ACTIVE, JOURNAL_LEFT = 1, 4
GROUP_BYTES = 4


@dataclass(frozen=True, slots=True)
class MembersRow:
    """Who the members of a group are, and whether this node is none of them any more.

    Attributes:
        left: nodes that were members before, ascending, as far as this node knows. Their ids are
            never used again.
    """

    membership: Membership
    removed: bool = False
    left: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class KeptMembers:
    """What `load` found.

    Attributes:
        rows: by group.
        wrong: what is not as it must be, in words, though it stands elsewhere, too.
        odd: keys that no row belongs under.
    """

    rows: dict[int, MembersRow] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    odd: list[bytes] = field(default_factory=list)


def keys_of(group: int) -> tuple[bytes, ...]:
    return tuple(prefix + group.to_bytes(GROUP_BYTES, "big") for prefix in PREFIXES)


def pack(group: int, row: MembersRow) -> bytes:
    told = row.membership
    flags = ACTIVE * told.active | REMOVED * row.removed
    body = HEAD.pack(MAGIC, group, flags, told.instance, told.floor, len(told.roster)) + told.roster
    body += struct.pack(f"<{len(row.left)}I", *row.left)
    return body + crc32c(body).to_bytes(4, "little")


def unpack(packed: bytes) -> tuple[int, MembersRow]:
    """(group, row). Raises ValueError."""
    body, crc = packed[:-4], packed[-4:]
    if len(body) < HEAD.size or crc32c(body).to_bytes(4, "little") != crc:
        raise ValueError("a row of members is damaged")
    magic, group, flags, instance, floor, count = HEAD.unpack_from(body)
    end = HEAD.size + count
    if magic != MAGIC or flags > (ACTIVE | REMOVED) or len(body) < end or (len(body) - end) % 4:
        raise ValueError("a row of members cannot be")
    told = Membership(body[HEAD.size : end], instance, floor, bool(flags & ACTIVE))
    left = struct.unpack_from(f"<{(len(body) - end) // 4}I", body, end)
    if list(left) != sorted(set(left) - set(told.nodes)):
        raise ValueError("a row of members cannot be: of those who left")
    return group, MembersRow(told, bool(flags & REMOVED), left)


def of_journal(
    members: Mapping[int, tuple[int, int, int, bytes]],
) -> dict[int, MembersRow]:
    """The rows that a journal says (`Survey.members`). Raises ValueError: they cannot be."""
    return {
        group: MembersRow(
            Membership(roster, instance, floor, bool(flags & JOURNAL_ACTIVE)),
            bool(flags & JOURNAL_LEFT),
        )
        for group, (instance, floor, flags, roster) in members.items()
    }


def later(before: MembersRow | None, told: MembersRow) -> MembersRow:
    """What is known after `told`; a row never goes back, and a node that is removed stays so until
    a later version says otherwise. Raises ValueError if they contradict each other."""
    if before is None:
        return told
    both = newer(before.membership, told.membership)
    assert both is not None
    of = [one for one in (before, told) if one.membership.instance == both.instance]
    left = {*before.left, *told.left} - set(both.nodes)
    for one in (before.membership, told.membership):
        if one.version < both.version:
            left.update(set(one.nodes) - set(both.nodes))
    return MembersRow(both, any(one.removed for one in of), tuple(sorted(left)))


def load(txn: lmdb.Transaction[Any], meta: Any, folder: Path) -> KeptMembers:
    """The rows of a store. Raises Damaged, which names `folder`: of a group no copy is whole."""
    found = KeptMembers()
    copies: dict[int, list[MembersRow]] = {}
    bad: dict[int, str] = {}
    with txn.cursor(meta) as cursor:
        for key, packed in cursor:
            prefix = next((one for one in PREFIXES if bytes(key).startswith(one)), None)
            if prefix is None:
                continue
            named = int.from_bytes(bytes(key)[len(prefix) :], "big")
            try:
                group, row = unpack(bytes(packed))
                found.rows[group] = later(found.rows.get(group), row)
            except ValueError as error:
                bad[named] = str(error)
                continue
            if bytes(key) not in keys_of(group):
                found.odd.append(bytes(key))
                continue
            copies.setdefault(group, []).append(row)
    for group, why in bad.items():
        if group not in found.rows:
            raise Damaged(f"{folder}: group {group}: {why}, in every copy there is")
        found.wrong.append(f"{folder}: group {group}: {why}")
    for group in found.rows:
        there = copies.get(group, [])
        if len(there) < len(PREFIXES) and group not in bad:
            found.wrong.append(f"{folder}: a copy of the members of group {group} is missing")
        elif any(one != there[0] for one in there):
            found.wrong.append(f"{folder}: the copies of the members of group {group} differ")
    found.wrong.extend(f"{folder}: members under the key {key.hex()}" for key in found.odd)
    return found


def put(txn: lmdb.Transaction[Any], meta: Any, rows: Mapping[int, MembersRow]) -> None:
    """Both copies of each."""
    for group, row in rows.items():
        packed = pack(group, row)
        for key in keys_of(group):
            txn.put(key, packed, db=meta)


def passing(
    rows: Mapping[int, MembersRow],
    noted: Mapping[int, MembersRow],
    barriers: Iterable[tuple[int, int, bytes]],
) -> dict[int, MembersRow]:
    """The rows that go with a transaction in which these barriers are passed, by group: with all
    who left at one of them, though only the newest may be noted.

    Args:
        rows: those of the store.
        noted: what is known beside them.
        barriers: (group, instance, roster), ascending: the membership values that are settled.

    Raises ValueError: what is noted is none of them, or the like of it is not noted: the floor is
    known to whoever counted the value, or was told of it, and to nobody else.
    """
    put: dict[int, MembersRow] = {}
    for group, instance, roster in barriers:
        known = put.get(group, rows.get(group))
        note = noted.get(group)
        if note is not None:
            known = later(known, note)
        if known is None or known.membership.instance < instance:
            raise ValueError(
                f"the members of group {group} from instance {instance} on are not noted yet"
            )
        if known.membership.instance == instance and known.membership.roster != roster:
            raise ValueError(
                f"group {group}: other members are noted for instance {instance} than its log says"
            )
        left = {*known.left, *nodes_of(roster)} - set(known.membership.nodes)
        put[group] = replace(known, left=tuple(sorted(left)))
    return put
