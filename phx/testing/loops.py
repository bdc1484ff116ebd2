"""Which event loop a process runs on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def uvloop_found() -> bool:
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True


def run_in_loop(main: Coroutine[Any, Any, Any], loop: str) -> Any:
    """Run `main` on "uvloop", on "asyncio", or, for "auto", on uvloop where it is installed."""
    if loop == "uvloop" or (loop == "auto" and uvloop_found()):
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    with asyncio.Runner() as runner:
        return runner.run(main)
