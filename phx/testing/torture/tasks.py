"""Doing several things at a time, and things that must not be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

__all__ = ["together", "whole"]


async def together(doings: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of them at a time. When this returns, or raises what one of them raised, none of them
    goes on."""
    tasks = [asyncio.create_task(doing) for doing in doings]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole(doing: Coroutine[Any, Any, None]) -> None:
    """Do it to its end, whoever gives it up meanwhile; then that is raised."""
    task = asyncio.create_task(doing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
