"""The codecs of a checkpoint's files: "" as they are, "zstd" one zstd frame.

Digests are over the bytes on the disk: so only taking and restoring need the package (Python 3.14
has it, before that the extra ``phx-paxos[zstd]`` brings it); verifying, exporting, importing and
sending do not.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["CODECS", "PLAIN", "ZSTD", "Packer", "Unpacker", "why_missing"]

PLAIN, ZSTD = "", "zstd"
CODECS = (PLAIN, ZSTD)

MODULE = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
LEVEL = 3
WINDOW_LOG = 21
"""2 MiB: all the memory that a frame makes its reader hold; one that wants more is refused."""
PIECE_BYTES = 256 << 10


def why_missing(codec: str) -> str | None:
    """Why files of this codec can be neither written nor read here; None: they can."""
    if codec == ZSTD:
        try:
            _zstd()
        except ImportError as error:
            return f"zstd needs the extra phx-paxos[zstd]: {error}"
    return None


def _zstd() -> Any:
    return importlib.import_module(MODULE)


class Packer:
    """Makes one frame of the bytes that it is given.

    Guarantee: what comes out depends on the bytes and on the version of the zstd library, and not
    on the pieces they come in; it holds a few MiB, however many they are.

    Attributes:
        raw_bytes: how many it was given.
    """

    def __init__(self) -> None:
        zstd = _zstd()
        of = zstd.CompressionParameter
        self._zstd = zstd.ZstdCompressor(
            options={of.compression_level: LEVEL, of.window_log: WINDOW_LOG}
        )
        self._gathered = bytearray()
        self.raw_bytes = 0

    def add(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """What there is to write after these; the generator has to be run to its end."""
        view = memoryview(data).cast("B")
        self.raw_bytes += len(view)
        while view:
            # zstd is fed equal pieces: where it cuts may depend on what it gets at once.
            piece = view[: PIECE_BYTES - len(self._gathered)]
            view = view[len(piece) :]
            if len(piece) == PIECE_BYTES:
                yield self._zstd.compress(piece)
                continue
            self._gathered += piece
            if len(self._gathered) == PIECE_BYTES:
                gathered, self._gathered = self._gathered, bytearray()
                yield self._zstd.compress(gathered)

    def end(self) -> Iterator[bytes]:
        """The rest."""
        yield self._zstd.compress(self._gathered)
        yield self._zstd.flush(self._zstd.FLUSH_FRAME)


class Unpacker:
    """The bytes that a frame was made of, as many as it says and no more.

    Args:
        read: gives the next bytes of the frame, at most so many; b"" at the end.
        raw_bytes: how many there must be.

    Raises ImportError without the package.
    """

    def __init__(self, read: Callable[[int], bytes], raw_bytes: int) -> None:
        zstd = _zstd()
        self._zstd = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
        )
        self._error: type[Exception] = zstd.ZstdError
        self._read = read
        self._left = raw_bytes

    def read(self, bytes_max: int) -> bytes:
        """The next bytes, at most so many; b"" at the end. ValueError for what is no frame."""
        wanted = min(bytes_max, self._left)
        data = self._next(wanted) if wanted > 0 else b""
        self._left -= len(data)
        return data

    def whole(self) -> bool:
        """All was read: whether the frame ends exactly there. ValueError as `read`."""
        if self._left or self._next(1):  # one more is one too many, however many follow
            return False
        return bool(self._zstd.eof and not self._zstd.unused_data and not self._read(1))

    def _next(self, bytes_max: int) -> bytes:
        frame = self._zstd
        try:
            while not frame.eof:
                stored = self._read(PIECE_BYTES) if frame.needs_input else b""
                if frame.needs_input and not stored:
                    return b""
                if data := frame.decompress(stored, bytes_max):
                    return bytes(data)
        except self._error as error:
            raise ValueError(f"not what zstd wrote: {error}") from error
        return b""
