"""A thousand groups in each of three processes. Figures: benchmarks/idle.py."""

import time

import pytest
from crew import needs_proc

pytestmark = [pytest.mark.processes, pytest.mark.slow, needs_proc]

IDLE_S = 4.0


def opened(crew, folder, groups: int):
    folder.mkdir()
    cluster = crew(groups=groups, machine="tally", folder=folder)
    began = time.monotonic()
    cluster.start(bootstrap=True)
    cluster.ready()
    return cluster, time.monotonic() - began


def busy_shares(cluster) -> list[float]:
    """Of one core, by each idle process."""
    before = {node: worker.cpu_s() for node, worker in cluster.workers.items()}
    time.sleep(IDLE_S)
    return [(worker.cpu_s() - before[node]) / IDLE_S for node, worker in cluster.workers.items()]


@pytest.mark.timeout(120)
def test_a_thousand_groups_start_soon_idle_cheaply_and_need_no_thread_more(crew, tmp_path):
    few, _ = opened(crew, tmp_path / "few", 10)
    threads = [worker.threads() for worker in few.workers.values()]
    few.close()
    many, started_s = opened(crew, tmp_path / "many", 1_000)
    assert started_s < 10.0
    assert [worker.threads() for worker in many.workers.values()] == threads
    many.led()  # leaderships have been spread
    time.sleep(1.0)
    shares = busy_shares(many)
    print(f"start {started_s:.1f} s, threads {threads}, idle {[f'{one:.1%}' for one in shares]}")
    assert max(shares) < 0.25
    for group in (0, 499, 999):
        answer = many[2].call("propose", group=group, value="x", timeout_s=10.0)
        assert answer["error"] is None
    many.converged()
    many.close()
    began = time.monotonic()
    many.start()
    many.ready()
    assert time.monotonic() - began < 10.0
