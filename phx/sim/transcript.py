"""The last events of a run as lines that a person reads.

``12.345678  2→3 Accept g0 b(4.2) instance=17 watermark=16``: simulated seconds, then what happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from phx.sim.wire_text import FRAME_HEADER_BYTES, decode, records


def _event(event: tuple[Any, ...]) -> Iterator[str]:
    kind = event[1]
    if kind == "send":
        _, _, source, dest, after, frame = event
        for message in decode(frame[FRAME_HEADER_BYTES:]):
            message.source, message.dest, message.after = source, dest, after
            yield message.line()
    elif kind == "emit":
        _, _, node, lsn, data = event
        for record in records(data, lsn):
            yield f"{node} writes {record.line()}"
    elif kind == "durable":
        yield f"{event[2]} durable {event[3]}"
    else:
        yield f"{event[2]} {kind} {' '.join(str(part) for part in event[3:])}".rstrip()


def lines(events: Iterable[tuple[Any, ...]]) -> list[str]:
    """One line for each record, message and event, in order of time."""
    return [f"{event[0] / 1e6:12.6f}  {text}" for event in events for text in _event(event)]
