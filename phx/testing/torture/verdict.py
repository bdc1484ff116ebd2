"""Was anything promised and broken? Pure functions over what clients saw and nodes hold at the end.

rule                                                             finding begins with
---------------------------------------------------------------  -------------------------
every value read is one that was written, to the last byte       damaged:
all nodes are equally far, with equal digests                    divergent:
no node stopped or halted a group                                broken:
an acknowledged append is there, exactly once, on every node     lost: / twice:
one of unknown outcome is there once or not                      twice:
what was rejected is nowhere                                     rejected:
nothing is there that nobody wrote                               invented:
in a group, versions of acknowledged writes are distinct and     version:
  grow from one that returned to one that was called later
every key's history is linearizable                              linearizable:
what was written in a created group is in none of the other      generation:
  groups that had, or have, its id
nothing is acknowledged in a created group before it was asked   over:
  for, or if it was called after somebody heard that it is gone
a created group that is there is on all of its members, and on   absent: / left over:
  no other node
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from phx.sim.history import Operation, check_history
from phx.testing.torture.book import Life, Log
from phx.testing.torture.clients import ACKNOWLEDGED, DAMAGED, REJECTED, Record
from phx.testing.torture.machine import END

State = Mapping[str, Any]
"""Of one group on one node: what the worker's ``state`` answers."""
EXAMPLES_MAX = 5
OWN = "_"
"""Keys that begin so were written by the torture itself, and are nobody's."""


def judge(
    records: Sequence[Record], states: Mapping[int, Mapping[Log, State]], lives: Sequence[Life] = ()
) -> list[str]:
    """Everything that is wrong, in words; nothing: [].

    Args:
        records: every operation of every client, the last ones being reads of every key.
        states: by node, then by group and generation (0: of the configuration).
        lives: all groups that were created.
    """
    return [
        *_some("damaged", (f"node {one.node}: {one.error}" for one in records
                           if one.outcome == DAMAGED)),
        *_some("over", out_of_time(records, lives)),
        *places(states, lives),
        *divergences(states),
        *misplaced(records, states),
        *versions(records),
        *linearizability(records),
    ]  # fmt: skip


def _some(rule: str, found: Iterable[str]) -> list[str]:
    """The first few of what a rule found, and how many there are."""
    listed = list(found)
    more = len(listed) - EXAMPLES_MAX
    shown = [f"{rule}: {one}" for one in listed[:EXAMPLES_MAX]]
    return shown + ([f"{rule}: {more} more"] if more > 0 else [])


def places(states: Mapping[int, Mapping[Log, State]], lives: Iterable[Life]) -> list[str]:
    """Created groups that are not where they are to be, or are elsewhere."""
    wanted = {(node, life.log) for life in lives for node in life.members}
    there = {(node, log) for node, groups in states.items() for log in groups if log[1]}
    return [
        *_some("absent", (f"{name_of(log)} on node {n}" for n, log in sorted(wanted - there))),
        *_some("left over", (f"{name_of(log)} on node {n}" for n, log in sorted(there - wanted))),
    ]


def out_of_time(records: Iterable[Record], lives: Iterable[Life]) -> Iterator[str]:
    """What was acknowledged in a group that was not there."""
    by_log = {life.log: life for life in lives}
    for one in records:
        life = by_log.get(one.log)
        if life is None or one.outcome != ACKNOWLEDGED or one.returned_us is None:
            continue
        what = f"{one.kind} of {one.key} at node {one.node} in {name_of(life.log)}"
        if life.ended_us is not None and one.called_us > life.ended_us:
            yield f"{what}, {one.called_us - life.ended_us} us after it was gone"
        if one.returned_us < life.asked_us:
            yield f"{what}, {life.asked_us - one.returned_us} us before it was asked for"


def divergences(states: Mapping[int, Mapping[Log, State]]) -> list[str]:
    """Groups in which nodes differ, or that do not go on at some node."""
    apart, broken = [], []
    for log in sorted({log for groups in states.values() for log in groups}):
        group = name_of(log)
        of = states if not log[1] else [node for node in states if log in states[node]]
        seen = {node: states[node][log] for node in of}
        for name in ("applied", "digest", "machines", "values", "appends"):
            first, *rest = (one[name] for one in seen.values())
            if any(one != first for one in rest):
                shown = {n: one[name] for n, one in seen.items() if not isinstance(first, dict)}
                apart.append(f"{group}: {name} {shown or 'differ'}")
        broken += [
            f"{group} {what} on node {node}" for node, one in seen.items() for what in one["broken"]
        ]
    return _some("divergent", apart) + _some("broken", broken)


def name_of(log: Log) -> str:
    return f"group {log[0]}" + (f" generation {log[1]}" if log[1] else "")


