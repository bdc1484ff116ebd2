"""Bringing machines back from a checkpoint: no byte of it is used before all was found sound."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from phx._core.session_codec import table_facts
from phx.checkpoint.catalog import READ_BYTES, Finding, Hasher, verify_file
from phx.checkpoint.compression import PLAIN, Unpacker
from phx.checkpoint.files import Files, Input, join, need_room
from phx.checkpoint.manifest import (
    FileEntry,
    MachineEntry,
    Manifest,
    block_bytes_of,
    state_digest,
)
from phx.checkpoint.taking import NEW, discard, stage
from phx.machine import StateMachine

__all__ = ["Broken", "FileReader", "load_machine", "need_sound"]


class Broken(Exception):
    """A checkpoint is damaged for good."""


def need_sound(
    files: Files, manifest: Manifest, path: str, entries: Sequence[FileEntry] | None = None
) -> None:
    """Read all that is going to be used of a checkpoint.

    Args:
        entries: these of its files; default: all of them.

    Raises Broken for what is damaged for good, OSError for what may be read later.
    """
    try:
        table_facts(manifest.sessions)
    except ValueError as error:
        raise Broken(f"{path}: the session table: {error}") from error
    findings: list[Finding] = []
    for entry in manifest.files if entries is None else entries:
        inside = join(path, entry.name)
        try:
            findings += verify_file(files, inside, entry)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
                raise
            findings.append(Finding(inside, str(error)))
    if findings:
        raise Broken("; ".join(f"{where}: {why}" for where, why in findings[:3]))


class FileReader:
    """The Reader that a machine gets: one file of a checkpoint, which was verified just before.

    It is hashed once more on its way: what the disk gives the second time may differ. Of what is
    compressed no more is unpacked than its entry says.

    Args:
        where: makes the real path of what it reads.

    Attributes:
        copied: somebody asked for the path.
        broken: it is no frame, or not of as many bytes as its entry says.
    """

    def __init__(self, opened: Input, entry: FileEntry, where: Callable[[], Path]) -> None:
        self._opened = opened
        self._entry = entry
        self._where = where
        self._hasher = Hasher(block_bytes_of(entry.size_bytes))
        self._unpacker = None if entry.codec == PLAIN else Unpacker(self._stored, entry.raw_bytes)
        self.copied = False
        self.broken = False

    def read(self, bytes_max: int, /) -> bytes:
        pieces = []
        left = bytes_max
        while left > 0 and (data := self._next(min(left, READ_BYTES))):
            pieces.append(data)
            left -= len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def path(self) -> Path:
        self.copied = True
        return self._where()

    def good(self) -> bool:
        """Whether all that it gave was what was written; reads the rest."""
        try:
            while self._next(READ_BYTES):
                pass
            if self._unpacker is not None and not self._unpacker.whole():
                self.broken = True
        except ValueError:
            pass  # `broken` says it
        return not self.broken and self._hasher.fits(self._entry)

    def _next(self, bytes_max: int) -> bytes:
        if self._unpacker is None:
            return self._stored(bytes_max)
        try:
            return self._unpacker.read(bytes_max)
        except ValueError:
            self.broken = True
            raise

    def _stored(self, bytes_max: int) -> bytes:
        """The next bytes as they lie on the disk."""
        left = min(bytes_max, self._entry.size_bytes - self._hasher.size_bytes)
        data = self._opened.read(left) if left > 0 else b""
        self._hasher.update(data)
        return data


@contextmanager
def unpacked(files: Files, path: str, group: int, entry: FileEntry) -> Iterator[str]:
    """A file of the checkpoint at `path` as it was before it was compressed, beside it in staging
    for as long as that lasts. Raises Broken, OSError."""
    inside = join(path, entry.name)
    need_room(files, entry.raw_bytes, 0)
    root = path.rpartition("/")[0].rpartition("/")[0]
    staging = stage(files, root, "open", group)
    try:
        place = join(staging, NEW, entry.name)
        opened, output = files.read(inside), files.create(place)
        try:
            reader = FileReader(opened, entry, lambda: Path(place))
            while data := reader.read(READ_BYTES):
                output.write(data)
            if not reader.good():
                raise Broken(f"{inside}: it was read differently the second time")
        except ValueError as error:
            raise Broken(f"{inside}: {error}") from error
        finally:
            output.close()
            opened.close()
        yield place
    finally:
        discard(files, staging)


def load_machine(
    files: Files,
    machine: StateMachine,
    one: MachineEntry,
    manifest: Manifest,
    path: str,
    where: Callable[[str], Path],
    *,
    digest: bool = True,
) -> None:
    """Restore a new machine from its file in the checkpoint at `path`, which was found sound.

    Args:
        where: the real path of a file, for machines that would rather copy it.
        digest: ask the machine for its own, if that is cheap.

    Raises Broken if what was read this time differs, ValueError if the machine's digest is another
    one, and whatever its `restore` raises. The machine is of no use then.
    """
    entry = manifest.files[one.file]
    inside = join(path, entry.name)
    with ExitStack() as after:

        def whole() -> Path:
            if entry.codec == PLAIN:
                return where(inside)
            return where(after.enter_context(unpacked(files, path, manifest.group, entry)))

        opened = files.read(inside)
        after.callback(opened.close)
        reader = FileReader(opened, entry, whole)
        try:
            machine.restore(reader)
        except Exception as error:
            if reader.broken:
                raise Broken(f"{inside}: {error}") from error
            raise
        good = reader.good()
    if not good or (reader.copied and verify_file(files, inside, entry)):
        raise Broken(f"{inside}: it was read differently the second time")
    asked = digest and one.digest and machine.digest_cheap
    if asked and state_digest(machine.digest()) != one.digest:
        raise ValueError(f"machine {one.machine} has another digest than when it was taken")
