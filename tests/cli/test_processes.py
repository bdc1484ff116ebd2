"""The commands with real processes: a node, the demo with each fault, the bench."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_ports

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

Run = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ["--groups", 5, "--json"]


def demo(run: Run, *words: object) -> dict[str, object]:
    done = run("demo", *SMALL, *words, timeout=150)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("fault", ["kill", "drop", "stop"])
def test_demo_loses_nothing(run: Run, fault: str) -> None:
    result = demo(run, "--seconds", 6 if fault == "kill" else 8, "--fault", fault)
    assert result["lost"] == 0
    assert result["divergent_groups"] == 0
    assert result["findings"] == []
    assert (result["groups"], result["nodes"]) == (5, 3)
    assert result["acknowledged"] > 100  # type: ignore[operator]
    assert result["read_back"] == 3 * result["acknowledged"]  # type: ignore[operator]
    assert result["unknown_outcomes"] <= result["in_flight_at_fault"]  # type: ignore[operator]
    assert result["groups_led_by_victim"] >= 1  # type: ignore[operator]
    assert result["groups_not_failed_over"] == 0
    assert 0 < result["failover_ms"]["p50"] <= result["failover_ms"]["max"]  # type: ignore[index]
    assert result["values_per_s"] > 0  # type: ignore[operator]
    assert result["fsyncs"] > 0  # type: ignore[operator]


def test_demo_prints_a_table_and_progress_and_leaves_the_data_in_dir(
    run: Run, tmp_path: Path
) -> None:
    done = run("demo", "--groups", 3, "--seconds", 3, "--dir", tmp_path / "data", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "values acknowledged" in done.stdout
    assert "SIGKILL" in done.stderr
    kept = sorted(path.name for path in (tmp_path / "data").iterdir())
    assert kept == ["node1", "node2", "node3"]
    assert not list(tmp_path.glob("phx-*"))  # the temporary folder is gone


def test_demo_interrupted_leaves_no_process(mark: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "phx.cli", "demo", "--groups", "3", "--seconds", "60"]
    with subprocess.Popen(
        words, env=mark, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        wait_for_line(process, "values acknowledged")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0


def test_demo_killed_leaves_no_process(mark: dict[str, str], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "phx.cli", "demo", "--groups", "3", "--seconds", "60"]
    with subprocess.Popen(
        words, env=mark, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for_line(process, "values acknowledged")
        process.kill()


def wait_for_line(process: subprocess.Popen[str], text: str, timeout_s: float = 60) -> str:
    """The first line on the process's stderr with `text` in it."""
    assert process.stderr is not None
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if text in line:
                return line
        raise AssertionError(f"{text!r} was not written: {''.join(seen)}")
    finally:
        timer.cancel()


