"""A replicated dictionary: set, get, delete, compare-and-set. Commands are msgpack arrays.

    command                              result
    -----------------------------------  ---------------------------------------------------------
    ["set", key, value]                  the key's new version
    ["get", key]                         [value, version], or None: read through the log
    ["del", key]                         True when the key was there
    ["cas", key, version, value]         the new version, or None when the version did not match;
                                         version 0: the key must not exist; value None: delete
                                         (the result is then the version that was deleted)

Keys are str or bytes, and "a" is another key than b"a". Values are bytes. Versions count the
changes of the whole machine, so that the version of a key that was deleted and set again is a new
one. A command that is none of these changes nothing and its result is a Malformed.

A snapshot is msgpack, one object after the other: [HEAD, version of the machine, keys], then
[key, value, version] for each key, in an order that depends on nothing but versions, then the
CRC-32 of all before it as four bytes. Equal states write equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from hashlib import blake2b
from typing import Any, NamedTuple
from zlib import crc32

import msgpack

from phx.errors import Damaged
from phx.machine import CopyView, Reader, StateMachine, Writer
from phx.types import Entry

__all__ = ["KeyValue", "Malformed", "encode_cas", "encode_delete", "encode_get", "encode_set"]

Key = str | bytes

_pack: Callable[[Any], bytes] = msgpack.packb
_unpack: Callable[[bytes], Any] = msgpack.unpackb
_KEYS = (str, bytes)
_WORD = (1 << 64) - 1

HEAD = "phx kv 1"
PIECE_BYTES = 256 << 10
# Keys are sorted a bucket at a time: to sort a million at once would hold the GIL for a second.
KEYS_A_BUCKET = 4096


class Malformed(NamedTuple):
    """The result of a command that the machine does not understand; nothing was changed."""

    reason: str


def encode_set(key: Key, value: bytes) -> bytes:
    """The command that sets a key."""
    return _pack(["set", key, value])


def encode_get(key: Key) -> bytes:
    """The command that reads a key through the log, and so sees every write before it."""
    return _pack(["get", key])


def encode_delete(key: Key) -> bytes:
    """The command that deletes a key."""
    return _pack(["del", key])


def encode_cas(key: Key, version: int, value: bytes | None) -> bytes:
    """The command that sets or deletes a key if its version is still `version` (0: not there)."""
    return _pack(["cas", key, version, value])


class KeyValue(StateMachine):
    """A dictionary in memory. ``get``, ``items`` and ``len`` read this node's state, which may lag.

    ``digest`` is a sum of 64-bit hashes: against accidents, not against forgery.
    """

    def __init__(self, group: int = 0) -> None:
        self._items: dict[Key, tuple[bytes, int]] = {}
        self._version = 0

    # --- reading this node's state

    def get(self, key: Key) -> bytes | None:
        """The value of a key here and now; None if there is none."""
        found = self._items.get(key)
        return None if found is None else found[0]

    def version(self, key: Key) -> int:
        """The version of a key here and now, as compare-and-set wants it; 0 if it is not there."""
        found = self._items.get(key)
        return 0 if found is None else found[1]

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def items(self) -> list[tuple[Key, bytes]]:
        """All keys and values, as they are now."""
        return [(key, value) for key, (value, _) in self._items.items()]

    # --- applying

    def apply(self, entry: Entry) -> Any:
        try:
            command = _unpack(entry.value)
        except ValueError as error:  # every error of msgpack is one
            return Malformed(f"not msgpack: {type(error).__name__}")
        if type(command) is not list or len(command) < 2 or type(command[1]) not in _KEYS:
            return Malformed("not a command")
        match command:  # the most frequent first
            case ["set", key, bytes() as value]:
                self._version = version = self._version + 1
                self._items[key] = (value, version)
                return version
            case ["get", key]:
                found = self._items.get(key)
                return None if found is None else list(found)
            case ["del", key]:
                return self._delete(key) != 0
            case ["cas", key, int() as version, bytes() | None as value]:
                return self._compare_and_set(key, version, value)
        return Malformed("not a command")

    def apply_batch(self, entries: Sequence[Entry]) -> list[Any]:
        apply = self.apply
        return [apply(entry) for entry in entries]

    def _compare_and_set(self, key: Key, version: int, value: bytes | None) -> int | None:
        if self.version(key) != version:
            return None
        if value is None:
            return self._delete(key)
        self._version += 1
        self._items[key] = (value, self._version)
        return self._version

    def _delete(self, key: Key) -> int:
        """The version that was deleted; 0 if there was none. A deletion is a change, too."""
        found = self._items.pop(key, None)
        if found is None:
            return 0
        self._version += 1
        return found[1]

    def digest(self) -> bytes:
        """Over keys, values and versions, in whatever order they were set; about 1 us a key."""
        total = sum(_hash(key, *found) for key, found in self._items.items())
        return b"%016x%016x" % (self._version & _WORD, total & _WORD)

    # --- checkpoints

    def freeze(self) -> CopyView:
        """A copy of the dictionary: 15 to 30 ms for a million keys. Keys and values are shared."""
        frozen = copy(self)
        frozen._items = self._items.copy()
        return CopyView(frozen)

    def snapshot(self, writer: Writer) -> None:
        crc = 0
        piece = bytearray(_pack([HEAD, self._version, len(self._items)]))
        for bucket in self._buckets():
            for version, key, value in bucket:
                piece += _pack([key, value, version])
                if len(piece) >= PIECE_BYTES:
                    crc = crc32(piece, crc)
                    writer.write(piece)
                    piece = bytearray()
        crc = crc32(piece, crc)
        writer.write(piece + crc.to_bytes(4, "little"))

    def _buckets(self) -> Iterator[list[tuple[int, Key, bytes]]]:
        """(version, key, value) of every key, each once, in an order made of versions only."""
        many = -(-len(self._items) // KEYS_A_BUCKET)
        buckets: list[list[Key]] = [[] for _ in range(many)]
        for key, (_, version) in self._items.items():
            buckets[version % many].append(key)
        for bucket in buckets:
            # No two keys have one version.
            yield sorted((self._items[key][1], key, self._items[key][0]) for key in bucket)

    def restore(self, reader: Reader) -> None:
        """Raises Damaged for what is no whole snapshot of this machine."""
        found = _objects(reader)
        match next(found, None):
            case [str() as head, int() as last, int() as keys] if head == HEAD:
                pass
            case _:
                raise Damaged("no snapshot of a key-value machine")
        items: dict[Key, tuple[bytes, int]] = {}
        for one in found:
            match one:
                case [str() | bytes() as key, bytes() as value, int() as version]:
                    items[key] = (value, version)
                case _:
                    raise Damaged("a snapshot of a key-value machine holds something else")
            if not 0 < version <= last:
                raise Damaged("a snapshot of a key-value machine has a version that never was")
        if len(items) != keys or len({version for _, version in items.values()}) != keys:
            raise Damaged("a snapshot of a key-value machine lacks keys, or has some twice")
        self._items, self._version = items, last


def _hash(key: Key, value: bytes, version: int) -> int:
    state = blake2b(digest_size=8)
    raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    state.update(b"%c%d:%d:" % (115 if isinstance(key, str) else 98, len(raw), version))
    state.update(raw)
    state.update(value)
    return int.from_bytes(state.digest(), "little")


def _objects(reader: Reader) -> Iterator[Any]:
    """The objects of a snapshot; Damaged if they are not all there and whole."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)  # 0: no limit but 2 GiB
    crc, kept = 0, b""
    try:
        while piece := reader.read(PIECE_BYTES):
            kept += piece
            body, kept = kept[:-4], kept[-4:]
            crc = crc32(body, crc)
            unpacker.feed(body)
            yield from unpacker
    except ValueError as error:  # every error of msgpack is one
        raise Damaged(f"a snapshot of a key-value machine is no msgpack: {error}") from None
    if kept != crc.to_bytes(4, "little"):
        raise Damaged("a snapshot of a key-value machine is damaged, or not whole")
