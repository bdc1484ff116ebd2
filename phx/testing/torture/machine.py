"""What the tortured nodes replicate: the key-value machine, and one that only ever appends.

Values say where they come from: a *token*, unique in the run, and for long ones the token over and
over. So whoever reads a value knows who wrote it, and sees when a byte of it is wrong.
"""

from __future__ import annotations

from hashlib import blake2b

import msgpack

from phx.machine import CopyView, Reader, StateMachine, Writer
from phx.types import Entry

KEY_VALUE, APPENDS = 0, 1
"""Ids of the two machines of every group."""
END = b";"


class Damaged(Exception):
    """A value was read that nobody can have written."""


def value_of(token: str, size: int) -> bytes:
    """The value of at least `size` bytes that a token stands for."""
    word = token.encode() + END
    return word * max(1, -(-size // len(word)))


def token_of(value: bytes) -> str:
    """The token of a value. Raises Damaged."""
    word, end, _ = value.partition(END)
    if not end or value != (word + END) * (len(value) // (len(word) + 1)):
        raise Damaged(f"{len(value)} bytes, {value[:40]!r}…")
    return word.decode()


class Appends(StateMachine):
    """A dictionary of byte strings that only grow: every command is key, NUL, what to append.

    The result is the string after it. What is applied twice, or in another order, stays visible.
    """

    def __init__(self, group: int = 0) -> None:
        self.kept: dict[str, bytes] = {}

    def apply(self, entry: Entry) -> bytes:
        key, _, more = entry.value.partition(b"\0")
        name = key.decode()
        made = self.kept[name] = self.kept.get(name, b"") + more
        return made

    def query(self, query: str) -> bytes:
        """The string of a key."""
        return self.kept.get(query, b"")

    def digest(self) -> bytes:
        state = blake2b(digest_size=16)
        for key in sorted(self.kept):
            state.update(b"%d:%s=" % (len(key), key.encode()) + self.kept[key])
        return state.digest()

    def freeze(self) -> CopyView:
        view = Appends()
        view.kept = self.kept.copy()
        return CopyView(view)

    def snapshot(self, writer: Writer) -> None:
        for key in sorted(self.kept):
            writer.write(msgpack.packb([key, self.kept[key]]))

    def restore(self, reader: Reader) -> None:
        pieces = msgpack.Unpacker()
        while data := reader.read(1 << 16):
            pieces.feed(data)
            self.kept.update(pieces)


def encode_append(key: str, token: str) -> bytes:
    """The command that appends a token to a key; an empty token reads it."""
    return key.encode() + b"\0" + (token.encode() + END if token else b"")
