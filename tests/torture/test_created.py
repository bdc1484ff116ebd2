"""phx torture --created: groups come and go under faults. What it would find, on histories that are
made up; which answers it holds against whom; and a short run."""

import asyncio
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phx.testing.torture import groups as torture_groups
from phx.testing.torture.book import (
    Book,
    Kept,
    Log,
    Seen,
    differences,
    generation_of,
    leaks,
    leftovers,
)
from phx.testing.torture.clients import ACKNOWLEDGED, REJECTED, UNKNOWN, Record
from phx.testing.torture.groups import Answer, Call, Groups, Stuck
from phx.testing.torture.losses import give_back, take_away
from phx.testing.torture.run import Options, Result
from phx.testing.torture.schedule import GROUPS, KINDS, LOSING, MEMBERS, SINGLE, Episode, episodes
from phx.testing.torture.verdict import judge
from phx.types import created_version

# --- the verdict: group 7 was created on 1 and 2, deleted, and created again on 2 and 3


def nodes(*ids: int) -> frozenset[int]:
    return frozenset(ids)


def two_lives() -> Book:
    book = Book()
    book.ended(book.made(7, 1, nodes(1, 2), asked_us=100), now_us=200)
    book.made(7, 2, nodes(2, 3), asked_us=300)
    return book


def good() -> tuple[list[Record], dict[int, dict[Log, dict[str, Any]]], Book]:
    def done(generation: int, kind: str, token: str, result: Any, at: int, node: int) -> Record:
        argument = [token, 9] if kind == "put" else token
        key = "r0.0" if kind == "put" else "s0.0"
        return Record(
            at, node, 7, key, kind, argument, token, None, at, at + 5, ACKNOWLEDGED, result,
            generation=generation,
        )  # fmt: skip

    records = [
        done(1, "put", "v1", 1, 110, 1),
        done(1, "append", "v2", "v2;", 120, 2),
        done(2, "put", "v3", 1, 310, 2),  # versions begin anew
        done(2, "append", "v4", "v4;", 320, 3),
    ]
    state = {
        "applied": 9,
        "digest": "abc at 9",
        "machines": "def",
        "broken": [],
        "values": {"r0.0": "v3", "_probe": "probe"},
        "appends": {"s0.0": "v4;"},
    }
    states = {1: {}, 2: {(7, 2): dict(state)}, 3: {(7, 2): dict(state)}}
    return records, states, two_lives()


def rules(records: Any, states: Any, book: Book) -> set[str]:
    found = judge(records, states, list(book.lives.values()))
    return {finding.partition(":")[0] for finding in found}


def test_two_generations_of_an_id_are_two_groups() -> None:
    assert rules(*good()) == set()


def append_of_the_one_before(records: list[Record], states: Any, book: Book) -> None:
    for node in (2, 3):
        states[node][7, 2]["appends"] = {"s0.0": "v2;v4;"}


def value_of_the_one_before(records: list[Record], states: Any, book: Book) -> None:
    for node in (2, 3):
        states[node][7, 2]["values"] = {"r0.0": "v1"}


def what_was_rejected_came_to_the_next(records: list[Record], states: Any, book: Book) -> None:
    records[1].outcome = REJECTED
    append_of_the_one_before(records, states, book)


def what_is_unknown_came_to_the_next(records: list[Record], states: Any, book: Book) -> None:
    records[1].outcome, records[1].returned_us = UNKNOWN, None
    append_of_the_one_before(records, states, book)


def called_after_it_was_gone(records: list[Record], states: Any, book: Book) -> None:
    records[0].called_us, records[0].returned_us = 201, 205


def done_before_it_was_asked_for(records: list[Record], states: Any, book: Book) -> None:
    records[2].called_us, records[2].returned_us = 280, 290


def append_lost_on_a_member(records: list[Record], states: Any, book: Book) -> None:
    states[3][7, 2]["appends"] = {}


def append_lost_on_all_members(records: list[Record], states: Any, book: Book) -> None:
    for node in (2, 3):
        states[node][7, 2]["appends"] = {}


def members_differ(records: list[Record], states: Any, book: Book) -> None:
    states[3][7, 2]["digest"] = "abd at 9"


