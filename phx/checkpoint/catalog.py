"""Which checkpoints a folder has, which of them may go, and whether they are what was written.

    checkpoints/<group>/<frontier, 20 digits>-<8 digits of the ident>/   manifest, files
    checkpoints/<group>/rebuild                                          see phx.checkpoint.rebuild
    checkpoints/staging/<what>-<group>-<number>/                         what is being made
    quarantine/                                                          what was found damaged

Only a name in the folder of a group makes a checkpoint: what lies in staging is rubbish after a
crash, however whole it is.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple

from phx.checkpoint.files import (
    FILE,
    FOLDER,
    Files,
    exists,
    join,
    make_folders,
    new_folder,
    remove_tree,
)
from phx.checkpoint.manifest import (
    BLOCK_DIGEST_BYTES,
    DIGEST_BYTES,
    MANIFEST,
    FileEntry,
    Manifest,
    block_bytes_of,
    folder_name,
    read_manifest,
)
from phx.checkpoint.rebuild import MARK
from phx.errors import Damaged, Foreign
from phx.types import GROUP_ID_MAX

__all__ = [
    "ROOT",
    "STAGING",
    "Catalog",
    "Finding",
    "Hasher",
    "Survey",
    "look",
    "path_of",
    "put_aside",
    "verify",
    "verify_file",
]

ROOT = "checkpoints"
"""Where a node's checkpoints are, in its folder."""
STAGING = "staging"
QUARANTINE = "quarantine"

READ_BYTES = 1 << 20
GROUP_NAME = re.compile(r"0|[1-9][0-9]{0,6}")
STAGED = re.compile(r"[a-z]+-(0|[1-9][0-9]{0,6})-")
FOLDER_NAME = re.compile(r"[0-9]{20}-[0-9a-f]{8}")

Read = Callable[[Files, str], Manifest]


class Finding(NamedTuple):
    """Something that is not as it must be."""

    path: str
    what: str


class Hasher:
    """The digests of a file, from its bytes in order. It forgets the bytes."""

    def __init__(self, block_bytes: int) -> None:
        self.size_bytes = 0
        self.blocks = bytearray()
        self._block_bytes = block_bytes
        self._whole = blake2b(digest_size=DIGEST_BYTES)
        self._block = blake2b(digest_size=BLOCK_DIGEST_BYTES)
        self._left = block_bytes

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._whole.update(data)
        view = memoryview(data).cast("B")
        self.size_bytes += len(view)
        while view:
            piece = view[: self._left]
            self._block.update(piece)
            self._left -= len(piece)
            if not self._left:
                self._end_block()
            view = view[len(piece) :]

    def _end_block(self) -> None:
        self.blocks += self._block.digest()
        self._block = blake2b(digest_size=BLOCK_DIGEST_BYTES)
        self._left = self._block_bytes

    def fits(self, entry: FileEntry) -> bool:
        """All bytes were seen: whether they are those of the entry's file."""
        found = self.entry(entry.name)
        return (found.size_bytes, found.digest, found.blocks) == (
            entry.size_bytes,
            entry.digest,
            entry.blocks,
        )

    def entry(self, name: str) -> FileEntry:
        """All bytes were seen. ``block_bytes`` must be what a file of this size is divided into."""
        if self._left < self._block_bytes:
            self._end_block()
        return FileEntry(name, self.size_bytes, self._whole.digest(), bytes(self.blocks))


def path_of(root: str, manifest: Manifest) -> str:
    """Where a checkpoint lies."""
    return join(root, str(manifest.group), folder_name(manifest))


# --- verifying


