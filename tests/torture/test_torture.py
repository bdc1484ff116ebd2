"""phx torture finds what it is there to find; its seed decides the schedule; it cleans up."""

import asyncio
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import phx
from phx.errors import NotBootstrapped
from phx.machines import KeyValue
from phx.machines.kv import encode_set
from phx.node.rejoining import Loss, look
from phx.store import Store
from phx.store_facts import forget
from phx.store_folder import read_identity
from phx.testing.processes import Cluster
from phx.testing.torture.book import Log
from phx.testing.torture.clients import (
    ACKNOWLEDGED,
    CONSISTENCY,
    DAMAGED,
    REJECTED,
    UNKNOWN,
    Record,
)
from phx.testing.torture.disks import PowerDisk, SmallDisk, missing
from phx.testing.torture.losses import allow_rejoin, flip_some, lose_journal
from phx.testing.torture.machine import APPENDS, Appends, Damaged, encode_append, token_of, value_of
from phx.testing.torture.nemesis import Nemesis
from phx.testing.torture.run import OPTIONS, Options, eras
from phx.testing.torture.schedule import (
    DOUBTFUL,
    GROUPS,
    KINDS,
    LOSING,
    MEMBERS,
    NETWORK,
    SINGLE,
    WHOLE,
    Episode,
    episodes,
)
from phx.testing.torture.verdict import judge, pauses_us
from phx.types import Entry
from tests.api.cluster import config_of

# --- the verdict


def good() -> tuple[list[Record], dict[int, dict[Log, dict[str, Any]]]]:
    """A small run without fault: (records, states)."""
    at = itertools.count(0, 10)

    def done(client: int, key: str, kind: str, argument: Any, result: Any, **more: Any) -> Record:
        written = argument[-2] if kind in ("put", "cas") else argument or ""
        began = next(at)
        return Record(
            client, 1, 0, key, kind, argument, written, more.get("expected"), began,
            more.get("returned_us", began + 5), more.get("outcome", ACKNOWLEDGED), result,
            more.get("error", ""),
        )  # fmt: skip

    records = [
        done(1, "r0.0", "put", ["v1", 9], 1),
        done(2, "r0.0", "get", None, ["v1", 1]),
        done(1, "r0.0", "cas", [1, "v2", 9], 2, expected="v1"),
        done(2, "r0.0", "cas", [1, "v3", 9], None, expected="v1"),
        done(1, "s0.0", "append", "v4", "v4;"),
        done(1, "s0.0", "append", "v5", None, outcome=UNKNOWN, returned_us=None),
        done(2, "s0.0", "append", "v6", "v4;v5;v6;"),
        done(2, "s0.0", "append", "v7", None, outcome=REJECTED, returned_us=None, error="NoQuorum"),
        done(3, "r0.0", "get", None, ["v2", 2]),
        done(3, "s0.0", "append", "", "v4;v5;v6;"),
    ]
    records[-2].consistency, records[-1].consistency = "lease", "linearizable"
    states = {
        node: {
            (0, 0): {
                "applied": 8,
                "digest": "abc at 8",
                "machines": "def",
                "broken": [],
                "values": {"r0.0": "v2", "_probe": "probe"},
                "appends": {"s0.0": "v4;v5;v6;"},
            }
        }
        for node in (1, 2, 3)
    }
    return records, states


def test_a_run_without_fault_is_accepted() -> None:
    assert judge(*good()) == []


def rules(records: list[Record], states: Any) -> set[str]:
    """Names of the rules that are broken."""
    return {finding.partition(":")[0] for finding in judge(records, states)}


def on(states: Any, nodes: tuple[int, ...] = (1, 2, 3)) -> Iterator[dict[str, Any]]:
    return (states[node][0, 0] for node in nodes)


def append_lost(records: list[Record], states: Any) -> None:
    for state in on(states):
        state["appends"]["s0.0"] = "v5;v6;"


def append_lost_on_one_node(records: list[Record], states: Any) -> None:
    states[2][0, 0]["appends"] = {"s0.0": "v4;v5;"}


