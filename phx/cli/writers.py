"""The writers of ``phx demo``: a few per group in every process, each one value after another.

Every value sets a key of its own, so that each acknowledged one can be looked for afterwards. A
writer never pauses: an outcome that is not an acknowledgement is recorded and the writer goes on
with its next value (after a rejection 10 ms later, or it would spin).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from phx import errors
from phx.cli.ledger import ACKNOWLEDGED, REJECTED, UNKNOWN, Ledger, key_of, value_of
from phx.testing.processes import now_us

REJECTED_PAUSE_S = 0.01


class Writers:
    """`per_group` writers for each of `groups` (Group objects), recorded in `ledger`."""

    def __init__(
        self,
        groups: list[Any],
        per_group: int,
        ledger: Ledger,
        encode: Callable[[str, bytes], bytes],
        timeout_s: float,
    ):
        self._groups = groups
        self._per_group = per_group
        self._ledger = ledger
        self._encode = encode
        self._timeout_s = timeout_s
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.acknowledged = 0
        self.last_error = ""

    def start(self) -> None:
        for index, group in enumerate(self._groups):
            for writer in range(self._per_group):
                slot = index * self._per_group + writer
                self._tasks.append(asyncio.create_task(self._write(group, slot)))

    async def stop(self) -> None:
        """Propose nothing more, and wait until every value in flight has its outcome.

        Raises LedgerFull if a writer had to give up because of it.
        """
        self._stopping = True
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _write(self, group: Any, slot: int) -> None:
        ledger, salt = self._ledger, self._ledger.salt
        number = 0
        while not self._stopping:
            number += 1
            command = self._encode(key_of(salt, slot, number), value_of(salt, slot, number))
            ledger.submitted(slot, number)
            try:
                await group.propose(command, timeout=self._timeout_s)
                ledger.outcome(slot, number, ACKNOWLEDGED, now_us())
                self.acknowledged += 1
            except errors.Rejected as error:
                ledger.outcome(slot, number, REJECTED, now_us())
                self.last_error = repr(error)
                await asyncio.sleep(REJECTED_PAUSE_S)
            except errors.Unknown as error:
                ledger.outcome(slot, number, UNKNOWN, now_us())
                self.last_error = repr(error)
