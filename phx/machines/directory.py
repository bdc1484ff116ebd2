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
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from zlib import crc32

import msgpack

from phx.errors import Damaged
from phx.machine import CopyView, Reader, StateMachine, Writer
from phx.machines.objects import read_objects, write_objects
from phx.types import DIRECTORY_GROUP, MEMBERS_MAX, Entry, GroupPhase, Members, voter

__all__ = [
    "GENERATION_MAX",
    "Answer",
    "Directory",
    "GroupRow",
    "encode_create",
    "encode_delete",
    "encode_ended",
    "encode_resume",
    "encode_stop",
]

GENERATION_MAX = 65_535
HEAD = "phx directory 1"
PHASES: tuple[GroupPhase, ...] = ("live", "stopped", "ending", "gone")


@dataclass(frozen=True, slots=True)
class GroupRow:
    """What the directory says of an id.

    Attributes:
        generation: of the group that has the id now, or had it last.
        phase: see the module.
        members: (node, "host:port") of its first members, ascending, all of which vote; () when it
            is gone.
    """

    generation: int
    phase: GroupPhase
    members: tuple[tuple[int, str], ...]

    @property
    def nodes(self) -> tuple[int, ...]:
        return tuple(node for node, _ in self.members)


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
        return Answer(before.phase == "live" and before.members == said, before)

    def _turn(self, group: int, generation: int, to: GroupPhase, *of: GroupPhase) -> Answer:
        row = self.rows.get(group)
        if row is None or row.generation != generation or row.phase not in (to, *of):
            return Answer(False, row)
        if row.phase == to:
            return Answer(True, row)
        return self._put(group, replace(row, phase=to, members=() if to == "gone" else row.members))

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

    _commands: ClassVar[dict[str, Any]] = {
        "create": _create,
        "stop": _stop,
        "resume": _resume,
        "delete": _delete,
        "ended": _ended,
    }

    # --- the state as bytes

    def _packed_rows(self) -> Iterator[bytes]:
        yield _packed(HEAD, self.revision, len(self.rows))
        for group, row in sorted(self.rows.items()):
            yield _packed(group, row.generation, PHASES.index(row.phase), row.members)

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
                group: GroupRow(generation, PHASES[phase], tuple((n, at) for n, at in members))
                for group, generation, phase, members in objects
            }
        except (ValueError, TypeError, IndexError, StopIteration):
            raise Damaged("no snapshot of a directory") from None
        if len(rows) != count:
            raise Damaged("a snapshot of a directory lacks rows")
        self.rows, self.revision = rows, revision
        self._changed()
