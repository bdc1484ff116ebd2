"""The folder of the first node of the new cluster, made from what was chosen of the old one.

Guarantee: it is there as a whole, durable, or not at all: everything is made under another name and
renamed at last. Nothing of a survivor is changed.

    step        a crash behind it leaves
    ----------  --------------------------------------------------------------
    begun       DIR.recovering, which the next attempt removes
    store       the same
    checkpoint  the same; once for each of them
    machines    the same
    whole       the same: whole, but nobody looks there
    placed      the old state, or the new one
    done        the new one

In each group the log ends with a change of members: from there on the new node is the only one. So
what follows is decided by nobody of the old cluster, sessions of its nodes end where the log says
so, and their ids are never used again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from phx import store_first
from phx._core.ballot import counter_of, make
from phx._core.members import write as write_roster
from phx.checkpoint.catalog import ROOT, path_of
from phx.checkpoint.files import OsFiles
from phx.checkpoint.taking import carry
from phx.config import Config
from phx.errors import ConfigError, Damaged, Foreign, Locked, StoreError
from phx.membership import Membership
from phx.node.folder import Folder
from phx.node.machine_files import FOLDER as MACHINES
from phx.recovery.choice import Choice, choose
from phx.recovery.seen import Survivor
from phx.store import MAP_BYTES, Store
from phx.store_facts import CEILING_STEP, Facts
from phx.store_facts import write as write_facts
from phx.store_folder import fill, sync_folder
from phx.store_members import MembersRow
from phx.transfer.messages import unpack_entries
from phx.types import Role

__all__ = ["COUNTER_LEAP", "Making", "make_folder", "plan"]

COUNTER_LEAP = 1 << 26
"""So far above all ballots that survivors know are those of the new cluster: what the others led in
is not known, and a fencing token must not go back. That is more leaderships, one after the other,
than a group can have had that they did not hear of: ten a second for two months."""
COUNTER_MOST = 1 << 32
"""A node that knows of nothing takes a higher one for an invention (phx/_core/ballot.pxd)."""
READ_BYTES = 8 << 20
SUFFIX = ".recovering"


@dataclass(frozen=True, slots=True)
class Making:
    """What is to be made.

    Attributes:
        config: of the new node; its only member.
        choices: by group, all of the configuration's.
        time_us: wall clock, for the values that end the logs.
    """

    config: Config
    survivors: Mapping[int, Survivor]
    choices: Mapping[int, Choice]
    time_us: int

    @property
    def highest(self) -> int:
        """No ballot that survivors know of has a higher counter."""
        return max(one.counter for one in self.survivors.values())

    @property
    def floor(self) -> int:
        """No ballot of the new cluster is at or below it."""
        return make(self.highest + COUNTER_LEAP, self.config.node)

    @property
    def known(self) -> frozenset[int]:
        """Every node of the old cluster that a survivor knows of."""
        nodes = {node for one in self.survivors.values() for node in one.known}
        for choice in self.choices.values():
            nodes.update(choice.members, choice.left)
        return frozenset(nodes)

    def row(self, choice: Choice) -> MembersRow:
        """Who the members are from the end of the log on: this node, which knows of everybody who
        ever was one."""
        me = self.config.node
        rows = [(me, int(Role.VOTER), self.config.members[me].encode())]
        roster = write_roster(choice.version + 1, self.floor, self.time_us, rows)
        told = Membership(roster, choice.through + 1, self.floor, active=True)
        return MembersRow(told, left=tuple(sorted(self.known - {me})))


def plan(config: Config, found: Sequence[Survivor], time_us: int) -> Making:
    """What is to be made of these survivors.

    Raises ConfigError: that cannot be the node of a new cluster; Foreign, StoreError: the survivors
    cannot be taken together; Damaged: they contradict each other.
    """
    survivors = {one.node: one for one in found}
    if len(survivors) < len(found):
        raise ConfigError(["two of the folders are of one node: take the one that was used last"])
    if len({one.cluster for one in found}) > 1:
        raise Foreign("the folders are of different clusters")
    first = next((one.first for one in found if one.first), None)  # (who joined knows of none)
    choices = {}
    for group in sorted({group for one in found for group in one.groups}):
        seen = {one.node: one.groups[group] for one in found if group in one.groups}
        try:
            choice = choose(group, seen, first)
        except ValueError as error:
            raise Damaged(f"group {group}: the survivors contradict each other: {error}") from error
        if choice is not None:
            choices[group] = choice
    making = Making(config, survivors, choices, time_us)
    refuse_unfit(making)
    return making


def refuse_unfit(making: Making) -> None:
    """Raises ConfigError, with everything that is wrong; StoreError: it has been done too often."""
    config, wrong = making.config, []
    if any(one.cluster == config.cluster_id for one in making.survivors.values()):
        wrong.append(
            f"cluster: {config.cluster!r} is the old one's name. The new cluster has another, so "
            "that no node of the old one is ever listened to"
        )
    if config.node in making.known:
        wrong.append(f"node: {config.node} was a node of the old cluster. Ids are not used again")
    if set(config.members) != {config.node} or config.join:
        wrong.append("members: this node alone, and no `join`: the others join it later")
    hosted, there = set(config.group_ids), making.choices.keys()
    if more := sorted(hosted - there):
        wrong.append(
            f"groups: no survivor is a member of group {more[0]}, which would begin empty: leave "
            "it out"
        )
    if fewer := sorted(there - hosted):
        wrong.append(f"groups: group {fewer[0]}, which survivors have, is not among them")
    target = Path(config.dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        wrong.append(f"dir: {target} is not empty")
    elif os.path.ismount(target):  # nothing can be renamed to there
        wrong.append(f"dir: something is mounted on {target}: take a folder below it")
    if wrong:
        raise ConfigError(wrong)
    if making.highest + COUNTER_LEAP > COUNTER_MOST:
        raise StoreError("the ballots of the old cluster leave no room for those of a new one")


def make_folder(making: Making) -> Generator[str]:
    """All of it, step by step. Raises OSError, StoreError, Damaged, Locked (somebody else is at
    it); then nothing is there."""
    target = Path(making.config.dir)
    staging = target.with_name(target.name + SUFFIX)
    staging.mkdir(parents=True, exist_ok=True)
    with alone(staging):
        yield from made_in(making, staging, target)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else is in this folder meanwhile. The lock goes with it where it is renamed."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not is_mine(lock, folder):
            raise Locked(f"{folder} is being made by somebody else")
        yield
    finally:
        os.close(lock)


def is_mine(lock: int, folder: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(folder))
    except (BlockingIOError, FileNotFoundError):
        return False


def made_in(making: Making, staging: Path, target: Path) -> Generator[str]:
    """Nobody else is at it."""
    if target.exists() and any(target.iterdir()):  # since it was looked at
        staging.rmdir()
        raise StoreError(f"{target} is not empty")
    for path in staging.iterdir():  # of one that was cut short
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    yield "begun"
    make_store(making, staging / "store")
    yield "store"
    for choice in making.choices.values():
        source = OsFiles(making.survivors[choice.source].folder)
        for one in choice.checkpoints:
            made = replace(one, cluster=making.config.cluster_id)
            yield from carry(source, path_of(ROOT, one), OsFiles(staging), ROOT, made)
    for choice in making.choices.values():
        for machine in choice.machines:
            name = f"{choice.group}.{machine}"
            folder = making.survivors[choice.source].folder / MACHINES / name
            shutil.copytree(folder, staging / MACHINES / name)
    yield "machines"
    Folder(staging).take_over()
    sync_tree(staging)
    yield "whole"
    os.rename(staging, target)
    yield "placed"
    sync_folder(target.parent)
    yield "done"


def make_store(making: Making, folder: Path) -> None:
    """Log, floors, members and facts."""
    config, survivors = making.config, making.survivors
    floors, rows = {}, {}
    for group, choice in making.choices.items():
        floors[group] = (choice.kept_from, choice.through + 1)
        rows[group] = making.row(choice)
    size = sum((one.folder / "store" / "data.mdb").stat().st_size for one in survivors.values())
    size += sum(len(body) for one in making.choices.values() for body in one.bodies.values())
    room = MAP_BYTES + 2 * size
    fill(folder, config.cluster_id, config.node, floors, rows, entries(making, rows), room)
    store = Store.open(folder, cluster=config.cluster_id, node=config.node)
    try:
        store.verify()
        store_first.write(store, [config.node])
        write_facts(
            store,
            Facts(
                ceiling=counter_of(making.floor) + CEILING_STEP,
                incarnation=0,
                lease_us=max(one.lease_us for one in survivors.values()),
                groups=tuple(sorted(making.choices)),
            ),
        )
    finally:
        store.close()


def entries(making: Making, rows: Mapping[int, MembersRow]) -> Iterator[tuple[int, int, bytes]]:
    """(group, instance, body), ascending."""
    for group, choice in sorted(making.choices.items()):
        store = making.survivors[choice.source].store
        yield from settled(store, group, choice.kept_from, choice.settled_through)
        for instance, body in sorted(choice.bodies.items()):
            yield group, instance, body
        yield group, choice.through + 1, rows[group].membership.roster


def settled(store: Store, group: int, first: int, last: int) -> Iterator[tuple[int, int, bytes]]:
    while first <= last:
        for one in unpack_entries(store.read(group, first, READ_BYTES, last)):
            yield group, one.instance, one.body
            first = one.instance + 1


def sync_tree(folder: Path) -> None:
    """Every file and every name in it is durable."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            descriptor = os.open(os.path.join(place, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(place))
