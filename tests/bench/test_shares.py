"""Who gets how many clients: full shares, the right nodes, the right groups."""

from dataclasses import replace

import pytest

from phx.bench.case import Case
from phx.bench.shares import Clients, apportion, large_clients, loaded, split

CASE = Case(groups=10, inflight=100)
LED = {1: [0, 3, 6, 9], 2: [1, 4, 7], 3: [2, 5, 8]}


def per_group(clients: Clients) -> list[int]:
    return [sum(clients[node].get(group, 0) for node in LED) for group in range(10)]


@pytest.mark.parametrize("at", ["leader", "follower", "any"])
@pytest.mark.parametrize("inflight", [1, 5, 10, 100, 1003])
def test_awaited_clients_add_up_to_what_is_in_flight(inflight: int, at: str) -> None:
    clients, batch = split(replace(CASE, inflight=inflight, at=at), LED)
    assert batch == 0
    counts = per_group(clients)
    assert sum(counts) == inflight
    assert max(counts) - min(counts) <= 1
    for node, groups in clients.items():
        if at == "leader":
            assert set(groups) <= set(LED[node])
        if at == "follower":
            assert not set(groups) & set(LED[node])


@pytest.mark.parametrize(("at", "clients_at"), [("any", [10, 10, 10]), ("follower", [0, 15, 15])])
def test_a_group_s_clients_are_spread_over_its_nodes(at: str, clients_at: list[int]) -> None:
    clients, _ = split(replace(CASE, inflight=300, at=at), LED)
    assert [clients[node].get(0, 0) for node in (1, 2, 3)] == clients_at


@pytest.mark.parametrize("skew", ["even", "zipf"])
@pytest.mark.parametrize(("inflight", "batch"), [(10_000, 0), (10_000, 100), (30, 0), (1, 0)])
def test_batched_clients_stay_within_what_is_in_flight(
    inflight: int, batch: int, skew: str
) -> None:
    case = replace(CASE, mode="propose_many", inflight=inflight, batch=batch, skew=skew)
    clients, values = split(case, LED)
    callers = sum(per_group(clients))
    assert values >= 1
    assert inflight * 0.8 <= callers * values <= inflight


def test_a_call_takes_no_more_large_values_than_there_are_in_a_block() -> None:
    case = replace(CASE, groups=1, mode="propose_many", inflight=1000, value_bytes=1 << 20)
    _, values = split(case, {1: [0], 2: [], 3: []})
    assert values == 14  # of 1 MiB and a byte each, and the passes begin one byte further on


def test_skewed_load_falls_as_one_through_the_rank() -> None:
    clients, _ = split(replace(CASE, inflight=2929, skew="zipf"), LED)  # 1000 x (1 + … + 1/10)
    ranked = sorted(per_group(clients), reverse=True)
    assert ranked == pytest.approx([1000 / (rank + 1) for rank in range(10)], abs=1)
    assert set(clients[1]) | set(clients[2]) | set(clients[3]) == set(range(10))


def test_load_on_some_groups_is_even_over_leaders_and_leaves_the_others_alone() -> None:
    clients, _ = split(replace(CASE, load_groups=3), LED)
    assert [sorted(groups) for groups in clients.values()] == [[0], [1], [2]]
    assert sum(per_group(clients)) == 100


def test_large_values_have_groups_of_their_own() -> None:
    case = replace(CASE, large_groups=2, large_bytes=1000, large_rate=10)
    small, large = loaded(case, LED)
    assert len(small) == 8
    assert len(large) == 2
    assert sorted(small + large) == list(range(10))
    counts = per_group(large_clients(case, LED))
    assert {group for group, count in enumerate(counts) if count} == set(large)
    assert {group for group, count in enumerate(per_group(split(case, LED)[0])) if count} == set(
        small
    )


def test_the_node_whose_gil_is_held_has_no_clients_but_its_groups_have() -> None:
    clients, _ = split(replace(CASE, gil_s=1), LED)
    assert clients[3] == {}
    assert all(count == 10 for count in per_group(clients))


def test_parts_are_whole_and_add_up() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(2, [1, 1, 1]) == [1, 1, 0]
    assert apportion(7, [4, 2, 1]) == [4, 2, 1]
