"""The checkpoints of one simulated node, over all its lives: production code over MemoryFiles.

The node's threads are events of its host (`saving.pyx`): each `step` is one, so that a crash may
come between any two, and, through `MemoryFiles.crash_at`, inside of each.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from random import Random

from phx._core.session_codec import table_facts
from phx.checkpoint.catalog import ROOT, STAGING, Catalog, path_of, put_aside
from phx.checkpoint.loading import Broken, load_machine, need_sound
from phx.checkpoint.manifest import MEMORY, Manifest
from phx.checkpoint.taking import Capture, Part, take
from phx.machine import StateMachine, View
from phx.sim.files import UNLIMITED_BYTES, Crashed, MemoryFiles

__all__ = ["Keeping"]

CONFIGURATION = 1
CHANGES_MAX = 24
"""Of names, that are not on the disk by themselves yet; a checkpoint has fewer."""
KEEPS = (0.0, 0.5, 0.9)
"""How likely it is, at a loss of power, for what was not synced to be there nevertheless."""


class Keeping:
    """What a node has of checkpoints, and the one that it is taking.

    Args:
        node, members, cluster: for the manifests.
        keep: how many of a group stay.

    Attributes:
        dead: its process died within a call; `crash` is due.
        counts: over all lives; `World.counters` has each under `checkpoints_` and its name.
    """

    def __init__(self, node: int, members: tuple[int, ...], cluster: int, keep: int) -> None:
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
        self._steps: Generator[str, None, Manifest] | None = None

    # --- a life

    def open(self) -> dict[int, int]:
        """What a node does first: the frontier of the newest checkpoint of each group that has one.

        Nothing, and `dead`, if it dies meanwhile.
        """
        try:
            self.catalog = Catalog.open(self.files, ROOT, cluster=self._cluster)
        except Crashed:
            self.dead = True
            return {}
        self.counts["unreadable"] += len(self.catalog.findings)
        return {group: found[0].frontier for group, found in self.catalog.groups().items()}

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
        found = self.catalog.of(group)
        return found[0].frontier if found else 0

    def cover(self, group: int) -> int:
        """The frontier of the oldest one; 0: there is none."""
        oldest = self.catalog.cover(group)
        return oldest.frontier if oldest else 0

    def begin(self, table: bytes, view: View, digest: bytes, now_us: int) -> None:
        """What was captured, at the instance of the table, will be written by `step`.

        Args:
            digest: the machine's, then; b"": it offers none that is cheap.
        """
        group, frontier, chain, epoch = table_facts(table)
        capture = Capture(
            cluster=self._cluster,
            group=group,
            frontier=frontier,
            epoch=epoch,
            config=CONFIGURATION,
            members=self._members,
            sessions=table,
            chain=chain,
            parts=(Part(0, MEMORY, view.snapshot, digest),),
            taken_by=self._node,
            taken_us=now_us,
        )
        self._steps = self._taking(capture)

    def _taking(self, capture: Capture) -> Generator[str, None, Manifest]:
        catalog, group = self.catalog, capture.group
        size = sum(one.size_bytes for last in catalog.of(group)[:1] for one in last.files)
        manifest = yield from take(self.files, ROOT, capture, estimate_bytes=size)
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

    # --- starting from one

    def restore(
        self, group: int, factory: Callable[[], StateMachine]
    ) -> tuple[StateMachine, Manifest | None]:
        """A machine from the newest sound checkpoint; a new one, and None, if there is none.

        Damaged ones are put aside. It may die meanwhile: see `dead`.
        """
        try:
            for manifest in self.catalog.of(group):
                path = path_of(ROOT, manifest)
                machine = factory()
                try:
                    need_sound(self.files, manifest, path)
                    load_machine(self.files, machine, manifest.machines[0], manifest, path, Path)
                except Broken:
                    self.counts["fell_back"] += 1
                    self.catalog.forget(manifest)
                    put_aside(self.files, ROOT, path)
                else:
                    self.counts["restored"] += 1
                    return machine, manifest
        except Crashed:
            self.dead = True
        return factory(), None

    # --- what can happen to it

    def crash_at(self, effect: int) -> None:
        """It dies in the middle of its n-th effect on the disk from now on."""
        self.files.crash_at = self.files.effects + effect

    def fill(self, bytes_free: int) -> None:
        """So many bytes more fit; 0: no limit (any more)."""
        self.files.capacity_bytes = UNLIMITED_BYTES
        if bytes_free:
            self.files.capacity_bytes = self.files.used_bytes() + bytes_free

    def flip(self, which: int, bit: int) -> int | None:
        """Flip a bit of some checkpoint's file; its group. None: there is none."""
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
        self.files.flip(path, bit % (8 * len(self.files.content(path))))
        return int(path.split("/")[1])

    def heal(self) -> None:
        """No limit, and no crash that was planned."""
        self.fill(0)
        self.files.crash_at = 0
