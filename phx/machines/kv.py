"""A replicated dictionary: set, get, delete, compare-and-set. Commands are msgpack arrays.

    command                              result
    -----------------------------------  ---------------------------------------------------------
    ["set", key, value]                  the key's new version
    ["get", key]                         [value, version], or None: read through the log
    ["del", key]                         True when the key was there
    ["cas", key, version, value]         the new version, or None when the version did not match;
                                         version 0: the key must not exist; value None: delete
                                         (the result is then the version that was deleted)
    ["multi", guard, then, otherwise]    MultiResult(held, results): if every test of the guard
                                         holds, the commands of `then`, else those of `otherwise`,
                                         all of them at one place of the log and nothing in between

A test is [key, what]: True, the key exists; False, it does not; a number, its version is that (0:
it does not exist); bytes, that is its value. An empty guard holds. `then` and `otherwise` hold set,
get and del, with the results that these have alone, seeing one another's changes; at most
MULTI_MAX tests and commands altogether. (Paxos Made Live, section 5.6.)

Keys are str or bytes, and "a" is another key than b"a". Values are bytes. Versions count the
changes of the whole machine, so that the version of a key that was deleted and set again is a new
one. A command that is none of these changes nothing and its result is a Malformed; a multi is
looked at as a whole, both branches, before anything is changed.

A snapshot is msgpack, one object after the other: [HEAD, version of the machine, keys], then
[key, value, version] for each key, in an order that depends on nothing but versions, then the
CRC-32 of all before it as four bytes. Equal states write equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from typing import Any, ClassVar, NamedTuple

import msgpack

from phx.errors import Damaged
from phx.machine import CopyView, Reader, StateMachine, Writer, no_rest
from phx.machines.objects import digest_of, read_objects, write_objects
from phx.types import Entry

__all__ = [
    "MULTI_MAX",
    "KeyValue",
    "Malformed",
    "MultiResult",
    "encode_cas",
    "encode_delete",
    "encode_get",
    "encode_multi",
    "encode_set",
]

Key = str | bytes

_pack: Callable[[Any], bytes] = msgpack.packb
_unpack: Callable[[bytes], Any] = msgpack.unpackb
_KEYS = (str, bytes)

HEAD = "phx kv 1"
# Keys are sorted a bucket at a time: to sort a million at once would hold the GIL for a second.
KEYS_A_BUCKET = 4096


MULTI_MAX = 1024
"""Tests and commands of one multi. Part of what a log means: it never changes."""


class Malformed(NamedTuple):
    """The result of a command that the machine does not understand; nothing was changed."""

    reason: str


class MultiResult(NamedTuple):
    """The result of a multi: whether its guard held, and those of the commands that were done."""

    held: bool
    results: list[Any]


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


def encode_multi(
    guard: Iterable[tuple[Key, bool | int | bytes]],
    then: Iterable[bytes],
    otherwise: Iterable[bytes] = (),
) -> bytes:
    """The command that does `then` if every test holds and `otherwise` if not, as one.

        encode_multi([("a", 3), ("b", False)], [encode_set("b", b"x"), encode_delete("a")])

    Args:
        guard: tests, (key, what): True or False, whether it exists; a number, its version; bytes,
            its value.
        then, otherwise: commands, as encode_set, encode_get and encode_delete make them.

    Raises:
        ValueError: more than MULTI_MAX tests and commands.
    """
    tests, done, undone = [list(test) for test in guard], list(then), list(otherwise)
    if len(tests) + len(done) + len(undone) > MULTI_MAX:
        raise ValueError(f"a multi has at most {MULTI_MAX} tests and commands")
    pieces = [b"\x94", _pack("multi"), _pack(tests)]  # an array of four
    for commands in (done, undone):
        pieces += [msgpack.Packer().pack_array_header(len(commands)), *commands]
    return b"".join(pieces)


class KeyValue(StateMachine):
    """A dictionary in memory. ``get``, ``items`` and ``len`` read this node's state, which may lag.

    ``digest`` is a sum of 64-bit hashes: against accidents, not against forgery. Nodes compare it,
    worked out of views: to keep the sum up to date would cost four times what a set costs.
    """

    digest_of_views: ClassVar[bool] = True

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

    def query(self, query: Any) -> Any:
        """What ``group.read`` may ask for.

            query              value
            -----------------  --------------------------------------------------
            a key              its value, or None
            ("version", key)   (value, version), or None
            None               how many keys there are

        Raises ValueError for anything else.
        """
        match query:
            case str() | bytes():
                return self.get(query)
            case ("version", str() | bytes() as key):
                return self._items.get(key)
            case None:
                return len(self._items)
        raise ValueError(f"no query of a key-value machine: {query!r}")

    # --- applying

    def apply(self, entry: Entry) -> Any:
        try:
            command = _unpack(entry.value)
        except ValueError as error:  # every error of msgpack is one
            return Malformed(f"not msgpack: {type(error).__name__}")
        return self._run(command)

    def _run(self, command: Any) -> Any:
        if type(command) is not list or len(command) < 2 or type(command[1]) not in _KEYS:
            match command:
                case ["multi", list() as guard, list() as then, list() as otherwise]:
                    return self._multi(guard, then, otherwise)
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
        """As ``apply``, one after the other; a set, the most frequent, is done in place: a quarter
        less time a value. (Not in a class whose ``apply`` is another.)"""
        if type(self).apply is not KeyValue.apply:
            return [self.apply(entry) for entry in entries]
        run, unpack, items = self._run, _unpack, self._items
        results: list[Any] = []
        append = results.append
        for entry in entries:
            try:
                command = unpack(entry.value)
            except ValueError:
                append(self.apply(entry))
                continue
            if type(command) is list and len(command) == 3:
                what, key, value = command
                if what == "set" and type(key) in _KEYS and type(value) is bytes:
                    self._version = version = self._version + 1
                    items[key] = (value, version)
                    append(version)
                    continue
            append(run(command))
        return results

    def _multi(
        self, guard: list[Any], then: list[Any], otherwise: list[Any]
    ) -> MultiResult | Malformed:
        if len(guard) + len(then) + len(otherwise) > MULTI_MAX:
            return Malformed("a multi of too many tests and commands")
        if not all(map(_is_test, guard)):
            return Malformed("a multi with something that is no test")
        if not all(map(_is_simple, then)) or not all(map(_is_simple, otherwise)):
            return Malformed("a multi with something that is no set, get or del")
        held = all(self._holds(key, what) for key, what in guard)
        return MultiResult(held, [self._run(one) for one in (then if held else otherwise)])

    def _holds(self, key: Key, what: bool | int | bytes) -> bool:
        found = self._items.get(key)
        if type(what) is bool:
            return (found is not None) is what
        if type(what) is int:
            return (0 if found is None else found[1]) == what
        return found is not None and found[0] == what

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
        return self.digest_slowly(no_rest)

    def digest_slowly(self, rest: Callable[[], None]) -> bytes:
        entries = (_told_apart(key, *found) for key, found in self._items.items())
        return digest_of(self._version, entries, rest)

    # --- checkpoints

    def freeze(self) -> CopyView:
        """A copy of the dictionary: 15 to 30 ms for a million keys. Keys and values are shared."""
        frozen = copy(self)
        frozen._items = self._items.copy()
        return CopyView(frozen)

    def snapshot(self, writer: Writer) -> None:
        write_objects(writer, self._packed())

    def _packed(self) -> Iterator[bytes]:
        yield _pack([HEAD, self._version, len(self._items)])
        for bucket in self._buckets():
            for version, key, value in bucket:
                yield _pack([key, value, version])

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
        found = read_objects(reader, "a snapshot of a key-value machine")
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


def _is_test(test: object) -> bool:
    match test:
        case [str() | bytes(), bool() | int() | bytes()]:
            return True
    return False


def _is_simple(command: object) -> bool:
    match command:
        case ["set", str() | bytes(), bytes()] | ["get" | "del", str() | bytes()]:
            return True
    return False


def _told_apart(key: Key, value: bytes, version: int) -> bytes:
    """Of a key, what the digest is made of; no two that differ give the same."""
    raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    kind = 115 if isinstance(key, str) else 98
    return b"%c%d:%d:%b%b" % (kind, len(raw), version, raw, value)
