"""From what processes noted to rows, tables, ratios and pictures; all by hand."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from phx.bench.case import Case
from phx.bench.compare import compare, fallen
from phx.bench.limit_of import LimitMissing, Limits, shares
from phx.bench.plot import curves, plot
from phx.bench.row import between, layers, measured_row
from phx.bench.table import tables
from phx.cli.commands import phx as command

CASE = Case(groups=2, inflight=10, seconds=6, nodes=2, loop="uvloop")
LED = {1: [0], 2: [1]}
MEMORY = {1: {"bare": 1000, "now": 5000}, 2: {"bare": 1000, "now": 3000}}


def process(group: int, rate: int) -> dict[str, Any]:
    """A process whose clients get `rate` values/s in the first half, half of that in the second."""
    done = [second * rate if second <= 3 else (3 + second) * rate // 2 for second in range(7)]
    return {
        "loads": [
            {
                "measured": {str(group): done[-1]},
                "count": {str(group): done[-1] + 5},
                "sum": {str(group): 0},
                "unknown": {str(group): [7]},
                "rejected": 1,
                "latency_ns": {"2000": done[-1]},
            }
        ],
        "cpu_ns": 10_000,
        "loop_cpu_ns": 5000,
        "counters": {
            "cpu_ns.poll": 3000,
            "cpu_ns.journal": 1000,
            "cpu_ns.poll.engine": 100,
            "cpu_ns.poll.send": 300,
            "applier.apply_ns": 700,
            "applier.wake_ns": 300,
            "journal.syncs": 30,
            "journal.bytes_written": 9000,
            "store.settled_bytes": 1800,
            "wire.bytes_sent": 900,
        },
        "samples": [
            (second, count, 9000 + second, 100 * second, 50 - second, second)
            for second, count in enumerate(done)
        ],
    }


def row(**changed: Any) -> dict[str, Any]:
    results = {1: process(0, 100), 2: process(1, 300)}
    case = Case(**{**asdict(CASE), **changed})
    return asdict(measured_row(case, 0, LED, MEMORY, results, ""))


def result(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"environment": {"fdatasync_p50_us": 100.0}, "limits": [], "rows": list(rows)}


def test_figures_of_a_row_are_over_all_nodes() -> None:
    made = row()
    assert made["measured"] == 1800  # 450 and 1,350
    assert made["values_per_s"] == 300
    assert made["group_values_per_s"] == {"min": 75, "median": 150, "max": 225}
    assert made["acknowledged"] == 1810
    assert (made["rejected"], made["unknown"]) == (2, 2)
    assert made["values_per_sync"] == 60
    assert made["syncs_per_s"] == 5
    assert made["cpu_ns_per_value"] == round(20_000 / 1800, 1)
    assert made["journal_bytes_per_value"] == 10
    assert made["store_bytes_per_value"] == 2
    assert made["wire_bytes_per_value"] == 1
    assert made["memory_bytes_per_group"] == 1500
    assert made["leaders_by_node"] == {"1": 1, "2": 1}
    assert made["p50_us"] == made["p999_us"] == pytest.approx(22.0, abs=0.1)  # exp(10) ns
    assert made["verified"]


def test_parts_of_the_cpu_add_up_to_all_of_it() -> None:
    made = row()["layers_ns_per_value"]
    each = {name: ns * 1800 for name, ns in made.items()}
    assert sum(each.values()) == pytest.approx(20_000, rel=0.02)
    assert each["poll.send"] == pytest.approx(3 * each["poll.engine"], rel=0.05)
    assert each["store"] == pytest.approx(2000, rel=0.05)
    assert each["clients"] == pytest.approx(8000, rel=0.05)


def test_a_loop_that_waited_for_the_processor_shares_what_it_had() -> None:
    grown = {"cpu_ns.poll": 3000, "applier.apply_ns": 9000, "applier.wake_ns": 3000}
    made = layers({1: {"loop_cpu_ns": 4000}}, grown, 8000)
    assert (made["apply"], made["wake"], made["clients"]) == (3000, 1000, 0)
    assert sum(made.values()) == 8000 - 3000  # the poll thread's parts were not noted


def test_what_happened_over_time() -> None:
    made = row()
    assert made["last_third_to_first"] == 0.5
    assert [one["values_per_s"] for one in made["samples"]] == [400, 400, 400, 200, 200, 200]
    assert made["memory_bytes"] == {
        "begin": 0, "third": 400, "end": 1200, "max": 1200, "notes": 12,
    }  # fmt: skip
    assert made["unsettled_bytes"] == {"begin": 50, "end": 44, "max": 50}
    assert between([(0, 0, 0, 0, 0, 0), (10, 100, 0, 0, 0, 0)], 2.5, 5) == 10


def test_windows_with_and_without_checkpoints_are_told_apart() -> None:
    """Eight of them: 400 values/s in the first four, then 200."""
    found = row(checkpoint_s=3)["checkpoints"]
    assert (found["off_values_per_s"], found["on_values_per_s"]) == (300, 300)
    assert found["on_to_off"] == 1
    slow = process(0, 100)
    slow["samples"] = [(at, at // 2 * 100, 0, 0, 0, 0) for at in range(9)]  # nothing in each first
    slow["counters"]["checkpoints.taken"] = 7
    case = replace(CASE, seconds=8, checkpoint_s=3)
    measured = asdict(measured_row(case, 0, LED, MEMORY, {1: slow}, ""))["checkpoints"]
    assert (measured["off_values_per_s"], measured["on_values_per_s"]) == (0, 100)
    assert (measured["taken"], measured["on_to_off"]) == (7, 0)
    shown = {table.title: table for table in tables(result(row(checkpoint_s=3)))}
    assert "on/off" in shown["checkpoints in turns: values/s"].columns
    assert row()["checkpoints"] == {}


def test_a_held_gil_is_measured_against_the_time_before() -> None:
    found = row(gil_s=2)["gil"]
    assert found["before_values_per_s"] == 400
    assert found["held_values_per_s"] == 300
    assert found["after_values_per_s"] == 200
    assert found["held_to_before"] == 0.75


def test_tables_show_settings_that_differ_and_what_was_found() -> None:
    wrong = row(groups=5, inflight=20)
    wrong.update(verified=False, finding="lost one")
    title, columns, cells = tables(result(row(), wrong))[0]
    assert columns[:2] == ["groups", "in flight"]
    assert [line[:3] for line in cells] == [["2", "10", "300"], ["5", "20", "300"]]
    assert [line[-1] for line in cells] == ["yes", "lost one"]
    assert "2 nodes" in title
    assert "fdatasync 100 us" in title
    held = [table.title for table in tables(result(row(gil_s=2)))]
    assert any("GIL" in one for one in held)
    assert not any("limit" in one for one in held)


# --- the limit

LIMIT = {
    "sync_us": {"p50": 90.0, "p99": 1234.5},
    "cluster": {"values_per_s": 600.0, "p50_us": 5.0, "p99_us": 9.0, "syncs": 3},
    "cluster_futures": {"asyncio": {"values_per_s": 300.0}, "uvloop": {"values_per_s": 400.0}},
    "cluster_one": {"p50_us": 11.0},
}


def test_rows_are_shares_of_the_limit() -> None:
    assert shares(row(), LIMIT) == {"values_per_s": 0.5, "futures": 0.75}
    assert shares(row(loop="asyncio"), LIMIT)["futures"] == 1
    assert set(shares(row(mode="propose_many"), LIMIT)) == {"values_per_s"}
    assert shares(row(inflight=1), LIMIT)["p50"] == pytest.approx(2.0, abs=0.01)
    assert shares(row(), {}) == {}


def test_a_limit_is_measured_once_for_each_kind_of_load(tmp_path: Path) -> None:
    asked = []

    def measure(folder: Path | None, **settings: Any) -> dict[str, Any]:
        settings["progress"]("half way")
        del settings["progress"]
        asked.append((folder, settings))
        return LIMIT

    said: list[str] = []
    limits = Limits(tmp_path, said.append, measure, seconds=0.5)
    many = Case(groups=10_000, load_groups=100)
    for case in (many, Case(), Case(at="any", mode="propose_many"), Case(groups=1)):
        assert limits.of(case)["cluster"] == LIMIT["cluster"]
    kind = {"nodes": 3, "inflight": 1000, "value_bytes": 100, "seconds": 0.5}
    assert asked == [(tmp_path, {**kind, "groups": groups}) for groups in (100, 1)]
    assert "half way" in said
    made = row()
    made["of_limit"] = shares(made, LIMIT)
    shown = tables({**result(made), "limits": limits.found})
    assert "limit" in shown[0].title
    assert [line[4] for line in shown[0].rows] == ["600", "600"]
    assert shown[1].rows == [["sync, us", "p50 90, p99 1,234.5"]] * 2
    assert {"50%", "75%"} <= set(shown[2].rows[0])
    json.dumps(limits.found)


def test_a_limit_that_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(LimitMissing, match="limit_run"):
        Limits(None, print)


# --- comparing


def test_rows_of_equal_settings_are_compared() -> None:
    before = result(row(), row(groups=3), row(groups=4))
    after = copy.deepcopy(result(row(groups=4), row(seconds=6), row(groups=9)))
    after["rows"][0]["values_per_s"] = 240.0
    after["rows"][1]["p99_us"] *= 2
    found = compare(before, after)
    assert [pair.after["groups"] for pair in found.pairs] == [4, 2]
    assert found.pairs[0].ratios["values_per_s"] == 0.8
    assert found.pairs[1].ratios["p99_us"] == 2
    assert [one["groups"] for one in found.only_before] == [3]
    assert [one["groups"] for one in found.only_after] == [9]
    assert fallen(found, 0.8) == []
    (said,) = fallen(found, 0.81)
    assert "4 groups" in said


@pytest.mark.parametrize(
    ("after", "words", "code"),
    [
        (240.0, [], 0),
        (240.0, ["--fail-below", "0.9"], 1),
        (240.0, ["--fail-below", "0.75"], 0),
        (400.0, ["--fail-below", "0.9"], 0),
    ],
)
def test_compare_exits_with_1_below_the_ratio(
    after: float, words: list[str], code: int, tmp_path: Path
) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, rate in zip(paths, (300.0, after), strict=True):
        path.write_text(json.dumps(result({**row(), "values_per_s": rate})))
    shown = CliRunner().invoke(command, ["bench", "compare", *map(str, paths), *words])
    assert shown.exit_code == code, shown.output
    assert f"{after / 300:.2f}" in shown.stdout
    as_json = CliRunner().invoke(command, ["bench", "compare", *map(str, paths), "--json"])
    assert json.loads(as_json.stdout)["pairs"][0]["ratios"]["values_per_s"] == pytest.approx(
        after / 300, abs=1e-4
    )


def test_compare_of_what_has_nothing_in_common_or_is_no_result(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("a.json", "b.json", "c.json"))
    one.write_text(json.dumps(result(row())))
    two.write_text(json.dumps(result(row(groups=9))))
    three.write_text("[]")
    shown = CliRunner().invoke(command, ["bench", "compare", str(one), str(two)])
    assert shown.exit_code == 1
    assert "no row" in shown.stderr
    assert CliRunner().invoke(command, ["bench", "compare", str(one), str(three)]).exit_code == 2
    assert CliRunner().invoke(command, ["bench", "compare", str(one), "missing"]).exit_code == 2


# --- drawing


def test_curves_are_sets_of_rows_that_differ_in_one_setting() -> None:
    rows = [
        row(groups=groups, mode=mode) for mode in ("propose", "propose_many") for groups in (9, 2)
    ]
    found = curves(result(*rows), "groups", ["values_per_s"])
    assert found == {
        "mode propose": [(2, 300.0), (9, 300.0)],
        "mode propose_many": [(2, 300.0), (9, 300.0)],
    }
    assert curves(result(row()), "inflight", ["p50_us"]) == {
        "propose": [(10, pytest.approx(22.0, abs=0.1))]
    }


def test_a_curve_of_latency_goes_along_what_is_offered() -> None:
    rows = [{**row(rate=rate), "p50_us": rate / 10} for rate in (900, 100, 500)]
    assert curves(result(*rows), "inflight", ["p50_us"]) == {
        "propose": [(10, 10.0), (10, 50.0), (10, 90.0)]
    }


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "result.svg"
    plot(result(row(), row(groups=8), row(inflight=500)), path)
    text = path.read_text()
    assert text.startswith("<?xml")
    assert "</svg>" in text