def member_without_it(records: list[Record], states: Any, book: Book) -> None:
    del states[3][7, 2]


def one_too_many_has_it(records: list[Record], states: Any, book: Book) -> None:
    states[1][7, 2] = dict(states[2][7, 2])


def the_one_before_is_still_there(records: list[Record], states: Any, book: Book) -> None:
    states[1][7, 1] = {**states[2][7, 2], "values": {"r0.0": "v1"}, "appends": {"s0.0": "v2;"}}


def reads_what_the_one_before_had(records: list[Record], states: Any, book: Book) -> None:
    records[3].result = "v2;v4;"


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (append_of_the_one_before, {"generation"}),
        (value_of_the_one_before, {"generation"}),
        (what_was_rejected_came_to_the_next, {"generation"}),
        (what_is_unknown_came_to_the_next, {"generation"}),
        (called_after_it_was_gone, {"over"}),
        (done_before_it_was_asked_for, {"over"}),
        (append_lost_on_a_member, {"lost", "divergent"}),
        (append_lost_on_all_members, {"lost"}),
        (members_differ, {"divergent"}),
        (member_without_it, {"absent"}),
        (one_too_many_has_it, {"left over"}),
        (the_one_before_is_still_there, {"left over"}),
        (reads_what_the_one_before_had, {"linearizable"}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_bad_outcome_is_rejected(spoil: Callable[..., None], broken: set[str]) -> None:
    records, states, book = good()
    spoil(records, states, book)
    assert rules(records, states, book) == broken


def test_a_call_that_ends_late_in_a_group_that_is_gone_may_have_been_done_in_time() -> None:
    records, states, book = good()
    records[0].returned_us = 250
    assert rules(records, states, book) == set()


# --- what nodes say


def seen() -> dict[int, Seen]:
    listed = {7: (2, "live", nodes(2, 3))}
    return {node: Seen(listed, {} if node == 1 else {7: 2}, (), "abcd") for node in (1, 2, 3)}


def told(**change: Any) -> set[str]:
    """Rules that are broken if node 2 says this."""
    one = seen()[2]
    fields = {name: getattr(one, name) for name in ("listed", "hosted", "files", "digest")}
    found = differences(two_lives(), {**seen(), 2: Seen(**fields | change)})
    return {finding.partition(":")[0] for finding in found}


def test_nodes_that_are_as_they_are_to_be_differ_in_nothing() -> None:
    assert differences(two_lives(), seen()) == []
    assert differences(Book(), {1: Seen({}, {}, (), "")}) == []


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"listed": {}}, {"listed"}),
        ({"listed": {7: (1, "gone", nodes())}}, {"listed"}),
        ({"listed": {7: (2, "stopped", nodes(2, 3))}}, {"listed"}),
        ({"listed": {7: (2, "live", nodes(2))}}, {"listed"}),
        ({"listed": {7: (2, "live", nodes(2, 3)), 8: (1, "live", nodes(2))}}, {"listed"}),
        ({"hosted": {}}, {"absent"}),
        ({"hosted": {7: 1}}, {"absent", "left over"}),
        ({"hosted": {7: 2, 8: 1}}, {"left over"}),
        ({"files": ("checkpoints/7",)}, {"left over"}),
        ({"digest": "abce"}, {"directory"}),
    ],
)
def test_a_node_that_differs_is_rejected(change: dict[str, Any], broken: set[str]) -> None:
    assert told(**change) == broken


def test_what_is_gone_is_listed_as_gone_and_hosted_by_nobody() -> None:
    book = two_lives()
    book.ended(book.lives[7, 2], now_us=400)
    gone = Seen({7: (2, "gone", nodes())}, {}, (), "abcd")
    assert differences(book, {2: gone}) == []
    still = Seen(gone.listed, {7: 2}, (), "abcd")
    assert [one.partition(":")[0] for one in differences(book, {2: still})] == ["left over"]


def kept() -> dict[int, dict[int, Kept]]:
    return {1: {7: Kept(1, gone=True)}, 2: {7: Kept(2, gone=False)}, 3: {7: Kept(2, gone=False)}}


