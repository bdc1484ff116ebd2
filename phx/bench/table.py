"""A result as tables: titles, columns and cells, for whoever prints them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

from phx.bench.case import Case
from phx.bench.row import settings_of

__all__ = ["Table", "tables"]

LONG_S = 5  # from then on it is worth looking at how things went over time

# settings: heading, and what it looks like where all rows agree
WORDS = {
    "name": ("case", "{}"),
    "groups": ("groups", "{:,} groups"),
    "load_groups": ("with load", "load on {:,}"),
    "skew": ("skew", "{}"),
    "value_bytes": ("B", "{:,} B"),
    "mode": ("mode", "{}"),
    "reads": ("reads", "{} reads"),
    "inflight": ("in flight", "{:,} in flight"),
    "batch": ("batch", "{:,} a call"),
    "rate": ("offered/s", "{:,.0f} offered/s"),
    "at": ("at", "at {}"),
    "leaders": ("leaders", "leaders on {}"),
    "nodes": ("nodes", "{} nodes"),
    "machine": ("machine", "{} machine"),
    "large_bytes": ("large B", "beside {:,} B"),
    "large_groups": ("large groups", "in {:,} groups"),
    "large_rate": ("large/s", "{:,.0f}/s"),
    "gil_s": ("GIL held s", "GIL held {:g} s"),
    "checkpoint_s": ("checkpoints", "checkpoints every {:g} s"),
    "seconds": ("s", "{:g} s"),
    "loop": ("loop", "{}"),
}
DEFAULTS = {one.name: one.default for one in fields(Case)}
ALWAYS = ("groups", "nodes", "mode", "inflight", "value_bytes", "seconds")  # in a title


class Table(NamedTuple):
    title: str
    columns: list[str]
    rows: list[list[str]]


def number(value: float, digits: int = 0) -> str:
    """1234567.8 as "1,234,568"."""
    return f"{value:,.{digits}f}"


def cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if name == "load_groups" and value == 0:
        return "all"
    return number(value) if value == int(value) else f"{value:g}"


def tables(result: dict[str, Any]) -> list[Table]:
    """Everything that a reader wants to see of a result; the last ones only where they matter."""
    rows = result["rows"]
    title, heads, cells = settings_shown(rows)
    title += f", bare fdatasync {result['environment']['fdatasync_p50_us']:g} us"
    found = [
        limit_table(result.get("limits", [])),
        pieces_table(result.get("limits", [])),
        Table(title, *joined(heads, cells, main_columns(rows))),
        Table("CPU of a value, ns over all nodes", *joined(heads, cells, cpu_columns(rows))),
        Table(
            "bytes of a value over all nodes; memory of an idle node by groups",
            *joined(heads, cells, byte_columns(rows)),
        ),
    ]
    for says, columns, wanted in (
        ("over time: last third against first; memory and lag in MB", time_columns, is_long),
        ("large values beside it", large_columns, lambda row: bool(row["large"])),
        ("one node holds its GIL: values/s of the others", gil_columns, lambda r: bool(r["gil"])),
        ("checkpoints in turns: values/s", checkpoint_columns, lambda r: bool(r["checkpoints"])),
    ):
        chosen = [at for at, row in enumerate(rows) if wanted(row)]
        if chosen:
            part = columns([rows[at] for at in chosen])
            found.append(Table(says, *joined(heads, [cells[at] for at in chosen], part)))
    return [table for table in found if table.rows]


def settings_shown(rows: list[dict[str, Any]]) -> tuple[str, list[str], list[list[str]]]:
    """A title of the settings that all rows share; headings and cells of those that differ."""
    settings = [settings_of(row) for row in rows]
    title, heads = [], []
    cells: list[list[str]] = [[] for _ in rows]
    for name, (head, words) in WORDS.items():
        values = [one[name] for one in settings]
        if name == "groups" or any(value != values[0] for value in values):
            heads.append(head)
            for line, value in zip(cells, values, strict=True):
                line.append(cell(name, value))
        elif name in ALWAYS or values[0] != DEFAULTS[name]:
            title.append(words.format(values[0]))
    return ", ".join(title), heads, cells


Columns = dict[str, list[str]]  # heading: a cell per row


def joined(
    heads: list[str], cells: list[list[str]], columns: Columns
) -> tuple[list[str], list[list[str]]]:
    parts = [list(one) for one in zip(*columns.values(), strict=True)]
    return heads + list(columns), [a + b for a, b in zip(cells, parts, strict=True)]


def main_columns(rows: list[dict[str, Any]]) -> Columns:
    found = {
        "values/s": [number(row["values_per_s"]) for row in rows],
        **(
            {"reads/s": [number(row["reads_per_s"]) for row in rows]}
            if any(row.get("reads_per_s") for row in rows)
            else {}
        ),
        "p50 us": [number(row["p50_us"]) for row in rows],
        "p99 us": [number(row["p99_us"]) for row in rows],
        "p99.9 us": [number(row["p999_us"]) for row in rows],
        "values/sync": [number(row["values_per_sync"], 1) for row in rows],
        "syncs/s": [number(row["syncs_per_s"]) for row in rows],
        "per group min": [number(row["group_values_per_s"]["min"]) for row in rows],
        "median": [number(row["group_values_per_s"]["median"]) for row in rows],
        "max": [number(row["group_values_per_s"]["max"]) for row in rows],
    }
    for name, head, form in (
        ("values_per_s", "of limit", "{:.0%}"),
        ("futures", "of futures", "{:.0%}"),
        ("p50", "p50/limit", "{:.2f}"),
    ):
        if any(name in row["of_limit"] for row in rows):
            found[head] = [
                form.format(row["of_limit"][name]) if name in row["of_limit"] else "-"
                for row in rows
            ]
    found["verified"] = ["yes" if row["verified"] else row["finding"] for row in rows]
    return found


def cpu_columns(rows: list[dict[str, Any]]) -> Columns:
    layers = [row["layers_ns_per_value"] for row in rows]

    def poll(one: dict[str, float], *names: str) -> str:
        return number(sum(one.get(f"poll.{name}", 0) for name in names))

    return {
        "CPU": [number(row["cpu_ns_per_value"]) for row in rows],
        **{name: [number(one.get(name, 0)) for one in layers] for name in PYTHON_LAYERS},
        "submit": [poll(one, "submit") for one in layers],
        "engine": [poll(one, "engine") for one in layers],
        "network": [poll(one, "network", "send") for one in layers],
        "deliver": [poll(one, "deliver") for one in layers],
        "journal": [number(one.get("journal", 0) + one.get("poll.journal", 0)) for one in layers],
    }


def byte_columns(rows: list[dict[str, Any]]) -> Columns:
    return {
        "journal B": [number(row["journal_bytes_per_value"]) for row in rows],
        "store B": [number(row["store_bytes_per_value"]) for row in rows],
        "wire B": [number(row["wire_bytes_per_value"]) for row in rows],
        "idle KB/group": [number(row["memory_bytes_per_group"] / 1000, 1) for row in rows],
    }


PYTHON_LAYERS = ("clients", "apply", "wake", "store")


def is_long(row: dict[str, Any]) -> bool:
    return bool(row["seconds"] >= LONG_S)


def time_columns(rows: list[dict[str, Any]]) -> Columns:
    memory, lag = ([row[name] for row in rows] for name in ("memory_bytes", "unsettled_bytes"))
    return {
        "last/first third": [f"{row['last_third_to_first']:.2f}" for row in rows],
        **{
            f"memory {at}": [number(one[at] / 1e6) for one in memory]
            for at in ("begin", "third", "end", "max")
        },
        "of it notes": [number(one["notes"] / 1e6, 1) for one in memory],
        "with files": [number(row["resident_bytes"]["end"] / 1e6) for row in rows],
        **{f"unsettled {at}": [number(one[at] / 1e6) for one in lag] for at in SPAN},
    }


SPAN = ("begin", "end", "max")


def large_columns(rows: list[dict[str, Any]]) -> Columns:
    return {
        "values/s": [number(row["large"]["values_per_s"]) for row in rows],
        "p50 us": [number(row["large"]["p50_us"]) for row in rows],
        "p99 us": [number(row["large"]["p99_us"]) for row in rows],
    }


def checkpoint_columns(rows: list[dict[str, Any]]) -> Columns:
    return {
        **{
            name: [number(row["checkpoints"][f"{name}_values_per_s"]) for row in rows]
            for name in ("off", "on")
        },
        "on/off": [f"{row['checkpoints']['on_to_off']:.2f}" for row in rows],
        **{
            name: [number(row["checkpoints"][name]) for row in rows]
            for name in ("taken", "failed", "bytes")
        },
    }


def gil_columns(rows: list[dict[str, Any]]) -> Columns:
    spans = {name: f"{name}_values_per_s" for name in ("before", "held", "after")}
    return {
        **{name: [number(row["gil"][key]) for row in rows] for name, key in spans.items()},
        "held/before": [f"{row['gil']['held_to_before']:.2f}" for row in rows],
    }


def limit_table(limits: list[dict[str, Any]]) -> Table:
    """What the machine does without a protocol; no rows if that was not measured."""
    columns = ["groups", "nodes", "in flight", "B", "values/s", "p50 us", "p99 us"]
    columns += ["uvloop futures/s", "asyncio futures/s", "one caller p50 us"]
    lines = []
    for one in limits:
        cluster, futures = one.get("cluster", {}), one.get("cluster_futures", {})
        kind = [number(one[name]) for name in ("groups", "nodes", "inflight", "value_bytes")]
        figures = [cluster.get(name) for name in ("values_per_s", "p50_us", "p99_us")]
        figures += [futures.get(loop, {}).get("values_per_s") for loop in ("uvloop", "asyncio")]
        figures.append(one.get("cluster_one", {}).get("p50_us"))
        lines.append(kind + ["-" if value is None else number(value) for value in figures])
    return Table("limit: the same load without a protocol", columns, lines)


PIECES = {
    "sync_us": "sync, us",
    "append_bytes_per_s": "append, bytes/s",
    "round_trip_us": "round trip, us",
}


def pieces_table(limits: list[dict[str, Any]]) -> Table:
    """What a limit is made of, as it was measured for each."""
    lines = [
        [said, ", ".join(f"{key} {value:,.6g}" for key, value in one[name].items())]
        for one in limits
        for name, said in PIECES.items()
        if one.get(name)
    ]
    return Table("pieces of the limit", ["piece", "figures"], lines)