@pytest.mark.parametrize("mode", ["propose", "propose_many"])
def test_bench_measures_and_verifies(run: Run, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    words = ["--groups", "2,5", "--mode", mode, "--inflight", 60, "--seconds", 1, "--warmup", 0.5]
    done = run("bench", *words, "--json", path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "values/s" in done.stdout
    result = json.loads(path.read_text())
    assert [row["groups"] for row in result["rows"]] == [2, 5]
    for row in result["rows"]:
        assert row["verified"]
        assert row["mode"] == mode
        assert row["values_per_s"] > 0
        assert row["acknowledged"] >= row["measured"] > 0
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["values_per_sync"] > 0
        assert row["cpu_ns_per_value"] > 0
        spread = row["group_values_per_s"]
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert row["unknown"] == 0
    assert result["environment"]["fdatasync_p50_us"] > 0


def test_bench_at_any_node_forwards(run: Run) -> None:
    words = ["--groups", 3, "--at", "any", "--inflight", 30, "--seconds", 1, "--warmup", 0.5]
    done = run("bench", *words, "--json", "-", timeout=120)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["verified"]
    assert row["counters"]["counters.forwards"] > 0


def rows_of(run: Run, *words: object, seconds: float = 1) -> list[dict[str, Any]]:
    """The rows of a small run, all of them verified."""
    done = run("bench", *words, "--seconds", seconds, "--warmup", 0.3, "--json", "-", timeout=150)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    assert all(row["verified"] for row in rows)
    return rows


def test_bench_with_all_leaders_on_one_node_and_skewed_load_at_followers(run: Run) -> None:
    words = ["--groups", 6, "--leaders", "one", "--at", "follower", "--skew", "zipf"]
    (row,) = rows_of(run, *words, "--machine", "dict", "--load-groups", 4, "--inflight", 50)
    assert row["leaders_by_node"] == {"1": 6, "2": 0, "3": 0}
    assert row["loaded_groups"] == 4
    assert row["counters"]["counters.forwards"] > 0
    spread = row["group_values_per_s"]
    assert spread["max"] > 1.5 * spread["min"]  # of four times the clients
    layers = row["layers_ns_per_value"]
    assert sum(layers.values()) == pytest.approx(row["cpu_ns_per_value"], rel=0.02)
    assert min(layers[name] for name in ("apply", "wake", "journal")) > 0
    assert layers["clients"] >= 0  # nothing is left where time passed without the processor
    assert row["memory_bytes"]["end"] > 0
    assert row["memory_bytes_per_group"] > 0


def test_bench_at_a_rate_beside_large_values_with_a_slow_machine(run: Run) -> None:
    words = ["--groups", 4, "--large-groups", 1, "--large-rate", 40, "--large-bytes", 20_000]
    began = time.monotonic()
    (row,) = rows_of(run, *words, "--rate", 300, "--machine", "slow", "--inflight", 20, seconds=5)
    took_s = time.monotonic() - began
    assert row["values_per_s"] > 0
    assert row["large"]["values_per_s"] > 0
    callers = 20 + 16
    assert row["acknowledged"] <= (300 + 40) * took_s + callers  # no more than was offered
    assert row["loaded_groups"] == 3


def test_bench_with_a_held_gil_goes_on_at_the_other_nodes(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "result.svg"
    words = ["--groups", 3, "--inflight", 30, "--gil-s", 1, "--plot", path]
    done = run(
        "bench", *words, "--seconds", 3, "--warmup", 0.3, "--json", "-",
        "--dir", tmp_path / "data", timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["gil"]["held_values_per_s"] > 0
    assert len(row["samples"]) == 3
    assert "</svg>" in path.read_text()
    kept = [path.name for path in (tmp_path / "data" / "row1").iterdir()]
    assert sorted(kept) == ["node1", "node2", "node3"]


def test_node_runs_until_it_is_told_to_stop_and_remembers(
    mark: dict[str, str], tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    config = tmp_path / "node.toml"
    config.write_text(
        f'cluster = "t"\nnode = 1\ndir = "data"\ngroups = 4\n[members]\n1 = "127.0.0.1:{port}"\n'
    )
    for turn, number in enumerate((signal.SIGTERM, signal.SIGINT)):
        words = [sys.executable, "-m", "phx.cli", "node", "--config", str(config), "--json"]
        with subprocess.Popen(
            words + (["--bootstrap"] if turn == 0 else []),
            env=mark,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            ready = json.loads(process.stdout.readline())
            assert ready == {
                "event": "ready", "node": 1, "port": port, "incarnation": turn + 1, "groups": 4,
            }  # fmt: skip
            process.send_signal(number)
            assert json.loads(process.stdout.readline()) == {"event": "closed", "node": 1}
            assert process.wait(20) == 0, process.stderr.read()


def test_node_that_waits_to_be_a_member_can_be_told_to_stop(
    mark: dict[str, str], tmp_path: Path
) -> None:
    port, nobody = free_ports(2)
    config = tmp_path / "node.toml"
    config.write_text(
        f'cluster = "t"\nnode = 4\ndir = "data"\ngroups = 4\njoin = ["127.0.0.1:{nobody}"]\n'
        f'[members]\n4 = "127.0.0.1:{port}"\n'
    )
    words = [sys.executable, "-m", "phx.cli", "node", "--config", str(config), "--json"]
    with subprocess.Popen(
        [*words, "--bootstrap"],
        env=mark,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any("do not have node 4 for a member yet" in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == ""
        assert process.wait(20) == 0


def test_a_node_joins_and_the_same_line_starts_it_again(
    run: Run, mark: dict[str, str], tmp_path: Path
) -> None:
    ports = dict(zip((1, 2), free_ports(2), strict=True))
    for node, port in ports.items():
        (tmp_path / f"{node}.toml").write_text(
            f'cluster = "t"\nnode = {node}\ndir = "data{node}"\ngroups = 3\n'
            f'[members]\n{node} = "127.0.0.1:{port}"\n'
        )
    phx = [sys.executable, "-m", "phx.cli"]
    first = [*phx, "node", "--config", str(tmp_path / "1.toml"), "--bootstrap", "--json"]
    joins = [*phx, "join", "--config", str(tmp_path / "2.toml"), f"127.0.0.1:{ports[1]}", "--json"]
    with ExitStack() as stack:
        one = stack.enter_context(started(first, mark, tmp_path))
        assert one.stdout is not None
        assert json.loads(one.stdout.readline())["event"] == "ready"
        two = stack.enter_context(started(joins, mark, tmp_path))
        assert two.stdout is not None
        wait_for_line(two, "do not have node 2 for a member yet: it waits (phx member add")
        done = run("member", "add", tmp_path / "data1", 2, f"127.0.0.1:{ports[2]}", "--json")
        assert done.returncode == 0, done.stderr
        ready = json.loads(two.stdout.readline())
        assert (ready["event"], ready["node"], ready["groups"]) == ("ready", 2, 3)
        two.send_signal(signal.SIGTERM)
        assert json.loads(two.stdout.readline()) == {"event": "closed", "node": 2}
        assert two.wait(20) == 0
        again = stack.enter_context(started(joins, mark, tmp_path))
        assert again.stdout is not None
        assert json.loads(again.stdout.readline())["incarnation"] == ready["incarnation"] + 1
        for process in (again, one):
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


@contextmanager
def started(
    words: list[str], mark: dict[str, str], folder: Path
) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive this, nor a minute."""
    with subprocess.Popen(
        words, env=mark, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.kill()


def test_ports_are_below_those_of_outgoing_connections() -> None:
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    lowest = int(path.read_text().split()[0]) if path.exists() else 32_768
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert max(ports) < max(lowest, 32_001)


def test_worker_ends_with_its_input(mark: dict[str, str], tmp_path: Path) -> None:
    """Without a parent there is no worker: end of input before and after the first line."""
    words = [sys.executable, "-m", "phx.cli.worker"]
    before = subprocess.run(words, env=mark, stdin=subprocess.DEVNULL, timeout=30, check=False)
    assert before.returncode == 0
    (port,) = free_ports(1)
    (tmp_path / "data").mkdir()
    spec = {
        "node": 1,
        "config": {
            "cluster": "t", "node": 1, "members": {"1": f"127.0.0.1:{port}"},
            "dir": str(tmp_path / "data"), "groups": 2,
        },
        "machine": "kv", "bootstrap": True, "loop": "asyncio",
    }  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        words, env=mark, input=json.dumps(spec) + "\n", text=True, timeout=60,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 40
    assert os.listdir(tmp_path / "data")