@pytest.mark.parametrize(
    ("node", "one", "broken"),
    [
        (1, Kept(1, gone=True), set()),
        (1, Kept(1, gone=False), {"left over"}),
        (1, Kept(1, gone=True, remains=["checkpoint 9"]), {"left over"}),
        (2, Kept(2, gone=False), set()),
        (2, Kept(2, gone=True), {"absent"}),
        (2, Kept(1, gone=False), {"absent"}),
    ],
)
def test_what_folders_hold_is_held_against_what_there_is(
    node: int, one: Kept, broken: set[str]
) -> None:
    found = leftovers(two_lives(), {**kept(), node: {7: one}})
    assert {finding.partition(":")[0] for finding in found} == broken


def test_a_store_that_does_not_know_its_group_is_rejected() -> None:
    assert leftovers(two_lives(), {**kept(), 2: {}})


def test_a_leak_is_one_thing_for_each_group_and_not_a_thread_that_is_about_to_end() -> None:
    before = {1: {"threads": 20, "descriptors": 30}, 2: {"threads": 20, "descriptors": 30}}
    assert leaks(before, {1: {"threads": 22, "descriptors": 28}, 2: before[2]}, 12) == []
    found = leaks(before, {1: {"threads": 20, "descriptors": 42}, 2: before[2]}, 12)
    assert len(found) == 1
    assert "node 1 had 30 descriptors" in found[0]


def test_versions_of_members_say_the_generation() -> None:
    for generation in (1, 2, 65_535):
        first, end = created_version(generation), created_version(generation + 1)
        assert generation_of(first) == generation_of(end - 1) == generation
        assert generation_of(first - 1) == generation - 1


def test_clients_hear_of_an_end_later_than_of_a_beginning() -> None:
    book = two_lives()
    assert book.known(400) == [(7, 2)]
    book.ended(book.lives[7, 2], now_us=500)
    assert book.known(600) == [(7, 2)]
    assert book.members((7, 2)) == nodes()
    assert book.known(500 + 10**7) == []


# --- the schedule


def first(count: int, seed: str, kinds: Any = (), **more: Any) -> list[Episode]:
    kinds = kinds or [*GROUPS, *(KINDS.keys() - MEMBERS)]
    return list(itertools.islice(episodes(seed, kinds, (1, 2, 3), creating=True, **more), count))


def test_the_seed_decides_it_and_without_groups_it_is_as_it_was() -> None:
    assert first(50, "7/1") == first(50, "7/1")
    assert first(50, "7/1") != first(50, "8/1")
    found = list(itertools.islice(episodes("1", ["kill", "drop", "flip"], (1, 2, 3)), 100))
    assert not {fault.kind for one in found for fault in one.faults} & GROUPS.keys()


def test_groups_come_and_go_under_faults_that_lose_nothing() -> None:
    found = first(1_000, "6")
    assert {one.faults[0].kind for one in found} == GROUPS.keys() | LOSING | {"lag"}
    assert not {fault.kind for one in found for fault in one.faults[1:]} & SINGLE
    busy = [one for one in found if one.faults[0].kind in GROUPS]
    on_top = {fault.kind for one in busy for fault in one.faults[1:]}
    assert on_top == KINDS.keys() - SINGLE
    assert all(one.faults[0].kind in GROUPS for one in first(100, "6", [*GROUPS, "kill"]))


def test_who_is_asked_is_killed_only_where_nothing_else_hits_it() -> None:
    some = 0
    for one in first(1_000, "4"):
        lead, *others = one.faults
        if lead.kind not in GROUPS:
            continue
        hit = {
            node
            for fault in others
            if fault.kind not in {"drop", "oneway", "partial", "delay", "cut"}
            for node in fault.nodes
        }
        assert not hit & set(lead.nodes)
        assert not lead.nodes or not any(
            fault.leader_first and fault.kind in ("kill", "close", "stop", "power")
            for fault in others
        )
        some += bool(lead.nodes and others)
    assert some > 100


# --- which answer is held against whom


