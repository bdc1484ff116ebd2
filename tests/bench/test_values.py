"""The bench's values are distinct, its quantiles honest, and its check can fail."""

import random

import pytest

from phx.bench import values as module
from phx.bench.check import check
from phx.bench.meter import histogram, quantile_us
from phx.bench.values import SUM_MASK, Values


def test_values_are_distinct_and_come_back_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 12)  # many passes, and new blocks
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
