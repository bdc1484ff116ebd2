"""The demo finds what it is there to find: a loss, a silence, an outcome that nobody knows."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from phx.cli.demo import Times, count_outcomes, longest_gap_ms, longest_gaps_ms
from phx.cli.ledger import ACKNOWLEDGED, REJECTED, UNKNOWN, Ledger, key_of, value_of
from phx.cli.worker import WorkerNode

MS = 1000
TIMES = Times(
    began_us=0, fault_us=1000 * MS, stopped_us=3000 * MS, victim=1, led=[0, 2], caught_up_ms=None
)


def write(path: Path, acknowledged: dict[int, list[int]], *, slots: int = 6) -> Ledger:
    """A ledger with two writers per group: slot to the milliseconds of its acknowledgements."""
    ledger = Ledger(path, 1, slots, 2, 1 << 16)
    for slot, times_ms in acknowledged.items():
        for number, at in enumerate(times_ms, 1):
            ledger.submitted(slot, number)
            ledger.outcome(slot, number, ACKNOWLEDGED, at * MS)
    return ledger


@pytest.mark.parametrize(
    ("at_ms", "gap", "recovered"),
    [
        ([990, 1500, 2900], 1400, True),  # the longest, wherever it is after the fault
        ([990, 1800, 2000, 2500, 2990], 810, True),  # counted from the last one before the fault
        ([100, 990], 2010, False),  # nobody took over
        ([], 3000, False),
        ([100, 900, 950, 3100], 2050, False),  # too late does not count
        ([100, 700, 999, 1001, 1500, 2000, 2500, 2999], 500, True),  # silence before does not
    ],
)
def test_longest_gap(at_ms: list[int], gap: float, recovered: bool) -> None:
    assert longest_gap_ms([at * MS for at in reversed(at_ms)], TIMES) == (gap, recovered)


def test_gaps_are_over_all_surviving_writers_and_only_of_groups_that_the_victim_led(
    tmp_path: Path,
) -> None:
    write(tmp_path / "2", {0: [900, 1900], 1: [2000], 2: [10], 4: [900, 1500]})
    write(tmp_path / "3", {0: [2800], 5: [2990]})
    gaps = longest_gaps_ms([tmp_path / "2", tmp_path / "3"], TIMES)
    assert gaps == {0: (1000, True), 2: (1490, True)}


def test_what_was_in_flight_in_a_killed_process_is_unknown(tmp_path: Path) -> None:
    ledger = write(tmp_path / "1", {0: [1, 2, 3], 3: [4]})
    ledger.submitted(0, 4)
    ledger.submitted(5, 1)
    ledger.submitted(3, 2)
    ledger.outcome(3, 2, UNKNOWN, 5)
    ledger.submitted(3, 3)
    ledger.outcome(3, 3, REJECTED, 6)
    counted = count_outcomes({1: [tmp_path / "1"]})
    assert (counted.acknowledged, counted.unknown, counted.rejected) == (4, 3, 1)


class Machine(dict[str, bytes]):
    pass


def worker_with(machines: dict[int, Any], tmp_path: Path) -> WorkerNode:
    config = {"cluster": "t", "node": 1, "members": {"1": "127.0.0.1:1"}, "dir": str(tmp_path)}
    worker = WorkerNode({"config": {**config, "groups": len(machines)}, "machine": "kv"})
    worker.machines = machines
    return worker


@pytest.mark.parametrize("harm", ["none", "missing", "changed", "elsewhere"])
def test_reading_back_finds_each_value_that_is_not_there(tmp_path: Path, harm: str) -> None:
    ledger = write(tmp_path / "l", {slot: [1, 2, 3] for slot in range(6)})
    machines = {group: Machine() for group in range(3)}
    for slot in range(6):
        for number in (1, 2, 3):
            key = key_of(ledger.salt, slot, number)
            machines[slot // 2][key] = value_of(ledger.salt, slot, number)
    key = key_of(ledger.salt, 3, 2)
    if harm == "missing":
        del machines[1][key]
    elif harm == "changed":
        machines[1][key] = b"other"
    elif harm == "elsewhere":
        machines[0][key] = machines[1].pop(key)
    found = asyncio.run(worker_with(machines, tmp_path).do_check([str(tmp_path / "l")]))
    assert found["checked"] == 18
    assert found["lost"] == (0 if harm == "none" else 1)
    assert found["examples"] == ([] if harm == "none" else [f"group 1 key {key}"])
