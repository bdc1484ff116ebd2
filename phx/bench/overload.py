"""``phx bench overload``: what becomes of a cluster that is offered much more than it can do.

In one run: the capacity of a cluster without a bound, as callers find it that wait; then values of
callers that do not wait, at a normal share of it. The same cluster starts anew with a bound made of
what that took (``limits.wait_us_max``), and is offered the normal share again, several times its
capacity, and the normal share once more. All times count from when a value was due, so that a late
caller hides nothing. After each, the machines of all nodes must have applied as many values as were
acknowledged: nothing that was let in is lost, and nothing that was turned away was applied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from phx.bench.meter import quantile_us
from phx.bench.row import summed
from phx.bench.run import CONVERGE_TIMEOUT_S, Progress
from phx.testing.processes import Cluster

__all__ = ["Overload", "Phase", "measure"]

BOUND_OF_P99 = 0.75
"""On real nodes what is let in stays for up to three bounds (docs/design/flow.md, section 5)."""
BOUND_US_MIN = 1_000
ASK_TIMEOUT_S = 120.0
CACHE_BYTES = 2 << 20  # full before it is measured: what memory grows by is no cache that fills


@dataclass(frozen=True, kw_only=True)
class Overload:
    """What to measure.

    Attributes:
        times: the offer, in capacities.
        seconds: of overload. The other phases take a quarter of it, but 3 to 15 s.
        normal: the normal offer, in capacities.
        inflight: of the callers that wait, by which capacity is found.
        wait_us_max: of the nodes; 0: three quarters of the 99th percentile at the normal
            offer.
    """

    times: float = 5
    seconds: float = 60
    normal: float = 0.5
    groups: int = 20
    nodes: int = 3
    value_bytes: int = 100
    machine: str = "waits"
    inflight: int = 1000
    wait_us_max: int = 0
    folder: Path | None = None

    @property
    def phase_s(self) -> float:
        return min(15.0, max(3.0, self.seconds / 4))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What became of one offer, over all nodes. Times of those let in, and of those turned away:
    from when they were due, and (`refused_call_p99_us`) from when the call was made."""

    times: float
    seconds: float
    wait_us_max: int
    offered_per_s: float
    admitted_per_s: float
    share_refused: float
    p50_us: float
    p99_us: float
    p99_us_of_nodes: list[float]
    refused_p99_us: float
    refused_call_p99_us: float
    failed: dict[str, int]
    memory_begin_bytes: int
    memory_end_bytes: int


def measure(what: Overload, progress: Progress) -> dict[str, Any]:
    """The whole run, as JSON can carry it. Raises WorkerFailed."""
    with TemporaryDirectory(prefix="phx-overload-", dir=what.folder) as folder:
        return asyncio.run(_measure(what, Path(folder), progress))


async def _measure(what: Overload, folder: Path, progress: Progress) -> dict[str, Any]:
    rates, before, lost = await _without(what, folder / "without", progress)
    normal = before[0]
    bound_us = what.wait_us_max or max(BOUND_US_MIN, round(BOUND_OF_P99 * normal.p99_us))
    plan = [(what.normal, what.phase_s), (what.times, what.seconds), (what.normal, what.phase_s)]
    with_bound, lost_too = await _offers(what, folder / "with", bound_us, rates, plan, progress)
    over = with_bound[1]
    finding = lost or lost_too
    return {
        "capacity_per_s": round(sum(rates.values()), 1),
        "wait_us_max": bound_us,
        "phases": [vars(one) for one in (*before, *with_bound)],
        "verdict": {
            "p99_to_normal": round(over.p99_us / normal.p99_us, 2) if normal.p99_us else 0.0,
            "refused_p99_us": over.refused_p99_us,
            "refused_call_p99_us": over.refused_call_p99_us,
            "memory_grown_bytes": over.memory_end_bytes - over.memory_begin_bytes,
            "share_refused_at_normal": with_bound[0].share_refused,
            "share_of_capacity": round(over.admitted_per_s / sum(rates.values()), 3),
        },
        "finding": finding,
        "verified": not finding,
    }


def _cluster(what: Overload, folder: Path, bound_us: int) -> Cluster:
    folder.mkdir()
    return Cluster(
        what.nodes,
        what.groups,
        what.machine,
        "phx.bench.overload_worker",
        folder=folder,
        options={"limits": {"wait_us_max": bound_us, "cache_bytes_max": CACHE_BYTES}},
    )


async def _without(
    what: Overload, folder: Path, progress: Progress
) -> tuple[dict[int, float], list[Phase], str]:
    """Values a second that each node can do, and what the normal offer takes."""
    async with _cluster(what, folder, 0) as cluster:
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
        progress.note(f"capacity {sum(rates.values()):,.0f} values/s")
        plan = [(what.normal, what.phase_s)]
        phases, finding = await _offered(cluster, what, 0, rates, plan, progress)
        await cluster.close()
    return rates, phases, finding


async def _offers(
    what: Overload,
    folder: Path,
    bound_us: int,
    rates: dict[int, float],
    plan: list[tuple[float, float]],
    progress: Progress,
) -> tuple[list[Phase], str]:
    async with _cluster(what, folder, bound_us) as cluster:
        progress.note(f"starting them again with a bound of {bound_us:,} us")
        await cluster.start()
        await cluster.led(ASK_TIMEOUT_S)
        found = await _offered(cluster, what, bound_us, rates, plan, progress)
        await cluster.close()
    return found


async def _offered(
    cluster: Cluster,
    what: Overload,
    bound_us: int,
    rates: dict[int, float],
    plan: list[tuple[float, float]],
    progress: Progress,
) -> tuple[list[Phase], str]:
    """One offer after another; and what is wrong with what was applied, "" if nothing is."""
    await cluster.converged(CONVERGE_TIMEOUT_S)
    before = await cluster.call("applied")
    phases, acknowledged, unknown = [], 0, 0
    for times, seconds in plan:
        progress.note(f"offering {times:g} of it for {seconds:g} s")
        # Each node its own share of what it was able to do.
        found = await asyncio.gather(
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
        phases.append(_phase(times, seconds, bound_us, found))
        acknowledged += sum(sum(one["stays"].values()) for one in found)
        unknown += sum(phases[-1].failed.values())
    return phases, await _differs(cluster, before, acknowledged, unknown)


def _phase(times: float, seconds: float, bound_us: int, found: Sequence[dict[str, Any]]) -> Phase:
    stays = summed([one["stays"] for one in found])
    refusals = summed([one["refusals"] for one in found])
    answers = summed([one["answers"] for one in found])
    took_s = max(one["took_s"] for one in found)
    offered = sum(one["offered"] for one in found)
    return Phase(
        times=times,
        seconds=seconds,
        wait_us_max=bound_us,
        offered_per_s=round(offered / took_s, 1),
        admitted_per_s=round(sum(stays.values()) / took_s, 1),
        share_refused=round(sum(one["refused"] for one in found) / max(offered, 1), 6),
        p50_us=round(quantile_us(stays, 0.5), 1),
        p99_us=round(quantile_us(stays, 0.99), 1),
        p99_us_of_nodes=[round(quantile_us(summed([one["stays"]]), 0.99), 1) for one in found],
        refused_p99_us=round(quantile_us(refusals, 0.99), 1),
        refused_call_p99_us=round(quantile_us(answers, 0.99), 1),
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
