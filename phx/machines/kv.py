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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import msgpack

from phx.machine import StateMachine
from phx.types import Entry

__all__ = ["KeyValue", "Malformed", "encode_cas", "encode_delete", "encode_get", "encode_set"]

Key = str | bytes

_pack: Callable[[Any], bytes] = msgpack.packb
_unpack: Callable[[bytes], Any] = msgpack.unpackb
_KEYS = (str, bytes)
_WORD = (1 << 64) - 1


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


def _hash(key: Key, value: bytes, version: int) -> int:
    state = blake2b(digest_size=8)
    raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    state.update(b"%c%d:%d:" % (115 if isinstance(key, str) else 98, len(raw), version))
    state.update(raw)
    state.update(value)
    return int.from_bytes(state.digest(), "little")
