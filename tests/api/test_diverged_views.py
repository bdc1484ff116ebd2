"""Machines whose digest takes long are compared, too: when that is noted, and what follows."""

import asyncio

import pytest

import phx
from phx.applier import GroupState
from phx.checkpoint.digests import Agreed
from phx.errors import GroupStopped
from phx.machines import Counter, KeyValue, Leases
from phx.machines.kv import encode_set
from phx.machines.lease import encode_acquire
from phx.node import divergence, view_digests
from phx.types import AGREED_EVERY
from tests.api.catch_up import QUIET
from tests.api.cluster import Journal, all_applied, cluster, until
from tests.api.test_divergence import instances, noting

pytestmark = pytest.mark.usefixtures("no_leaks")


class Later:
    """In the place of ViewDigests: a test says when a walk is over, and what came of it."""

    counters: dict[str, int] = {}  # noqa: RUF012

    def __init__(self):
        self.told = []
        self.missed_at = []
        self.refuses = False

    def begin(self, group, instance, machines, told):
        if self.refuses:
            return False
        self.told.append(told)
        return True

    def missed(self, group, instance):
        self.missed_at.append(instance)

    def forget(self, group):
        pass


def walking():
    one, _ = noting()
    one._of_views = Later()
    state = GroupState(7, {0: KeyValue(), 1: Counter()})

    def reach(number):
        state.applied, state.digest = number * AGREED_EVERY, 100 + number
        one.note(state)

    return one, one._of_views, reach


def heard(number, state=b""):
    return Agreed(number * AGREED_EVERY, 100 + number, state)


def test_what_is_worked_out_of_views_is_noted_when_it_is_known():
    one, walks, reach = walking()
    reach(1)
    assert one.noted(7, 0) == []
    reach(2)  # in the middle of the walk: what is noted comes in order
    assert walks.missed_at == [2 * AGREED_EVERY]
    walks.told[0](b"a state.")
    assert one.noted(7, 0) == [heard(1, b"a state.")]
    reach(3)
    walks.told[1](b"")  # it failed
    # Never of the counter alone: another node may have walked there.
    walks.refuses = True
    reach(4)
    assert one.noted(7, 0) == [heard(1, b"a state."), heard(3), heard(4)]
    assert one.counters["digests_noted"] == 3


def test_a_walk_over_a_state_that_is_gone_is_not_noted():
    one, walks, reach = walking()
    reach(1)
    one.forget(7)
    reach(2)
    walks.told[0](b"the old.")
    assert one.noted(7, 0) == []
    walks.told[1](b"the new.")
    walks.told[0](b"the old.")
    assert one.noted(7, 0) == [heard(2, b"the new.")]


def test_what_freeze_raises_leaves_the_state_unknown(caplog):
    class Broken(KeyValue):
        def freeze(self):
            raise OSError("planted")

    one, _ = noting()
    state = GroupState(7, {0: Broken()})
    state.applied, state.digest = AGREED_EVERY, 101
    one.note(state)
    one.note(state)
    assert one.noted(7, 0) == [heard(1)]
    assert "no digest at 4096" in caplog.text
    one.end(5)


class OddValues(KeyValue):
    """Makes something else of one value where it is told to."""

    spoilt = False

    def apply(self, entry):
        if self.spoilt and entry.value == encode_set("a", b"right"):
            entry = phx.Entry(value=encode_set("a", b"wrong"))
        return super().apply(entry)


class OddLeases(Leases):
    spoilt = False

    def _put(self, name, holder, *rest):
        super()._put(name, "somebody else" if self.spoilt else holder, *rest)


ACQUIRE = encode_acquire("a", "holder", 30_000_000)


def by_hand(machine):
    """Nothing is applied wrongly: memory is."""
    machine._items["a"] = (b"wrong", machine._items["a"][1])


@pytest.mark.parametrize(
    ("kind", "command", "spoil"),
    [
        (OddValues, encode_set("a", b"right"), lambda machine: None),
        (KeyValue, encode_set("a", b"right"), by_hand),
        (OddLeases, ACQUIRE, lambda machine: None),
    ],
)
def test_the_odd_one_of_machines_that_are_walked_stops(
    run_once, tmp_path, monkeypatch, kind, command, spoil
):
    monkeypatch.setattr(divergence, "EVERY_S", 0.3)
    monkeypatch.setattr(view_digests, "FROZEN_PART", 1.0)
    monkeypatch.setattr(view_digests, "FROZEN_PART_ALL", 1.0)
    options = {"groups": 1, "limits": {"batch_bytes_max": 256}, "checkpoints": QUIET}

    async def main():
        async with cluster(tmp_path, kind, **options) as nodes:
            one, _, three = nodes
            assert three.group(0).status().state_compared
            await instances(one, AGREED_EVERY)
            await all_applied(nodes)
            await until(lambda: all(node.status().transfers["states_walked"] for node in nodes))
            await until(lambda: three.status().transfers["digests_compared"] >= 1)
            assert [node.status().stopped for node in nodes] == [(), (), ()]
            machine = three.group(0).machine()
            machine.spoilt = True
            await one.group(0).propose(command)
            await all_applied(nodes)
            spoil(machine)
            assert len({node.group(0).machine().digest() for node in nodes}) == 2
            await instances(one, AGREED_EVERY)
            await until(lambda: three.status().stopped == (0,), seconds=20)
            with pytest.raises(GroupStopped, match="diverged between 4096 and 8192") as caught:
                await three.group(0).propose(b"1")
            assert "(state; log equal)" in str(caught.value)
            assert [node.status().stopped for node in nodes[:2]] == [(), ()]
            await asyncio.wait_for(three.group(0).repair(), 20)
            await instances(one, AGREED_EVERY)
            await all_applied(nodes)
            assert len({node.group(0).machine().digest() for node in nodes}) == 1
            await asyncio.sleep(0.7)
            assert [node.status().stopped for node in nodes] == [(), (), ()]

    run_once(main())


def test_a_group_says_whether_its_machines_are_compared(run_once, tmp_path):
    async def main():
        kinds = {0: Counter, 1: KeyValue}
        async with cluster(tmp_path / "all", kinds, nodes=1) as (node,):
            assert node.group(0).status().state_compared
        kinds[2] = Journal
        async with cluster(tmp_path / "not", kinds, nodes=1) as (node,):
            assert not node.group(0).status().state_compared

    run_once(main())
