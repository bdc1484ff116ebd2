"""Ids and frozen public values. Imports nothing of phx but compiled value types.

node id       1 .. 1,048,575; never used again for another node
group id      0 .. 1,048,575; one Paxos log each
machine id    0 .. 65,535; tells the machines of one group apart
instance      1 ..; a place in a group's log, holding a batch of values
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from phx._core.entries import Entry
from phx._core.waiters import Result

__all__ = [
    "AGREED_EVERY",
    "CONSISTENCIES",
    "DIRECTORY_GROUP",
    "DURABILITIES",
    "GROUP_ID_MAX",
    "MACHINE_ID_MAX",
    "MEMBERS_MAX",
    "NEVER",
    "NODE_ID_MAX",
    "Changed",
    "CheckpointInfo",
    "Consistency",
    "CreatedGroup",
    "Entry",
    "GroupPhase",
    "GroupStatus",
    "Leader",
    "Member",
    "Members",
    "Moved",
    "NodeStatus",
    "PeerStatus",
    "Read",
    "Result",
    "Role",
    "created_version",
    "learner",
    "voter",
    "witness",
]

NODE_ID_MAX = (1 << 20) - 1
GROUP_ID_MAX = (1 << 20) - 1
DIRECTORY_GROUP = GROUP_ID_MAX
"""The group that says which groups there are beside those of the configuration; every node of the
cluster hosts it (``Config.directory``)."""
MACHINE_ID_MAX = (1 << 16) - 1
MEMBERS_MAX = 15
ADDRESS_MAX = 261  # a name of 255, a colon, a port
PRIORITY_USUAL = 100
PRIORITY_MAX = 255
NEVER = 1 << 62
"""An instance that no group reaches."""
AGREED_EVERY = 4096
"""Agreed instances are its multiples (AGREE in _core/sessions.pxd): a Batch ends there."""


class Role(IntEnum):
    """What a member of a group does. The numbers are those of the log (phx/_core/members.pxd)."""

    VOTER = 1
    """Votes, and has a machine."""
    WITNESS = 2
    """Votes, and leads only where no other voter can. For the rest it is a voter for now: it has a
    machine, and checkpoints of it."""
    LEARNER = 3
    """Has a machine, and no vote: it may be rebuilt from nothing at any time."""


class Member(NamedTuple):
    """One member of a group; made by `voter`, `witness` or `learner`.

    Attributes:
        role: what it does.
        address: "host:port", where it is reached.
    """

    role: Role
    address: str


def created_version(generation: int) -> int:
    """Version of the members that a created group of this generation begins with (none of them
    stands in a configuration). Each generation has 65,536 of its own, so a change that was meant
    for one fits no other."""
    return ((generation - 1) << 16) + 2


def voter(address: str) -> Member:
    """A member that votes and has a machine, at "host:port"."""
    return Member(Role.VOTER, address)


def witness(address: str) -> Member:
    """A member that votes and does not want to lead, at "host:port"; see ``Role.WITNESS``."""
    return Member(Role.WITNESS, address)


def learner(address: str) -> Member:
    """A member that has a machine and no vote, at "host:port"."""
    return Member(Role.LEARNER, address)


@dataclass(frozen=True, slots=True)
class Members:
    """The members of a group, at one moment. It never changes. Raises ValueError for what cannot
    be: no members, more than 15, a node id that is none, an address that cannot stand in the log,
    and nobody who votes and has a machine.

    Attributes:
        version: of the configuration: 1 is that of the file, and each change adds 1.
        active: a quorum of its voters holds everything up to where it begins, and something is
            chosen behind that: those that are members no more may be switched off.
        by_id: role and address, by ascending node id.
    """

    version: int
    active: bool
    by_id: Mapping[int, Member]

    def __post_init__(self) -> None:
        if type(self.version) is not int or not 1 <= self.version < 1 << 64:
            raise ValueError(f"a version is from 1 on, not {self.version!r}")
        if not 1 <= len(self.by_id) <= MEMBERS_MAX:
            raise ValueError(f"1 .. {MEMBERS_MAX} members, not {len(self.by_id)}")
        for node, (role, address) in self.by_id.items():
            if type(node) is not int or not 1 <= node <= NODE_ID_MAX:
                raise ValueError(f"a node id is 1 .. {NODE_ID_MAX}, not {node!r}")
            Role(role)
            if not 0 < len(address) <= ADDRESS_MAX or not all("!" <= one <= "~" for one in address):
                raise ValueError(
                    f"the address of node {node} must be 1 .. {ADDRESS_MAX} printable ASCII "
                    f"characters without blanks, not {address!r}"
                )
        if all(one.role != Role.VOTER for one in self.by_id.values()):
            raise ValueError("at least one member must vote and have a machine (a voter)")
        ascending = MappingProxyType(dict(sorted(self.by_id.items())))
        object.__setattr__(self, "by_id", ascending)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.version, self.active, dict(self.by_id))


GroupPhase = Literal["live", "stopped", "ending", "gone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedGroup:
    """A group that was created while the cluster ran, as the directory has it.

    Attributes:
        group: its id.
        generation: the how-manieth group of that id it is, from 1 on.
        phase: "live"; "stopped": its members keep it, and take no values; "ending": it is being
            deleted; "gone": it was deleted, and the id may be used again.
        members: "host:port" of its members, by node id, as the directory has heard; none of one
            that is gone. What its own log says is newer (``Group.members``).
    """

    group: int
    generation: int
    phase: GroupPhase
    members: Mapping[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint that is complete and durable.

    Attributes:
        group: whose state it is.
        frontier: the state of exactly the instances up to this one.
        bytes: of its files.
        path: its folder, in the node's.
        seconds: from the capture to the disk.
    """

    group: int
    frontier: int
    bytes: int
    path: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Leader:
    """Who leads a group, as a node was told.

    Attributes:
        node: its id.
        epoch: the ballot in which it leads: larger for every later leadership of the group, whoever
            has it; what ``Entry.epoch`` of a value says that it packs.
    """

    node: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Moved:
    """What ``Node.resign_all`` did.

    Attributes:
        moved: group to who leads it now.
        failed: group to why it was not moved. This node may lead it still.
    """

    moved: dict[int, Leader]
    failed: dict[int, str]


