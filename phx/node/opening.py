"""What the opening of a node needs beside the room: where groups begin, the driver's trace, and
typed errors."""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from phx._core.driver import (
    ERROR_BIND,
    ERROR_JOURNAL,
    ERROR_OPTION,
    ERROR_START,
    ERROR_SYSTEM,
    Driver,
    DriverError,
)
from phx._core.read_tickets import ReadTickets
from phx.applier import Applier, GroupState
from phx.asking import Asked
from phx.checkpoint.catalog import Catalog
from phx.config import Config
from phx.door import Door
from phx.errors import (
    ConfigError,
    Damaged,
    Foreign,
    PartlyDone,
    PhxError,
    StoreError,
    SystemFailure,
    Unknown,
)
from phx.node.keeper import Keeper
from phx.node.lives import Lives
from phx.node.machine_files import durable_in
from phx.node.relaxing import Relaxing
from phx.pressure import Pressure
from phx.reading import Reading
from phx.store import Store

__all__ = [
    "begin_reads",
    "opening_error",
    "partly_done",
    "promise_epochs",
    "serve_lives",
    "starts_of",
    "traced",
]

TRACE_MIB_MAX = 1024


def starts_of(
    states: Mapping[int, GroupState], catalog: Catalog, marked: Iterable[int], store: Store
) -> dict[int, int]:
    """Groups that go on from what was kept of them, and its instance; paused until then.

    Args:
        marked: those that are to be made anew.
    """
    starts = {
        group: found[0].frontier for group, found in catalog.groups().items() if group in states
    }
    for group, state in states.items():
        if durable_in(state.machines):
            starts.setdefault(group, 0)  # until they are open
    for group in marked:
        starts.setdefault(group, 0)
    for group, row in store.members().items():
        if row.removed and group in states:
            starts.setdefault(group, 0)  # for good
    for group, floor in store.floors().items():
        # Without a checkpoint that reaches its log the group stops, and not the node.
        if group in states and starts.get(group, 0) + 1 < floor.kept_from:
            starts[group] = floor.kept_from - 1
    return starts


def traced(node: int) -> dict[str, Any]:
    """The driver's arguments for a trace in PHX_TRACE_DIR (docs/design/trace.md), if it is set."""
    folder = os.environ.get("PHX_TRACE_DIR")
    if not folder:
        return {}
    mib = os.environ.get("PHX_TRACE_MIB", "")
    return {
        "trace_path": os.path.join(folder, f"node{node}-{time.time_ns()}.trace"),
        "trace_bytes_max": (int(mib) if mib.isascii() and mib.isdigit() else TRACE_MIB_MAX) << 20,
    }


def opening_error(error: DriverError) -> PhxError:
    """The typed error for one of the driver's, at an open."""
    match error.code - ERROR_JOURNAL:
        case 2 | 8 | 9:
            return Damaged(error.message)
        case 3 | 4:
            return Foreign(error.message)
        case code if code > 0:
            return StoreError(error.message)
    if error.code == ERROR_OPTION:
        return ConfigError([error.message])
    if error.code == ERROR_START:
        return Damaged(error.message)
    if error.code in (ERROR_BIND, ERROR_SYSTEM):
        return SystemFailure(error.message)
    return SystemFailure(f"{error.message} (driver error {error.code})")


def partly_done(results: list[Any]) -> PhxError:
    """The error of a run of which at least one value failed."""
    first = results[0]
    alike = all(type(one) is type(first) for one in results)
    if alike and isinstance(first, PhxError) and not isinstance(first, Unknown):
        return first
    return PartlyDone(results)


def promise_epochs(driver: Driver, hosted: Container[int], catalog: Catalog, store: Store) -> None:
    """Where the log begins right behind a checkpoint, which may have come from elsewhere, ballots
    go on above it: an entry's epoch never goes back. (All else the row has said.)"""
    for group, floor in store.floors().items():
        if group in hosted and (newest := next(iter(catalog.of(group)), None)):
            through = newest.frontier
            if (floor.kept_from, floor.settled_through) == (through + 1, through):
                driver.install(group, through, newest.epoch)


def begin_reads(driver: Driver, node: int, applier: Applier, door: Door) -> None:
    """Reads of a node are answered from now on."""
    reading = Reading(driver.points, node, driver.now_us, driver.poke)
    reading.within = applier.within
    reading.asking = Asked(ReadTickets(driver), door.error_of)
    applier.reads = door.reading = reading


def serve_lives(
    config: Config,
    lives: Lives,
    keeper: Keeper,
    applier: Applier,
    door: Door,
    groups: Iterable[int],
) -> None:
    """The driver runs: the store is kept up to date with it; and the groups are as durable as the
    configuration says, from now on or a little later. Raises StoreError, as `Lives.serve`."""
    lives.serve(door.driver)
    pressure = Pressure(Path(config.dir) / "journal", config.journal.journal_bytes_max)
    pressure.turn_away, door.pressure = door.turn_away, pressure
    applier.on_pressed = pressure.heard
    applier.note = door.reading.note = pressure.note
    relaxing = door.relaxing = Relaxing(config, lives, keeper, door.error_of)
    applier.on_poisoned = relaxing.doubt
    relaxing.begin(door.driver, groups)
