"""Readers: they read keys of the workload under the lease of whoever believes that it leads.

They wait for nothing: what is answered stands in the history beside what the clients did, what is
not changed nothing. So a reader more or less moves nobody else's events.
"""

from __future__ import annotations

from random import Random
from typing import Any

from phx.sim.history import Operation
from phx.sim.looking import LeaseRead
from phx.sim.plan import SECOND, Plan
from phx.sim.workload import EPOCH_US, LISTS, REGISTERS, key_of
from phx.sim.world import World

__all__ = ["Readers"]

EVERY_US = SECOND // 2
"""Of each group, about; half of them follow one another at once."""
PAUSE_US_MAX = 60_000
READER = -1
"""The client that they are in a history."""


class Readers:
    """Lease reads of all groups, until clients end.

    Attributes:
        answered: the operations that were answered.
        asked: how many reads were begun.
    """

    def __init__(self, world: World, plan: Plan) -> None:
        self.world = world
        self.plan = plan
        self.chance = Random(plan.seed << 20 | 0xFFFFE)
        self.answered: list[Operation] = []
        self.asked = 0

    def open(self) -> None:
        for group in range(self.plan.groups):
            self.later(group)

    def later(self, group: int) -> None:
        chance, now_us = self.chance, self.world.now_us
        after_us = 1 + int(chance.random() * (2_000 if chance.random() < 0.5 else 4 * EVERY_US))
        if now_us + after_us < self.plan.clients_end_us:
            self.world.call_at(now_us + after_us, lambda: self.ask(group))

    def ask(self, group: int) -> None:
        chance, world = self.chance, self.world
        leading = world.leaders(group)
        if leading:
            epoch = max(0, world.now_us // EPOCH_US - (chance.random() < 0.1))
            key = key_of(group, epoch, int(chance.random() * (REGISTERS + LISTS)))
            pause_us = int(chance.random() * PAUSE_US_MAX) if chance.random() < 0.3 else 0
            self.asked += 1
            LeaseRead(world, chance.choice(leading), group, key, pause_us, self.done(key))
        self.later(group)

    def done(self, key: int) -> Any:
        def call(read: LeaseRead, value: Any, now_us: int) -> None:
            one = Operation(READER, key, "get", None, value, read.called_us, now_us)
            self.answered.append(one)

        return call
