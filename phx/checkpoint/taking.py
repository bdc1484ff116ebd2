"""Making a checkpoint: staged, synced, renamed. It is there as a whole or not at all.

    step          a crash behind it leaves
    ------------  ------------------------------------------------------------------------
    staged        rubbish in staging, which is removed when the folder is opened
    file          the same; once for each machine that has a file
    manifest      the same: whole, but nobody looks there
    renamed       the old state, or the new one
    taken         the new one

Dropping older ones comes after it (`Catalog.drop`), and raising the floor of the log last.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, replace

from phx._version import __version__
from phx.checkpoint.catalog import READ_BYTES, STAGING, Hasher, path_of, put_aside, verify
from phx.checkpoint.compression import PLAIN, ZSTD, Packer
from phx.checkpoint.files import (
    Data,
    Files,
    Output,
    exists,
    join,
    make_folders,
    need_room,
    new_folder,
    remove_tree,
)
from phx.checkpoint.manifest import (
    BLOCK_BYTES_MIN,
    MANIFEST,
    FileEntry,
    MachineEntry,
    Manifest,
    block_bytes_of,
    encode,
    state_digest,
)
from phx.errors import Damaged
from phx.machine import Writer
from phx.membership import Membership

__all__ = ["Capture", "Part", "Steps", "carry", "discard", "publish", "run", "stage", "take"]

SYNC_BYTES = 8 << 20
"""So much is synced at once: one large sync would stand in front of the journal's."""
GATHER_BYTES = 256 << 10
NEW = "new"

Steps = Generator[str, None, Manifest]
Pace = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Part:
    """One machine, frozen at the frontier.

    Attributes:
        machine: its id.
        kind: MEMORY or DURABLE.
        write: writes its state, such as ``view.snapshot``; None: it stays in the machine's own
            files (DURABLE only).
        digest: what its ``digest()`` said at the frontier; b"": it was not asked.
    """

    machine: int
    kind: int
    write: Callable[[Writer], object] | None
    digest: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """The state of a group at one instance, before it is written. Fields as in Manifest."""

    cluster: int
    group: int
    frontier: int
    epoch: int
    config: int
    members: tuple[int, ...]
    sessions: bytes
    chain: int
    parts: tuple[Part, ...]
    membership: Membership | None = None
    taken_by: int
    taken_us: int


def nothing(_: int) -> None:
    """No pace to keep to."""