def verify_file(files: Files, path: str, entry: FileEntry) -> list[Finding]:
    """Read a file from its beginning to its end. [] if every byte is what was written.

    Raises OSError if it cannot be read: links are never followed.
    """
    hasher = Hasher(block_bytes_of(entry.size_bytes))
    opened = files.read(path)
    try:
        if opened.size_bytes != entry.size_bytes:
            what = f"has {opened.size_bytes} bytes, not {entry.size_bytes}"
            return [Finding(path, what)]
        while data := opened.read(READ_BYTES):
            hasher.update(data)
    finally:
        opened.close()
    found = hasher.entry(entry.name)
    if found.size_bytes != entry.size_bytes:
        return [Finding(path, f"ends after {found.size_bytes} bytes, not {entry.size_bytes}")]
    block = block_bytes_of(entry.size_bytes)
    findings = [
        Finding(path, f"bytes {at} .. {min(at + block, entry.size_bytes) - 1} are damaged")
        for number, at in enumerate(range(0, entry.size_bytes, block))
        if found.block(number) != entry.block(number)
    ]
    if found.digest != entry.digest and not findings:
        findings.append(Finding(path, "its digest is not the manifest's"))
    return findings


def verify(files: Files, path: str) -> list[Finding]:
    """Read a whole checkpoint, the one in the folder `path`; what is wrong with it. [] if nothing.

    Found: every byte that differs, in the manifest and in the files; a name that is missing, or
    too many; links; a folder that is called as another checkpoint.
    """
    try:
        manifest = read_manifest(files, path)
        there = {one.name: one for one in files.listing(path)}
    except (Damaged, Foreign) as error:
        return [Finding(join(path, MANIFEST), str(error))]
    except OSError as error:
        return [Finding(join(path, MANIFEST), _why(error))]
    findings = _misplaced(path, manifest)
    there.pop(MANIFEST, None)
    for entry in manifest.files:
        inside = join(path, entry.name)
        one = there.pop(entry.name, None)
        if one is None:
            findings.append(Finding(inside, "is missing"))
        elif one.kind != FILE:
            findings.append(Finding(inside, "is a link, or no plain file"))
        else:
            try:
                findings += verify_file(files, inside, entry)
            except OSError as error:
                findings.append(Finding(inside, _why(error)))
    return findings + [Finding(join(path, name), "does not belong here") for name in sorted(there)]


def _misplaced(path: str, manifest: Manifest) -> list[Finding]:
    *_, group, name = ("", *path.split("/"))
    if name != folder_name(manifest) or group != str(manifest.group):
        is_of = f"is of group {manifest.group}, {folder_name(manifest)}"
        return [Finding(join(path, MANIFEST), is_of)]
    return []


def _why(error: OSError) -> str:
    return error.strerror or str(error)


# --- looking


@dataclass(frozen=True, slots=True)
class Survey:
    """What `look` found.

    Attributes:
        groups: for each group that has any, its checkpoints, newest first.
        findings: whatever else lies there: manifests that cannot be read, names that are no
            checkpoint's.
        damaged: the folders whose manifest is not what was written.
    """

    groups: dict[int, list[Manifest]]
    findings: list[Finding]
    damaged: list[str] = field(default_factory=list)


def look(files: Files, root: str, cluster: int | None = None, read: Read = read_manifest) -> Survey:
    """Read every manifest, not the files. Changes nothing; somebody else may be at work there.

    Args:
        cluster: checkpoints of another one are findings.
        read: the manifest in a folder, as `read_manifest` does it.
    """
    survey = Survey({}, [])
    if not exists(files, root):
        return survey
    for one in files.listing(root):
        path = join(root, one.name)
        known = GROUP_NAME.fullmatch(one.name) and int(one.name) <= GROUP_ID_MAX
        if one.kind != FOLDER or not (known or one.name == STAGING):
            survey.findings.append(Finding(path, "does not belong here"))
        elif known:
            found = _look_into(files, path, cluster, survey, read)
            if found:
                survey.groups[int(one.name)] = _newest_first(found)
    return survey