def misplaced(records: Sequence[Record], states: Mapping[int, Mapping[Log, State]]) -> list[str]:
    """What is where it must not be, or not where it must, or too often."""
    written = {(one.log, one.key, one.written): one for one in records if one.written}
    appended = {place: one for place, one in written.items() if one.kind == "append"}
    others = {(one.group, one.written): one for one in records if one.written and one.generation}
    names = ("lost", "twice", "rejected", "invented", "generation")
    found: dict[str, list[str]] = {name: [] for name in names}
    for node, groups in states.items():
        there: Counter[tuple[Log, str, str]] = Counter()
        strings: Counter[tuple[Log, str, str]] = Counter()
        for log, state in groups.items():
            there.update(
                (log, key, token) for key, token in state["values"].items() if key[:1] != OWN
            )
            strings.update(
                (log, key, token)
                for key, text in state["appends"].items()
                for token in text.split(";")[:-1]
            )
        there.update(strings)
        for place, count in there.items():
            record = written.get(place)
            where = told(place, node)
            if record is None and (other := others.get((place[0][0], place[2]))):
                found["generation"].append(f"{where}, which was written in {name_of(other.log)}")
            elif record is None:
                found["invented"].append(where)
            elif record.outcome == REJECTED:
                found["rejected"].append(f"{where}: {record.error}, and yet there")
            elif count > 1:
                found["twice"].append(f"{where}: {count} times ({record.outcome})")
        found["lost"] += [
            told(place, node)
            for place, record in appended.items()
            if record.outcome == ACKNOWLEDGED
            and not strings[place]
            and (place[0] in groups or not place[0][1])
        ]
    return [line for name, lines in found.items() for line in _some(name, lines)]


def told(place: tuple[Log, str, str], node: int) -> str:
    log, key, token = place
    return f"{name_of(log)} key {key} token {token} on node {node}"


def versions(records: Sequence[Record]) -> list[str]:
    """The versions that a group's machine gave out, against real time, over all its keys."""
    by_group: dict[Log, list[Record]] = {}
    for one in records:
        if one.kind in ("put", "cas") and one.outcome == ACKNOWLEDGED and one.result is not None:
            by_group.setdefault(one.log, []).append(one)
    return _some("version", (line for ones in by_group.values() for line in _disorder(ones)))


def _disorder(writes: list[Record]) -> Iterator[str]:
    writes.sort(key=lambda one: int(one.result), reverse=True)
    for newer, older in itertools.pairwise(writes):
        if newer.result == older.result:
            yield f"{newer.result} of group {newer.group} twice: {_told(older)}; {_told(newer)}"
    first: tuple[int, Record] | None = None  # to return, of all that have a higher version
    for one in writes:
        assert one.returned_us is not None
        if first is not None and first[0] < one.called_us:
            yield f"group {one.group}: {_told(one)} was called after {_told(first[1])} returned"
        if first is None or one.returned_us < first[0]:
            first = one.returned_us, one


def _told(one: Record) -> str:
    return f"{one.kind} of {one.key} by client {one.client} with version {one.result}"


def pauses_us(records: Iterable[Record], spans: Sequence[tuple[int, int]]) -> list[int]:
    """In each span, from one time to another, the longest that some group acknowledged nothing.

    (As clients saw it, who may all have been busy with other groups: so it is an upper bound.)
    """
    by_group: dict[int, list[int]] = {}
    for one in records:
        if one.outcome == ACKNOWLEDGED and one.returned_us is not None and not one.generation:
            by_group.setdefault(one.group, []).append(one.returned_us)
    found = []
    for began, ended in spans:
        longest = 0
        for times in by_group.values():
            inside = sorted(us for us in times if began <= us <= ended)
            for earlier, later in itertools.pairwise((began, *inside, ended)):
                longest = max(longest, later - earlier)
        found.append(longest)
    return found


def linearizability(records: Sequence[Record]) -> list[str]:
    """What the checker of histories says."""
    finding = check_history(operations(records))
    return [] if finding is None else [str(finding)]


def operations(records: Iterable[Record]) -> Iterator[Operation]:
    """The records as the checker wants them: what was rejected is left out.

    A cas names the version that it expects. A version stands for one token, the one that was seen
    with it, and a token is written once; so it is a cas on tokens.
    """
    for one in records:
        if one.outcome in (REJECTED, DAMAGED):
            continue
        kind, result = one.kind, one.result
        argument: Any = None
        if kind == "append":
            if one.written:
                argument = one.written.encode() + END
            else:
                kind = "get"
            result = _bytes(result)
        elif kind == "get":
            result = None if result is None else _bytes(result[0])
        elif kind == "put":
            argument = _bytes(one.written)
        elif kind == "cas":
            argument, result = (_bytes(one.expected), _bytes(one.written)), result is not None
        key = (one.log, one.key)
        yield Operation(one.client, key, kind, argument, result, one.called_us, one.returned_us)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()
