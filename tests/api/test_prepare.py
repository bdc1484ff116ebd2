"""Values are prepared once, at the node that takes them, before anything of them is proposed."""

import asyncio
import threading

import pytest

from phx import blocking, errors
from phx.machines import Counter

from .cluster import Journal, all_applied, cluster, config_of

pytestmark = pytest.mark.usefixtures("no_leaks")


class Stamped(Journal):
    """Puts a number and the id of its object before each value."""

    def __init__(self, group=0):
        super().__init__(group)
        self.prepared = []
        self.threads = set()

    def prepare(self, value):
        if value == b"refuse":
            raise errors.Overloaded("not now")
        if value == b"fail":
            raise KeyError("no such thing")
        if value == b"text":
            return "text"
        self.threads.add(threading.get_ident())
        self.prepared.append(value)
        if value.startswith(b"grow "):
            return b"x" * int(value[5:])
        return b"%d:" % len(self.prepared) + value


class InBatches(Stamped):
    def prepare_batch(self, values):
        self.prepared.append(values)
        return [b"batch:" + value for value in values][: None if values[0] != b"lose" else -1]


def test_a_value_is_prepared_once_where_it_is_taken_also_when_it_is_forwarded(run, tmp_path):
    async def main():
        async with cluster(tmp_path, Stamped, groups=1) as nodes:
            calls = [node.group(0).propose(b"%d" % n) for n in range(40) for node in nodes]
            await asyncio.gather(*calls)
            await all_applied(nodes)
            machines = [node.group(0).machine() for node in nodes]
            assert [machine.prepared for machine in machines] == [
                [b"%d" % n for n in range(40)]
            ] * 3
            assert machines[0].values == machines[1].values == machines[2].values
            for node in (1, 2, 3):  # in the order in which they were prepared, at every node
                mine = [one.value for one in machines[0].entries if one.node == node]
                assert mine == [b"%d:%d" % (n + 1, n) for n in range(40)]
            assert machines[0].threads == {threading.get_ident()}

    run(main())


def test_what_is_proposed_again_by_a_later_leader_is_not_prepared_again(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Stamped, groups=1) as nodes:
            leader = next(node for node in nodes if node.group(0).status().leading)
            other = next(node for node in nodes if node is not leader)
            calls = [other.group(0).propose(b"%d" % n, timeout=20) for n in range(200)]
            await leader.close()
            await asyncio.gather(*calls)
            machine = other.group(0).machine()
            assert machine.prepared == [b"%d" % n for n in range(200)]
            assert machine.values == [b"%d:%d" % (n + 1, n) for n in range(200)]

    run_once(main())


def test_a_run_of_values_is_prepared_together(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, InBatches, nodes=1) as (node,):
            group = node.group(0)
            await group.propose_many([b"a", bytearray(b"b")])
            await group.propose(b"c")
            assert group.machine().prepared == [[b"a", b"b"], [b"c"]]
            assert group.machine().values == [b"batch:a", b"batch:b", b"batch:c"]
            with pytest.raises(errors.PrepareFailed, match="returned 1 for 2 values"):
                group.propose_many([b"lose", b"one"])
            assert len(group.machine().values) == 3

    run_once(main())


def test_what_prepare_raises_reaches_the_caller_and_nothing_was_proposed(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Stamped, nodes=1) as (node,):
            group = node.group(0)
            for propose in (group.propose, lambda value: group.propose_many([b"fine", value])):
                with pytest.raises(errors.Overloaded, match="not now"):
                    propose(b"refuse")
                with pytest.raises(errors.PrepareFailed, match="KeyError") as caught:
                    propose(b"fail")
                assert isinstance(caught.value.__cause__, KeyError)
                assert caught.value.outcome == "rejected"
                with pytest.raises(errors.PrepareFailed, match="not str"):
                    propose(b"text")
            assert group.status().waiting_values == 0
            await group.propose(b"after")
            assert [value[-5:] for value in group.machine().values] == [b"after"]

    run_once(main())


def test_limits_hold_for_what_prepare_returns(run_once, tmp_path):
    async def main():
        limits = {"value_bytes_max": 1000}
        async with cluster(tmp_path, Stamped, nodes=1, limits=limits) as (node,):
            group = node.group(0)
            for propose in (group.propose, lambda value: group.propose_many([value])):
                await propose(b"grow 1000")
                with pytest.raises(errors.ValueTooLarge, match="1001 bytes"):
                    propose(b"grow 1001")
            assert [len(value) for value in group.machine().values] == [1000, 1000]

    run_once(main())


def test_nothing_is_prepared_for_who_would_be_refused(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Stamped, nodes=1, groups=2) as (node,):
            group, machine = node.group(0), node.group(0).machine()
            with pytest.raises(errors.UnknownMachine):
                group.propose(b"x", machine=5)
            machine.apply = lambda entry: 1 / 0
            with pytest.raises(errors.Unknown):
                await group.propose(b"x")
            machine.prepared.clear()
            with pytest.raises(errors.GroupStopped):
                group.propose(b"x")
            await node.close()
            with pytest.raises(errors.Closed):
                node.group(1).propose(b"x")
            assert machine.prepared == []

    run_once(main())


def test_one_machine_of_a_group_prepares_and_the_other_does_not(run_once, tmp_path):
    async def main():
        def machines(group):
            return {0: Stamped(group), 1: Counter(group)}

        async with cluster(tmp_path, machines, nodes=1) as (node,):
            group = node.group(0)
            await group.propose(b"5", machine=1)
            await group.propose(b"5", machine=0)
            assert group.machine(1).total == 5
            assert group.machine(0).values == [b"1:5"]

    run_once(main())


def test_a_node_that_starts_again_prepares_with_the_machine_that_it_restored(run_once, tmp_path):
    class Kept(Counter):
        def prepare(self, value):
            return b"%d" % (self.total + int(value))

    async def main():
        totals = []
        for _ in range(2):
            async with cluster(tmp_path, Kept, nodes=1) as (node,):
                group = node.group(0)
                for value in (b"1", b"0"):  # each adds the total before it, and itself
                    totals.append((await group.propose(value)).value)
                await group.checkpoint()
        assert totals == [1, 2, 5, 10]

    run_once(main())


def test_threads_of_a_blocking_node_prepare_one_after_the_other(tmp_path):
    class Alone(Stamped):
        inside = 0

        def prepare(self, value):
            self.inside += 1
            assert self.inside == 1
            made = super().prepare(value)
            for _ in range(200):
                assert self.inside == 1
            self.inside -= 1
            return made

    with blocking.Node(config_of(tmp_path, 1, 1), Alone, bootstrap=True) as node:
        node.wait_ready()
        group = node.group(0)

        together = threading.Barrier(4)  # an ident is used again when its thread has ended

        def work(number):
            together.wait(30)
            for n in range(50):
                group.propose(b"%d/%d" % (number, n))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        machine = group.machine()
        assert len(machine.values) == 200
        numbers = [int(value.split(b":")[0]) for value in machine.values]
        assert numbers == list(range(1, 201)), "proposed in the order in which they were prepared"
        assert len(machine.threads) == 4
