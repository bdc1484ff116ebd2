"""What a node finds where it runs: addresses of hosts, and what the environment asks for."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

__all__ = ["resolve", "traced"]

TRACE_MIB_MAX = 1024


def traced(node: int) -> dict[str, Any]:
    """The driver's arguments for a trace in PHX_TRACE_DIR (docs/design/trace.md), if it is set."""
    folder = os.environ.get("PHX_TRACE_DIR")
    if not folder:
        return {}
    mib = os.environ.get("PHX_TRACE_MIB", "")
    return {
        "trace_path": os.path.join(folder, f"node{node}-{time.time_ns()}.trace"),
        "trace_bytes_max": (int(mib) if mib.isascii() and mib.isdigit() else TRACE_MIB_MAX) << 20,
    }


def resolve(host: str) -> str:
    """The first numeric address of a host; "" if it has none."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ""
    return str(found[0][4][0]) if found else ""
