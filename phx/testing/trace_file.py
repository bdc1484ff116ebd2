"""Events of a driver's trace, taken apart and put together in Python.

Written from the tables of docs/design/trace.md, not from the code that notes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from phx._core.codec import crc32c
from phx.sim.wire_text import FRAME_HEADER_BYTES, Message, Record, align8, decode, records

MAGIC: Final = int.from_bytes(b"PHXTRACE", "little")
VERSION: Final = 3

HEADER = struct.Struct("<IIB3xI")
BEGIN = struct.Struct("<QIIQ16s")
OPTIONS = struct.Struct("<4Q10I16I")
INPUT = struct.Struct("<IIQQII")
TURN = struct.Struct("<5Q8I")
FRAME = struct.Struct("<IIQ")
CHOSEN = struct.Struct("<II2Q")
FETCH = struct.Struct("<II2Q")
EVENT = struct.Struct("<6IQ")
POINT = struct.Struct("<II2Q")
SENDING = struct.Struct("<II")
SENT = struct.Struct("<IIQ")
DISK = struct.Struct("<qQQqII")

OPTION_NAMES: Final = (
    "seed", "window_bytes", "pending_bytes_max", "cache_bytes_max", "window", "batch_bytes_max",
    "heartbeat_us", "lease_us", "election_us", "resend_us", "frame_bytes_max", "value_bytes_max",
    "balance",
)  # fmt: skip


class Kind(IntEnum):
    """Of an event. From GROUP to before TURN: an input of the engine."""

    BEGIN = 1
    OPTIONS = 2
    END = 3
    LIMIT = 4
    GROUP = 16
    REPLAYED = 17
    START = 18
    RECEIVE = 19
    SUBMIT = 20
    DURABLE = 21
    ADVANCE = 22
    CONNECTED = 23
    DISCONNECTED = 24
    SUPPLY = 25
    APPLIED = 26
    SETTLED = 27
    RETIRE = 28
    STOP_GROUP = 29
    POISON = 30
    PRESSURE = 31
    RESIGN = 32
    RESTORING = 33
    FLOOR = 34
    INSTALL = 35
    DONE = 36
    CEILING = 37
    SUSPECT = 38
    READ = 39
    TRANSFER = 40
    PRIORITY = 41
    ADD_PEER = 42
    DROP_PEER = 43
    CHANGE_MEMBERS = 44
    CHANGE_KNOWN = 45
    GONE = 46
    DROP_GROUP = 47
    WRITTEN = 48
    DURABILITY = 49
    SYNC = 50
    LATE = 51
    TURN = 56
    SENDING = 64
    OPENED = 65
    WROTE = 66
    SYNCING = 67
    SYNCED = 68


KINDS: Final = frozenset(Kind)
FIRST_BYTES_MAX: Final = 4096  # a longer first event is none


class BadTrace(Exception):
    """The file is not a trace, or bytes in the middle of it are not what was written."""


@dataclass(slots=True)
class Event:
    number: int  # from 0
    kind: Kind
    thread: int
    data: bytes  # fixed part, body, padding


@dataclass(slots=True)
class Input:
    """An input of the engine; which field means what: docs/design/trace.md."""

    group: int
    peer: int
    first: int
    second: int
    result: int  # signed
    body: bytes


@dataclass(slots=True)
class Disk:
    file: int
    offset: int
    count: int
    result: int
    crc: int
    body: bytes


@dataclass(slots=True)
class Turn:
    """The effects of a turn; `effects` as phx._core.engine_door.Engine.turn returns them."""

    effects: dict[str, Any]

    def records(self) -> list[Record]:
        return list(records(self.effects["records"], self.effects["lsn_first"]))

    def messages(self) -> Iterator[tuple[int, int, bytes, list[Message]]]:
        """(peer, after, frame, its messages) of each frame."""
        for peer, frame, after in self.effects["outgoing"]:
            yield peer, after, frame, list(decode(frame[FRAME_HEADER_BYTES:]))


def read(path: str | Path) -> Iterator[Event]:
    """Every whole event of a trace. What a killed process has torn off at the end is left out.

    Raises:
        BadTrace: not a trace of this version, or damaged.
    """
    number = 0
    with open(path, "rb") as file:
        while len(head := file.read(HEADER.size)) == HEADER.size:
            word, count, kind, thread = HEADER.unpack(head)
            if count < HEADER.size or count % 8 or (number == 0 and count > FIRST_BYTES_MAX):
                raise BadTrace(f"{path}: event {number}: impossible length {count}")
            data = file.read(count - HEADER.size)
            if len(data) < count - HEADER.size:
                return
            if crc32c(data, crc32c(head[4:])) != word:
                raise BadTrace(f"{path}: event {number}: bad checksum")
            if kind not in KINDS:
                raise BadTrace(f"{path}: event {number}: unknown kind {kind}")
            event = Event(number, Kind(kind), thread, data)
            if number == 0 and (kind != Kind.BEGIN or begin_of(event)["magic"] != MAGIC):
                raise BadTrace(f"{path}: not a trace")
            yield event
            number += 1


def event(kind: Kind, data: bytes, thread: int = 1) -> bytes:
    """The bytes of an event."""
    count = align8(HEADER.size + len(data))
    rest = HEADER.pack(0, count, kind, thread)[4:] + data.ljust(count - HEADER.size, b"\0")
    return crc32c(rest).to_bytes(4, "little") + rest


def begin_of(one: Event) -> dict[str, Any]:
    names = ("magic", "version", "node", "cluster", "store_id")
    found = dict(zip(names, BEGIN.unpack_from(one.data), strict=True))
    if found["magic"] == MAGIC and found["version"] != VERSION:
        raise BadTrace(f"a trace of version {found['version']}; this reads {VERSION}")
    return found


def options_of(one: Event) -> tuple[dict[str, int], list[int]]:
    """The engine's options by name, and the members."""
    words = OPTIONS.unpack_from(one.data)
    named = dict(zip(OPTION_NAMES, words, strict=False))
    n_members = words[len(OPTION_NAMES)]
    first = len(OPTION_NAMES) + 1
    return named, list(words[first : first + n_members])


