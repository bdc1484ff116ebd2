"""What a survivor has: its folder, read and not changed.

A survivor is taken whole or not at all: of a folder whose store or journal is damaged nobody can
say what is missing. A damaged checkpoint is left out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from phx import store_first
from phx._core.ballot import counter_of
from phx._core.survey import Survey
from phx.checkpoint.catalog import ROOT, look, path_of, verify
from phx.checkpoint.files import OsFiles
from phx.checkpoint.manifest import Manifest
from phx.checkpoint.rebuild import is_marked
from phx.durable.generations import Generations
from phx.durable.lmdb import applied_of as lmdb_applied
from phx.durable.sqlite import FILE as DATABASE
from phx.durable.sqlite import applied_of as sqlite_applied
from phx.errors import Damaged, StoreError
from phx.node.folder import Folder
from phx.node.machine_files import FOLDER as MACHINES
from phx.store import Store
from phx.store_facts import read as read_facts
from phx.store_hosted import read as read_hosted
from phx.store_members import MembersRow, later, of_journal
from phx.types import DIRECTORY_GROUP
from phx.verify import copied, examine, read_only

__all__ = ["GroupSeen", "Survivor", "survivors", "under"]

NOTHING = (0, 0, 0, b"")
HELD = 2  # of a record of members: every value up to their instance stands before it


@dataclass(frozen=True, slots=True)
class GroupSeen:
    """What one survivor has of a group.

    Attributes:
        kept_from, settled_through: what its store has; (1, 0): nothing.
        checkpoints: newest first, each of them whole.
        machines: the instance that the files of each durable machine hold the state of.
        learned: values that its journal says are chosen, by instance.
        accepted: the others: ballot and value. Those of members who have nothing to say at that
            instance are left out.
        row: who the members are, from which instance on; None: they never changed.
        forgot: it may have forgotten what it accepted: its journal was lost once; or the group was
            relaxed, and the node not closed since (the boot id says nothing: who looks may be
            another machine); or it is suspect.
    """

    kept_from: int = 1
    settled_through: int = 0
    checkpoints: tuple[Manifest, ...] = ()
    machines: Mapping[int, int] = field(default_factory=dict)
    learned: Mapping[int, bytes] = field(default_factory=dict)
    accepted: Mapping[int, tuple[int, bytes]] = field(default_factory=dict)
    row: MembersRow | None = None
    forgot: bool = False

    @property
    def frontier(self) -> int:
        """Of the newest checkpoint; 0: there is none."""
        return self.checkpoints[0].frontier if self.checkpoints else 0

    @property
    def since(self) -> int:
        """The instance that made the members; 0: they never changed."""
        return self.row.membership.instance if self.row is not None else 0

    @property
    def chosen_through(self) -> int:
        """Everything up to there is chosen, as this folder alone can say."""
        through = max(self.settled_through, self.frontier, *self.machines.values(), 0)
        while through + 1 in self.learned:
            through += 1
        return through

    @property
    def last(self) -> int:
        """The last instance of which it has anything."""
        return max(self.chosen_through, *self.learned, *self.accepted, 0)


@dataclass(frozen=True, slots=True)
class Survivor:
    """One folder.

    Attributes:
        store: it is open, for its entries.
        counter: no ballot that this node ever promised, or heard of for good, has a higher one.
        lease_us: the longest lease that it may have granted.
        first: the members that the cluster began with; None: not known here.
        known: every node that it knows of, itself among them.
        left_out: what of it is damaged and not needed, in words.
    """

    folder: Path
    cluster: int
    node: int
    store: Store
    counter: int
    lease_us: int
    first: frozenset[int] | None
    known: frozenset[int]
    groups: Mapping[int, GroupSeen]
    left_out: tuple[str, ...] = ()


@contextmanager
def survivors(folders: Sequence[Path]) -> Iterator[list[Survivor]]:
    """These folders, to be read; no node opens one of them meanwhile.

    Raises Damaged, Locked, NotBootstrapped, Foreign, StoreError, OSError: one of them cannot be
    taken.
    """
    with ExitStack() as stack:
        yield [_opened(folder, stack) for folder in folders]


def _opened(folder: Path, stack: ExitStack) -> Survivor:
    report = examine(folder, whole=True)
    wrong = [one for one in report.findings if not one.path.startswith(ROOT)]
    if wrong or report.identity is None or report.journal is None:
        what = f"{wrong[0].path}: {wrong[0].what}" if wrong else "it has no journal, or no store"
        raise Damaged(f"{folder} is no survivor to begin from: {what}")
    identity, place = report.identity, Folder(folder)
    place.lock(create=False)
    stack.callback(place.unlock)
    store = Store.open(place.store, cluster=identity.cluster, node=identity.node)
    stack.callback(store.close)
    survey = Survey(
        place.journal,
        cluster=identity.cluster,
        node=identity.node,
        store_id=identity.store_id,
        above=store.settled(),
    )
    facts = read_facts(store)
    left_out, checkpoints = _checkpoints(folder, identity.cluster)
    hosted = facts.groups if facts is not None else ()
    groups = _groups(folder, store, survey, checkpoints, hosted)
    doubtful = {*survey.doubtful, *facts.relaxed} if facts is not None else set(groups)
    if facts is not None and facts.lost:
        doubtful = set(groups)
    groups = {group: replace(one, forgot=group in doubtful) for group, one in groups.items()}
    if read_hosted(store) or DIRECTORY_GROUP in groups:
        raise StoreError(
            f"{folder}: its cluster has a directory (`directory = true`), and groups that are "
            "created while it runs cannot be taken over yet"
        )
    rows = [one.row for one in groups.values() if one.row is not None]
    known = {identity.node, *(facts.peers if facts is not None else ())}
    known.update(*(row.left + row.membership.nodes for row in rows))
    first = store_first.read(store)
    counters = [survey.counter, facts.ceiling if facts is not None else 0]
    counters += [counter_of(row.membership.floor) for row in rows]
    counters += [counter_of(one.epoch) for found in checkpoints.values() for one in found]
    return Survivor(
        folder=folder,
        cluster=identity.cluster,
        node=identity.node,
        store=store,
        counter=max(counters),
        lease_us=max(survey.lease_bound_us, facts.lease_us if facts is not None else 0),
        first=first,
        known=frozenset(known | (first or frozenset())),
        groups=groups,
        left_out=tuple(left_out),
    )


def _checkpoints(folder: Path, cluster: int) -> tuple[list[str], dict[int, list[Manifest]]]:
    """What is left out, and those that are whole, by group."""
    files = OsFiles(folder)
    found = look(files, ROOT, cluster)
    left_out = [f"{one.path}: {one.what}" for one in found.findings]
    whole: dict[int, list[Manifest]] = {}
    for group, manifests in found.groups.items():
        if is_marked(files, ROOT, group):
            left_out.append(f"{ROOT}/{group}: the state is to be made anew (`phx repair`)")
            continue
        for one in manifests:
            wrong = verify(files, path_of(ROOT, one))
            left_out += [f"{each.path}: {each.what}" for each in wrong]
            if not wrong:
                whole.setdefault(group, []).append(one)
    return left_out, whole


def _groups(
    folder: Path,
    store: Store,
    survey: Survey,
    checkpoints: Mapping[int, list[Manifest]],
    hosted: Sequence[int],
) -> dict[int, GroupSeen]:
    rows = store.members()
    told = of_journal(survey.members)
    for group, said in told.items():
        rows[group] = later(rows.get(group), said)
    for group, found in checkpoints.items():
        for one in found:
            if one.membership is not None:
                rows[group] = later(rows.get(group), MembersRow(one.membership))
    learned: dict[int, dict[int, bytes]] = {}
    accepted: dict[int, dict[int, tuple[int, bytes]]] = {}
    for group, instance, ballot, body in survey.values:
        if not ballot:
            learned.setdefault(group, {})[instance] = body
            continue
        best = accepted.setdefault(group, {})
        if instance not in best or best[instance][0] < ballot:
            best[instance] = ballot, body
    machines = _machines(folder)
    ids = {*hosted, *rows, *learned, *accepted, *machines, *checkpoints, *store.settled()}
    ids.update(row[0] for row in survey.groups)
    seen = {}
    for group in sorted(ids):
        kept_from, through = store.bounds(group)
        there = tuple(checkpoints.get(group, ()))
        state = max(there[0].frontier if there else 0, *machines.get(group, {}).values(), 0)
        chosen, votes = learned.get(group, {}), accepted.get(group, {})
        row = rows.get(group)
        if row is not None:
            own = told.get(group, row)
            held = bool(survey.members.get(group, NOTHING)[2] & HELD)
            votes, held_too = under(row, own, votes, max(state, through), held=held)
            chosen = held_too | chosen
        seen[group] = GroupSeen(
            kept_from,
            through,
            there,
            machines.get(group, {}),
            chosen,
            {i: one for i, one in votes.items() if i not in chosen},
            row,
        )
    return seen


def under(
    row: MembersRow,
    own: MembersRow,
    votes: dict[int, tuple[int, bytes]],
    through: int,
    *,
    held: bool,
) -> tuple[dict[int, tuple[int, bytes]], dict[int, bytes]]:
    """Acceptances as these members have them, and values that are chosen by what the journal says
    of them: as its replay does (phx/_core/membership.pyx, members_begin).

    Args:
        own: as the journal has the members. A node's votes are above the floor of its own record,
            whatever it was told of by others since.
        through: everything up to there is chosen.
        held: the journal says that it holds every value up to the change.
    """
    since, floor, chosen = row.membership.instance, row.membership.floor, dict[int, bytes]()
    if own.membership.instance == since:
        floor = own.membership.floor
        at = through + 1
        while held and at <= since and at in votes:
            chosen[at] = votes[at][1]
            at += 1
    return {i: one for i, one in votes.items() if i <= since or one[0] > floor}, chosen


def _machines(folder: Path) -> dict[int, dict[int, int]]:
    """How far the files of durable machines are. Raises Damaged, StoreError: nobody can say."""
    root, found = folder / MACHINES, dict[int, dict[int, int]]()
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        group, _, machine = path.name.partition(".")
        current = Generations(path).current()
        # Of a group that is marked nothing that is here of its state is to be believed.
        if current is not None and not is_marked(OsFiles(folder), ROOT, int(group)):
            found.setdefault(int(group), {})[int(machine)] = _applied(current)
    return found


def _applied(generation: Path) -> int:
    if (generation / DATABASE).exists():
        with (
            TemporaryDirectory(prefix="phx-recover.") as scratch,
            closing(sqlite3.connect(copied(generation / DATABASE, Path(scratch)))) as opened,
        ):
            return sqlite_applied(opened, generation)
    if (generation / "data.mdb").exists():
        with closing(read_only(generation)) as env:
            applied = lmdb_applied(env, generation)
            if applied is not None:
                return applied
    raise StoreError(
        f"{generation}: nobody but the machine itself can say which instance these files hold the "
        "state of, so it cannot be taken over"
    )
