"""What there is to be of created groups, as the calls that ended say; and in what a node differs.

Pure functions and books. Whoever makes the calls (groups.py) writes down here what came of them:

rule                                                             finding begins with
---------------------------------------------------------------  -------------------------
every node lists each id, its generation, phase and members      listed:
all nodes hold the same directory                                directory:
a group is hosted by each of its members                         absent:
and by nobody else; who does not host it has nothing of it, in   left over:
  its folder or its store
a node has no more threads or descriptors after many groups      leak:
  came and went than before
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phx.types import created_version

HEARD_US = 1_000_000
"""So long after a group is gone clients still ask for it."""
GENERATION_VERSIONS = created_version(2) - created_version(1)

Log = tuple[int, int]
"""Id of a group, and its generation; 0: it is one of the configuration."""


def generation_of(version: int) -> int:
    """To which generation of a created group a version of its members belongs."""
    return (version - created_version(1)) // GENERATION_VERSIONS + 1


@dataclass
class Life:
    """A created group from its creation to its end, by what was said to those who asked.

    Attributes:
        members: who is to host it now.
        first: those that it was created with.
        left: nodes that were members, and are none any more.
        phase: "live", "stopped" or "gone".
        asked_us: when it was asked for first; nothing can have been done in it before.
        ended_us: when somebody was told that it is gone; nothing can be done in it after.
    """

    group: int
    generation: int
    members: frozenset[int]
    asked_us: int
    phase: str = "live"
    ended_us: int | None = None
    first: frozenset[int] = frozenset()
    left: set[int] = field(default_factory=set)

    @property
    def log(self) -> Log:
        return self.group, self.generation

    @property
    def there(self) -> bool:
        return self.ended_us is None


class Book:
    """All lives of created groups in a cluster.

    Attributes:
        lives: in the order in which they were created.
    """

    def __init__(self) -> None:
        self.lives: dict[Log, Life] = {}
        self._newest: dict[int, Life] = {}

    def last(self, group: int) -> Life | None:
        """Whoever has the id, or had it last."""
        return self._newest.get(group)

    def now(self, group: int) -> Life | None:
        """Whoever has the id."""
        life = self._newest.get(group)
        return life if life is not None and life.there else None

    def there(self) -> list[Life]:
        """Those that are there, by id."""
        return [life for _, life in sorted(self._newest.items()) if life.there]

    def known(self, now_us: int) -> list[Log]:
        """Logs of those of which a client has heard, and not yet for long that they are gone."""
        return [
            life.log
            for _, life in sorted(self._newest.items())
            if life.ended_us is None or now_us < life.ended_us + HEARD_US
        ]

    def members(self, log: Log) -> frozenset[int]:
        """Empty: it is none that was created, or it is gone."""
        life = self.lives.get(log)
        return frozenset() if life is None else life.members

    def next_generation(self, group: int) -> int:
        last = self.last(group)
        return 1 if last is None else last.generation + 1

    def made(self, group: int, generation: int, members: frozenset[int], asked_us: int) -> Life:
        life = Life(group, generation, members, asked_us, first=members)
        self.lives[life.log] = self._newest[group] = life
        return life

    def moved(self, life: Life, members: frozenset[int]) -> None:
        life.left |= life.members - members
        life.members = members

    def ended(self, life: Life, now_us: int) -> None:
        life.left |= life.members
        life.phase, life.members, life.ended_us = "gone", frozenset(), now_us


# --- what nodes say of it


@dataclass(frozen=True)
class Seen:
    """What a node says of created groups, see the worker's ``created``.

    Attributes:
        listed: by id: generation, phase, members.
        hosted: generation, by id.
        files: names that its folder has of groups that it does not host.
        digest: of its directory.
    """

    listed: Mapping[int, tuple[int, str, frozenset[int]]]
    hosted: Mapping[int, int]
    files: Sequence[str]
    digest: str

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Seen:
        listed = {
            int(group): (generation, phase, frozenset(members))
            for group, (generation, phase, members) in answer["listed"].items()
        }
        hosted = {int(group): generation for group, generation in answer["hosted"].items()}
        return cls(listed, hosted, answer["files"], answer["digest"])


def differences(book: Book, seen: Mapping[int, Seen]) -> list[str]:
    """In what the nodes are not as they are to be; nothing: []."""
    found = []
    last = {group: life for (group, _), life in book.lives.items()}
    for node, one in sorted(seen.items()):
        for group in sorted(last.keys() | one.listed.keys()):
            life, listed = last.get(group), one.listed.get(group)
            wanted = None if life is None else (life.generation, life.phase, life.members)
            if listed != wanted:
                found.append(
                    f"listed: node {node} has group {group} as {_told(listed)}, "
                    f"and it is {_told(wanted)}"
                )
        for group in sorted(last.keys() | one.hosted.keys()):
            found += _hosting(node, last.get(group), group, one.hosted.get(group, 0))
        found += [f"left over: node {node} still has {name}" for name in one.files]
    digests = {node: one.digest for node, one in seen.items()}
    if len(set(digests.values())) > 1:
        found.append(f"directory: digests {digests}")
    return found


def _hosting(node: int, life: Life | None, group: int, hosted: int) -> Iterator[str]:
    wanted = life.generation if life is not None and node in life.members else 0
    if wanted and hosted != wanted:
        yield f"absent: node {node} does not host generation {wanted} of group {group}"
    if hosted and hosted != wanted:
        yield f"left over: node {node} still hosts generation {hosted} of group {group}"


def _told(row: tuple[int, str, frozenset[int]] | None) -> str:
    if row is None:
        return "no group"
    generation, phase, members = row
    return f"generation {generation}, {phase}, of nodes {sorted(members)}"


@dataclass(frozen=True)
class Kept:
    """What a folder has of an id, see phx.verify.

    Attributes:
        generation, gone: of the row in the store.
        remains: in words, what is left of its log, checkpoints and members.
    """

    generation: int
    gone: bool
    remains: Sequence[str] = ()


def leftovers(book: Book, kept: Mapping[int, Mapping[int, Kept]]) -> list[str]:
    """The same of the folders of nodes that were closed: by node, then by id."""
    found = []
    for node, groups in sorted(kept.items()):
        for life in book.there():
            one = groups.get(life.group)
            whole = one is not None and one.generation == life.generation and not one.gone
            if node in life.members and not whole:
                found.append(
                    f"absent: the store of node {node} has not got generation {life.generation} "
                    f"of group {life.group}, but {one}"
                )
        for group, one in sorted(groups.items()):
            now = book.now(group)
            if now is not None and node in now.members:
                continue
            if not one.gone:
                found.append(f"left over: the store of node {node} hosts group {group}: {one}")
            found += [
                f"left over: the folder of node {node} has {what} of group {group}"
                for what in one.remains
            ]
    return found


def leaks(
    before: Mapping[int, Mapping[str, int]], after: Mapping[int, Mapping[str, int]], cycles: int
) -> list[str]:
    """Counts by node, then by what is counted, before and after that many groups came and went.

    (Whatever is left of each of them shows; one thread that was about to end does not.)
    """
    return [
        f"leak: node {node} had {many} {what}, and after {cycles} groups that came and went it has "
        f"{after[node][what]}"
        for node, counts in sorted(before.items())
        for what, many in sorted(counts.items())
        if after[node][what] - many >= cycles // 2
    ]
