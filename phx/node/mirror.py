"""Mirrors: second machines, behind the live ones, for those that can be written but give no view.

A mirror is made by the same factory, from the newest checkpoint or from nothing, and gets a session
table of its own; so it applies what the live machine applied, duplicates left out. When the group
is captured at instance K, with the live machine's table and digest, the mirror follows the log up
to K and not further, and is written while it stands there. Nothing of it touches the live machine,
or the thread that applies. It works half of the time at most, so that this thread gets the GIL.

What it needs of the log is pinned. When anything goes wrong with a mirror, it is thrown away, and
the next checkpoint begins with a new one.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from operator import attrgetter

from phx._core.delivery import Batch, Sessions
from phx._core.driver import Driver
from phx.applier import GroupState
from phx.checkpoint.catalog import Catalog
from phx.checkpoint.loading import Broken, load_machine, need_sound
from phx.checkpoint.manifest import Manifest
from phx.checkpoint.taking import Capture, Part
from phx.config import Config
from phx.errors import CheckpointFailed, PhxError
from phx.machine import StateMachine, Writer
from phx.node.floors import Floors, Pin
from phx.store import Store
from phx.transfer.messages import unpack_entries

__all__ = ["Mirrors"]

log = logging.getLogger("phx")

READ_BYTES = 256 << 10
READ_ATTEMPTS = 3
"""Between two looks an instance may go from the journal to the store."""
SLICE_NS = 1_000_000
"""So long a mirror applies, and then rests as long."""
CHUNK_MAX = 4096

Factory = Callable[[int], dict[int, StateMachine]]


class Lost(Exception):
    """The log does not hold what the mirror needs next."""


class Mirror:
    """Machines of one group as of some instance."""

    def __init__(self, machines: dict[int, StateMachine], sessions: Sessions, pin: Pin) -> None:
        self.machines = machines
        self.sessions = sessions
        self.pin = pin
        self.chunk = 64  # entries that are likely to fit in a slice
        self.worked_ns = 0  # since the last rest

    @property
    def next(self) -> int:
        """The instance that it applies next."""
        return self.sessions.next_instance(self.pin.group)[0]


class Mirrors:
    """The mirrors of a node's groups. One thread, but for `counters`.

    Guarantee: what `fill` gives is the state of exactly the instances up to the capture's frontier:
    the mirror's session table and chained checksum are the captured ones, byte by byte, and so is
    the machine's digest if that is cheap. Whatever a mirror raises, no live machine knows of it.

    Args:
        catalog: where a mirror begins.
        driver, store: the log.
        floors: hold it.
        factory: makes new machines for a group.
        rest: sleeps; raises when the node closes.
    """

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        states: Mapping[int, GroupState],
        driver: Driver,
        store: Store,
        floors: Floors,
        factory: Factory,
        rest: Callable[[float], object],
    ) -> None:
        self._config = config
        self._catalog = catalog
        self._states = states
        self._driver = driver
        self._store = store
        self._floors = floors
        self._factory = factory
        self._rest = rest
        self._mirrors: dict[int, Mirror] = {}

    def counters(self) -> dict[str, int]:
        """How many there are, and how many instances the last of them is behind."""
        found = list(self._mirrors.items())
        lags = [self._states[group].applied + 1 - one.next for group, one in found]
        return {"mirrors": len(found), "mirror_lag": max(lags, default=0)}

    def fill(self, capture: Capture, machines: Collection[int]) -> Capture:
        """The capture, with mirrors in the place of these machines.

        They stay as they are until the next call for this group. Raises CheckpointFailed and
        whatever a machine raises; there is no mirror of the group then.
        """
        group = capture.group
        try:
            try:
                mirror = self._follow(capture, machines)
            except Lost:
                # A checkpoint of another node took the place of the log: it is the newest one now.
                self.drop(group)
                mirror = self._follow(capture, machines)
            parts = tuple(
                self._part(mirror, one) if one.machine in machines else one for one in capture.parts
            )
        except BaseException as error:
            self.drop(group)
            traceback.clear_frames(error.__traceback__)  # they must not keep a piece of the log
            if isinstance(error, Lost):
                raise CheckpointFailed(str(error)) from error
            raise
        return replace(capture, parts=parts)

    def drop(self, group: int) -> None:
        """There is none any more, and nothing is pinned."""
        if mirror := self._mirrors.pop(group, None):
            mirror.pin.release()

    def end(self) -> None:
        for group in list(self._mirrors):
            self.drop(group)

    def _part(self, mirror: Mirror, part: Part) -> Part:
        machine = mirror.machines[part.machine]
        if part.digest and machine.digest() != part.digest:
            raise CheckpointFailed(
                f"machine {part.machine} of group {mirror.pin.group} differs from its mirror: "
                "it is not deterministic"
            )

        def write(writer: Writer) -> None:
            try:
                machine.snapshot(writer)
            except (OSError, PhxError):
                raise  # the writer's
            except BaseException:
                self.drop(mirror.pin.group)
                raise

        return replace(part, write=write)

    # --- following the log

    def _follow(self, capture: Capture, machines: Collection[int]) -> Mirror:
        """The mirror of the group, at the frontier of the capture."""
        group, frontier = capture.group, capture.frontier
        mirror = self._mirrors.get(group)
        if mirror is not None and (
            mirror.next > frontier + 1 or mirror.machines.keys() != set(machines)
        ):
            self.drop(group)
            mirror = None
        if mirror is None:
            mirror = self._mirrors[group] = self._begin(group, frontier, machines)
        while (first := mirror.next) <= frontier:
            bodies = list(self._bodies(group, first, frontier))
            for batch in mirror.sessions.offer(group, first, bodies):
                if batch.error is not None:
                    raise CheckpointFailed(f"the mirror of group {group}: {batch.error}")
                self._apply(mirror, batch)
            mirror.pin.move(mirror.next)
        if mirror.sessions.table(group) != capture.sessions:
            raise CheckpointFailed(f"the mirror of group {group} came to another session table")
        return mirror

    def _bodies(self, group: int, first: int, last: int) -> Iterator[bytes]:
        """Bodies of a group's log from `first` on, at least one. Raises Lost."""
        for _ in range(READ_ATTEMPTS):
            if found := self._store.read(group, first, READ_BYTES, last):
                yield from (entry.body for entry in unpack_entries(found))
                return
            nbytes, instance = 0, first
            while instance <= last and nbytes < READ_BYTES:
                body = self._driver.read(group, instance)
                if not isinstance(body, bytes):
                    break
                nbytes += len(body)
                yield body
                instance += 1
            if instance > first:
                return
        raise Lost(f"group {group}: instance {first} is not in the log any more")

    def _apply(self, mirror: Mirror, batch: Batch) -> None:
        entries = batch.entries
        at, end = 0, len(entries)
        while at < end:
            stop = min(end, at + mirror.chunk)
            began = time.perf_counter_ns()
            if batch.machine >= 0:
                if one := mirror.machines.get(batch.machine):
                    list(one.apply_batch(entries[at:stop]))
            else:
                for machine, run in groupby(entries[at:stop], attrgetter("machine")):
                    if one := mirror.machines.get(machine):
                        list(one.apply_batch(list(run)))
            took = time.perf_counter_ns() - began
            at = stop
            if took > SLICE_NS:
                mirror.chunk = max(1, mirror.chunk // 2)
            elif took < SLICE_NS // 4:
                mirror.chunk = min(CHUNK_MAX, mirror.chunk * 2)
            mirror.worked_ns += took
            if mirror.worked_ns >= SLICE_NS:
                worked_ns, mirror.worked_ns = mirror.worked_ns, 0
                self._rest(worked_ns / 1e9)

    # --- beginning

    def _begin(self, group: int, frontier: int, machines: Collection[int]) -> Mirror:
        """A new one, as near below the frontier as there is anything to begin with."""
        for manifest in self._catalog.of(group):
            if manifest.frontier > frontier or not _holds(manifest, machines):
                continue
            pin = self._floors.pin(group, manifest.frontier + 1)
            try:
                if pin.first == manifest.frontier + 1:
                    return self._restored(manifest, machines, pin)
            except (Broken, OSError, KeyError) as error:
                log.error("group %d: no mirror from %d: %s", group, manifest.frontier, str(error))
            except BaseException:
                pin.release()
                raise
            pin.release()
        pin = self._floors.pin(group, 1)
        if pin.first > 1:
            pin.release()
            raise Lost(f"group {group}: its log begins at {pin.first}, and no checkpoint before it")
        try:
            return Mirror(self._made(group, machines), self._sessions(group), pin)
        except BaseException:
            pin.release()
            raise

    def _restored(self, manifest: Manifest, machines: Collection[int], pin: Pin) -> Mirror:
        made, sessions = self._made(manifest.group, machines), self._sessions(manifest.group)
        of = {one.machine: one for one in manifest.machines if one.machine in made}
        files = self._catalog.files
        with self._catalog.pinned(manifest) as path:
            need_sound(files, manifest, path, [manifest.files[one.file] for one in of.values()])
            for machine, one in of.items():
                load_machine(files, made[machine], one, manifest, path, self._config.dir.joinpath)
        sessions.load(manifest.sessions, manifest.changed_members)
        return Mirror(made, sessions, pin)

    def _made(self, group: int, machines: Collection[int]) -> dict[int, StateMachine]:
        made = self._factory(group)
        with suppress(KeyError):
            return {machine: made[machine] for machine in machines}
        raise CheckpointFailed(f"the factory made other machines for group {group} than before")

    def _sessions(self, group: int) -> Sessions:
        return Sessions(self._config.node, [group])


def _holds(manifest: Manifest, machines: Collection[int]) -> bool:
    there = {one.machine for one in manifest.machines if one.file >= 0}
    return there.issuperset(machines)