@dataclass(frozen=True, slots=True)
class Changed:
    """What a change of the members of all groups of a node did.

    Attributes:
        done: group to its members, active.
        failed: group to why not. Their members may still change where the reason is an Unknown.
    """

    done: dict[int, Members]
    failed: dict[int, str]


DurabilityMode = Literal["sync", "interval", "none"]
DURABILITIES: tuple[DurabilityMode, ...] = ("sync", "interval", "none")

Consistency = Literal["linearizable", "lease", "quorum", "stale"]
CONSISTENCIES: tuple[Consistency, ...] = ("linearizable", "lease", "quorum", "stale")


class Read(NamedTuple):
    """What a query found.

    Attributes:
        value: what the machine's ``query`` returned.
        instance: the state was that of exactly the instances up to this one.
        lag_us: of a stale read: for how long this node has not heard how far the others are;
            otherwise 0.
    """

    value: Any
    instance: int
    lag_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStatus:
    """One group as this node sees it at this moment.

    Attributes:
        leader: node id of the leader; None: none known.
        leading: this node leads.
        stopped: apply failed here, or the state diverged: nothing is applied or proposed here any
            more; or the node was removed.
        removed: this node was a member of the group, and is none any more.
        suspect: the node lost votes of it, with its journal, or what was not synced with its
            machine: it does not vote in the group before it has rejoined.
        durability: what it says of a value that it has accepted, and when: "sync": once it is
            durable; "interval", "none": once it is written.
        halted: a protocol invariant broke here: this node does not vote in the group any more.
        restoring: the group's machines wait for a checkpoint: for one of this node to be read, or
            for one of another node to be fetched. It votes meanwhile; nothing newer is applied.
        promised, ballot: packed ballots: the promise; the one this node leads with, or 0.
        chosen_through: every instance up to it is known to be chosen.
        applied_through: every instance up to it is applied to the machines here.
        settled_through: every instance up to it is in the store, or was.
        floor: the lowest instance that is kept; what is below, checkpoints hold. Members that need
            less get a checkpoint instead of the log.
        frontier: every instance up to it is in the newest checkpoint of the group here; 0: it has
            none.
        checkpoint_error: why its last checkpoint could not be taken, or it has none; None: it was.
        accepted_last: the highest instance with an acceptance.
        waiting_values, waiting_bytes: of this node's callers, not resolved yet.
        turned_away: values of this node's callers that were, for ``limits.wait_us_max``, since the
            start.
        wait_window: how many may wait at this moment for that; 0: any number.
        digest: chained checksum over everything that was applied, as of ``digest_at``; equal on
            every replica for an equal ``digest_at``.
        digest_at: the instance up to which ``digest`` reaches.
        state_compared: nodes compare what their machines made of it, too: every machine of the
            group says ``digest_cheap`` or ``digest_of_views``. False: one that is not
            deterministic is not found.
    """

    group: int
    leader: int | None
    leading: bool
    stopped: bool
    removed: bool
    halted: bool
    suspect: bool
    durability: DurabilityMode
    restoring: bool
    promised: int
    ballot: int
    chosen_through: int
    applied_through: int
    settled_through: int
    floor: int
    frontier: int
    checkpoint_error: str | None
    accepted_last: int
    waiting_values: int
    waiting_bytes: int
    turned_away: int
    wait_window: int
    digest: int
    digest_at: int
    state_compared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStatus:
    """Another node as this one sees it.

    Attributes:
        address: "host:port" where it is to be reached, as it was configured or told; None: not
            known.
        connected: there is a connection whose handshake is done.
        refused: what the node there had against this one when it was dialled last; None: nothing.
        since_us_ago: microseconds since it is connected, or away, or refuses.
        heard_us_ago: microseconds since anything arrived from it; None: never.
        detail: further numbers, by name.
    """

    node: int
    address: str | None
    connected: bool
    refused: str | None
    since_us_ago: int
    heard_us_ago: int | None
    detail: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node at this moment.

    Attributes:
        cluster: name of the cluster.
        incarnation: grows with every start of the node.
        port: the port that it listens at.
        groups, leading: how many groups it hosts, and leads.
        stopped: the groups whose apply failed here, or whose state diverged.
        removed: the groups that this node was a member of, and is none of any more.
        waiting_values, waiting_bytes: of its callers, not resolved yet.
        flow: what ``limits.wait_us_max`` does: ``turned_away``, values since the start; ``window``,
            how many may wait at this moment, and ``rate_per_s``, how many are thought to leave a
            second (0: any number, and not known, while nothing is turned away for the node as a
            whole); ``behind_us``, by how much another node that turns callers away applies later
            than this one, which lets in less for it; ``groups_shut``, groups with such a limit of
            their own at this moment.
        poisoned: a write or sync of the journal failed: the node votes no more, until it is opened
            again.
        store_error: why the store cannot settle at the moment; None: it can.
        journal_error: why the journal takes no new values at the moment; None: it takes them. "the
            disk is full: ", with the folder and what is free there: the node votes for no new
            value, hands its leaderships over and turns callers away (`DiskFull`), until there is
            room. Or the journal is at its own limit, or the disk is slow: new values wait.
        checkpoint_error: why the last checkpoint that was tried could not be taken; None: it was.
        peers: by node id.
        counters: of the engine since the start, by name.
        cpu_ns: of the native threads, by name; "poll.x": time that passed in that part of the poll
            thread's turns.
        transfers: checkpoints on their way, by name: ``wanted`` (groups that need one of another
            node), ``fetching``, ``providing`` and ``held`` (kept for who fetches them) at this
            moment; ``fetched``, ``fetched_bytes``, ``fetch_failed``, ``installed``, ``provided``,
            ``provided_bytes``, ``provide_failed``, ``restore_us_max``, ``swap_us_max`` since the
            start.
        journal, queues, settle, store, applier, checkpoints: further numbers, by name.
        damage: of the folder, since the start: "found", how often something was damaged or lost
            (but for checkpoints and files of machines that are found so when they are used: those
            are lines of the log); "last", what that was, and what became of it; "holes", settled
            instances that cannot be served until a peer has given them again; "mended", those that
            one has; "scrubbed_bytes" and "scrubs", what was read again to find it, and whole rounds
            of that;
            "scrubbed_us", wall clock of the end of the last one, 0: there was none.
    """

    cluster: str
    node: int
    incarnation: int
    port: int
    groups: int
    leading: int
    stopped: tuple[int, ...]
    removed: tuple[int, ...]
    waiting_values: int
    waiting_bytes: int
    flow: Mapping[str, int]
    poisoned: bool
    store_error: str | None
    journal_error: str | None
    checkpoint_error: str | None
    peers: Mapping[int, PeerStatus]
    counters: Mapping[str, int]
    journal: Mapping[str, object]
    queues: Mapping[str, object]
    cpu_ns: Mapping[str, int]
    settle: Mapping[str, object]
    store: Mapping[str, object]
    applier: Mapping[str, int]
    checkpoints: Mapping[str, int]
    damage: Mapping[str, object]
    transfers: Mapping[str, int]
