"""Validated, frozen configuration, from code or from TOML. All mistakes are reported at once.

A configuration file::

    cluster = "orders"                 # a name; the same at every node, and at no other cluster
    node = 1                           # this node's id, never used again for another node
    dir = "/var/lib/orders"            # relative: to the folder of this file
    groups = 100                       # groups 0 .. 99; or a list of ids

    [members]                          # of the whole cluster, this node among them
    1 = "10.0.0.1:7000"
    2 = "10.0.0.2:7000"
    3 = "[fd00::3]:7000"

    [timing]
    heartbeat_us = 100_000

    [limits]
    value_bytes_max = 4_194_304

    [journal]
    journal_bytes_max = 2_147_483_648

    [checkpoints]
    interval_instances = 50_000

    [durability.groups]
    7 = "interval"

Every option has its unit at the end of its name; its range stands beside its default below, and
relations between options are checked too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from phx.errors import ConfigError
from phx.types import (
    DIRECTORY_GROUP,
    DURABILITIES,
    GROUP_ID_MAX,
    MEMBERS_MAX,
    NODE_ID_MAX,
    PRIORITY_MAX,
    PRIORITY_USUAL,
)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
US = 1_000_000

# Of the limits, those that are kept on the Python side: the driver is not told of them.
_OF_CALLERS = (
    "group_values_max",
    "group_bytes_max",
    "node_values_max",
    "node_bytes_max",
    "wait_us_max",
)

# What a batch needs beyond the bytes of one value: body, run and item headers, and a record's.
OVERHEAD_BYTES = 4 * KIB
JOURNAL_SEGMENTS_MIN = 8

WAIT_US_MIN = 1_000
"""A bound below that would be one on the operating system."""

TRANSFER_BYTES_PER_S_MIN = 26 * KIB
"""A transfer that is slower is cut (phx.transfer)."""


def _option(default: int, low: int, high: int) -> Any:
    """An integer option and the range it may be in."""
    return field(default=default, metadata={"low": low, "high": high})


def _switch(default: bool) -> Any:
    """An option that is on or off."""
    return field(default=default, metadata={"switch": True})


def _choice(default: str, *others: str) -> Any:
    """An option that is one of several words."""
    return field(default=default, metadata={"words": (default, *others)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How quickly a node notices and acts. All in microseconds of a clock that counts suspension.

    Attributes:
        heartbeat_us: between two heartbeats to each peer, one for all groups (1 ms .. 10 s).
        lease_us: how long a leader may rely on the last heartbeat that was answered; when a node
            dies, its groups go on elsewhere after about this long (3 heartbeats .. 60 s).
        election_us: base of the random back-off between two attempts to lead (1 ms .. 10 s).
        resend_us: after which a message that was not answered is sent again (1 ms .. 60 s).
        connect_timeout_us: after which an attempt to connect is given up (10 ms .. 60 s).
    """

    heartbeat_us: int = _option(100_000, 1_000, 10 * US)
    lease_us: int = _option(800_000, 3_000, 60 * US)
    election_us: int = _option(100_000, 1_000, 10 * US)
    resend_us: int = _option(300_000, 1_000, 60 * US)
    connect_timeout_us: int = _option(2 * US, 10_000, 60 * US)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may be on its way. Reaching a limit is back-pressure or a typed error, never growth.

    Attributes:
        value_bytes_max: of one value (1 B .. 32 MiB). Must be the same at every node.
        window: instances open at once in a group (1 .. 65,536). Must be the same at every node.
        window_bytes: and their bytes (up to 1 GiB; holds at least one value of the largest size).
        batch_bytes_max: at which an instance's batch is closed (256 B .. 8 MiB).
        frame_bytes_max: at which a frame is closed; one larger value still goes (4 KiB .. 32 MiB).
        group_values_max, group_bytes_max: values of this node's callers in flight in one group, and
            their bytes (1 .. 65,536; up to 4 GiB).
        node_values_max, node_bytes_max: the same over all groups (1 .. 16 M; up to 16 GiB).
        wait_us_max: how long a value that is let in may be expected to wait at this node until it
            is applied; what would wait for longer is turned away at once (Overloaded). Three times
            what values take under a normal load, or more (0: no bound, only the limits above; 1 ms
            .. 10 min).
        pending_bytes_max: values that wait at a leader, forwarded ones included, over all groups.
        cache_bytes_max: chosen values kept in memory for peers that lag a little (up to 16 GiB).
        delivery_bytes_max: chosen values kept in memory for a machine that is slow; what is beyond
            is read again from the journal (up to 16 GiB).
        peer_queue_bytes_max: memory that holds what waits to be sent to one peer; beyond, Accepts
            are dropped and sent again later (up to 4 GiB).
    """

    value_bytes_max: int = _option(1 * MIB, 1, 32 * MIB)
    window: int = _option(1024, 1, 65_536)
    window_bytes: int = _option(16 * MIB, 4 * KIB, 1 * GIB)
    batch_bytes_max: int = _option(256 * KIB, 256, 8 * MIB)
    frame_bytes_max: int = _option(1 * MIB, 4 * KIB, 32 * MIB)
    group_values_max: int = _option(65_536, 1, 65_536)
    group_bytes_max: int = _option(64 * MIB, 4 * KIB, 4 * GIB)
    node_values_max: int = _option(1_048_576, 1, 16 << 20)
    node_bytes_max: int = _option(256 * MIB, 4 * KIB, 16 * GIB)
    wait_us_max: int = _option(0, 0, 600 * US)
    pending_bytes_max: int = _option(64 * MIB, 4 * KIB, 16 * GIB)
    cache_bytes_max: int = _option(64 * MIB, 4 * KIB, 16 * GIB)
    delivery_bytes_max: int = _option(64 * MIB, 4 * KIB, 16 * GIB)
    peer_queue_bytes_max: int = _option(32 * MIB, 64 * KIB, 4 * GIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The write-ahead log that all groups of a node share.

    Attributes:
        segment_bytes: of each of its files, written full of zeros once and then used again (1 MiB
            .. 1 GiB; holds at least one value of the largest size).
        journal_bytes_max: of all of them; at this size the node takes no new values until some are
            settled (at least 8 segments, .. 1 TiB).
        settle_bytes: how much may be unsettled before chosen values move to the store (at least one
            segment; at most half of journal_bytes_max). Members with higher ids begin up to two
            segments earlier, so that they do not all write at once.
    """

    segment_bytes: int = _option(32 * MIB, 1 * MIB, 1 * GIB)
    journal_bytes_max: int = _option(1 * GIB, 8 * MIB, 1 << 40)
    settle_bytes: int = _option(128 * MIB, 1 * MIB, 1 << 39)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """When the state of a group is written down, so that a start needs only the log behind it.

    Groups whose machines give no view (``StateMachine.freeze``) have none without ``mirror``. Where
    all machines of a group are durable, theirs hold no state of machines, unless they were asked
    for.

    Attributes:
        interval_instances: the next one after so many instances; 0: not for their number (up to
            2^40).
        interval_bytes: the next one after so many bytes of log; 0: not for them (up to 1 PiB).
        interval_us: the next one after this time, if anything was applied; 0: not for the time (up
            to 30 days).
        keep: complete ones that are kept of each group (1 .. 100).
        trim: the log below the oldest of them goes, but for what is held. Members that lag so far
            that no one has what they miss fetch a checkpoint of another node.
        hold_instances: of the log below the oldest checkpoint so many instances are held at most,
            for members that lag; 0: none (up to 2^40).
        hold_bytes: and so many bytes, of each group, about (up to 1 PiB).
        hold_us: and nothing that was applied longer ago (up to 30 days). The tightest decides.
        write_bytes_per_s: how fast they are written, over all groups (64 KiB/s .. 1 TiB/s).
        compress: "zstd": what machines write is compressed; needs the extra ``phx-paxos[zstd]``
            before Python 3.14. "none": it is not. Nodes may differ, and either kind is read.
        mirror: machines that have ``snapshot`` and give no view get a second one of their kind,
            which follows the log and is written in their place: twice the memory, and every value
            is applied twice. Default: groups with such machines have no checkpoints.
        journal_damage: what becomes of a node that finds its journal damaged or gone at its start.
            "refuse": it does not start. "rejoin": it starts with a new one, does not vote, and
            votes again in each group once it has led it, which takes promises of so many others
            that nothing can be forgotten (of three: both). What was left goes to quarantine.
        reserve_bytes: what they leave free on the disk (up to 1 TiB).
        transfer_bytes_per_s: how fast they are sent to other nodes, all of them together (at least
            26 KiB/s for each of transfers_max, .. 1 TiB/s).
        transfers_max: so many are sent at a time (1 .. 64).
        fetches_max: and so many are fetched (1 .. 64).
        restore_threads: groups that are restored at a time, at a start or from what was fetched (1
            .. 64).
        scrub_bytes_per_s: how fast what lies on the disk is read again, so that damage is found (up
            to 1 TiB/s); 0: it is not.
        machine_commit_us: a durable machine commits at latest so long after it applied something;
            what was not committed is applied again after a crash (1 ms .. 10 min).
    """

    interval_instances: int = _option(100_000, 0, 1 << 40)
    interval_bytes: int = _option(256 * MIB, 0, 1 << 50)
    interval_us: int = _option(600 * US, 0, 30 * 86_400 * US)
    keep: int = _option(2, 1, 100)
    trim: bool = _switch(True)
    hold_instances: int = _option(10_000, 0, 1 << 40)
    hold_bytes: int = _option(16 * MIB, 0, 1 << 50)
    hold_us: int = _option(600 * US, 0, 30 * 86_400 * US)
    write_bytes_per_s: int = _option(128 * MIB, 64 * KIB, 1 << 40)
    compress: str = _choice("none", "zstd")
    mirror: bool = _switch(False)
    journal_damage: str = _choice("refuse", "rejoin")
    reserve_bytes: int = _option(256 * MIB, 0, 1 << 40)
    transfer_bytes_per_s: int = _option(16 * MIB, TRANSFER_BYTES_PER_S_MIN, 1 << 40)
    transfers_max: int = _option(4, 1, 64)
    fetches_max: int = _option(4, 1, 64)
    restore_threads: int = _option(2, 1, 64)
    scrub_bytes_per_s: int = _option(4 * MIB, 0, 1 << 40)
    machine_commit_us: int = _option(1 * US, 1_000, 600 * US)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """What this node says of a value that it has accepted, and when. See docs/howto/durability.md:
    whatever is not "sync" can lose values that were acknowledged, and stop a group, when machines
    with a majority of its voters fail at about the same time.

    Attributes:
        mode: of every group that `groups` does not name. "sync": once it is durable. "interval":
            once it is written to the journal, which is synced soon after. "none": the same, and it
            is synced with whatever else is. The directory is always "sync".
        interval_us: how long after it was written a value of a group with "interval" is synced at
            latest (1 ms .. 60 s).
        groups: the same of single groups, by their ids.

    ``Group.set_durability`` changes it while the node runs.
    """

    mode: str = _choice(*DURABILITIES)
    interval_us: int = _option(100_000, 1_000, 60 * US)
    groups: Mapping[int, str] = field(default_factory=dict, metadata={"modes": True})

    def __post_init__(self) -> None:
        if isinstance(self.groups, Mapping):
            by_id = {_id_of(key): mode for key, mode in self.groups.items()}
            object.__setattr__(self, "groups", by_id)

    def of(self, group: int) -> str:
        """The mode of a group."""
        return "sync" if group == DIRECTORY_GROUP else self.groups.get(group, self.mode)

    def relaxed(self, groups: Iterable[int]) -> list[int]:
        """Those of `groups` that are not "sync"."""
        return [group for group in groups if self.of(group) != "sync"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that a node must be told. Validated when it is made.

    Args:
        cluster: name of the cluster; nodes of different names refuse each other.
        node: id of this node, 1 .. 1,048,575.
        members: node id to "host:port" of every member that the cluster began with, this node among
            them (at most 15); the ids never change. Port 0: not known yet, see
            ``Node.set_address``.
        dir: folder of the node's journal and store.
        groups: how many groups (ids from 0), or their ids (0 .. 1,048,575).
        directory: whether groups may be created while the cluster runs (``Node.create_group``). The
            same on every node. Which there are is kept in group 1,048,575, which every node hosts,
            so `groups` may be 0 then.
        join: "host:port" of nodes of a running cluster that this node is to join: they say who is
            there. ``members`` then need be no more than this node itself. It opens once all of its
            groups have it for a member (``Node.add_member``), and waits for that; later starts need
            nobody, but for groups that were added since. Not at a node that the cluster began with.
        bind: "host:port" to listen at; default: the own member address. Port 0: any free port.
        balance: leaderships return to the node that a group prefers, so that load stays even; those
            that somebody moved stay until they end.
        priority: how much this node wants to lead (0 .. 255). Groups are led by the members with
            the highest that are there, evenly spread; with ``balance``, one that leads gives to one
            with a higher priority what that has caught up with. 0: it leads only what nobody else
            does. ``Node.set_priority`` changes it while the node runs.
        seed: of the back-off's random numbers; 0: a random one.
        timing, limits, journal, checkpoints, durability: the option groups; a mapping will do.

    Raises:
        ConfigError: ``problems`` names everything that is wrong, each with its path.
    """

    cluster: str
    node: int
    members: Mapping[int, str]
    dir: Path
    groups: int | Sequence[int] = 1
    directory: bool = False
    join: Sequence[str] = ()
    bind: str | None = None
    balance: bool = True
    priority: int = PRIORITY_USUAL
    seed: int = 0
    timing: Timing = field(default_factory=Timing)
    limits: Limits = field(default_factory=Limits)
    journal: Journal = field(default_factory=Journal)
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    durability: Durability = field(default_factory=Durability)

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name, kind in _SECTIONS.items():
            made = _section(name, kind, getattr(self, name), problems)
            object.__setattr__(self, name, made)
        if isinstance(self.dir, str):
            object.__setattr__(self, "dir", Path(self.dir))
        if isinstance(self.members, Mapping):
            object.__setattr__(self, "members", dict(self.members))
        if isinstance(self.join, Sequence) and not isinstance(self.join, str):
            object.__setattr__(self, "join", tuple(self.join))
        if isinstance(self.groups, Sequence) and not isinstance(self.groups, str):
            object.__setattr__(self, "groups", tuple(self.groups))
        problems += _identity_problems(self)
        problems += _range_problems(self)
        if not problems:
            problems += _relation_problems(self)
        if problems:
            raise ConfigError(problems)

    @classmethod
    def from_toml(cls, path: str | Path) -> Config:
        """The configuration in a TOML file. ConfigError also for a file that cannot be read."""
        path = Path(path)
        try:
            data = tomllib.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError([f"{path}: {error}"]) from error
        return cls.from_mapping(data, base=path.parent)

    @classmethod
    def from_mapping(cls, data: Mapping[str, Any], *, base: Path | None = None) -> Config:
        """The same from nested tables as TOML gives them; a relative ``dir`` starts at ``base``."""
        problems: list[str] = []
        known = {one.name for one in fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        problems += [f"{key}: unknown" for key in data if key not in known]
        for name in ("cluster", "node", "members", "dir"):
            if name not in values:
                problems.append(f"{name}: missing")
                values[name] = _MISSING[name]
        if isinstance(values["dir"], str):
            values["dir"] = (base or Path()) / values["dir"]
        if isinstance(values["members"], Mapping):
            values["members"] = {_id_of(key): value for key, value in values["members"].items()}
        try:
            made = cls(**values)
        except ConfigError as error:
            raise ConfigError(problems + error.problems) from None
        if problems:
            raise ConfigError(problems)
        return made

    @property
    def cluster_id(self) -> int:
        """The cluster's name as the nonzero 64-bit word that frames and files carry."""
        word = int.from_bytes(blake2b(self.cluster.encode(), digest_size=8).digest(), "little")
        return word or 1

    @property
    def group_ids(self) -> tuple[int, ...]:
        """Ids of all groups of the configuration, ascending."""
        if isinstance(self.groups, int):
            return tuple(range(self.groups))
        return tuple(sorted(self.groups))

    @property
    def hosted_ids(self) -> tuple[int, ...]:
        """The same, and the directory's, if there is one."""
        return (*self.group_ids, DIRECTORY_GROUP) if self.directory else self.group_ids

    def options(self) -> dict[str, int]:
        """The driver's options by name."""
        limits = {one.name: getattr(self.limits, one.name) for one in fields(Limits)}
        for name in _OF_CALLERS:
            del limits[name]
        timing = {one.name: getattr(self.timing, one.name) for one in fields(Timing)}
        journal = {one.name: getattr(self.journal, one.name) for one in fields(Journal)}
        own = {"balance": int(self.balance), "priority": self.priority, "seed": self.seed}
        return {**timing, **limits, **journal, **own}


_SECTIONS: dict[str, type] = {
    "timing": Timing,
    "limits": Limits,
    "journal": Journal,
    "checkpoints": Checkpoints,
    "durability": Durability,
}
# Stands in for what is missing, so that everything else is still checked; itself without fault.
_MISSING: dict[str, Any] = {"cluster": "?", "node": 1, "members": {1: "?:0"}, "dir": "."}


def _id_of(key: object) -> object:
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key


def _section(name: str, kind: type, given: Any, problems: list[str]) -> Any:
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        problems.append(f"{name}: must be a table, not {given!r}")
        return kind()
    known = {one.name for one in fields(kind)}
    problems += [f"{name}.{key}: unknown" for key in given if key not in known]
    return kind(**{key: value for key, value in given.items() if key in known})


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port". ValueError says what is wrong."""
    host, colon, port = address.rpartition(":")
    if not colon:
        raise ValueError(f"{address!r} is not host:port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{address!r}: an IPv6 address stands in brackets")
    if not host:
        raise ValueError(f"{address!r} names no host")
    if not (port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError(f"{address!r}: the port is a number from 0 to 65535")
    return host, int(port)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _identity_problems(config: Config) -> Iterator[str]:
    if not isinstance(config.cluster, str) or not config.cluster:
        yield f"cluster: must be a name, not {config.cluster!r}"
    if not _is_int(config.node) or not 1 <= config.node <= NODE_ID_MAX:
        yield f"node: must be 1 .. {NODE_ID_MAX}, not {config.node!r}"
    if not isinstance(config.dir, Path):
        yield f"dir: must be a path, not {config.dir!r}"
    if not isinstance(config.balance, bool):
        yield f"balance: must be true or false, not {config.balance!r}"
    if not _is_int(config.priority) or not 0 <= config.priority <= PRIORITY_MAX:
        yield f"priority: must be 0 .. {PRIORITY_MAX}, not {config.priority!r}"
    if not _is_int(config.seed) or not 0 <= config.seed < 1 << 63:
        yield f"seed: must be 0 .. 2**63 - 1, not {config.seed!r}"
    if config.bind is not None:
        yield from _address_problem("bind", config.bind)
    if not isinstance(config.join, tuple):
        yield f'join: must be a list of "host:port", not {config.join!r}'
    else:
        for at, address in enumerate(config.join):
            yield from _address_problem(f"join[{at}]", address)
    yield from _member_problems(config)
    if not isinstance(config.directory, bool):
        yield f"directory: must be true or false, not {config.directory!r}"
    else:
        yield from _group_problems(config.groups, config.directory)


def _address_problem(path: str, address: object) -> Iterator[str]:
    if not isinstance(address, str):
        yield f'{path}: must be "host:port", not {address!r}'
        return
    try:
        split_address(address)
    except ValueError as error:
        yield f"{path}: {error}"


def _member_problems(config: Config) -> Iterator[str]:
    members = config.members
    if not isinstance(members, Mapping) or not members:
        yield 'members: must be a table of node id = "host:port"'
        return
    if len(members) > MEMBERS_MAX:
        yield f"members: {len(members)} are more than {MEMBERS_MAX}"
    seen: dict[str, object] = {}
    for node, address in members.items():
        path = f"members.{node}"
        if not _is_int(node) or not 1 <= node <= NODE_ID_MAX:
            yield f"{path}: a node id is 1 .. {NODE_ID_MAX}"
        yield from _address_problem(path, address)
        if not isinstance(address, str) or address.endswith(":0"):
            continue
        if address in seen:
            yield f"{path}: {address} is the address of node {seen[address]} too"
        seen.setdefault(address, node)
    if _is_int(config.node) and config.node not in members and members != _MISSING["members"]:
        yield f"members: node {config.node} itself is missing"


def _group_problems(groups: object, directory: bool) -> Iterator[str]:
    least, most = (0, GROUP_ID_MAX) if directory else (1, GROUP_ID_MAX + 1)
    if isinstance(groups, int) and not isinstance(groups, bool):
        if not least <= groups <= most:
            yield f"groups: must be {least} .. {most}, not {groups}"
        return
    if not isinstance(groups, tuple):
        yield f"groups: must be a number or a list of ids, not {groups!r}"
        return
    if not groups and not directory:
        yield "groups: must not be empty"
    seen: set[int] = set()
    for at, group in enumerate(groups):
        if not _is_int(group) or not 0 <= group <= GROUP_ID_MAX:
            yield f"groups[{at}]: a group id is 0 .. {GROUP_ID_MAX}, not {group!r}"
            continue
        if group > most - 1:
            yield f"groups[{at}]: group {group} is the directory"
        if group in seen:
            yield f"groups[{at}]: group {group} stands there twice"
        seen.add(group)


def _range_problems(config: Config) -> Iterator[str]:
    for name, kind in _SECTIONS.items():
        section = getattr(config, name)
        for one in fields(kind):
            value = getattr(section, one.name)
            if one.metadata.get("switch"):
                if not isinstance(value, bool):
                    yield f"{name}.{one.name}: must be true or false, not {value!r}"
                continue
            if words := one.metadata.get("words"):
                if value not in words:
                    allowed = " or ".join(f'"{word}"' for word in words)
                    yield f"{name}.{one.name}: must be {allowed}, not {value!r}"
                continue
            if one.metadata.get("modes"):
                yield from _mode_problems(f"{name}.{one.name}", value)
                continue
            low, high = one.metadata["low"], one.metadata["high"]
            if not _is_int(value):
                yield f"{name}.{one.name}: must be a whole number, not {value!r}"
            elif not low <= value <= high:
                yield f"{name}.{one.name}: must be {low} .. {high}, not {value}"


def _mode_problems(path: str, modes: object) -> Iterator[str]:
    if not isinstance(modes, Mapping):
        yield f"{path}: must be a table of group id = mode, not {modes!r}"
        return
    for group, mode in modes.items():
        if not _is_int(group) or not 0 <= group < DIRECTORY_GROUP:
            yield f"{path}.{group}: a group id is 0 .. {DIRECTORY_GROUP - 1}"
        if mode not in DURABILITIES:
            allowed = " or ".join(f'"{word}"' for word in DURABILITIES)
            yield f"{path}.{group}: must be {allowed}, not {mode!r}"


def _relation_problems(config: Config) -> Iterator[str]:
    timing, limits, journal = config.timing, config.limits, config.journal
    if timing.lease_us < 3 * timing.heartbeat_us:
        yield (
            f"timing.lease_us: {timing.lease_us} is below 3 x heartbeat_us "
            f"({3 * timing.heartbeat_us}): one lost heartbeat would cost the leadership"
        )
    if timing.resend_us < timing.heartbeat_us // 10:
        yield f"timing.resend_us: {timing.resend_us} is below heartbeat_us / 10"
    least = limits.value_bytes_max + OVERHEAD_BYTES
    roomy = (
        "window_bytes",
        "group_bytes_max",
        "node_bytes_max",
        "pending_bytes_max",
        "cache_bytes_max",
        "delivery_bytes_max",
        "peer_queue_bytes_max",
    )
    for name in roomy:
        if getattr(limits, name) < least:
            yield (
                f"limits.{name}: {getattr(limits, name)} does not hold one value of "
                f"value_bytes_max and its headers ({least})"
            )
    if 0 < limits.wait_us_max < WAIT_US_MIN:
        yield f"limits.wait_us_max: must be 0 or from {WAIT_US_MIN}, not {limits.wait_us_max}"
    if limits.batch_bytes_max > limits.window_bytes:
        yield f"limits.batch_bytes_max: {limits.batch_bytes_max} is above window_bytes"
    if limits.group_values_max > limits.node_values_max:
        yield (
            f"limits.group_values_max: {limits.group_values_max} is above node_values_max "
            f"({limits.node_values_max})"
        )
    largest = max(limits.value_bytes_max, limits.batch_bytes_max) + OVERHEAD_BYTES
    if journal.segment_bytes < largest:
        yield (
            f"journal.segment_bytes: {journal.segment_bytes} does not hold the largest record "
            f"({largest})"
        )
    if journal.journal_bytes_max < JOURNAL_SEGMENTS_MIN * journal.segment_bytes:
        yield (
            f"journal.journal_bytes_max: {journal.journal_bytes_max} is below "
            f"{JOURNAL_SEGMENTS_MIN} segments ({JOURNAL_SEGMENTS_MIN * journal.segment_bytes})"
        )
    if not journal.segment_bytes <= journal.settle_bytes <= journal.journal_bytes_max // 2:
        yield (
            f"journal.settle_bytes: {journal.settle_bytes} is not between segment_bytes "
            f"({journal.segment_bytes}) and half of journal_bytes_max "
            f"({journal.journal_bytes_max // 2})"
        )
    checkpoints = config.checkpoints
    slowest = checkpoints.transfers_max * TRANSFER_BYTES_PER_S_MIN
    if checkpoints.transfer_bytes_per_s < slowest:
        yield (
            f"checkpoints.transfer_bytes_per_s: {checkpoints.transfer_bytes_per_s} is below "
            f"{slowest}: transfers_max transfers would be too slow, and be cut"
        )
