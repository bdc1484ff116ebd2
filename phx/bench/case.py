"""What one row measures; the named cases, and sets of rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from phx.types import GROUP_ID_MAX

__all__ = ["CASES", "MATRICES", "Case", "Named", "problem", "rows_of"]

SIZES = [16, 100, 2048, 102_400]
WINDOWS = 8  # with checkpoints in turns
GROUPS = [1, 20, 50, 100, 1000, 10_000]
BYTES_IN_FLIGHT_MAX = 128 << 20  # what a matrix of value sizes has in flight


@dataclass(frozen=True, kw_only=True)
class Case:
    """The settings of one row. Everything that makes two rows comparable, and nothing else.

    Attributes:
        name: of the named case, or "".
        load_groups: so many groups get load; 0: all that do not get large values.
        skew: "even"; "zipf": the k-th group gets a share of 1 / k.
        mode: "propose" (an awaited call per value), "propose_many".
        reads: "": values are proposed. Otherwise the consistency of reads that take their place,
            each an awaited `read`, or a query of a `read_many`: "stale", "lease", "linearizable".
        inflight: values, over all groups and processes.
        batch: values per propose_many; 0: from what a group has in flight.
        rate: values a second that the clients offer, all together; 0: as many as go through.
        at: where a group's clients run: "leader", "follower", "any".
        leaders: "spread" over the nodes, or "one": the first node leads every group.
        machine: "tally" (nothing but counting), "dict", "slow" (20 us a value).
        large_bytes, large_groups, large_rate: beside it, values of that size a second into so many
            groups that get no other load.
        gil_s: how long the last node holds its GIL in the middle of the row; it has no clients.
        checkpoint_s: a checkpoint of each group every so many seconds, in every other eighth of
            the time; 0: as a node does it that is told nothing.
        loop: "uvloop", "asyncio"; "auto": uvloop where it is installed.
    """

    name: str = ""
    groups: int = 100
    load_groups: int = 0
    skew: str = "even"
    value_bytes: int = 100
    mode: str = "propose"
    reads: str = ""
    inflight: int = 1000
    batch: int = 0
    rate: float = 0
    at: str = "leader"
    leaders: str = "spread"
    nodes: int = 3
    machine: str = "tally"
    large_bytes: int = 0
    large_groups: int = 0
    large_rate: float = 0
    gil_s: int = 0
    checkpoint_s: float = 0
    seconds: float = 10
    warmup: float = 2
    loop: str = "auto"

    @property
    def ids(self) -> list[int]:
        """The ids of the groups. A group prefers to be led by the node at (id mod nodes)."""
        step = self.nodes if self.leaders == "one" else 1
        return list(range(0, self.groups * step, step))

    @property
    def window_s(self) -> float:
        """How long it lasts without checkpoints, then with them, and so on."""
        return self.seconds / WINDOWS

    @property
    def label(self) -> str:
        """In a few words, for progress and plots."""
        words = [self.name] if self.name else []
        if self.reads:
            mode = "read_many" if self.mode == "propose_many" else "read"
            words += [f"{self.groups:,} groups", f"{mode} {self.reads}", f"{self.inflight:,} open"]
            return ", ".join(words)
        words += [f"{self.groups:,} groups", self.mode, f"{self.inflight:,} x {self.value_bytes} B"]
        return ", ".join(words)


def problem(case: Case) -> str:
    """Why this cannot be measured; "" if it can."""
    load_groups = case.load_groups or case.groups - case.large_groups
    if load_groups < 1 or load_groups + case.large_groups > case.groups:
        return f"{case.groups} groups are too few for the groups with load"
    if case.ids[-1] > GROUP_ID_MAX:
        return f"{case.groups} groups led by one of {case.nodes} nodes are too many"
    if (case.large_groups > 0) != (case.large_rate > 0):
        return "large values need both groups and a rate"
    if case.gil_s and (case.nodes < 3 or case.gil_s > case.seconds * 0.6):
        return "to hold the GIL takes three nodes, and at most 60 % of the measured time"
    if case.at == "follower" and case.nodes < 2:
        return "one node has no follower"
    if case.reads and (case.large_groups or case.rate or case.gil_s):
        return "reads are measured by themselves, as many as go through"
    if case.reads == "lease" and case.at != "leader":
        return "lease reads are to be had at leaders"
    return ""


@dataclass(frozen=True)
class Named:
    """A case that has a name: why, and its rows. The first row is what it is about."""

    says: str
    rows: tuple[Case, ...]


MANY = Case(mode="propose_many", inflight=10_000)
SMALL = Case(groups=24, load_groups=20, inflight=200, rate=10_000, large_groups=0)
HELD = Case(inflight=1000, seconds=30, gil_s=10)

CASES: dict[str, Named] = {
    "many-100": Named("100 groups, propose_many, 10,000 values in flight, 10 s", (MANY,)),
    "sustained": Named("the same for 60 s, while the store keeps up", (replace(MANY, seconds=60),)),
    "awaited": Named(
        "100 groups, one awaited propose per value, 10,000 in flight, on each event loop",
        tuple(replace(MANY, mode="propose", loop=loop) for loop in ("uvloop", "asyncio")),
    ),
    "one-group": Named(
        "one group as many-100, and a hundred beside it", (replace(MANY, groups=1), MANY)
    ),
    "one-caller": Named(
        "one caller, one value at a time", (Case(groups=1, inflight=1, seconds=5),)
    ),
    "follower": Named(
        "as many-100, proposed where the groups are not led, and where they are",
        (replace(MANY, at="follower"), MANY),
    ),
    "values-2k": Named("as many-100, values of 2 KiB", (replace(MANY, value_bytes=2048),)),
    "values-100k-with-small": Named(
        "20 groups with 10,000 small values/s: beside 200 values/s of 100 KiB in 4 other groups, "
        "and alone",
        (replace(SMALL, large_bytes=102_400, large_groups=4, large_rate=200), SMALL),
    ),
    "groups-10000-load-100": Named(
        "10,000 groups of which 100 have load, and 100 groups alone",
        (replace(MANY, groups=10_000, load_groups=100), MANY),
    ),
    "full-load-90s": Named(
        "as many-100 for 90 s: memory, settling, last third against first",
        (replace(MANY, seconds=90),),
    ),
    "checkpoints-on": Named(
        "as many-100 with dictionaries, each written every 30 s, in every other 10 s",
        (replace(MANY, machine="dict", checkpoint_s=30, seconds=80),),
    ),
    "gil-held": Named(
        "one node holds its GIL for 10 s of 30, the others drive all groups", (HELD,)
    ),
}
for _name, _named in CASES.items():
    CASES[_name] = Named(_named.says, tuple(replace(one, name=_name) for one in _named.rows))


def sized(value_bytes: int) -> Case:
    """Many values of a size, as far as the limits on bytes in flight allow."""
    inflight = min(MANY.inflight, BYTES_IN_FLIGHT_MAX // value_bytes)
    return replace(MANY, value_bytes=value_bytes, inflight=inflight)


def crossed(**settings: Iterable[object]) -> list[Case]:
    """Every combination of these settings, the others as in many-100."""
    return [
        replace(MANY, **dict(zip(settings, values, strict=True)))  # type: ignore[arg-type]
        for values in itertools.product(*settings.values())
    ]


MATRICES: dict[str, tuple[str, list[Case]]] = {
    "targets": (
        "every named case",
        [row for named in CASES.values() for row in named.rows],
    ),
    "groups": (
        "1 to 10,000 groups, both ways to propose",
        crossed(mode=["propose_many", "propose"], groups=GROUPS),
    ),
    "sizes": ("values of 16 B to 100 KiB", [sized(size) for size in SIZES]),
    "load": (
        "100 groups, 1 to 10,000 values in flight",
        crossed(mode=["propose"], inflight=[1, 10, 100, 1000, 10_000]),
    ),
    "places": (
        "at leaders, followers, any node; leaders spread or on one node; even or skewed load",
        [
            *crossed(leaders=["spread", "one"], at=["leader", "follower", "any"]),
            *crossed(skew=["zipf"]),
        ],
    ),
    "nodes": ("three and five nodes", crossed(nodes=[3, 5])),
    "machines": (
        "machines that do nothing, little, much",
        crossed(machine=["tally", "dict", "slow"]),
    ),
}


def rows_of(cases: Iterable[str], matrices: Iterable[str]) -> list[Case]:
    """The rows of named cases and sets, in this order, none twice."""
    found = [row for name in cases for row in CASES[name].rows]
    found += [row for name in matrices for row in MATRICES[name][1]]
    return list(dict.fromkeys(found))
