"""Which groups a cluster has: a machine for the directory group (docs/design/membership.md, 7).

A group is named by its id and its *generation*: how often the id was used before, from 1 on. The
machine says which groups there should be; making and dropping them is each node's own work, which
it does when it hears, however late. So a group that is deleted goes in steps:

    live      its members host it
    stopped   they keep all of it, and take no values
    ending    its last value is to be chosen; a member that knows it to be, durably, says `ended`
    gone      nothing is ever chosen in it again, so nobody needs anything of it. The row stays, so
              that no generation comes again

One member's word is enough for the last step: above the last value of a group nothing is chosen, by
whomever (`phx._core.members`), so the votes that a member gave in it decide nothing any more, also
those of a member that has not heard of that value.

Who the members are is decided in the group's own log, and the directory *follows* it: whoever is
one of them says here which version was chosen, and then that it is active. So a row names nobody
who is no member by a chosen value, a call that fails half-way leaves nothing to be tidied, and what
is said again, or late, changes nothing. A row says who is to host the group:

    the newest members, from the moment on in which their version is said;
    and those before, until it is said that the newest are active.

Members that left decide nothing any more then (docs/design/membership.md, M6), so one word is
enough for that, too; and no later row of that generation names them again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar
from zlib import crc32

import msgpack

from phx.errors import Damaged
from phx.machine import CopyView, Reader, StateMachine, Writer
from phx.machines.objects import read_objects, write_objects
from phx.types import (
    DIRECTORY_GROUP,
    MEMBERS_MAX,
    Entry,
    GroupPhase,
    Members,
    created_version,
    voter,
)

__all__ = [
    "GENERATION_MAX",
    "Answer",
    "Directory",
    "GroupRow",
    "MembersSince",
    "encode_create",
    "encode_delete",
    "encode_ended",
    "encode_members",
    "encode_resume",
    "encode_stop",
]

GENERATION_MAX = 65_535
HEAD, HEAD_MOVED = "phx directory 1", "phx directory 2"
"""How a snapshot begins: without, and with a group whose members changed. (So one of before those
were said is read, and its like written, byte for byte.)"""
PHASES: tuple[GroupPhase, ...] = ("live", "stopped", "ending", "gone")


Located = tuple[tuple[int, str], ...]
"""(node, "host:port"), ascending."""


@dataclass(frozen=True, slots=True)
class MembersSince:
    """Of a group whose members changed since it began.

    Attributes:
        version: of its newest members.
        active: whether these are all that it needs.
        first: those that it began with.
        leaving: members before that are none now, ascending; () as soon as the newest are active.
    """

    version: int
    active: bool
    first: Located
    leaving: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What the directory says of an id.

    Attributes:
        generation: of the group that has the id now, or had it last.
        phase: see the module.
        members: (node, "host:port") of its newest members, in whatever role; () when it is gone.
        moved: None as long as these are those that it began with, all of which vote.
    """

    generation: int
    phase: GroupPhase
    members: Located
    moved: MembersSince | None = None

    @property
    def first(self) -> Located:
        return self.members if self.moved is None else self.moved.first

    @property
    def version(self) -> int:
        return created_version(self.generation) if self.moved is None else self.moved.version

    @property
    def active(self) -> bool:
        return self.moved is None or self.moved.active

    @property
    def nodes(self) -> tuple[int, ...]:
        """Those that are to host it."""
        there = tuple(node for node, _ in self.members)
        return there if self.moved is None else (*there, *self.moved.leaving)

    def without(self, node: int, version: int) -> bool:
        """Whether a member of that version is none any more, and nobody needs what it has. (A row
        that is older than that version says nothing of it.)"""
        return self.version > version and self.active and node not in self.nodes


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a command: whether it did something, and the row afterwards (None: no such id).

    A command that has been done before is done: to repeat one after an Unknown is safe.
    """

    done: bool
    row: GroupRow | None


def encode_create(group: int, members: Mapping[int, str]) -> bytes:
    """Let there be a group. Done if it is live already, with the same members.

    Args:
        group: an id that is not in use: never used, or `gone`. Not the directory's own.
        members: "host:port" of 1 to 15 nodes, by id.

    Raises ValueError.
    """
    if type(group) is not int or not 0 <= group < DIRECTORY_GROUP:
        raise ValueError(f"a group's id is 0 .. {DIRECTORY_GROUP - 1}, not {group!r}")
    if not 1 <= len(members) <= MEMBERS_MAX:
        raise ValueError(f"group {group}: 1 .. {MEMBERS_MAX} members, not {len(members)}")
    Members(1, True, {node: voter(at) for node, at in members.items()})
    return _packed("create", group, sorted(members.items()))


def encode_stop(group: int, generation: int) -> bytes:
    """Its members are to take no values until `resume`. Done if it is stopped."""
    return _packed("stop", group, generation)


def encode_resume(group: int, generation: int) -> bytes:
    """They are again. Done if it is live."""
    return _packed("resume", group, generation)


def encode_delete(group: int, generation: int) -> bytes:
    """It is to end, live or stopped. Done if it ends already, or is gone."""
    return _packed("delete", group, generation)


def encode_ended(group: int, generation: int) -> bytes:
    """Its last value is chosen: some member knows that, durably. Done if it is gone."""
    return _packed("ended", group, generation)


def encode_members(
    group: int, generation: int, version: int, members: Mapping[int, str], *, active: bool
) -> bytes:
    """These are its members: that version is chosen in its log. Done if the directory knows that
    already, or of later ones.

    Args:
        members: "host:port" of 1 to 15 nodes, by id, in whatever role.
        active: they hold all there is, and something is chosen by them: members before are needed
            no more.

    Raises ValueError.
    """
    first, end = created_version(generation), created_version(generation + 1)
    if type(version) is not int or not first < version < end:
        raise ValueError(f"a version of its members that changed is not {version!r}")
    if not 1 <= len(members) <= MEMBERS_MAX:
        raise ValueError(f"group {group}: 1 .. {MEMBERS_MAX} members, not {len(members)}")
    Members(version, bool(active), {node: voter(at) for node, at in members.items()})
    return _packed("members", group, generation, version, bool(active), sorted(members.items()))


def _packed(*command: object) -> bytes:
    packed: bytes = msgpack.packb(command)
    return packed


def _nothing() -> None:
    pass


class Directory(StateMachine):
    """The rows, by id. A command that is none, or is of another generation, does nothing.

    Args:
        changed: called whenever a row is another, on the thread that applies.

    Attributes:
        revision: grows with every row that changes; the same on every node at an instance.
    """

    digest_cheap: ClassVar[bool] = True

    def __init__(self, changed: Callable[[], None] = _nothing) -> None:
        self.rows: dict[int, GroupRow] = {}
        self.revision = 0
        self._changed = changed

    def apply(self, entry: Entry) -> Answer:
        try:
            name, *rest = msgpack.unpackb(entry.value)
            answer: Answer = self._commands[name](self, *rest)
            return answer
        except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException):
            return Answer(False, None)

    def query(self, query: object = None) -> tuple[int, dict[int, GroupRow]]:
        """(revision, every row by id); of one id: (revision, its row alone)."""
        if isinstance(query, int):
            return self.revision, {id_: row for id_, row in self.rows.items() if id_ == query}
        return self.revision, dict(self.rows)

    def _put(self, group: int, row: GroupRow) -> Answer:
        self.rows[group] = row
        self.revision += 1
        self._changed()
        return Answer(True, row)

    def _create(self, group: int, members: list[tuple[int, str]]) -> Answer:
        # (What stands in the log was packed by some node: it is looked at again.)
        encode_create(group, dict(members))
        before = self.rows.get(group)
        said = tuple(sorted((node, at) for node, at in members))
        if before is None or before.phase == "gone":
            generation = before.generation + 1 if before is not None else 1
            if generation > GENERATION_MAX:
                return Answer(False, before)
            return self._put(group, GroupRow(generation, "live", said))
        return Answer(before.phase == "live" and before.first == said, before)

    def _turn(self, group: int, generation: int, to: GroupPhase, *of: GroupPhase) -> Answer:
        row = self.rows.get(group)
        if row is None or row.generation != generation or row.phase not in (to, *of):
            return Answer(False, row)
        if row.phase == to:
            return Answer(True, row)
        if to == "gone":
            return self._put(group, GroupRow(generation, to, ()))
        return self._put(group, replace(row, phase=to))

    def _stop(self, group: int, generation: int) -> Answer:
        return self._turn(group, generation, "stopped", "live")

    def _resume(self, group: int, generation: int) -> Answer:
        return self._turn(group, generation, "live", "stopped")

    def _delete(self, group: int, generation: int) -> Answer:
        row = self.rows.get(group)
        if row is not None and row.generation == generation and row.phase == "gone":
            return Answer(True, row)
        return self._turn(group, generation, "ending", "live", "stopped")

    def _ended(self, group: int, generation: int) -> Answer:
        return self._turn(group, generation, "gone", "ending")

    def _members(
        self,
        group: int,
        generation: int,
        version: int,
        active: bool,
        members: list[tuple[int, str]],
    ) -> Answer:
        encode_members(group, generation, version, dict(members), active=active)
        row = self.rows.get(group)
        if row is None or row.generation != generation or row.phase == "gone":
            return Answer(False, row)
        active = active is True
        if (version, active) <= (row.version, row.active):
            return Answer(True, row)
        there = tuple(sorted((node, at) for node, at in members))
        left = set() if active else {*row.nodes}.difference(node for node, _ in there)
        moved = MembersSince(version, active, row.first, tuple(sorted(left)))
        return self._put(group, replace(row, members=there, moved=moved))

    _commands: ClassVar[dict[str, Any]] = {
        "create": _create,
        "stop": _stop,
        "resume": _resume,
        "delete": _delete,
        "ended": _ended,
        "members": _members,
    }

    # --- the state as bytes

    def _packed_rows(self) -> Iterator[bytes]:
        moved = any(row.moved is not None for row in self.rows.values())
        yield _packed(HEAD_MOVED if moved else HEAD, self.revision, len(self.rows))
        for group, row in sorted(self.rows.items()):
            since = () if row.moved is None else astuple(row.moved)
            yield _packed(group, row.generation, PHASES.index(row.phase), row.members, *since)

    def digest(self) -> bytes:
        crc = 0
        for packed in self._packed_rows():
            crc = crc32(packed, crc)
        return crc.to_bytes(4, "little")

    def freeze(self) -> CopyView:
        copied = Directory()
        copied.rows, copied.revision = dict(self.rows), self.revision
        return CopyView(copied)

    def snapshot(self, writer: Writer) -> None:
        write_objects(writer, self._packed_rows())

    def restore(self, reader: Reader) -> None:
        """Raises Damaged for what is no snapshot of a directory."""
        objects = read_objects(reader, "a snapshot of a directory")
        try:
            head, revision, count = next(objects)
            if head not in (HEAD, HEAD_MOVED):
                raise Damaged("no snapshot of a directory")
            rows = {group: row_of(*packed) for group, *packed in objects}
        except (ValueError, TypeError, IndexError, StopIteration):
            raise Damaged("no snapshot of a directory") from None
        if len(rows) != count:
            raise Damaged("a snapshot of a directory lacks rows")
        self.rows, self.revision = rows, revision
        self._changed()


def row_of(generation: int, phase: int, members: list[tuple[int, str]], *since: Any) -> GroupRow:
    """As it was packed. Raises ValueError, TypeError, IndexError."""
    moved = None
    if since:
        version, active, first, leaving = since
        moved = MembersSince(version, active, located(first), tuple(leaving))
    return GroupRow(generation, PHASES[phase], located(members), moved)


def located(members: list[tuple[int, str]]) -> Located:
    return tuple((node, at) for node, at in members)
