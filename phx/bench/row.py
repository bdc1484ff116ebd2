"""The figures of one row, from what the measured processes noted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from phx.bench.case import WINDOWS, Case
from phx.bench.meter import quantile_us

__all__ = ["Row", "between", "measured_row", "settings_of"]

# Parts of the poll thread whose time is known; its CPU is shared out by it.
POLL_LAYERS = ("submit", "engine", "network", "send", "deliver", "journal")

Sample = Sequence[float]  # seconds, then what these are the places of
DONE, RESIDENT, ANONYMOUS, UNSETTLED, NOTES = 1, 2, 3, 4, 5


@dataclass(frozen=True, kw_only=True)
class Row(Case):
    """One measured cluster: its settings (batch and loop as they were) and the figures.

    Per-value figures are over all nodes, and over all values, large ones included; of a row of
    reads they are per read, and `syncs` are those of all nodes in the measured time.
    """

    loaded_groups: int
    leaders_by_node: dict[str, int]
    values_per_s: float
    reads_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    values_per_sync: float
    syncs: int
    syncs_per_s: float
    cpu_ns_per_value: float
    layers_ns_per_value: dict[str, float]
    journal_bytes_per_value: float
    store_bytes_per_value: float
    wire_bytes_per_value: float
    memory_bytes_per_group: float
    group_values_per_s: dict[str, float]
    last_third_to_first: float
    resident_bytes: dict[str, int]
    memory_bytes: dict[str, int]
    unsettled_bytes: dict[str, int]
    samples: list[dict[str, float]]
    large: dict[str, float]
    gil: dict[str, float]
    checkpoints: dict[str, float]
    of_limit: dict[str, float]
    acknowledged: int
    measured: int
    rejected: int
    unknown: int
    verified: bool
    finding: str
    counters: dict[str, int]


def settings_of(row: dict[str, Any]) -> dict[str, Any]:
    """The settings among the fields of a row, with defaults for those that it does not have."""
    return {one.name: row.get(one.name, one.default) for one in fields(Case)}


def measured_row(
    case: Case,
    batch: int,
    led: dict[int, list[int]],
    memory: dict[int, dict[str, int]],
    results: dict[int, Any],
    finding: str,
) -> Row:
    """The row, from the results of every node's clients and meter."""
    seconds = case.seconds
    small = [result["loads"][0] for result in results.values()]
    every = [load for result in results.values() for load in result["loads"]]
    latency = summed([load["latency_ns"] for load in small])
    grown = summed([result["counters"] for result in results.values()])
    per_group = summed([load["measured"] for load in small])
    measured = sum(sum(load["measured"].values()) for load in every)
    each = max(measured, 1)
    rates = [count / seconds for count in per_group.values()] or [0.0]
    syncs = grown.get("journal.syncs", 0)
    cpu = sum(one["cpu_ns"] for one in results.values())
    samples = [one["samples"] for one in results.values()]
    idle = sum(one["now"] - one["bare"] for one in memory.values())
    settings = replace(case, batch=batch)
    return Row(
        **{one.name: getattr(settings, one.name) for one in fields(Case)},
        loaded_groups=len(per_group),
        leaders_by_node={str(node): len(groups) for node, groups in sorted(led.items())},
        values_per_s=0.0 if case.reads else round(sum(per_group.values()) / seconds, 1),
        reads_per_s=round(sum(per_group.values()) / seconds, 1) if case.reads else 0.0,
        p50_us=round(quantile_us(latency, 0.5), 1),
        p99_us=round(quantile_us(latency, 0.99), 1),
        p999_us=round(quantile_us(latency, 0.999), 1),
        values_per_sync=round(measured * case.nodes / max(syncs, 1), 2),
        syncs=syncs,
        syncs_per_s=round(syncs / case.nodes / seconds, 1),
        cpu_ns_per_value=round(cpu / each, 1),
        layers_ns_per_value={
            name: round(ns / each, 1) for name, ns in layers(results, grown, cpu).items()
        },
        journal_bytes_per_value=round(grown.get("journal.bytes_written", 0) / each, 1),
        store_bytes_per_value=round(grown.get("store.settled_bytes", 0) / each, 1),
        wire_bytes_per_value=round(grown.get("wire.bytes_sent", 0) / each, 1),
        memory_bytes_per_group=round(idle / case.nodes / case.groups, 1),
        group_values_per_s={
            "min": round(min(rates), 1),
            "median": round(statistics.median(rates), 1),
            "max": round(max(rates), 1),
        },
        last_third_to_first=round(thirds(samples, seconds), 3),
        resident_bytes=span(samples, RESIDENT, sum),
        memory_bytes=anonymous(samples, seconds),
        unsettled_bytes=span(samples, UNSETTLED, max),
        samples=series(samples, seconds),
        large=large_figures(case, results),
        gil=gil_figures(case, samples),
        checkpoints=checkpoint_figures(case, samples, grown),
        of_limit={},
        acknowledged=sum(sum(load["count"].values()) for load in every),
        measured=measured,
        rejected=sum(load["rejected"] for load in every),
        unknown=sum(len(one) for load in every for one in load["unknown"].values()),
        verified=not finding,
        finding=finding,
        counters=dict(sorted(grown.items())),
    )