def appended_twice(records: list[Record], states: Any) -> None:
    for state in on(states):
        state["appends"]["s0.0"] = "v4;v5;v6;v4;"


def unknown_twice(records: list[Record], states: Any) -> None:
    for state in on(states):
        state["appends"]["s0.0"] = "v4;v5;v6;v5;"


def rejected_and_there(records: list[Record], states: Any) -> None:
    for state in on(states):
        state["appends"]["s0.0"] = "v4;v5;v6;v7;"


def invented(records: list[Record], states: Any) -> None:
    for state in on(states):
        state["values"]["r0.0"] = "v99"


def another_digest(records: list[Record], states: Any) -> None:
    states[3][0, 0]["digest"] = "abd at 8"


def another_machine(records: list[Record], states: Any) -> None:
    states[3][0, 0]["machines"] = "deg"


def one_is_behind(records: list[Record], states: Any) -> None:
    states[1][0, 0]["applied"] = 7


def halted(records: list[Record], states: Any) -> None:
    states[1][0, 0]["broken"] = ["halted"]


def stale_read(records: list[Record], states: Any) -> None:
    records[-2].result = ["v1", 1]


def put_lost(records: list[Record], states: Any) -> None:
    """Acknowledged, never overwritten, and not there: the last read has what was before."""
    records[2].kind, records[2].argument = "put", ["v2", 9]
    records[-2].result = ["v1", 1]


def rejected_and_read(records: list[Record], states: Any) -> None:
    records[2].outcome = REJECTED


def both_cas_succeed(records: list[Record], states: Any) -> None:
    records[3].result = 3


def read_before_written(records: list[Record], states: Any) -> None:
    records[6].result = "v4;v5;v6;v7;"


def versions_go_back(records: list[Record], states: Any) -> None:
    records[0].result, records[1].result, records[2].result = 5, ["v1", 5], 2


def one_version_for_two(records: list[Record], states: Any) -> None:
    records[2].result = 1


def a_byte_is_wrong(records: list[Record], states: Any) -> None:
    records[1].outcome, records[1].error = DAMAGED, "9 bytes, b'v1;v2;v1;'"


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (append_lost, {"lost"}),
        (append_lost_on_one_node, {"lost", "divergent"}),
        (appended_twice, {"twice"}),
        (unknown_twice, {"twice"}),
        (rejected_and_there, {"rejected"}),
        (invented, {"invented"}),
        (another_digest, {"divergent"}),
        (another_machine, {"divergent"}),
        (one_is_behind, {"divergent"}),
        (halted, {"broken"}),
        (stale_read, {"linearizable"}),
        (put_lost, {"linearizable"}),
        (rejected_and_read, {"linearizable", "rejected"}),
        (both_cas_succeed, {"linearizable"}),
        (read_before_written, {"linearizable"}),
        (versions_go_back, {"version"}),
        (one_version_for_two, {"version"}),
        (a_byte_is_wrong, {"damaged"}),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_a_bad_outcome_is_rejected(spoil: Callable[..., None], broken: set[str]) -> None:
    records, states = good()
    spoil(records, states)
    assert rules(records, states) == broken


def test_what_is_unknown_may_be_there_or_not() -> None:
    records, states = good()
    records[6].result = records[-1].result = "v4;v6;"
    for state in on(states):
        state["appends"]["s0.0"] = "v4;v6;"
    assert judge(records, states) == []


# --- values


def test_a_value_names_its_writer_and_shows_any_change() -> None:
    for size in (0, 1, 4, 5, 1000):
        value = value_of("v123", size)
        assert len(value) >= size
        assert token_of(value) == "v123"
    value = bytearray(value_of("v123", 100))
    for at in range(len(value)):
        value[at] ^= 1
        with pytest.raises(Damaged):
            token_of(bytes(value))
        value[at] ^= 1
    with pytest.raises(Damaged):
        token_of(bytes(value[:-2]))