def run(steps: Steps) -> Manifest:
    """All steps, one after the other; what they made. Raises what they raise."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: Manifest = end.value
            return made


def take(
    files: Files,
    root: str,
    capture: Capture,
    *,
    estimate_bytes: int = 0,
    reserve_bytes: int = 0,
    codec: str = PLAIN,
    pace: Pace = nothing,
) -> Steps:
    """Write a capture to the disk. Returns the manifest, once the checkpoint is durable.

    If there is one of equal content already, that one stays and counts.

    Args:
        root: the folder of all checkpoints, in `files`.
        estimate_bytes, reserve_bytes: what will be written, about; what must stay free then.
        codec: of its files. Equal states that were written with another one, or by another version
            of zstd, are other checkpoints.
        pace: called with the number of bytes after every write, 0 if all is kept for the next one.
            It may sleep, or raise to end it.

    Raises OSError (ENOSPC before anything is written if there is no room), ValueError if a manifest
    cannot say what was captured, ImportError if there is no such codec here, and whatever a part
    raises. Nothing is left then, but what could
    not be removed, which is rubbish in staging.
    """
    need_room(files, estimate_bytes, reserve_bytes)
    staging = stage(files, root, "take", capture.group)
    try:
        yield "staged"
        entries: list[FileEntry] = []
        machines: list[MachineEntry] = []
        for part in sorted(capture.parts, key=lambda one: one.machine):
            at = -1
            if part.write is not None:
                at = len(entries)
                name = f"machine-{part.machine}"
                packer = Packer() if codec == ZSTD else None
                entries.append(_write(files, join(staging, NEW), name, part.write, pace, packer))
                yield "file"
            digest = state_digest(part.digest)
            machines.append(MachineEntry(part.machine, part.kind, at, digest))
        manifest = Manifest(
            cluster=capture.cluster,
            group=capture.group,
            frontier=capture.frontier,
            epoch=capture.epoch,
            config=capture.config,
            members=capture.members,
            sessions=capture.sessions,
            chain=capture.chain,
            machines=tuple(machines),
            files=tuple(entries),
            membership=capture.membership,
            taken_by=capture.taken_by,
            taken_us=capture.taken_us,
            phx=__version__,
        )
        return (yield from publish(files, root, staging, manifest))
    except BaseException:
        discard(files, staging)
        raise


def stage(files: Files, root: str, prefix: str, group: int) -> str:
    """Make a folder in staging, and NEW in it, where the files of a new checkpoint go."""
    make_folders(files, join(root, STAGING))
    staging = new_folder(files, join(root, STAGING), f"{prefix}-{group}")
    files.make_folder(join(staging, NEW))
    return staging


def publish(files: Files, root: str, staging: str, manifest: Manifest) -> Steps:
    """From a staged folder, whose files are synced, to a checkpoint. Returns its manifest.

    A damaged checkpoint of equal content that is in the way is moved to quarantine.
    """
    new = join(staging, NEW)
    output = files.create(join(new, MANIFEST))
    try:
        output.write(encode(manifest))
        output.sync()
    finally:
        output.close()
    files.sync(new)
    yield "manifest"
    place = path_of(root, manifest)
    above = place.rpartition("/")[0]
    make_folders(files, above)
    if exists(files, place):
        if not verify(files, place):
            files.sync(above)
            discard(files, staging)
            yield "taken"
            return manifest
        put_aside(files, root, place)
        yield "aside"
    # What is left in staging tells the next opener that the new name may not be durable yet.
    files.rename(new, place)
    yield "renamed"
    # The folder it comes from first: in between it has no name rather than two.
    files.sync(staging)
    files.sync(above)
    with suppress(OSError):
        files.remove_folder(staging)
    yield "taken"
    return manifest


def carry(source: Files, path: str, files: Files, root: str, made: Manifest) -> Steps:
    """Make of the checkpoint in the folder `path` of `source` one of `files`, as `made` says: with
    its files, byte by byte. Steps as those of `take`.

    Raises Damaged if they are not what was written, OSError; nothing is left then.
    """
    staging = stage(files, root, "carry", made.group)
    try:
        yield "staged"
        for entry in made.files:
            copied = _copy(source, join(path, entry.name), files, join(staging, NEW, entry.name))
            if copied.digest != entry.digest or copied.size_bytes != entry.size_bytes:
                raise Damaged(f"{path}/{entry.name}: its digest is not the manifest's")
            yield "file"
        return (yield from publish(files, root, staging, made))
    except BaseException:
        discard(files, staging)
        raise


def _copy(source: Files, path: str, files: Files, to: str) -> FileEntry:
    """Durable on return."""
    opened = source.read(path)
    try:
        output = files.create(to)
        try:
            writer = FileWriter(output, nothing)
            while data := opened.read(READ_BYTES):
                writer.write(data)
            writer.end()
            output.sync()
        finally:
            output.close()
    finally:
        opened.close()
    return writer.hasher.entry(path)


def discard(files: Files, staging: str) -> None:
    """Remove what was not published; what cannot be removed is rubbish that does no harm."""
    with suppress(OSError):
        if exists(files, join(staging, NEW)):
            remove_tree(files, staging)


# --- one file


def _write(
    files: Files,
    folder: str,
    name: str,
    write: Callable[[Writer], object],
    pace: Pace,
    packer: Packer | None,
) -> FileEntry:
    """One file, written by a machine; durable on return."""
    path = join(folder, name)
    output = files.create(path)
    try:
        writer = FileWriter(output, pace, packer)
        write(writer)
        writer.end()
        output.sync()
        size, entry = output.size_bytes(), writer.hasher.entry(name)
    finally:
        output.close()
    if writer.bypassed or block_bytes_of(size) != BLOCK_BYTES_MIN:
        entry = _read_back(files, path, name, size)
    if packer is not None:
        entry = replace(entry, codec=ZSTD, raw_bytes=packer.raw_bytes)
    return entry


def _read_back(files: Files, path: str, name: str, size_bytes: int) -> FileEntry:
    hasher = Hasher(block_bytes_of(size_bytes))
    opened = files.read(path)
    try:
        while data := opened.read(READ_BYTES):
            hasher.update(data)
    finally:
        opened.close()
    if hasher.size_bytes != size_bytes:
        raise OSError(errno.EIO, f"{path}: {hasher.size_bytes} of {size_bytes} bytes")
    return hasher.entry(name)


class FileWriter:
    """The Writer that a machine gets: gathers small pieces, hashes, syncs now and then.

    Args:
        packer: what is written goes through it, and cannot go round it.
    """

    def __init__(self, output: Output, pace: Pace, packer: Packer | None = None) -> None:
        self.hasher = Hasher(BLOCK_BYTES_MIN)
        self.bypassed = False
        self._output = output
        self._pace = pace
        self._packer = packer
        self._gathered = bytearray()
        self._unsynced = 0
        self._ended = False

    def write(self, data: Data, /) -> None:
        if self._ended:
            raise ValueError("the snapshot has returned: its file is closed")
        if not self.bypassed and memoryview(data).nbytes < GATHER_BYTES:
            self._gathered += data
            if len(self._gathered) >= GATHER_BYTES:
                self._flush()
            return
        self._flush()
        self._put(data)

    def fileno(self) -> int:
        if self._packer is not None:
            raise OSError(errno.EOPNOTSUPP, "what is compressed has to go through write()")
        descriptor = self._output.fileno()
        self._flush()
        self.bypassed = True  # from now on the file alone knows what is in it
        return descriptor

    def end(self) -> None:
        self._flush()
        if self._packer is not None:
            for packed in self._packer.end():
                self._store(packed)
        self._ended = True

    def _flush(self) -> None:
        if self._gathered:
            gathered, self._gathered = self._gathered, bytearray()
            self._put(gathered)

    def _put(self, data: Data) -> None:
        if self._packer is None:
            self._store(data)
            return
        for packed in self._packer.add(data):
            self._store(packed)

    def _store(self, data: Data) -> None:
        size = memoryview(data).nbytes
        self._output.write(data)
        if not self.bypassed:
            self.hasher.update(data)
        self._unsynced += size
        if self._unsynced >= SYNC_BYTES:
            self._output.sync()
            self._unsynced = 0
        self._pace(size)
