from collections.abc import Sequence
from typing import Any, ClassVar, Final

from phx.machine import CopyView, Reader, StateMachine, Writer
from phx.types import Entry

FAIL_NEXT: Final = 0
FAIL_HALFWAY: Final = 1
NONE: Final = 0xFFFFFFFF

class MachineSpoilt(Exception):
    """A plan says that this machine fails now."""

def encode_get(key: int) -> bytes: ...
def encode_put(key: int, value: bytes) -> bytes: ...
def encode_append(key: int, more: bytes) -> bytes: ...
def encode_cas(key: int, expected: bytes | None, new: bytes) -> bytes: ...
def encode_delete(key: int) -> bytes: ...

class SimMachine(StateMachine):
    """A replica of one group's registers. `items` is its state, `spoilt` makes it fail."""

    digest_cheap: ClassVar[bool]
    chain: int
    items: dict[int, bytes]
    spoilt: int | None
    def __init__(self) -> None: ...
    def spoil(self, how: int) -> None:
        """Raise at the next entry (FAIL_NEXT) or in the middle of the next batch (FAIL_HALFWAY).

        Any other number: not any more.
        """
    def stray(self, how: int) -> None:
        """Its state is another one than its history gives, from now on and for good."""
    def apply(self, entry: Entry) -> Any: ...
    def apply_batch(self, entries: Sequence[Entry]) -> list[Any]: ...
    def query(self, query: Any) -> bytes | None: ...
    def digest(self) -> bytes: ...
    def freeze(self) -> CopyView: ...
    def snapshot(self, writer: Writer) -> None: ...
    def restore(self, reader: Reader) -> None:
        """Raises Damaged for what no snapshot can be."""
