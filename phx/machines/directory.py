"""Which groups a cluster has: a machine for the directory group (docs/design/membership.md, 7).

A group is named by its id and its *generation*: how often the id was used before, from 1 on. The
machine says which groups there should be; making and dropping them is each node's own work, which
it does when it hears, however late. So a group that is deleted goes in steps:

    live      its members host it
    stopped   they keep all of it, and take no part
    ending    its last value is to be chosen; who has it durably, and has ended its machine, says
              `left`. Until all members have, each keeps log and votes: another one may need them
    gone      nothing of it is needed any more. The row stays, so that no generation comes again

A node that will never say so (its disk is lost) is let off by `excuse`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal
from zlib import crc32

import msgpack

from phx.errors import Damaged
from phx.machine import CopyView, Reader, StateMachine, Writer
from phx.machines.objects import read_objects, write_objects
from phx.types import GROUP_ID_MAX, Entry

__all__ = [
    "DIRECTORY_GROUP",
    "Answer",
    "Directory",
    "GroupRow",
    "encode_create",
    "encode_delete",
    "encode_excuse",
    "encode_left",
    "encode_resume",
    "encode_stop",
]

DIRECTORY_GROUP = GROUP_ID_MAX
"""The directory's own group, which every node of the cluster hosts."""
GENERATION_MAX = 65_535
MEMBERS_MAX = 15
NODE_MAX = (1 << 20) - 1
OPTIONS_BYTES_MAX = 65_536
HEAD = "phx directory 1"
State = Literal["live", "stopped", "ending", "gone"]
STATES: tuple[State, ...] = ("live", "stopped", "ending", "gone")


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What the directory says of an id.

    Attributes:
        generation: of the group that has the id now, or had it last.
        state: see the module.
        members: nodes that host it, ascending; the first ones, as long as it lives.
        options: bytes that its nodes make its machines by; what they mean is theirs.
        waits: of an ending group the members that have not said `left`, ascending.
    """

    generation: int
    state: State
    members: tuple[int, ...]
    options: bytes = b""
    waits: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a command: whether it did something, and the row afterwards (None: no such id).

    A command that has been done before is done: to repeat one after an Unknown is safe.
    """

    done: bool
    row: GroupRow | None


def encode_create(group: int, members: Sequence[int], options: bytes = b"") -> bytes:
    """Let there be a group. Done if it is live already, with the same members and options.

    Args:
        group: an id that is not in use: never used, or `gone`. Not the directory's own.
        members: 1 to 15 node ids.
        options: at most 64 KiB.

    Raises ValueError.
    """
    nodes = sorted(set(members))
    if not 0 <= group < DIRECTORY_GROUP:
        raise ValueError(f"group {group}: ids are 0 .. {DIRECTORY_GROUP - 1}")
    if not 1 <= len(nodes) <= MEMBERS_MAX or not 1 <= nodes[0] <= nodes[-1] <= NODE_MAX:
        raise ValueError(f"group {group}: 1 to {MEMBERS_MAX} members, ids 1 .. {NODE_MAX}")
    if len(options) > OPTIONS_BYTES_MAX:
        raise ValueError(f"group {group}: {len(options)} bytes of options")
    return _packed("create", group, nodes, options)


def encode_stop(group: int, generation: int) -> bytes:
    """Its members are to take no part in it until `resume`. Done if it is stopped."""
    return _packed("stop", group, generation)


def encode_resume(group: int, generation: int) -> bytes:
    """They are again. Done if it is live."""
    return _packed("resume", group, generation)


def encode_delete(group: int, generation: int) -> bytes:
    """It is to end, live or stopped. Done if it ends already, or is gone."""
    return _packed("delete", group, generation)


def encode_left(group: int, generation: int, node: int) -> bytes:
    """This member has its last value, durably, and has ended its machine. Done if that is known."""
    return _packed("left", group, generation, node)


def encode_excuse(node: int) -> bytes:
    """No group waits for this node any more. Answers with no row."""
    return _packed("excuse", node)


def _packed(*command: object) -> bytes:
    packed: bytes = msgpack.packb(command)
    return packed