def input_of(one: Event) -> Input:
    group, peer, first, second, result, nbytes = INPUT.unpack_from(one.data)
    body = one.data[INPUT.size : INPUT.size + nbytes]
    return Input(group, peer, first, second, result - (result >> 31 << 32), body)


def disk_of(one: Event) -> Disk:
    file, offset, count, result, crc, nbytes = DISK.unpack_from(one.data)
    body = one.data[DISK.size : DISK.size + nbytes]
    return Disk(file, offset, count, result, crc, body)


def sending_of(one: Event) -> tuple[int, list[tuple[int, int, int]]]:
    """The peer, and (crc, bytes, after) of each frame."""
    peer, count = SENDING.unpack_from(one.data)
    end = SENDING.size + count * SENT.size
    return peer, list(SENT.iter_unpack(one.data[SENDING.size : end]))


def turn_of(data: bytes) -> Turn:
    (
        lsn_first, lsn_end, wake, floor_lsn, floor_after,
        sync, nbytes, n_frames, n_chosen, n_fetches, n_events, n_points, _,
    ) = TURN.unpack_from(data)  # fmt: skip
    at = TURN.size + nbytes
    frames = []
    for _ in range(n_frames):
        peer, size, after = FRAME.unpack_from(data, at)
        at += FRAME.size
        frames.append((peer, data[at : at + size], after))
        at += align8(size)
    chosen_end = at + n_chosen * CHOSEN.size
    fetch_end = chosen_end + n_fetches * FETCH.size
    event_end = fetch_end + n_events * EVENT.size
    point_end = event_end + n_points * POINT.size
    return Turn(
        {
            "lsn_first": lsn_first,
            "lsn_end": lsn_end,
            "sync": bool(sync),
            "wake_at_us": wake,
            "floor_lsn": floor_lsn,
            "floor_after": floor_after,
            "records": data[TURN.size : TURN.size + nbytes],
            "outgoing": frames,
            "chosen": [
                (group, first, last)
                for group, _, first, last in CHOSEN.iter_unpack(data[at:chosen_end])
            ],
            "fetches": list(FETCH.iter_unpack(data[chosen_end:fetch_end])),
            "events": [
                (kind, verdict, group, first_seq, count, leader)
                for kind, verdict, group, count, leader, _, first_seq in EVENT.iter_unpack(
                    data[fetch_end:event_end]
                )
            ],
            "points": list(POINT.iter_unpack(data[event_end:point_end])),
        }
    )


