"""The child's end of processes.py: a process that does what its parent asks, line by line.

Guarantee: the process ends with its standard input, and on Linux the kernel kills it with its
parent.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, Protocol

LINE_BYTES_MAX = 1 << 26
PR_SET_PDEATHSIG = 1
PR_SET_PTRACER = 0x59616D61
PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)


class Served(Protocol):
    """What a worker offers: for each word that its parent may say a coroutine ``do_word``, whose
    arguments and result are those of the messages; and when it is over.
    """

    closed: asyncio.Event


def begin() -> dict[str, Any]:
    """First thing in a worker: bind its life to the parent's, leave Ctrl-C to it; the first line.

    What follows that line is left in the pipe, for the event loop.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY)  # whoever injects faults attaches later
        if os.getppid() == 1:
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = bytearray()
    while not line.endswith(b"\n"):
        one = os.read(0, 1)
        if not one:
            sys.exit(0)
        line += one
    found: dict[str, Any] = json.loads(line)
    return found


async def serve(worker: Served) -> None:
    """Read commands until the input ends or the worker is closed; answer as they finish."""
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    answering: set[asyncio.Task[None]] = set()
    closed = asyncio.create_task(worker.closed.wait())
    while not closed.done():
        line = asyncio.create_task(reader.readline())
        await asyncio.wait({line, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not line.done() or not line.result():
            line.cancel()
            break
        message = json.loads(line.result())
        action = getattr(worker, f"do_{message.pop('do')}")
        task = asyncio.create_task(answer(message.pop("id"), action(**message)))
        answering.add(task)
        task.add_done_callback(answering.discard)
    closed.cancel()
    if worker.closed.is_set():
        await asyncio.gather(*answering)


async def answer(number: int, action: Coroutine[Any, Any, Any]) -> None:
    try:
        send({"id": number, "result": await action})
    except Exception as error:
        send({"id": number, "error": repr(error)})


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message, default=jsonable) + "\n")
    sys.stdout.flush()


def jsonable(value: Any) -> Any:
    """Anything a status holds, as JSON can carry it."""
    if isinstance(value, dict):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    if isinstance(value, bytes):
        return value.hex()
    if hasattr(value, "__dataclass_fields__"):
        return {name: jsonable(getattr(value, name)) for name in value.__dataclass_fields__}
    return value if isinstance(value, str | int | float | bool | None) else str(value)
