"""A small real run: the limit is asked for just before, and the row is a share of it."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from phx.bench import run
from phx.bench.case import CASES, Case
from phx.bench.table import tables
from phx.cli.bench import report

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]


class Said:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, text: str) -> None:
        pass


def test_rows_are_shares_of_a_limit_that_is_measured_just_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = Said()

    def measure(folder: Path | None, **settings: Any) -> dict[str, Any]:
        assert folder == tmp_path
        settings["progress"]("the limit")
        one = {"values_per_s": 1e5, "p50_us": 1.0, "p99_us": 2.0, "syncs": 9}
        return {
            "sync_us": {"p50": 1.0},
            "append_bytes_per_s": {"best": 1e9},
            "round_trip_us": {"p50": 1.0},
            "cluster": one,
            "cluster_futures": {"asyncio": one, "uvloop": one},
            "cluster_one": {"p50_us": 1.0},
        }

    native = ModuleType("phx.bench.limit_run")
    native.measure = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "phx.bench.limit_run", native)
    case = Case(groups=1, inflight=1, seconds=0.5, warmup=0.2, loop="asyncio")
    result = run.run(run.Options([case], tmp_path, limit=True), said)
    (row,) = result["rows"]
    assert row["verified"]
    assert 0 < row["of_limit"]["values_per_s"] < 1
    assert row["of_limit"]["p50"] == row["p50_us"]
    assert result["limits"][0]["inflight"] == 1
    assert said.notes.index("the limit") < said.notes.index(f"{case.label}: starting 3 processes")
    assert any("p50/limit" in table.columns for table in tables(result))


@pytest.mark.parametrize(
    ("mode", "at", "reads"),
    [
        ("propose", "leader", "lease"),
        ("propose_many", "any", "stale"),
        ("propose_many", "follower", "linearizable"),
    ],
)
def test_rows_of_reads_count_reads_and_sync_nothing(
    mode: str, at: str, reads: str, tmp_path: Path
) -> None:
    case = Case(groups=3, inflight=30, mode=mode, at=at, reads=reads, seconds=1, warmup=0.7)
    result = run.run(run.Options([case], tmp_path), Said())
    (row,) = result["rows"]
    assert row["verified"]
    assert (row["values_per_s"], row["rejected"], row["acknowledged"]) == (0, 0, 0)
    assert row["reads_per_s"] == row["measured"] / 1
    assert row["reads_per_s"] > 1000
    assert row["syncs"] == 0
    assert any("reads/s" in table.columns for table in tables(result))


def test_rows_that_were_measured_are_not_lost_with_one_that_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = Case(groups=1, inflight=1, seconds=0.5, warmup=0.2, loop="asyncio")
    whole, begun = run._Bench.measure, []

    async def measure(self: Any) -> Any:
        begun.append(self._case)
        if len(begun) == 2:
            raise run.WorkerFailed("it died")
        return await whole(self)

    monkeypatch.setattr(run._Bench, "measure", measure)
    more = [replace(case, seconds=0.6), replace(case, seconds=0.7)]
    result = run.run(run.Options([case, *more], tmp_path), Said())
    assert [row["seconds"] for row in result["rows"]] == [0.5]
    assert result["failed"].endswith("it died")
    assert len(begun) == 2
    with pytest.raises(SystemExit) as end:
        report(result, str(tmp_path / "out.json"), None)
    assert end.value.code == 1
    assert json.loads((tmp_path / "out.json").read_text())["rows"][0]["verified"]


@pytest.mark.parametrize("name", CASES)
def test_the_log_is_kept_until_it_was_read_back(name: str) -> None:
    """A node takes checkpoints by itself, and what they cover would be gone."""
    for case in CASES[name].rows:
        assert run._options(case)["checkpoints"]["trim"] is False
