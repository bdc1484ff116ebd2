"""Clients that read as a program reads: by a read point, without writing to the log.

In the profiles of READING most gets of a client go that way, some of them as quorum reads. They
stand in the same histories as everything else.
"""

from __future__ import annotations

from random import Random
from typing import Any, Final

from phx.sim.altering import can_change, members
from phx.sim.asking import read
from phx.sim.client_kinds import ClientKind
from phx.sim.plan import Plan
from phx.sim.workload import Call, Client, Workload
from phx.sim.world import World

__all__ = ["READING", "AskingLoad"]

READING: Final = frozenset({"reads", "far-reads", "divergence", "members", "everything"})
SHARE = 0.85
"""Of gets; the others go through the log."""
STRAYS = 0.1
"""Of requests that would go to a node that is no member."""
QUORUM = 0.3
"""Of reads: a majority is asked, and not the leader."""


class Reader(Client):
    """A client with a stream of its own for how it reads."""

    __slots__ = ("how",)

    def __init__(self, load: Workload, number: int, group: int, kind: ClientKind) -> None:
        super().__init__(load, number, group, kind)
        self.how = Random(load.plan.seed << 20 | number << 1 | 1)

    def new_calls(self, now_us: int) -> list[Call]:
        return [self.reading(call) for call in super().new_calls(now_us)]

    def reading(self, call: Call) -> Call:
        if call.kind != "get" or self.how.random() >= SHARE:
            return call
        return ReadCall(self, call, self.how.random() < QUORUM)


class ReadCall(Call):
    """A get by a read point. It begins each time that it is asked."""

    __slots__ = ("quorum",)

    def __init__(self, asker: Client, call: Call, quorum: bool) -> None:
        super().__init__(asker, call.key, "get", None, call.command, call.called_us)
        self.quorum = quorum

    def failed(self, now_us: int, verdict: int) -> None:
        self.asker.rejected(self, now_us)  # a read changes nothing

    def died(self, now_us: int) -> None:
        self.asker.rejected(self, now_us)


class AskingLoad(Workload):
    """All clients of a run; in some profiles they read."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.reading = plan.profile in READING
        self.changing = can_change(world)
        self.stray = Random(plan.seed << 20 | 0xFFFFD)
        super().__init__(world, plan, Reader if self.reading else Client)
        self.plain = not self.reading

    def submit(self, client: Client, node: int, calls: list[Any], timeout_us: int) -> None:
        """Where members change, mostly at one of them; in the end at no other node, which waits for
        a leader as long as it is allowed to."""
        if self.changing:
            roles = members(self.world, client.group)["roles"]
            late = self.world.now_us >= self.plan.faults_end_us
            if roles and node not in roles and (late or self.stray.random() >= STRAYS):
                node = list(roles)[node % len(roles)]
        super().submit(client, node, calls, timeout_us)

    def hand_in(self, client: Client, node: int, calls: list[Any], timeout_us: int) -> None:
        reads = [call for call in calls if isinstance(call, ReadCall)]
        others = [call for call in calls if not isinstance(call, ReadCall)]
        if others:
            super().hand_in(client, node, others, timeout_us)
        now = self.world.now_us
        for call in reads:
            call.called_us = now
            # What waits for a state that is in no doubt is not asked for ever.
            if (
                now >= self.end_us
                or not self.world.running(node)
                or read(self.world, node, client.group, call.quorum, timeout_us, call)
            ):
                client.rejected(call, now)