def _look_into(
    files: Files, folder: str, cluster: int | None, survey: Survey, read: Read
) -> list[Manifest]:
    good, findings = [], survey.findings
    for one in files.listing(folder):
        path = join(folder, one.name)
        if one.kind == FILE and one.name == MARK:
            continue
        if one.kind != FOLDER or not FOLDER_NAME.fullmatch(one.name):
            findings.append(Finding(path, "does not belong here"))
            continue
        try:
            manifest = read(files, path)
        except (Damaged, Foreign) as error:
            findings.append(Finding(join(path, MANIFEST), str(error)))
            if isinstance(error, Damaged):
                survey.damaged.append(path)
            continue
        except OSError as error:
            # A running node drops old ones.
            if exists(files, path):
                findings.append(Finding(join(path, MANIFEST), _why(error)))
            continue
        if misplaced := _misplaced(path, manifest):
            findings += misplaced
        elif cluster is not None and manifest.cluster != cluster:
            findings.append(Finding(path, f"is of cluster {manifest.cluster:#x}"))
        else:
            good.append(manifest)
    return good


def _newest_first(found: Collection[Manifest]) -> list[Manifest]:
    return sorted(found, key=lambda one: (-one.frontier, -one.taken_us, one.content))


class Catalog:
    """The checkpoints of one node, and who uses which.

    Guarantee: one that is pinned is not dropped, and of every group the newest ones stay. Any
    thread may call; those that change the same group's folders must not overlap.

    Attributes:
        findings: what lay there and is no usable checkpoint, when it was opened.
        damaged: of these, the paths of those that are damaged; they were put aside.
        on_damage: told in words of each that turns out to be damaged later; any thread.
    """

    def __init__(self, files: Files, root: str, survey: Survey) -> None:
        self.files = files
        self.root = root
        self.findings = survey.findings
        self.damaged = survey.damaged
        self.on_damage: Callable[[str], None] = lambda _: None
        self._groups = survey.groups
        self._pins: Counter[bytes] = Counter()
        self._lock = threading.Lock()

    @staticmethod
    def scan(files: Files, root: str) -> dict[int, list[Manifest]]:
        """The checkpoints of each group that has any, newest first. Changes nothing."""
        return look(files, root).groups

    @classmethod
    def open(
        cls,
        files: Files,
        root: str,
        *,
        cluster: int | None = None,
        keep: Collection[str] = (),
        read: Read = read_manifest,
    ) -> Catalog:
        """Remove what a crash left in staging, look, and put aside what has a damaged manifest.
        Nobody else may be at work there.

        What it finds is durable on return, also if a crash came right behind a rename.

        Args:
            cluster: checkpoints of another one are not used.
            keep: names in staging that stay: what was received in part.
            read: as for `look`.

        Raises OSError.
        """
        staging = join(root, STAGING)
        if exists(files, staging):
            for one in files.listing(staging):
                # It may be of a checkpoint whose new name was not synced when its maker died.
                made_for = STAGED.match(one.name)
                if made_for and exists(files, join(root, made_for[1])):
                    files.sync(join(root, made_for[1]))
                if one.name not in keep:
                    remove_tree(files, join(staging, one.name))
        survey = look(files, root, cluster, read)
        for path in survey.damaged:
            with suppress(OSError):  # it is no checkpoint where it lies, either
                put_aside(files, root, path)
        return cls(files, root, survey)

    def groups(self) -> dict[int, list[Manifest]]:
        """Newest first."""
        with self._lock:
            return {group: list(found) for group, found in self._groups.items() if found}

    def of(self, group: int) -> list[Manifest]:
        """Those of a group, newest first."""
        with self._lock:
            return list(self._groups.get(group, ()))

    def frontier(self, group: int) -> int:
        """Of the group's newest one; 0: it has none."""
        return max((one.frontier for one in self.of(group)), default=0)

    def cover(self, group: int, floor: int = 1) -> Manifest | None:
        """The oldest one that a log from `floor` on goes on from: the log above it must stay."""
        usable = (one for one in reversed(self.of(group)) if one.frontier + 1 >= floor)
        return next(usable, None)

    def add(self, manifest: Manifest) -> None:
        """It was made, and is durable."""
        with self._lock:
            found = {one.content: one for one in self._groups.get(manifest.group, ())}
            found.setdefault(manifest.content, manifest)
            self._groups[manifest.group] = _newest_first(found.values())

    def forget(self, manifest: Manifest) -> None:
        """It is not usable any more, or was put aside."""
        with self._lock:
            found = self._groups.get(manifest.group, [])
            self._groups[manifest.group] = [one for one in found if one.content != manifest.content]

    def condemn(self, group: int, above: int, but: bytes = b"") -> list[Manifest]:
        """Those of a group beyond this instance do not count any more, but for the one with this
        content: the state that they hold is not to be believed. They lie where they lay."""
        found = self.of(group)
        victims = [one for one in found if one.frontier > above and one.content != but]
        for one in victims:
            self.forget(one)
        return victims

    def put_aside(self, manifest: Manifest) -> str:
        """It is damaged: it does not count any more, and goes to quarantine; where it is now.

        Raises OSError: it lies where it lay, and does not count all the same.
        """
        self.forget(manifest)
        return put_aside(self.files, self.root, path_of(self.root, manifest))

    def found_damaged(self, manifest: Manifest, why: object) -> None:
        """`put_aside`, as far as that can be done, and tell of it."""
        path = path_of(self.root, manifest)
        with suppress(OSError):
            path = self.put_aside(manifest)
        self.on_damage(f"group {manifest.group}: a damaged checkpoint ({why}) is now {path}")

    @contextmanager
    def pinned(self, manifest: Manifest) -> Iterator[str]:
        """It is not dropped meanwhile; its path. Raises KeyError if it is gone already."""
        with self._lock:
            if all(one.content != manifest.content for one in self._groups.get(manifest.group, ())):
                raise KeyError(manifest.ident)
            self._pins[manifest.content] += 1
        try:
            yield path_of(self.root, manifest)
        finally:
            with self._lock:
                self._pins[manifest.content] -= 1
                if not self._pins[manifest.content]:
                    del self._pins[manifest.content]

    def drop(self, group: int, keep: int) -> Iterator[str]:
        """Drop all but those of the newest `keep` frontiers, oldest first; of equal frontiers the
        last that was taken stays.

        Yields a step's name after each effect: a crash may come anywhere. Raises OSError; what was
        not dropped is in the catalog still.
        """
        while (victim := self._victim(group, keep)) is not None:
            path = path_of(self.root, victim)
            try:
                make_folders(self.files, join(self.root, STAGING))
                grave = new_folder(self.files, join(self.root, STAGING), f"drop-{group}")
                yield "grave"
                self.files.rename(path, join(grave, folder_name(victim)))
            except BaseException:
                if exists(self.files, path):
                    self.add(victim)
                raise
            yield "unnamed"
            self.files.sync(join(self.root, str(group)))
            yield "dropped"
            remove_tree(self.files, grave)
            yield "removed"

    def _victim(self, group: int, keep: int) -> Manifest | None:
        """Take the oldest one that may go out of the catalog: from now on nobody can pin it."""
        with self._lock:
            found = self._groups.get(group, [])
            newest = {one.frontier: one.content for one in reversed(found)}
            stay = {newest[frontier] for frontier in sorted(newest, reverse=True)[: max(keep, 1)]}
            for one in reversed(found):
                if one.content not in stay and not self._pins[one.content]:
                    found.remove(one)
                    return one
        return None


def put_aside(files: Files, root: str, path: str, called: str = "") -> str:
    """Move a damaged folder to quarantine, durably; where it is now.

    Args:
        called: what the folder it lies in there is called; default: by the group of a checkpoint.
    """
    aside = join(root.rpartition("/")[0], QUARANTINE)
    make_folders(files, aside)
    folder, _, name = path.rpartition("/")
    group = folder.rpartition("/")[2]
    place = join(new_folder(files, aside, called or f"checkpoint-{group}"), name)
    files.rename(path, place)
    files.sync(folder)
    files.sync(place.rpartition("/")[0])
    files.sync(aside)
    return place