def test_appends_keep_order_and_repetition() -> None:
    def apply(machine: Appends, *tokens: str) -> bytes:
        entries = [Entry(value=encode_append("k", token), machine=APPENDS) for token in tokens]
        last: bytes = machine.apply_batch(entries)[-1]
        return last

    one, other = Appends(), Appends()
    assert apply(one, "a", "b", "") == b"a;b;"
    assert apply(other, "b", "a") == b"b;a;"
    assert one.digest() != other.digest()
    assert apply(Appends(), "a", "a") == b"a;a;"


# --- the schedule


def first(count: int, seed: str, kinds: Any = KINDS, **more: Any) -> list[Episode]:
    return list(itertools.islice(episodes(seed, kinds, (1, 2, 3), **more), count))


def test_the_seed_decides_the_schedule() -> None:
    assert first(50, "7/1") == first(50, "7/1", tuple(reversed(KINDS)))
    assert first(50, "7/1") != first(50, "8/1")


def test_every_kind_has_its_turn_before_any_has_the_next() -> None:
    turn = [episode.faults[0].kind for episode in first(3 * len(KINDS), "3")]
    for at in range(0, len(turn), len(KINDS)):
        assert sorted(turn[at : at + len(KINDS)]) == sorted(KINDS)
    begun = [one.faults[0].kind for one in first(3, "3", first=("power", "eio", "cut"))]
    assert sorted(begun) == ["cut", "eio", "power"]


def test_a_process_or_its_disk_has_one_fault_at_a_time() -> None:
    overlapping = mixed = beyond_minority = everybody = leaders = 0
    for episode in first(2_000, "5", longest_s=3.0):
        own = [fault for fault in episode.faults if fault.kind not in NETWORK]
        hit = [node for fault in own for node in fault.nodes]
        assert len(hit) == len(set(hit))
        assert all(fault.nodes for fault in episode.faults)
        # Who leads is known only then: nobody else may have a fault of that sort.
        assert len(own) == 1 or not any(fault.leader_first for fault in own)
        assert all(fault.lasts_s <= 3.0 for fault in episode.faults)
        overlapping += len(own) > 1
        mixed += len({fault.kind for fault in episode.faults}) > 1
        beyond_minority += len(set(hit)) == 2
        everybody += len(set(hit)) == 3
        leaders += any(fault.leader_first for fault in episode.faults)
    assert min(overlapping, mixed, beyond_minority, everybody, leaders) > 50


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_alone_is_alone(kind: str) -> None:
    assert {fault.kind for one in first(50, "1", [kind]) for fault in one.faults} == {kind}


def test_where_members_change_each_episode_begins_with_that() -> None:
    found = first(1_000, "6", changing=True)
    assert {one.faults[0].kind for one in found} == MEMBERS
    assert not {fault.kind for one in found for fault in one.faults[1:]} & MEMBERS
    on_top = {fault.kind for one in found for fault in one.faults[1:]}
    # (Where members change nothing is lost, and nobody lags so far, at the same time.)
    assert on_top == KINDS.keys() - SINGLE - WHOLE
    assert all(len(one.faults[0].nodes) == 3 for one in found if one.faults[0].kind == "move")
    assert first(200, "6", MEMBERS, changing=True)


def test_pauses_are_those_of_the_group_that_waited_longest() -> None:
    records, _ = good()  # of group 0, acknowledged at 5, 15, ... 45, 65, 85, 95
    assert pauses_us(records, [(0, 50), (40, 90), (200, 300)]) == [10, 20, 100]
    other = [dataclasses.replace(one, group=1) for one in records if one.returned_us == 25]
    assert pauses_us([*records, *other], [(0, 50)]) == [25]


def test_no_two_nodes_lose_what_was_durable_at_a_time() -> None:
    kinds = set()
    for episode in first(3_000, "9"):
        single = [fault for fault in episode.faults if fault.kind in SINGLE]
        assert len(single) <= 1
        assert all(len(fault.nodes) == 1 for fault in single if fault.kind != "move")
        kinds |= {fault.kind for fault in single if len(episode.faults) > 1}
    assert kinds == SINGLE - GROUPS.keys() > LOSING


