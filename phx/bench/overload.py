"""``phx bench overload``: what becomes of a cluster that is offered much more than it can do.

In one run, on one cluster: its capacity, as callers find it that wait; then offers from callers
that do not wait, at shares of it; then several times as much; then a normal load again. All times
count from when a value was due, so that a late caller hides nothing. After it the machines of all
nodes must have applied as many values as were acknowledged: nothing that was let in is lost, and
nothing that was turned away was applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phx.bench.meter import quantile_us
from phx.bench.row import summed
from phx.bench.run import CONVERGE_TIMEOUT_S, Progress
from phx.testing.processes import Cluster

__all__ = ["Overload", "Phase", "measure"]

NORMAL = 0.65
SHARES = (0.5, NORMAL, 0.9)
ASK_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Overload:
    """What to measure.

    Attributes:
        times: the offer, in capacities.
        seconds: of overload. The other phases take a quarter of it, but 3 to 15 s.
        inflight: of the callers that wait, by which capacity is found.
        queue_target_us: of the nodes; None: their default.
        normal_s: the other phases, if not as said.
    """

    times: float = 5
    seconds: float = 60
    groups: int = 20
    nodes: int = 3
    value_bytes: int = 100
    machine: str = "waits"
    inflight: int = 1000
    queue_target_us: int | None = None
    folder: Path | None = None

    @property
    def phase_s(self) -> float:
        return min(15.0, max(3.0, self.seconds / 4))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What became of one offer, over all nodes."""

    times: float
    seconds: float
    offered_per_s: float
    admitted_per_s: float
    share_refused: float
    p50_us: float
    p99_us: float
    refused_p99_us: float
    hint_us: float
    failed: dict[str, int]
    memory_begin_bytes: int
    memory_end_bytes: int


def measure(what: Overload, progress: Progress) -> dict[str, Any]:
    """The whole run, as JSON can carry it. Raises WorkerFailed."""
    return asyncio.run(_measure(what, progress))


async def _measure(what: Overload, progress: Progress) -> dict[str, Any]:
    options = {}
    if what.queue_target_us is not None:
        options["limits"] = {"queue_target_us": what.queue_target_us}
    async with Cluster(
        what.nodes,
        what.groups,
        what.machine,
        "phx.bench.overload_worker",
        folder=what.folder,
        options=options,
    ) as cluster:
        progress.note(f"starting {what.nodes} processes")
        await cluster.start()
        await cluster.led(ASK_TIMEOUT_S)
        rates = await cluster.call(
            "closed",
            what.phase_s + ASK_TIMEOUT_S,
            inflight=what.inflight // what.nodes,
            value_bytes=what.value_bytes,
            seconds=what.phase_s,
        )
        capacity = sum(rates.values())
        progress.note(f"capacity {capacity:,.0f} values/s")
        plan = [(share, what.phase_s) for share in SHARES]
        plan += [(what.times, what.seconds), (NORMAL, what.phase_s)]
        await cluster.converged(CONVERGE_TIMEOUT_S)
        before = await cluster.call("applied")
        phases, acknowledged, unknown = [], 0, 0
        for times, seconds in plan:
            progress.note(f"offering {times:g} of it for {seconds:g} s")
            found = await _offer(cluster, what, rates, times, seconds)
            phase = _phase(times, seconds, found)
            phases.append(phase)
            acknowledged += sum(sum(one["stays"].values()) for one in found)
            unknown += sum(phase.failed.values())
        finding = await _differs(cluster, before, acknowledged, unknown)
        await cluster.close()
    return {
        "capacity_per_s": round(capacity, 1),
        "phases": [vars(one) for one in phases],
        "verdict": _verdict(phases),
        "finding": finding,
        "verified": not finding,
    }


async def _offer(
    cluster: Cluster, what: Overload, rates: dict[int, float], times: float, seconds: float
) -> list[dict[str, Any]]:
    """Each node is offered its own share of what it was able to do."""
    return await asyncio.gather(
        *(
            cluster[node].call(
                "offer",
                seconds + ASK_TIMEOUT_S,
                per_s=rate * times,
                value_bytes=what.value_bytes,
                seconds=seconds,
            )
            for node, rate in rates.items()
        )
    )


def _phase(times: float, seconds: float, found: Sequence[dict[str, Any]]) -> Phase:
    stays = summed([one["stays"] for one in found])
    refusals = summed([one["refusals"] for one in found])
    offered = sum(one["offered"] for one in found)
    refused = sum(one["refused"] for one in found)
    took_s = max(one["took_s"] for one in found)
    return Phase(
        times=times,
        seconds=seconds,
        offered_per_s=round(offered / took_s, 1),
        admitted_per_s=round(sum(stays.values()) / took_s, 1),
        share_refused=round(refused / max(offered, 1), 6),
        p50_us=round(quantile_us(stays, 0.5), 1),
        p99_us=round(quantile_us(stays, 0.99), 1),
        refused_p99_us=round(quantile_us(refusals, 0.99), 1),
        hint_us=round(max(one["hint_us"] for one in found), 1),
        failed=summed([one["failed"] for one in found]),
        memory_begin_bytes=sum(one["memory"][0] for one in found),
        memory_end_bytes=sum(one["memory"][1] for one in found),
    )


async def _differs(
    cluster: Cluster, before: dict[int, int], acknowledged: int, unknown: int
) -> str:
    """ "" when every node has applied what was acknowledged, and nothing else."""
    if not await cluster.converged(CONVERGE_TIMEOUT_S):
        return "nodes did not converge"
    for node, applied in (await cluster.call("applied")).items():
        grown = applied - before[node]
        if not acknowledged <= grown <= acknowledged + unknown:
            return f"node {node} applied {grown} values, and {acknowledged} were acknowledged"
    return ""


def _verdict(phases: Sequence[Phase]) -> dict[str, float]:
    """Overload against the normal load before it."""
    normal = phases[SHARES.index(NORMAL)]
    over = phases[len(SHARES)]
    return {
        "p99_to_normal": round(over.p99_us / normal.p99_us, 2) if normal.p99_us else 0.0,
        "refused_p99_us": over.refused_p99_us,
        "memory_grown_bytes": over.memory_end_bytes - over.memory_begin_bytes,
        "refused_within_capacity": max(one.share_refused for one in phases[: len(SHARES)]),
    }
