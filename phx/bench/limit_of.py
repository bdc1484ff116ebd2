"""What this machine does without a protocol, in the same run, and rows as shares of that.

`phx.bench.limit_run` measures: a journal, syncs and round trips in bare native code, and the same
with one future awaited per value. This module asks it once per kind of load, and compares.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from phx.bench.case import Case

__all__ = ["LimitMissing", "Limits", "kind_of", "shares"]

LIMIT_SECONDS = 2.0

Measure = Callable[..., dict[str, Any]]


class LimitMissing(Exception):
    """The native module that measures the limit is not there."""


class Limits:
    """Limits by kind of load, each measured just before the first row that needs it."""

    def __init__(
        self,
        folder: Path | None,
        progress: Callable[[str], None],
        measure: Measure | None = None,
        seconds: float = LIMIT_SECONDS,
    ):
        self._folder, self._progress, self._seconds = folder, progress, seconds
        self._measure = measure or _native()
        self.found: list[dict[str, Any]] = []

    def of(self, case: Case) -> dict[str, Any]:
        """The limit for a case's kind of load. Not inside an event loop."""
        kind = kind_of(case)
        for one in self.found:
            if kind.items() <= one.items():
                return one
        self._progress(
            f"limit without a protocol: {kind['groups']} groups, "
            f"{kind['inflight']:,} x {kind['value_bytes']} B"
        )
        measured = self._measure(
            self._folder, seconds=self._seconds, progress=self._progress, **kind
        )
        self.found.append({**kind, **measured})
        return self.found[-1]


def kind_of(case: Case) -> dict[str, int]:
    """What a limit depends on."""
    return {
        "nodes": case.nodes,
        "groups": case.load_groups or case.groups - case.large_groups,
        "inflight": case.inflight,
        "value_bytes": case.value_bytes,
    }


def shares(row: dict[str, Any], limit: dict[str, Any]) -> dict[str, float]:
    """A row as shares of its limit.

    values_per_s: of what the bare cluster does; futures: of the same with a future per value on
    this loop (rows of awaited calls); p50: this row's p50 as a multiple of the bare one's (one
    caller).
    """
    found: dict[str, float] = {}
    parts = {"values_per_s": limit.get("cluster", {})}
    if row["mode"] == "propose":
        parts["futures"] = limit.get("cluster_futures", {}).get(row["loop"], {})
    for name, part in parts.items():
        if part.get("values_per_s"):
            found[name] = round(row["values_per_s"] / part["values_per_s"], 4)
    one = limit.get("cluster_one", {}).get("p50_us")
    if row["inflight"] == 1 and one:
        found["p50"] = round(row["p50_us"] / one, 4)
    return found


def _native() -> Measure:
    try:
        module = importlib.import_module("phx.bench.limit_run")
    except ImportError as error:
        raise LimitMissing(f"the limit cannot be measured here: {error}") from error
    measure: Measure = module.measure
    return measure