def summed(counts: Sequence[dict[Any, int]]) -> dict[Any, int]:
    """Sums by key; keys that are numbers, as text or not, become numbers."""
    total: dict[Any, int] = {}
    for one in counts:
        for key, count in one.items():
            key = int(key) if str(key).lstrip("-").isdigit() else key
            total[key] = total.get(key, 0) + count
    return total


def layers(results: dict[int, Any], grown: dict[str, int], cpu: int) -> dict[str, int]:
    """CPU by layer; the parts add up to `cpu`.

    Threads are CPU time. The poll thread's is shared out by the time that passed in its parts.
    Applying and waking are time that passed in the event loop's thread: on a busy machine it may be
    more than the CPU time of that thread, which they then share, and nothing is left for clients.
    """
    poll, journal = grown.get("cpu_ns.poll", 0), grown.get("cpu_ns.journal", 0)
    loop = min(sum(one["loop_cpu_ns"] for one in results.values()), max(0, cpu - poll - journal))
    apply, wake = grown.get("applier.apply_ns", 0), grown.get("applier.wake_ns", 0)
    if apply + wake > loop:
        apply = loop * apply // (apply + wake)
        wake = min(wake, loop - apply)
    parts = {name: grown.get(f"cpu_ns.poll.{name}", 0) for name in POLL_LAYERS}
    whole = max(1, sum(parts.values()))
    return {
        "clients": loop - apply - wake,
        "apply": apply,
        "wake": wake,
        "store": max(0, cpu - poll - journal - loop),
        **{f"poll.{name}": poll * ns // whole for name, ns in parts.items()},
        "journal": journal,
    }


# --- over time


def between(samples: Sequence[Sample], begin_s: float, end_s: float) -> float:
    """Values a second between two times, by the samples of one process."""
    if end_s <= begin_s:
        return 0.0
    return (done_at(samples, end_s) - done_at(samples, begin_s)) / (end_s - begin_s)


def done_at(samples: Sequence[Sample], at_s: float) -> float:
    """Acknowledged values at a time, straight lines between the samples."""
    before = samples[0]
    if at_s <= before[0]:
        return before[DONE]
    for after in samples[1:]:
        if at_s <= after[0]:
            part = (at_s - before[0]) / max(after[0] - before[0], 1e-9)
            return before[DONE] + part * (after[DONE] - before[DONE])
        before = after
    return before[DONE]


def thirds(nodes: Sequence[Sequence[Sample]], seconds: float) -> float:
    """Throughput of the last third as a share of the first third's."""
    first = sum(between(samples, 0, seconds / 3) for samples in nodes)
    last = sum(between(samples, seconds * 2 / 3, seconds) for samples in nodes)
    return last / first if first else 0.0


def span(
    nodes: Sequence[Sequence[Sample]], place: int, over: Callable[[Iterable[float]], float]
) -> dict[str, int]:
    """One thing at the beginning, at the end, and at most; `over` all nodes: sum or max."""
    return {
        "begin": int(over(samples[0][place] for samples in nodes)),
        "end": int(over(samples[-1][place] for samples in nodes)),
        "max": int(over(max(one[place] for one in samples) for samples in nodes)),
    }


def anonymous(nodes: Sequence[Sequence[Sample]], seconds: float) -> dict[str, int]:
    """Memory over all nodes; also after the first third, when caches are full.

    `notes` is what the clients' notes grew by: they are not phx's.
    """
    third = sum(latest(samples, seconds / 3)[ANONYMOUS] for samples in nodes)
    notes = sum(samples[-1][NOTES] - samples[0][NOTES] for samples in nodes)
    return {**span(nodes, ANONYMOUS, sum), "third": int(third), "notes": int(notes)}


def latest(samples: Sequence[Sample], at_s: float) -> Sample:
    """The last sample up to a time, or the first."""
    return [one for one in samples if one[0] <= at_s or one is samples[0]][-1]


def series(nodes: Sequence[Sequence[Sample]], seconds: float) -> list[dict[str, float]]:
    """Per second: throughput and memory over all nodes, the longest lag."""
    found = []
    for second in range(1, int(seconds) + 1):
        now = [latest(samples, second + 0.5) for samples in nodes]
        found.append(
            {
                "at_s": second,
                "values_per_s": round(sum(between(s, second - 1, second) for s in nodes), 1),
                "memory_bytes": sum(one[ANONYMOUS] for one in now),
                "unsettled_bytes": max(one[UNSETTLED] for one in now),
            }
        )
    return found


# --- beside it


def large_figures(case: Case, results: dict[int, Any]) -> dict[str, float]:
    """Throughput and latency of the large values; empty without."""
    loads = [result["loads"][1] for result in results.values() if len(result["loads"]) > 1]
    if not loads:
        return {}
    latency = summed([load["latency_ns"] for load in loads])
    count = sum(sum(load["measured"].values()) for load in loads)
    return {
        "values_per_s": round(count / case.seconds, 1),
        "p50_us": round(quantile_us(latency, 0.5), 1),
        "p99_us": round(quantile_us(latency, 0.99), 1),
    }


def checkpoint_figures(
    case: Case, nodes: Sequence[Sequence[Sample]], grown: dict[str, int]
) -> dict[str, float]:
    """Throughput of the windows with checkpoints and of those without, medians; empty if they did
    not take turns."""
    if not case.checkpoint_s:
        return {}
    window_s = case.window_s
    rates = [
        sum(between(samples, number * window_s, (number + 1) * window_s) for samples in nodes)
        for number in range(WINDOWS)
    ]
    off, on = statistics.median(rates[0::2]), statistics.median(rates[1::2])
    return {
        "off_values_per_s": round(off, 1),
        "on_values_per_s": round(on, 1),
        "on_to_off": round(on / off, 3) if off else 0.0,
        **{name: grown.get(f"checkpoints.{name}", 0) for name in ("taken", "failed", "bytes")},
    }


def gil_figures(case: Case, nodes: Sequence[Sequence[Sample]]) -> dict[str, float]:
    """Throughput before, while and after the last node held its GIL; empty if it did not."""
    if not case.gil_s:
        return {}
    begin = (case.seconds - case.gil_s) / 2
    spans = {
        "before": (0.0, begin),
        "held": (begin, begin + case.gil_s),
        "after": (begin + case.gil_s, case.seconds),
    }
    found = {
        f"{name}_values_per_s": round(sum(between(samples, *span) for samples in nodes), 1)
        for name, span in spans.items()
    }
    before = found["before_values_per_s"]
    found["held_to_before"] = round(found["held_values_per_s"] / before, 3) if before else 0.0
    return found