def test_where_groups_are_relaxed_one_machine_fails_at_a_time() -> None:
    """More than what is only written outlives."""
    kinds = set()
    for episode in first(3_000, "9", relaxing=True):
        single = [fault for fault in episode.faults if fault.kind in SINGLE | DOUBTFUL]
        assert len(single) <= 1
        assert all(len(fault.nodes) == 1 for fault in single if fault.kind not in WHOLE)
        kinds |= {fault.kind for fault in single}
    assert kinds > DOUBTFUL
    assert any(len(one.faults[0].nodes) == 3 for one in first(50, "9", ["power"]))


def test_who_starts_again_after_its_power_went_is_on_a_machine_that_was_started_anew() -> None:
    async def main() -> None:
        async with Cluster(2, 1, "", "phx.testing.torture.worker") as cluster:
            assert [cluster._spec(node).boot for node in (1, 2)] == ["", ""]
            cluster.reboot(2)
            before = cluster._spec(2).boot
            cluster.reboot(2)
            assert cluster._spec(1).boot == "" != before != cluster._spec(2).boot
            assert len(uuid.UUID(before).bytes) == 16

    asyncio.run(main())


def test_eras_have_the_disks_that_the_faults_need() -> None:
    def of(minutes: float, *faults: str) -> list[str]:
        return eras(Options(minutes, 1, 3, 4, 16, faults))

    assert of(1, "kill", "drop") == ["plain"]
    assert of(1, "kill", "power") == ["power"]
    assert of(1, *KINDS) == ["power", "small"]
    assert of(9, *KINDS) == ["power", "small", "plain"]
    assert set(of(30, *KINDS)) == {"power", "small", "plain"}
    assert len(of(30, "kill")) == 10


def test_the_journal_holds_what_may_be_pending_twice_and_four_segments() -> None:
    """With less a node that catches up runs into its limit again and again."""
    for options in OPTIONS:
        journal, limits = options["journal"], options["limits"]
        least = 2 * limits["pending_bytes_max"] + 4 * journal["segment_bytes"]
        assert journal["journal_bytes_max"] >= least


# --- what disks lose


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a node with a store, checkpoints, and a journal of several segments."""
    root = tmp_path_factory.mktemp("losses")
    config = config_of(root, 1, nodes=1)

    async def fill() -> None:
        async with phx.Node(config, KeyValue, bootstrap=True) as node:
            value = bytes(900_000)
            await asyncio.gather(
                *(node.group(0).propose(encode_set(b"%d" % n, value)) for n in range(5))
            )
            await node.group(0).checkpoint()
            # A node that was killed: with more of a journal than one that was closed.
            shutil.copytree(config.dir, root / "killed", ignore=shutil.ignore_patterns("control"))

    asyncio.run(fill())
    return root / "killed"


@pytest.fixture
def copied(closed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(closed, tmp_path / "node"))


@pytest.mark.parametrize("seed", range(6))
def test_what_is_lost_of_a_journal_is_seen_and_may_be_lived_without(
    copied: Path, seed: int
) -> None:
    assert lose_journal(copied, random.Random(seed))
    assert not [path for path in copied.iterdir() if path.name.endswith(".aside")]
    lost = look(copied)
    assert isinstance(lost, Loss)
    assert allow_rejoin(copied)
    assert not (copied / "journal").exists()


def test_every_way_to_lose_a_journal_is_taken(closed: Path, tmp_path: Path) -> None:
    ways = set()
    for seed in range(12):
        folder = Path(shutil.copytree(closed, tmp_path / str(seed)))
        ways.add(lose_journal(folder, random.Random(seed)).split(" ")[0])
        shutil.rmtree(folder)
    assert ways == {"everything", "all", "bit"}


def test_a_node_that_could_not_rejoin_loses_nothing(copied: Path) -> None:
    owner = read_identity(copied / "store", 1 << 20)
    store = Store.open(copied / "store", cluster=owner.cluster, node=owner.node)
    forget(store)
    store.close()
    before = {path: path.read_bytes() for path in (copied / "journal").iterdir()}
    assert lose_journal(copied, random.Random(1)) == ""
    assert {path: path.read_bytes() for path in (copied / "journal").iterdir()} == before
    assert not allow_rejoin(copied)


def test_flips_are_of_bits_and_can_be_taken_back(copied: Path) -> None:
    files = [path for path in copied.rglob("*") if path.is_file()]
    whole = {path: path.read_bytes() for path in files}
    hit = set()
    for seed in range(40):
        before = flip_some(copied, random.Random(seed))
        assert before
        for path, content in before.items():
            assert content == whole[path]
            changed = [
                (one, other)
                for one, other in zip(content, path.read_bytes(), strict=True)
                if one != other
            ]
            assert len(changed) <= 3
            path.write_bytes(content)
            hit.add(path.name)
    assert {path: path.read_bytes() for path in files} == whole
    assert hit == {"data.mdb", "manifest", "machine-0"}


# --- the whole of it


@pytest.fixture
def phx_torture(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``phx torture``; when the test ends no process and no mount of it may be left."""
    mark = f"PHX_TEST_MARK={tmp_path}"
    environment = {**os.environ, "PHX_TEST_MARK": str(tmp_path), "TMPDIR": str(tmp_path)}
    begun = []

    def begin(*words: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "phx.cli", "torture", *map(str, words)],
            env=environment, cwd=tmp_path, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()
    until = time.monotonic() + 15
    while (left := processes_of(mark)) and time.monotonic() < until:
        time.sleep(0.05)
    assert left == []
    if Path("/proc/mounts").exists():
        assert str(tmp_path) not in Path("/proc/mounts").read_text()


