"""How many clients run in which group, on which node."""

from __future__ import annotations

from phx.bench.case import Case
from phx.bench.values import per_pass

__all__ = ["Clients", "apportion", "large_clients", "loaded", "split"]

BATCH_MAX = 1000
LARGE_CALLERS = 16  # of large values, per group: enough for a rate to be kept

Clients = dict[int, dict[int, int]]  # node: group: clients
Led = dict[int, list[int]]  # node: the groups that it leads


def loaded(case: Case, led: Led) -> tuple[list[int], list[int]]:
    """The groups with load, and those with large values, each in turn from every node's."""
    place = {group: at for groups in led.values() for at, group in enumerate(sorted(groups))}
    leader = {group: node for node, groups in led.items() for group in groups}
    order = sorted(leader, key=lambda group: (place[group], leader[group]))
    large = order[len(order) - case.large_groups :]
    rest = order[: len(order) - case.large_groups]
    return rest[: case.load_groups or len(rest)], large


def split(case: Case, led: Led) -> tuple[Clients, int]:
    """Clients per node and group, and values per call, so that `inflight` values are open in all.

    An even share is inflight / groups, the first groups taking what does not divide; with fewer
    values in flight than groups only so many groups are used.
    """
    groups, _ = loaded(case, led)
    batch = 0
    callers = case.inflight
    if case.mode == "propose_many":
        share = max(1, case.inflight // len(groups))
        parts = 2 if case.skew == "even" else 8  # smaller calls: the share of a group is finer
        batch = case.batch or min(BATCH_MAX, max(1, share // parts))
        batch = min(batch, per_pass(case.value_bytes))
        callers = max(1, case.inflight // batch)
    weights = [1.0 / (rank + 1 if case.skew == "zipf" else 1) for rank in range(len(groups))]
    counts = apportion(callers, weights)
    return _placed(case, led, dict(zip(groups, counts, strict=True))), batch


def large_clients(case: Case, led: Led) -> Clients:
    """The clients of the groups with large values."""
    _, large = loaded(case, led)
    return _placed(case, led, dict.fromkeys(large, LARGE_CALLERS))


def apportion(total: int, weights: list[float]) -> list[int]:
    """`total` in whole parts by these weights; what is left goes to the largest remainders."""
    scale = total / sum(weights)
    parts = [int(weight * scale) for weight in weights]
    by_remainder = sorted(range(len(parts)), key=lambda at: parts[at] - weights[at] * scale)
    for at in by_remainder[: total - sum(parts)]:
        parts[at] += 1
    return parts


def _placed(case: Case, led: Led, counts: dict[int, int]) -> Clients:
    nodes = sorted(led)
    leader = {group: node for node, groups in led.items() for group in groups}
    free = nodes[:-1] if case.gil_s else nodes
    clients: Clients = {node: {} for node in nodes}
    for turn, (group, count) in enumerate(counts.items()):
        allowed = [node for node in free if _may(case, node, leader[group])] or free
        for client in range(count):
            node = allowed[(turn + client) % len(allowed)]
            clients[node][group] = clients[node].get(group, 0) + 1
    return clients


def _may(case: Case, node: int, leader: int) -> bool:
    return case.at == "any" or (node == leader) == (case.at == "leader")
