"""The comparison with peers: its table, and the part of it that is phx, tiny. No peer is needed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PEERS = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("peers_table", PEERS / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "peers_table", module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def run(table: ModuleType, system: str, rate: float, case: str = "a", **other: Any) -> Any:
    values = {
        "case": case,
        "system": system,
        "durability": "synced",
        "round": 0,
        "values_per_s": rate,
        "p50_us": 1500.0,
        "p99_us": 250_000.0,
        "acknowledged": 10,
        "failed": 1,
        "check": "all there",
        "ok": True,
    }
    return table.Run(**(values | other))


def test_rows_are_medians_with_the_ratio_of_phx_to_each(table: ModuleType) -> None:
    runs = [run(table, "phx", rate) for rate in (300.0, 100.0, 900.0)]
    runs += [run(table, "peer", rate) for rate in (40.0, 60.0, 50.0)]
    runs.append(run(table, "peer", 1.0, case="b"))
    phx, peer, alone = table.summary(runs)
    assert (phx["values_per_s"], phx["lowest"], phx["highest"]) == (300.0, 100.0, 900.0)
    assert (phx["ratio"], peer["ratio"]) == (1.0, 6.0)
    assert (peer["acknowledged"], peer["failed"], peer["rounds"]) == (30, 3, 3)
    assert (alone["case"], alone["ratio"]) == ("b", None)


def test_a_failed_check_is_shown_though_later_runs_were_well(table: ModuleType) -> None:
    runs = [run(table, "peer", 9.0, check="3 missing", ok=False), run(table, "peer", 9.0)]
    (row,) = table.summary(runs)
    assert (row["ok"], row["check"]) == (False, "3 missing")
    assert "check NOT OK: 3 missing" in table.markdown([row])


def test_a_run_without_a_figure_moves_no_median_and_is_named(table: ModuleType) -> None:
    none = {"check": "no leader", "ok": False, "ran": False, "acknowledged": 0}
    runs = [run(table, "peer", 0.0, durability="–", **none)]
    runs += [run(table, "peer", rate) for rate in (40.0, 60.0)]
    (row,) = table.summary(runs)
    assert (row["values_per_s"], row["lowest"], row["rounds"]) == (50.0, 40.0, 2)
    assert (row["durability"], row["ok"], row["check"]) == ("synced", False, "no leader")


def test_a_system_that_never_ran_has_no_ratio(table: ModuleType) -> None:
    runs = [run(table, "phx", 5.0), run(table, "peer", 0.0, ok=False, ran=False)]
    _, peer = table.summary(runs)
    assert (peer["ratio"], peer["rounds"]) == (None, 0)


def test_the_table_has_a_line_for_each_system_of_each_case(table: ModuleType) -> None:
    runs = [run(table, name, 1234.0, case=case) for case in ("a", "b") for name in ("phx", "peer")]
    lines = table.markdown(table.summary(runs)).splitlines()
    assert [line for line in lines if line.startswith("###")] == ["### a", "### b"]
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith(("| phx", "| peer"))]
    assert len(rows) == 4
    assert rows[0] == ["phx", "synced", "1,234", "1,234–1,234", "1.5", "250", "1"]


@pytest.mark.parametrize(("part", "expected"), [(0.0, 1.0), (0.5, 3.0), (0.99, 4.0), (1.0, 4.0)])
def test_quantile(table: ModuleType, part: float, expected: float) -> None:
    assert table.quantile([1.0, 2.0, 3.0, 4.0], part) == expected
    assert table.quantile([], part) == 0.0


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_phx_alone_is_measured_and_checked(mark: dict[str, str], tmp_path: Path) -> None:
    words = ["--systems", "phx", "--callers", "5,0", "--seconds", "0.5", "--warmup", "0"]
    words += ["--rounds", "1", "--dir", str(tmp_path), "--json", "-"]
    done = subprocess.run(
        [sys.executable, str(PEERS / "run.py"), *words],
        env={**os.environ, **mark},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["case"] for row in result["rows"]] == [
        "5 callers, one awaited value each",
        "best mode of each",
    ]
    for row, one in zip(result["rows"], result["runs"], strict=True):
        assert row["system"] == "phx"
        assert (row["ok"], row["ratio"], row["failed"]) == (True, 1.0, 0)
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert one["acknowledged"] >= one["values_per_s"] * 0.5 > 0
        assert "bench" in one["command"]
    assert result["environment"]["fdatasync_p50_us"] > 0
    assert not list(tmp_path.glob("peers-*"))  # nothing is left behind