def processes_of(mark: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue  # gone, or somebody else's
    return found


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"{text!r} was not written")


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(150)
def test_ten_seconds_of_torture_find_nothing(phx_torture, tmp_path: Path) -> None:
    words = ["--minutes", 0.17, "--seed", 11, "--dir", tmp_path / "kept", "--json"]
    out, err = phx_torture(*words).communicate(timeout=140)
    result = json.loads(out)
    assert result["findings"] == [], err
    assert result["acknowledged"] > 500
    assert all(result["reads"][how] > 0 for how in CONSISTENCY)
    assert result["operations"] >= result["acknowledged"] + result["unknown"] + result["rejected"]
    assert result["episodes"] >= 1
    assert sum(result["faults"].values()) >= 3
    assert result["restarts"] >= 3 * 2 * result["eras"]  # born, and at the end
    assert result["writable_ms"]["max"] < 30_000
    assert set(result["faults"]) | set(result["left_out"]) == set(KINDS)
    history = (tmp_path / "kept" / "era1" / "history.jsonl").read_text().splitlines()
    assert len(history) > 100


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("kind", "noticed", "minutes"),
    [
        ("wipe-journal", ("rejoined",), 0.3),
        # Of those that were only stopped some go on from what stood in their sockets.
        ("lag", ("below the floors", "fetched a checkpoint"), 0.5),
        ("flip", ("flip found",), 0.7),  # some hit what nobody reads
        ("wipe", ("store made anew",), 0.3),
        ("full", ("journal full", "store error"), 0.5),
    ],
)
def test_a_fault_does_what_it_says(
    phx_torture, kind: str, noticed: tuple[str, ...], minutes: float
) -> None:
    if why := missing(kind):
        pytest.skip(why)
    words = ["--minutes", minutes, "--seed", 4, "--faults", kind, "--json"]
    out, err = phx_torture(*words).communicate(timeout=180)
    result = json.loads(out)
    assert result["findings"] == [], err
    assert result["faults"][kind] >= 1
    assert all(result["noticed"].get(one, 0) >= 1 for one in noticed), result["noticed"]
    assert result["acknowledged"] > 100


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nodes_are_replaced_under_faults(phx_torture) -> None:
    words = ["--minutes", 0.5, "--seed", 5, "--members", "--faults", "kill,drop", "--json"]
    out, err = phx_torture(*words).communicate(timeout=220)
    result = json.loads(out)
    assert result["findings"] == [], err
    assert result["changing"] is True
    assert sum(result["faults"][kind] for kind in MEMBERS) >= 1
    assert result["changes"] >= 1
    assert result["replaced"] >= 1
    assert result["change_ms"]["max"] > 0
    assert result["acknowledged"] > 100