class Directory(StateMachine):
    """The rows, by id. A command that is none, or is of another generation, does nothing.

    Attributes:
        revision: grows with every row that changes; the same on every node at an instance.
    """

    digest_cheap: ClassVar[bool] = True

    def __init__(self, group: int = DIRECTORY_GROUP) -> None:
        self.rows: dict[int, GroupRow] = {}
        self.revision = 0

    def apply(self, entry: Entry) -> Answer:
        try:
            name, *rest = msgpack.unpackb(entry.value)
            answer: Answer = self._commands[name](self, *rest)
            return answer
        except (ValueError, TypeError, KeyError, msgpack.UnpackException):
            return Answer(False, None)

    def query(self, query: object = None) -> tuple[int, dict[int, GroupRow]]:
        """(revision, every row by id); of one id: (revision, its row alone)."""
        if isinstance(query, int):
            return self.revision, {id_: row for id_, row in self.rows.items() if id_ == query}
        return self.revision, dict(self.rows)

    def _put(self, group: int, row: GroupRow) -> Answer:
        self.rows[group] = row
        self.revision += 1
        return Answer(True, row)

    def _create(self, group: int, members: list[int], options: bytes) -> Answer:
        before = self.rows.get(group)
        # (What stands in the log was packed by some node: it is looked at again.)
        if encode_create(group, members, options) != _packed("create", group, members, options):
            return Answer(False, before)
        made = GroupRow(before.generation + 1 if before else 1, "live", tuple(members), options)
        if before is None or before.state == "gone":
            fits = made.generation <= GENERATION_MAX
            return self._put(group, made) if fits else Answer(False, before)
        same = replace(made, generation=before.generation)
        return Answer(before == same, before)

    def _of(self, group: int, generation: int) -> GroupRow | None:
        row = self.rows.get(group)
        return row if row is not None and row.generation == generation else None

    def _turn(self, group: int, generation: int, state: State, out_of: State) -> Answer:
        row = self._of(group, generation)
        if row is None or row.state not in (state, out_of):
            return Answer(False, self.rows.get(group))
        if row.state == state:
            return Answer(True, row)
        return self._put(group, replace(row, state=state))

    def _stop(self, group: int, generation: int) -> Answer:
        return self._turn(group, generation, "stopped", "live")

    def _resume(self, group: int, generation: int) -> Answer:
        return self._turn(group, generation, "live", "stopped")

    def _delete(self, group: int, generation: int) -> Answer:
        row = self._of(group, generation)
        if row is None:
            return Answer(False, self.rows.get(group))
        if row.state in ("ending", "gone"):
            return Answer(True, row)
        return self._put(group, replace(row, state="ending", waits=row.members))

    def _left(self, group: int, generation: int, node: int) -> Answer:
        row = self._of(group, generation)
        if row is None or row.state not in ("ending", "gone"):
            return Answer(False, self.rows.get(group))
        if node not in row.waits:
            return Answer(True, row)
        return self._put(group, _without(row, node))

    def _excuse(self, node: int) -> Answer:
        for group, row in sorted(self.rows.items()):
            if node in row.waits:
                self._put(group, _without(row, node))
        return Answer(True, None)

    _commands: ClassVar[dict[str, Any]] = {
        "create": _create,
        "stop": _stop,
        "resume": _resume,
        "delete": _delete,
        "left": _left,
        "excuse": _excuse,
    }

    # --- the state as bytes

    def _packed_rows(self) -> Iterator[bytes]:
        yield _packed(HEAD, self.revision, len(self.rows))
        for group, row in sorted(self.rows.items()):
            yield _packed(
                group, row.generation, STATES.index(row.state), row.members, row.options, row.waits
            )

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
            if head != HEAD:
                raise Damaged("no snapshot of a directory")
            rows = {
                group: GroupRow(generation, STATES[state], tuple(members), options, tuple(waits))
                for group, generation, state, members, options, waits in objects
            }
        except (ValueError, TypeError, IndexError, StopIteration):
            raise Damaged("no snapshot of a directory") from None
        if len(rows) != count:
            raise Damaged("a snapshot of a directory lacks rows")
        self.rows, self.revision = rows, revision


def _without(row: GroupRow, node: int) -> GroupRow:
    waits = tuple(one for one in row.waits if one != node)
    if waits:
        return replace(row, waits=waits)
    return replace(row, state="gone", waits=(), options=b"")