def pack_turn(out: dict[str, Any]) -> bytes:
    """The data of a TURN event, from what Engine.turn returns."""
    parts = [
        TURN.pack(
            out["lsn_first"], out["lsn_end"], out["wake_at_us"], out["floor_lsn"],
            out["floor_after"], out["sync"], len(out["records"]), len(out["outgoing"]),
            len(out["chosen"]), len(out["fetches"]), len(out["events"]),
            len(out["points"]), 0,
        ),
        out["records"],
    ]  # fmt: skip
    for peer, frame, after in out["outgoing"]:
        parts += [FRAME.pack(peer, len(frame), after), frame, bytes(-len(frame) % 8)]
    parts += [CHOSEN.pack(group, 0, first, last) for group, first, last in out["chosen"]]
    parts += [FETCH.pack(*fetch) for fetch in out["fetches"]]
    parts += [
        EVENT.pack(kind, verdict, group, count, leader, 0, first_seq)
        for kind, verdict, group, first_seq, count, leader in out["events"]
    ]
    parts += [POINT.pack(*point) for point in out["points"]]
    return b"".join(parts)


# --- for people


def crc(data: bytes) -> str:
    return f"{crc32c(data):08x}"


def turn_lines(turn: Turn) -> Iterator[str]:
    out = turn.effects
    yield f"TURN to lsn {out['lsn_end']}" + (
        f", floor {out['floor_lsn']} after {out['floor_after']}" if out["floor_lsn"] else ""
    )
    for record in turn.records():
        yield f"    {record.lsn}: {record.line()}, {len(record.body)} bytes, crc {crc(record.raw)}"
    for peer, after, frame, messages in turn.messages():
        yield f"    frame to {peer or 'all'}, {len(frame)} bytes, crc {crc(frame)}, after {after}"
        for message in messages:
            message.dest = peer
            yield f"        {message.line()}"
    for name in ("chosen", "fetches", "events", "points"):
        yield from (f"    {name}: {one}" for one in out[name])


def lines(one: Event) -> Iterator[str]:
    """What an event says."""
    name = one.kind.name
    if one.kind == Kind.TURN:
        yield from turn_lines(turn_of(one.data))
    elif one.kind == Kind.SENDING:
        peer, frames = sending_of(one)
        for word, size, after in frames:
            yield f"SENDING to {peer}: {size} bytes, crc {word:08x}, after {after}"
    elif one.kind in (Kind.OPENED, Kind.WROTE, Kind.SYNCING, Kind.SYNCED):
        disk = disk_of(one)
        span = f", {disk.count} bytes at {disk.offset}" if one.kind == Kind.WROTE else ""
        yield f"{name} file {disk.file}{span}: {disk.result}"
    elif one.kind == Kind.BEGIN:
        yield f"BEGIN node {begin_of(one)['node']}"
    elif one.kind in (Kind.OPTIONS, Kind.END, Kind.LIMIT):
        yield name
    else:
        told = input_of(one)
        yield (
            f"{name} group={told.group} peer={told.peer} first={told.first} second={told.second}"
            f" result={told.result}" + (f" {len(told.body)} bytes" if told.body else "")
        )
        if one.kind == Kind.RECEIVE:
            yield from (f"    {message.line()}" for message in decode(told.body))