@pytest.mark.processes
@pytest.mark.timeout(240)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_torture_leaves_nothing_however_it_ends(phx_torture, tmp_path: Path, number: int) -> None:
    process = phx_torture("--minutes", 1, "--seed", 3)
    wait_for(process, " operations: ")
    process.send_signal(number)
    assert process.wait(150) != 0
    if number != signal.SIGKILL:
        assert not list(tmp_path.glob("phx-*"))


class Workers(dict[int, Any]):
    """What a nemesis needs of a cluster here."""

    mesh = object()
    ids = (1,)

    @property
    def workers(self) -> dict[int, Any]:
        return self

    def reboot(self, node: int) -> None:
        assert node in self.ids


class CountedDisk(PowerDisk):
    """Tells what it is asked; `off` takes until `going` is set."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.asked: list[str] = []
        self.going = threading.Event()

    def off(self) -> None:
        self.asked.append("off")
        assert self.going.wait(10)

    def release(self) -> None:
        self.asked.append("release")

    def cut(self, seed: int, keep: float) -> None:
        self.asked.append("cut")


def test_who_is_told_to_end_while_power_goes_gives_it_back() -> None:
    """Or the processes that wait for a sync could not be killed, and the end waited for them."""
    disk = CountedDisk()

    class Ending:
        def kill(self) -> None:
            disk.asked.append("kill")

        async def wait(self) -> int:
            disk.asked.append("wait")
            return -9

    async def given_up() -> None:
        cluster: Any = Workers({1: Ending()})
        nemesis = Nemesis(cluster, SimpleNamespace(disks={1: disk}), lambda text: None)
        going = asyncio.create_task(nemesis.power_goes([1], 0, 0.0))
        while not disk.asked:  # noqa: ASYNC110 - a thread says it
            await asyncio.sleep(0.001)
        going.cancel()
        await asyncio.sleep(0.01)
        disk.going.set()
        with pytest.raises(asyncio.CancelledError):
            await going

    asyncio.run(given_up())
    assert disk.asked == ["off", "kill", "release", "kill", "wait", "cut"]


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_a_node_that_does_not_come_back_is_a_finding(phx_torture, tmp_path: Path) -> None:
    """Somebody takes the data of the killed node away."""
    kept = tmp_path / "kept"
    process = phx_torture("--minutes", 1, "--faults", "kill", "--dir", kept)
    wait_for(process, "operations: kill")
    os.rename(kept / "era1" / "node1", kept / "node1")
    os.rename(kept / "era1" / "node2", kept / "node2")
    os.rename(kept / "era1" / "node3", kept / "node3")
    out, err = process.communicate(timeout=55)
    assert process.returncode == 1, err
    assert NotBootstrapped.__name__ in err
    assert f"kept in {kept}" in out
    assert (kept / "findings.txt").read_text() in err


@pytest.mark.timeout(30)
def test_a_fault_that_cannot_be_had_is_wrong_usage(phx_torture, tmp_path: Path) -> None:
    """Without strace in the path."""
    os.environ["PATH"], path = str(tmp_path), os.environ["PATH"]
    try:
        process = subprocess.run(
            [sys.executable, "-m", "phx.cli", "torture", "--faults", "kill,eio"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        os.environ["PATH"] = path
    assert process.returncode == 2
    assert "eio: strace is not installed" in process.stderr


def test_a_small_disk_can_be_filled_and_freed(tmp_path: Path) -> None:
    disk = SmallDisk(tmp_path / "disk")
    try:
        disk.begin()
    except PermissionError as error:
        pytest.skip(f"may not mount here: {error}")
    try:
        (disk.point / "file").write_bytes(b"x" * 5000)
        assert disk.fill() > 1 << 20
        with pytest.raises(OSError):
            (disk.point / "more").write_bytes(b"x" * 5000)
        disk.free()
        (disk.point / "more").write_bytes(b"x" * 5000)
    finally:
        disk.end()
    assert not os.path.ismount(disk.point)
