"""The checkpoints of one simulated node, over all its lives: production code over MemoryFiles.

The node's threads are events of its host (`saving.pyx`): each `step` is one, so that a crash may
come between any two, and, through `MemoryFiles.crash_at`, inside of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from phx._core.session_codec import table_facts
from phx.checkpoint.catalog import ROOT, STAGING, Catalog, path_of
from phx.checkpoint.files import Files, exists, join, remove_tree
from phx.checkpoint.loading import Broken, load_machine, need_sound
from phx.checkpoint.manifest import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    MEMORY,
    Manifest,
    decode,
    read_all,
)
from phx.checkpoint.rebuild import is_marked
from phx.checkpoint.taking import Capture, Part, take
from phx.machine import Reader, StateMachine, View, Writer
from phx.membership import Membership
from phx.sim.files import UNLIMITED_BYTES, Crashed, MemoryFiles
from phx.sim.oddness import Oddness
from phx.sim.reference import bytes_hash
from phx.transfer.staging import kept, waiting

__all__ = ["Keeping"]

CONFIGURATION = 1
RESUMED_MAX = 4
CHANGES_MAX = 24
"""Of names, that are not on the disk by themselves yet; a checkpoint has fewer."""
DECODED_MAX = 64
KEEPS = (0.0, 0.5, 0.9)
"""How likely it is, at a loss of power, for what was not synced to be there nevertheless."""


class Seen:
    """What passes between a machine and its file, which is told as a hash of 64 bits."""

    def __init__(self, other: Writer | Reader) -> None:
        self._other = other
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._other, name)

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        self._pieces.append(bytes(data))
        return self._other.write(data)  # type: ignore[union-attr]

    def read(self, bytes_max: int, /) -> bytes:
        data = self._other.read(bytes_max)  # type: ignore[union-attr]
        self._pieces.append(data)
        return data

    def hash(self) -> int:
        return bytes_hash(b"".join(self._pieces))


class Restored:
    """A machine as `load_machine` sees it; it notes the bytes that the machine was given."""

    def __init__(self, machine: StateMachine) -> None:
        self._machine = machine
        self.digest_cheap = machine.digest_cheap
        self.digest = machine.digest
        self.hash = 0

    def restore(self, reader: Reader) -> None:
        seen = Seen(reader)
        self._machine.restore(seen)  # type: ignore[arg-type]
        while seen.read(1 << 20):
            pass
        self.hash = seen.hash()


class Manifests:
    """Manifests by their bytes: a start finds most of what the one before it has decoded."""

    def __init__(self) -> None:
        self._decoded: dict[bytes, Manifest] = {}

    def read(self, files: Files, folder: str) -> Manifest:
        """As `read_manifest`."""
        data = read_all(files, join(folder, MANIFEST), MANIFEST_BYTES_MAX)
        found = self._decoded.get(data)
        if found is None:
            if len(self._decoded) >= DECODED_MAX:
                self._decoded.clear()
            found = self._decoded[data] = decode(data)
        return found


class Keeping:
    """What a node has of checkpoints, and the one that it is taking.

    Args:
        node, members, cluster: for the manifests.
        keep: how many of a group stay.
        wrote: told of what a machine has written: (group, hash of the bytes).

    Attributes:
        marked: groups that are to be made anew, as the last start found them.
        oddness: of the world; None: nobody looks for marks.
        dead: its process died within a call; `crash` is due.
        counts: over all lives; `World.counters` has each under `checkpoints_` and its name.
    """

    def __init__(
        self,
        node: int,
        members: tuple[int, ...],
        cluster: int,
        keep: int,
        wrote: Callable[[int, int], None] = lambda group, hash: None,
    ) -> None:
        self.files = MemoryFiles(changes_max=CHANGES_MAX)
        self.catalog = Catalog.open(self.files, ROOT)
        self.dead = False
        self.counts = dict.fromkeys(
            ("taken", "restored", "fell_back", "abandoned", "failed", "dropped", "unreadable"), 0
        )
        self._node = node
        self._members = members
        self._cluster = cluster
        self._keep = keep
        self._wrote = wrote
        self.marked: set[int] = set()
        self.oddness: Oddness | None = None
        self._condemned: Counter[int] = Counter()
        self._spoil: tuple[int, int] | None = None
        self._steps: Generator[str, None, Manifest] | None = None
        self._known = Manifests()

    # --- a life

    def open(self, floors: Mapping[int, int] | None = None) -> dict[int, int]:
        """What a node does first: of each group that has any the newest frontier that its log goes
        on from; 0: its log does not go down to any, or it is to be made anew. Nothing, and `dead`,
        if it dies meanwhile.

        Args:
            floors: of each group the lowest instance that is kept; default: 1.
        """
        floors = floors or {}
        try:
            keep = kept(self.files, ROOT, self._cluster, RESUMED_MAX)
            self.catalog = Catalog.open(
                self.files, ROOT, cluster=self._cluster, keep=keep, read=self._known.read
            )
            self.marked = self._find_marked()
        except Crashed:
            self.dead = True
            return {}
        self.counts["unreadable"] += len(self.catalog.findings)
        lost = {group: 0 for group, floor in floors.items() if floor > 1}
        found = {
            group: usable[0].frontier
            for group in self.catalog.groups()
            if (usable := self.usable(group, floors.get(group, 1)))
        }
        return {**lost, **found, **dict.fromkeys(sorted(self.marked), 0)}

    def _find_marked(self) -> set[int]:
        if self.oddness is None or not exists(self.files, ROOT):
            return set()
        groups = [int(one.name) for one in self.files.listing(ROOT) if one.name.isdecimal()]
        return {group for group in groups if is_marked(self.files, ROOT, group)}

    def usable(self, group: int, floor: int) -> list[Manifest]:
        """Those that a log goes on from that begins there, newest first."""
        return [one for one in self.catalog.of(group) if one.frontier + 1 >= floor]

    def crash(self, power: bool, seed: int) -> None:
        """The process is dead; `power`: what was not synced is lost, torn, or out of order."""
        self.files.stop()
        if self._steps is not None:
            self.counts["abandoned"] += 1
            with suppress(Crashed):
                self._steps.close()
            self._steps = None
        if power:
            chance = Random(seed)
            self.files.power_loss(chance, chance.choice(KEEPS))
        else:
            self.files.restart()
        self.dead = False

    # --- taking

    def frontier(self, group: int) -> int:
        """Of the newest checkpoint; 0: there is none."""
        return self.catalog.frontier(group)

    def cover(self, group: int, floor: int = 1) -> int:
        """The frontier of the oldest one that the log goes on from; 0: there is none."""
        oldest = self.catalog.cover(group, floor)
        return oldest.frontier if oldest else 0

    def begin(
        self,
        table: bytes,
        view: View,
        digest: bytes,
        now_us: int,
        odd: bool = False,
        told: Membership | None = None,
    ) -> None:
        """What was captured, at the instance of the table, will be written by `step`.

        Args:
            digest: the machine's, then; b"": it offers none that is cheap.
            odd: what was captured is not what was decided, and nobody here knows it.
            told: the members at that instance; None: they never changed.
        """
        group, frontier, chain, epoch = table_facts(table)
        if odd and self.oddness is not None:
            self.oddness.took(group, frontier, self._node, now_us)
        capture = Capture(
            cluster=self._cluster,
            group=group,
            frontier=frontier,
            epoch=epoch,
            config=CONFIGURATION if told is None else told.version,
            members=self._members if told is None else told.nodes,
            sessions=table,
            chain=chain,
            parts=(Part(0, MEMORY, self._noting(group, view), digest),),
            membership=told and replace(told, active=False),
            taken_by=self._node,
            taken_us=now_us,
        )
        self._steps = self._taking(capture)

    def _noting(self, group: int, view: View) -> Callable[[Writer], object]:
        def write(writer: Writer) -> None:
            seen = Seen(writer)
            view.snapshot(seen)  # type: ignore[arg-type]
            self._wrote(group, seen.hash())

        return write

    def _taking(self, capture: Capture) -> Generator[str, None, Manifest]:
        catalog, group = self.catalog, capture.group
        condemned = self._condemned[group]
        size = sum(one.size_bytes for last in catalog.of(group)[:1] for one in last.files)
        manifest = yield from take(self.files, ROOT, capture, estimate_bytes=size)
        if self._condemned[group] != condemned:
            catalog.put_aside(manifest)
            return manifest
        catalog.add(manifest)
        before = len(catalog.of(group))
        yield from catalog.drop(group, self._keep)
        self.counts["dropped"] += before - len(catalog.of(group))
        return manifest

    def step(self) -> bool:
        """Do the next step of what was begun; True: more are to come."""
        assert self._steps is not None
        try:
            next(self._steps)
            return True
        except StopIteration:
            self.counts["taken"] += 1
        except Crashed:
            self.dead = True
            return False
        except OSError:  # no room
            self.counts["failed"] += 1
        self._steps = None
        return False

    def condemn(self, group: int, above: int, but: bytes = b"") -> list[Manifest]:
        """As `phx.node.snapshots.Snapshots.condemn`: nor does what was captured before become a
        checkpoint."""
        self._condemned[group] += 1
        return self.catalog.condemn(group, above, but)

    def sweep(self, group: int) -> None:
        """Nothing stays of a group that was dropped; as `phx.node.hosting.sweep_group`. It may die
        meanwhile: raises Crashed."""
        for one in self.condemn(group, -1):
            remove_tree(self.files, path_of(ROOT, one))
        while (found := waiting(self.files, ROOT).get(group)) is not None:
            remove_tree(self.files, found[0])

    def is_odd(self, manifest: Manifest) -> bool:
        """An odd replica has taken it. For claims alone."""
        return self.oddness is not None and self.oddness.is_odd(manifest)

    def is_for(self, manifest: Manifest, peer: int) -> bool:
        """Unless it is odd, and a majority might not be left that is right."""
        oddness = self.oddness
        return (
            oddness is None or not oddness.is_odd(manifest) or oddness.allows(manifest.group, peer)
        )

    # --- starting from one

    def restore(
        self, group: int, factory: Callable[[], StateMachine], floor: int = 1
    ) -> tuple[StateMachine, Manifest | None, int]:
        """A machine from the newest sound checkpoint that the log goes on from, and the hash of the
        bytes that it was made of; a new one, None and 0, if there is none.

        Damaged ones are put aside. It may die meanwhile: see `dead`.
        """
        try:
            for manifest in self.usable(group, floor):
                machine = factory()
                try:
                    read = self.load(manifest, machine)
                except Broken:
                    self.counts["fell_back"] += 1
                    self.catalog.put_aside(manifest)
                else:
                    self.counts["restored"] += 1
                    return machine, manifest, read
        except Crashed:
            self.dead = True
        return factory(), None, 0

    def load(self, manifest: Manifest, machine: StateMachine, *, verified: bool = False) -> int:
        """Restore a new machine; the hash of the bytes that it was given.

        Args:
            verified: all of it was read just now, and found to be what was written.

        Raises Broken, Crashed, OSError.
        """
        path = path_of(ROOT, manifest)
        if not verified:
            need_sound(self.files, manifest, path)
        told: Any = Restored(machine)
        load_machine(self.files, told, manifest.machines[0], manifest, path, Path)
        return int(told.hash)

    # --- what can happen to it

    def crash_at(self, effect: int) -> None:
        """It dies in the middle of its n-th effect on the disk from now on."""
        self.files.crash_at = self.files.effects + effect

    def fill(self, bytes_free: int) -> None:
        """So many bytes more fit; 0: no limit (any more)."""
        self.files.capacity_bytes = UNLIMITED_BYTES
        if bytes_free:
            self.files.capacity_bytes = self.files.used_bytes() + bytes_free

    def flip(
        self, which: int, bit: int, spared: Callable[[int], bool] = lambda group: False
    ) -> int | None:
        """Flip a bit of some checkpoint's file; its group. None: there is none, or it is spared."""
        found = [
            path
            for path in self.files.tree()
            if path.startswith(f"{ROOT}/")
            and not path.startswith(f"{ROOT}/{STAGING}/")
            and not path.endswith("/")
            and self.files.content(path)
        ]
        if not found:
            return None
        path = found[which % len(found)]
        group = int(path.split("/")[1])
        if spared(group):
            return None
        self.files.flip(path, bit % (8 * len(self.files.content(path))))
        return group

    def flip_staging(self, which: int, bit: int) -> bool:
        """Flip a bit of what was received in part; False: nothing was, and it will be one of the
        next checkpoint that comes, when all of it is there."""
        found = [
            path
            for path in self.files.tree()
            if path.startswith(f"{ROOT}/{STAGING}/fetch-")
            and not path.endswith("/")
            and self.files.content(path)
        ]
        self._spoil = None if found else (which, bit)
        if not found:
            return False
        path = found[which % len(found)]
        self.files.flip(path, bit % (8 * len(self.files.content(path))))
        return True

    def came(self) -> None:
        """All bytes of a checkpoint are there, and were not verified yet."""
        if self._spoil is not None:
            self.flip_staging(*self._spoil)

    def heal(self) -> None:
        """No limit, and no crash or damage that was planned."""
        self._spoil = None
        self.fill(0)
        self.files.crash_at = 0
