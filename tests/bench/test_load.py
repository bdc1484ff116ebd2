"""The bench's clients: distinct values, honest quantiles, full shares, a check that can fail."""

import random

import pytest

from phx.cli import load
from phx.cli.bench import Options, check, split
from phx.cli.load import SUM_MASK, Values, histogram, quantile_us


def options(**changed: object) -> Options:
    settings: dict[str, object] = {
        "groups": [10], "value_bytes": 100, "mode": "propose", "inflight": 100, "seconds": 1.0,
        "nodes": 3, "warmup": 0.0, "batch": 0, "at": "leader", "folder": None, "loop": "auto",
    }  # fmt: skip
    return Options(**{**settings, **changed})  # type: ignore[arg-type]


LED = {1: [0, 3, 6, 9], 2: [1, 4, 7], 3: [2, 5, 8]}


def test_values_are_distinct_and_come_back_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "BLOCK_BYTES", 1 << 12)  # many passes, and new blocks
    values = Values(32, seed=7)
    calls = [values.take(turn % 9 + 1) for turn in range(2000)]
    everything = [one for _, got in calls for one in got]
    assert {len(one) for one in everything} == {32}
    assert len(set(everything)) == len(everything) > 9000
    again = Values(32, seed=7)
    for serial, got in reversed(calls):
        assert again.values(serial, len(got)) == got
    assert Values(32, seed=8).take(5)[1] != Values(32, seed=7).take(5)[1]


def test_quantiles_of_a_histogram_are_within_a_per_cent() -> None:
    chance = random.Random(5)
    latencies = [int(chance.lognormvariate(13, 1)) for _ in range(20_001)]
    buckets = histogram(latencies)
    latencies.sort()
    for q in (0.01, 0.5, 0.99):
        true_us = latencies[int(q * len(latencies))] / 1000
        assert quantile_us(buckets, q) == pytest.approx(true_us, rel=0.01)
    assert quantile_us({}, 0.5) == 0


@pytest.mark.parametrize("at", ["leader", "any"])
@pytest.mark.parametrize("inflight", [1, 5, 10, 100, 1003])
def test_awaited_clients_add_up_to_what_is_in_flight(inflight: int, at: str) -> None:
    clients, batch = split(options(inflight=inflight, at=at), LED)
    assert batch == 0
    assert sum(sum(groups.values()) for groups in clients.values()) == inflight
    if at == "leader":
        assert all(set(groups) <= set(LED[node]) for node, groups in clients.items())
    per_group = [sum(clients[node].get(group, 0) for node in LED) for group in range(10)]
    assert max(per_group) - min(per_group) <= 1


def test_at_any_spreads_each_group_over_the_nodes() -> None:
    clients, _ = split(options(inflight=300, at="any"), LED)
    for group in range(10):
        assert [clients[node].get(group) for node in (1, 2, 3)] == [10, 10, 10]


@pytest.mark.parametrize(("inflight", "batch"), [(10_000, 0), (10_000, 100), (30, 0), (1, 0)])
def test_batched_clients_stay_within_what_is_in_flight(inflight: int, batch: int) -> None:
    clients, values = split(options(mode="propose_many", inflight=inflight, batch=batch), LED)
    callers = sum(sum(groups.values()) for groups in clients.values())
    assert values >= 1
    assert inflight * 0.8 <= callers * values <= inflight


def result(group: str, hashes: list[int], unknown: list[int]) -> dict[str, object]:
    return {
        "count": {group: len(hashes)},
        "sum": {group: sum(hashes) & SUM_MASK},
        "unknown": {group: unknown},
    }


def test_check_accepts_what_is_right_and_names_what_is_not() -> None:
    a, b, c, d = (hash(bytes([n]) * 20) for n in range(4))

    def logs(*hashes: int) -> dict[int, dict[str, tuple[int, int]]]:
        tally = (len(hashes), sum(hashes) & SUM_MASK)
        return {1: {"4": tally}, 2: {"4": tally}}

    clients = {1: result("4", [a], [d]), 2: result("4", [b], [])}
    assert check(clients, logs(a, b)) == ""  # the unknown one is not there
    assert check(clients, logs(a, b, d)) == ""  # or it is
    for wrong in [(a,), (a, b, b), (a, c), (a, b, c), (a, b, d, d), ()]:
        assert "group 4" in check(clients, logs(*wrong)), wrong
    assert check(clients, {1: logs(a, b)[1], 2: logs(a)[2]}).startswith("node 2")