class Nobody:
    """A cluster whose nodes answer as they are told to."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.ids = [1, 2, 3]
        self.workers = {1: self}
        self.stopped = False
        self.noticed: Counter[str] = Counter()
        self.findings: list[str] = []
        self._answers = list(answers)
        self.groups = Groups(self, self, lambda text: None)  # type: ignore[arg-type]

    def __getitem__(self, node: int) -> "Nobody":
        return self

    async def start(self, *nodes: int) -> None: ...

    async def kill(self, *nodes: int) -> None: ...

    async def call(self, do: str, timeout_s: float, /, **arguments: Any) -> dict[str, Any]:
        answer = {"members": [], "files": [], "outcome": ACKNOWLEDGED}
        return answer | (self._answers.pop(0) if self._answers else {"outcome": REJECTED})


def asked(call: Call, *answers: dict[str, Any]) -> tuple[list[str], Any]:
    """What is found if these are the answers to a call, one after the other."""

    async def main() -> tuple[list[str], Any]:
        cluster = Nobody(*answers)
        try:
            done = await cluster.groups._reach([call], Patient(1))
        except Stuck:
            done = None
        return cluster.findings, done

    return asyncio.run(main())


class Hasty(random.Random):
    """Gives a call up that was rejected."""

    def random(self) -> float:
        return 0.0


class Patient(random.Random):
    """Nobody is hasty, one node is asked at a time."""

    def random(self) -> float:
        return 0.99

    def choice(self, seq: Any) -> Any:
        return seq[0]


CREATE = Call("create", 7, nodes(1, 2))
DELETE, STOP = Call("delete", 7), Call("stop", 7)
MOVE = Call("move", 7, nodes(1))
NONE = {"outcome": REJECTED, "text": "there is no group 7 that was created"}


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (CREATE, {"generation": 1, "hosted": 1}),
        (DELETE, {"generation": 1}),
        (STOP, {"generation": 1, "hosted": 1, "refused": "GroupStopped"}),
        (STOP, {"generation": 1, "hosted": 0}),  # it is no member
        (CREATE, {"generation": 1, "closing": True}),
        (MOVE, {"members": [1]}),
    ],
)
def test_an_answer_that_is_true_is_believed(call: Call, answer: dict[str, Any]) -> None:
    findings, done = asked(call, {"outcome": UNKNOWN}, answer)
    assert findings == []
    assert done[0] == call


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (CREATE, {"generation": 1, "hosted": 0}),
        (DELETE, {"generation": 1, "hosted": 1}),
        (DELETE, {"generation": 1, "files": ["checkpoints/7"]}),
        (STOP, {"generation": 1, "hosted": 1, "refused": ""}),
        (MOVE, {"members": [1, 2]}),
        (DELETE, NONE),
    ],
)
def test_an_answer_that_is_not_true_is_a_finding(call: Call, answer: dict[str, Any]) -> None:
    findings, _ = asked(call, answer, {"generation": 1, "hosted": 1, "members": [1]})
    assert findings
    assert findings[0].startswith("untrue: ")


def test_a_group_is_gone_from_the_moment_on_in_which_the_first_one_knew() -> None:
    said = [
        (DELETE, Answer(node, ACKNOWLEDGED, generation=1, said_us=us))
        for node, us in ((1, 300), (2, 200))
    ]
    found = Nobody().groups._done(said, perhaps=False)
    assert found is not None
    assert found[1].said_us == 200


def test_a_group_that_is_not_there_was_deleted_by_a_call_that_got_no_answer() -> None:
    findings, done = asked(DELETE, {"outcome": UNKNOWN}, NONE)
    assert findings == []
    assert done[0] == DELETE


def test_what_is_not_done_in_time_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torture_groups, "DONE_WITHIN_S", 0.2)
    findings, done = asked(DELETE)
    assert done is None
    assert findings[0].startswith("delete: delete group 7 was not done in ")


def test_a_call_without_an_answer_explains_the_group_that_it_made_later() -> None:
    async def main() -> None:
        cluster = Nobody({"outcome": UNKNOWN})
        one = cluster.groups
        listed = {7: (1, "live", nodes(1, 2))}
        one._explain(7, Seen(listed, {}, (), ""))
        assert one.book.there() == []  # nobody asked for it
        await one._ask(1, CREATE, 1.0)
        one._explain(7, Seen({7: (1, "live", nodes(1, 3))}, {}, (), ""))
        one._explain(7, Seen({7: (2, "live", nodes(1, 2))}, {}, (), ""))
        assert one.book.there() == []  # nor for such a one
        one._explain(7, Seen(listed, {}, (), ""))
        assert [life.log for life in one.book.there()] == [(7, 1)]
        assert cluster.noticed["group calls done later"] == 1

    asyncio.run(main())


def test_an_id_is_not_used_again_while_its_group_is_there() -> None:
    """Its end was asked for in haste, was rejected, and was left at that."""

    async def main() -> None:
        made = {"generation": 1, "hosted": 1, "said_us": 1}
        cluster = Nobody({"outcome": REJECTED, "error": "NoQuorum"}, made)
        cluster.groups.book.made(7, 1, frozenset({1}), 0)
        await cluster.groups._creates(7, 0.0, Hasty(1))
        assert cluster.noticed["group calls given up"] == 1
        assert cluster.findings == []

    asyncio.run(main())


def test_groups_that_cannot_lose_a_member_go_before_one_loses_what_it_has() -> None:
    async def main() -> None:
        cluster = Nobody(*[{"generation": 1}] * 2)
        book = cluster.groups.book
        book.made(7, 1, nodes(1, 2), 0)
        book.made(8, 1, nodes(1, 2, 3), 0)
        book.made(9, 1, nodes(2), 0)
        await cluster.groups.spare(1)
        assert [life.group for life in book.there()] == [8, 9]
        assert cluster.findings == []

    asyncio.run(main())


def test_two_that_made_different_groups_of_an_id_are_a_finding() -> None:
    one = Nobody().groups
    said = [
        (Call("create", 7, nodes(node)), Answer(node, ACKNOWLEDGED, generation=1, hosted=1))
        for node in (1, 2)
    ]
    assert one._done(said, perhaps=False)
    assert one._ends.findings[0].startswith("untrue: each of these")


def test_what_was_taken_is_given_back(tmp_path: Path) -> None:
    folder = tmp_path / "node1"
    (folder / "store").mkdir(parents=True)
    (folder / "store" / "data.mdb").write_text("old")
    taken = take_away(folder, ("store", "checkpoints"))
    assert not list(folder.iterdir())
    (folder / "store").mkdir()
    (folder / "store" / "new").write_text("new")
    give_back(folder, taken)
    assert [path.name for path in (folder / "store").iterdir()] == ["data.mdb"]


# --- the whole of it


def phx_torture(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "phx.cli", "torture", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=220, check=False)


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_groups_come_and_go_under_faults(tmp_path: Path) -> None:
    done = phx_torture(
        "--created", "--minutes", 0.6, "--seed", 5, "--faults", "kill,drop", "--json",
        "--dir", tmp_path / "kept",
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert result["findings"] == [], done.stderr
    assert result["creating"] is True
    assert sum(result["faults"][kind] for kind in GROUPS) >= 3
    assert result["created"] >= 4
    assert result["generations"] >= 2
    assert all(result["group_calls"].get(how, 0) >= 1 for how in ("create", "delete"))
    history = (tmp_path / "kept" / "era1" / "history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in history]
    done_there = [one for one in records if one["generation"] and one["outcome"] == ACKNOWLEDGED]
    assert len({(one["group"], one["generation"]) for one in done_there}) >= 3
    assert len(done_there) > 100


def test_the_same_schedule_again_is_a_command_that_is_taken() -> None:
    result = Result(1, 2.0, 3, 4, 5, dict.fromkeys(["kill", *GROUPS], 0), {}, creating=True)
    assert result.again.endswith("--faults kill --created")
    assert Options(1, 1, 3, 4, 16, ("kill",)).creating is False


@pytest.mark.timeout(30)
@pytest.mark.parametrize("words", [["--members"], ["--faults", "kill,replace"], ["--relaxed"]])
def test_where_groups_come_and_go_members_do_not_change_and_all_sync(words: list[str]) -> None:
    done = phx_torture("--created", *words)
    assert done.returncode == 2
    assert "--created does not go with" in done.stderr
