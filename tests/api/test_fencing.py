"""The epoch as a fencing token: what somebody wrote who leads no more is refused, everywhere."""

import asyncio
import json

import pytest

import phx

from .cluster import all_applied, cluster, meshed, until
from .test_leaders import led, move

pytestmark = pytest.mark.usefixtures("no_leaks")


class Plan(phx.StateMachine):
    """Takes orders from one leader at a time: the machine of docs/howto/know-the-leader.md."""

    def __init__(self, group=0):
        self.epoch = 0
        self.orders, self.refused = [], []

    def apply(self, entry):
        self.epoch = max(self.epoch, entry.epoch)
        expected, order = json.loads(entry.value)
        if expected != entry.epoch or expected < self.epoch:
            self.refused.append(order)
            return False  # whoever sent it does not lead any more
        self.orders.append(order)
        return True


def order(node, epoch, text, **how):
    return node.group(0).propose(json.dumps([epoch, text]).encode(), **how)


async def ordered(nodes, text):
    """Whoever leads has it done, however often it has to ask."""
    for _ in range(500):
        first, _ = await led(nodes)
        leader = first.group(0).leader()
        if leader is not None and (await order(first, leader.epoch, text, timeout=20)).value:
            return leader
        await asyncio.sleep(0.01)
    raise AssertionError("it was never done")


def test_an_order_of_who_was_leading_is_refused_by_every_replica(run, tmp_path):
    """It still has its epoch in hand, and sends the order where the leadership went."""

    async def main():
        async with cluster(tmp_path, Plan, groups=1, balance=False) as nodes:
            first, (second, _) = await led(nodes)
            old = (await ordered(nodes, "first")).epoch
            await move(nodes, second)
            assert (await ordered(nodes, "second")).epoch > old
            assert (await order(first, old, "late", timeout=20)).value is False
            await all_applied(nodes)
            for node in nodes:
                plan = node.group(0).machine()
                assert plan.orders == ["first", "second"]
                assert plan.refused[-1] == "late"

    run(main())


def test_an_order_of_a_leader_that_was_cut_off_is_refused_by_every_replica(run_once, tmp_path):
    """It believes that it leads when it sends it, and hears of the other only afterwards."""

    async def main():
        async with (
            cluster(tmp_path, Plan, groups=1, balance=False) as nodes,
            meshed(nodes) as mesh,
        ):
            await ordered(nodes, "first")
            first, others = await led(nodes)
            old = first.group(0).leader()
            mesh.isolate(first.config.node)
            late = order(first, old.epoch, "late", timeout=60)
            await until(lambda: any(node.group(0).is_leader for node in others), seconds=20)
            second = next(node for node in others if node.group(0).is_leader)
            new = await ordered([second], "second")
            assert new.epoch > old.epoch
            assert not late.done()
            mesh.heal_all()
            assert (await late).value is False
            await all_applied(nodes)
            for node in nodes:
                plan = node.group(0).machine()
                assert plan.orders == ["first", "second"]
                assert plan.refused[-1] == "late"

    run_once(main())
