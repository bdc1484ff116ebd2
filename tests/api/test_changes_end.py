"""How a change of members ends that does not come about: what its caller is told, and when."""

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import product

import pytest

import phx
from phx import errors
from phx._core.driver import ERROR_CLOSED, ERROR_OVERLOADED, DriverError
from phx._core.member_table import CHANGE_BUSY, CHANGE_UNDER_WAY
from phx.node import provider, threads
from phx.transfer import messages
from phx.types import Role, learner, voter

from .cluster import cluster, config_of, until
from .test_member_changes import counters, kill, leader_of, voters

NOBODY = "127.0.0.1:1"


class Planted:
    """In the place of the engine: says these one after the other, the last one for ever; none of
    it is done."""

    def __init__(self, *says):
        self.says, self.asked = list(says), 0

    def change(self, group, roster):
        self.asked += 1
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, Exception):
            raise said
        return said


@asynccontextmanager
async def alone(folder, *says, groups=1):
    """A node whose members only it is; what the engine says of changes, if it is said here."""
    config = config_of(folder, 1, nodes=1, groups=groups)
    async with phx.Node(config, counters, bootstrap=True) as node:
        await node.wait_ready(timeout=20)
        planted = Planted(*says)
        if says:
            node._room.changes._table = planted
        yield node, planted


async def told(call):
    """What a call ends with, soon."""
    async with asyncio.timeout(20):
        (found,) = await asyncio.gather(call, return_exceptions=True)
    return found


async def closed(node):
    async with asyncio.timeout(20):
        await node.close()


# --- the node closes


@pytest.mark.parametrize(
    ("says", "ends_with"),
    [
        ((CHANGE_UNDER_WAY,), errors.ClosedUnknown),
        ((CHANGE_BUSY,), errors.Closed),
        ((CHANGE_UNDER_WAY, CHANGE_BUSY), errors.ClosedUnknown),
    ],
)
def test_a_node_that_closes_ends_the_call_at_once(run_once, tmp_path, says, ends_with):
    async def main():
        async with alone(tmp_path, *says) as (node, planted):
            wanted = {1: voter(f"127.0.0.1:{node.port}")}
            call = asyncio.ensure_future(node.group(0).set_members(wanted, timeout=60))
            await until(lambda: planted.asked >= len(says))
            await closed(node)
            assert type(await told(call)) is ends_with

    run_once(main())


@pytest.mark.parametrize("before", [False, True])
def test_who_waits_for_a_learner_when_the_node_closes(run_once, tmp_path, before):
    """The learner that this call added stays: so it is not as if nothing had been done."""

    async def main():
        async with alone(tmp_path) as (node, _):
            group = node.group(0)
            if before:
                await group.add_member(4, NOBODY, role=Role.LEARNER)
            call = asyncio.ensure_future(group.add_member(4, NOBODY, timeout=60))
            await until(lambda: 4 in group.members().by_id)
            await asyncio.sleep(0.3)
            await closed(node)
            assert type(await told(call)) is (errors.Closed if before else errors.ClosedUnknown)

    run_once(main())


def test_of_all_groups_each_is_done_or_failed_when_the_node_closes(run_once, tmp_path):
    async def main():
        async with alone(tmp_path, groups=40) as (node, _):
            call = asyncio.ensure_future(node.add_member(4, NOBODY, timeout=60))
            await until(lambda: all(4 in node.group(g).members().by_id for g in range(40)))
            await closed(node)
            changed = await told(call)
            assert changed.done.keys() | changed.failed.keys() == set(range(40))
            assert changed.done == {}

    run_once(main())


def test_a_node_that_is_killed_does_not_say_that_nothing_was_proposed(run_once, tmp_path):
    async def main():
        async with alone(tmp_path, CHANGE_UNDER_WAY, DriverError(ERROR_CLOSED, "planted")) as (
            node,
            planted,
        ):
            wanted = {1: voter(f"127.0.0.1:{node.port}")}
            call = asyncio.ensure_future(node.group(0).set_members(wanted, timeout=60))
            await until(lambda: planted.asked)
            await asyncio.to_thread(kill, node)
            assert type(await told(call)) is errors.ClosedUnknown

    run_once(main())


# --- what was proposed once


@pytest.mark.parametrize(
    ("says", "ends_with"),
    [
        ((CHANGE_UNDER_WAY, DriverError(ERROR_OVERLOADED, "full")), errors.TimedOutUnknown),
        ((CHANGE_UNDER_WAY, DriverError(ERROR_CLOSED, "over")), errors.ClosedUnknown),
        ((CHANGE_UNDER_WAY, CHANGE_BUSY), errors.TimedOutUnknown),
        ((CHANGE_BUSY, CHANGE_UNDER_WAY, CHANGE_BUSY), errors.TimedOutUnknown),
        ((DriverError(ERROR_OVERLOADED, "full"),), errors.Overloaded),
        ((DriverError(ERROR_CLOSED, "over"),), errors.Closed),
        ((CHANGE_BUSY,), errors.ChangeUnderWay),
    ],
)
def test_only_what_was_never_proposed_is_rejected(run_once, tmp_path, says, ends_with):
    async def main():
        async with alone(tmp_path, *says) as (node, planted):
            wanted = {1: voter(f"127.0.0.1:{node.port}")}
            call = asyncio.ensure_future(node.group(0).set_members(wanted, timeout=0.5))
            assert type(await told(call)) is ends_with
            assert planted.asked >= len(says)

    run_once(main())


def test_what_becomes_so_after_all_is_found_after_a_full_queue(run_once, tmp_path):
    """A queue that is full now is asked again."""

    async def main():
        async with alone(tmp_path) as (node, _):
            changes = node._room.changes
            table, planted = changes._table, Planted(DriverError(ERROR_OVERLOADED, "full"))
            changes._table = planted
            wanted = {1: voter(f"127.0.0.1:{node.port}")}
            call = asyncio.ensure_future(node.group(0).set_members(wanted, timeout=20))
            await until(lambda: planted.asked)
            changes._table = table
            assert (await told(call)).version == 2

    run_once(main())


def test_a_learner_that_was_added_is_not_taken_for_nothing(run_once, tmp_path):
    """The second step is refused for as long as there is time."""

    async def main():
        async with alone(tmp_path) as (node, _):
            changes = node._room.changes
            changes._far = lambda *asked: []  # it has come, for all that is known
            table, planted = changes._table, Planted(CHANGE_BUSY)

            class Once:
                def change(self, group, roster):
                    changes._table = planted
                    return table.change(group, roster)

            changes._table = Once()
            call = asyncio.ensure_future(node.group(0).add_member(4, NOBODY, timeout=1))
            assert type(await told(call)) is errors.TimedOutUnknown
            assert node.group(0).members().by_id[4] == learner(NOBODY)

    run_once(main())


# --- all groups of a node


class Silent:
    """A driver that does not say how far its groups are."""

    def __init__(self, driver):
        self._driver = driver

    def __getattr__(self, name):
        return getattr(self._driver, name)

    def group_status(self, group):
        raise DriverError(ERROR_OVERLOADED, "planted")


def test_what_goes_wrong_in_one_group_is_said_of_it(run_once, tmp_path):
    async def main():
        async with alone(tmp_path, groups=20) as (node, _):
            door = node._room.door
            changed, driver = None, door.driver
            door.driver = Silent(driver)
            try:
                call = asyncio.ensure_future(node.add_member(4, NOBODY, timeout=1))
                changed = await told(call)
            finally:
                door.driver = driver
            assert changed.done == {}
            assert changed.failed.keys() == set(range(20))
            assert all("planted" in why for why in changed.failed.values())

            def goal(now):
                raise RuntimeError("a fault")

            call = asyncio.wrap_future(node._room.changes.all_to(goal, 1))
            changed = await told(call)
            assert changed.failed == dict.fromkeys(range(20), "RuntimeError: a fault")

    run_once(main())


def test_calls_are_not_without_a_limit(run_once, tmp_path, monkeypatch):
    async def main():
        monkeypatch.setattr(threads, "CALLS_MAX", 3)
        async with alone(tmp_path, CHANGE_UNDER_WAY) as (node, planted):
            wanted = {1: voter(f"127.0.0.1:{node.port}")}
            calls = [
                asyncio.ensure_future(node.group(0).set_members(wanted, timeout=60))
                for _ in range(3)
            ]
            await until(lambda: planted.asked >= 3)
            with pytest.raises(errors.Overloaded, match="3 calls"):
                await node.group(0).set_members(wanted)
            await closed(node)
            assert {type(await told(call)) for call in calls} == {errors.ClosedUnknown}

    run_once(main())


def test_without_a_thread_nothing_is_begun(run_once, tmp_path, monkeypatch):
    async def main():
        async with alone(tmp_path) as (node, _):
            wanted = {1: voter(f"127.0.0.1:{node.port}")}

            def refused(self):
                raise RuntimeError("can't start new thread")

            with monkeypatch.context() as patch:
                patch.setattr(threading.Thread, "start", refused)
                with pytest.raises(errors.SystemFailure, match="a thread"):
                    await node.group(0).set_members(wanted)
            assert (await node.group(0).set_members(wanted)).version == 2

    run_once(main())


# --- who is asked


def test_an_address_that_is_none_is_refused_at_once_at_whatever_node(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters, groups=1) as nodes:
            led = leader_of(nodes)
            other = next(node for node in nodes if node is not led)
            bad_ones = ("10.0.0.4", "nonsense", "[::1]", "a:70000", "a:b", "::1:5")
            for node, bad in product((led, other), bad_ones):
                moved = {**voters(nodes), led.config.node: voter(bad)}
                for call in (
                    lambda node=node, bad=bad: node.group(0).add_member(4, bad),
                    lambda node=node, bad=bad: node.group(0).replace_member(3, 4, bad),
                    lambda node=node, moved=moved: node.group(0).set_members(moved),
                    lambda node=node, bad=bad: node.add_member(4, bad),
                    lambda node=node, bad=bad: node.replace_member(3, 4, bad),
                    lambda node=node, moved=moved: node.set_members(moved),
                ):
                    with pytest.raises(ValueError, match=r"host:port|brackets|the port is"):
                        await call()
            assert led.group(0).members().version == 1

    run_once(main())


def test_what_the_leader_cannot_do_is_said_to_who_asked_it(run_once, tmp_path, monkeypatch):
    async def main():
        async with cluster(tmp_path, counters, groups=1, balance=False) as nodes:
            led = leader_of(nodes)
            other = next(node for node in nodes if node is not led)
            wanted = {**voters(nodes), 4: learner(NOBODY)}
            for error, ends_with in (
                (errors.ConfigError(["planted"]), errors.ConfigError),
                (ValueError("planted"), errors.ConfigError),
                (errors.SystemFailure("planted"), errors.NoQuorum),
                (RuntimeError("planted"), errors.NoQuorum),
            ):

                def add(node, address, error=error):
                    raise error

                for node in nodes:  # whoever leads
                    if node is not other:
                        monkeypatch.setattr(node._room._peers, "add", add)
                call = asyncio.ensure_future(other.group(0).set_members(wanted, timeout=1))
                assert type(await told(call)) is ends_with
            monkeypatch.undo()
            assert (await other.group(0).set_members(wanted)).version == 2

    run_once(main())


def test_who_was_only_busy_was_not_asked(run_once, tmp_path, monkeypatch):
    async def main():
        async with cluster(tmp_path, counters, groups=1, balance=False) as nodes:
            led = leader_of(nodes)
            other = next(node for node in nodes if node is not led)
            monkeypatch.setattr(provider, "TALKS_MAX", -other.config.checkpoints.transfers_max)
            call = asyncio.ensure_future(other.group(0).set_members(voters(nodes), timeout=1))
            assert type(await told(call)) is errors.NoQuorum
            assert led.group(0).members().version == 1
            monkeypatch.undo()
            assert (await other.group(0).set_members(voters(nodes))).version == 2

    run_once(main())


# --- a leader that falls silent


def test_who_asked_a_leader_that_fell_silent_asks_the_next_one(run_once, tmp_path, monkeypatch):
    """Stopped, or its packets are dropped: nothing is refused, and no answer ever comes."""
    monkeypatch.setattr(messages, "SILENCE_US", 3600 * 1_000_000)

    async def main():
        async with cluster(tmp_path, counters) as nodes:
            led = leader_of(nodes)
            one = next(node for node in nodes if node is not led)
            at, asked = one._room.changes._at, asyncio.Event()
            held = []

            async def silence(_, writer):
                held.append(writer)
                asked.set()

            silent = await asyncio.start_server(silence, "127.0.0.1", 0)
            port = silent.sockets[0].getsockname()[1]

            def reach(node):
                return ("127.0.0.1", port) if node == led.config.node else at.at(node)

            one._room.changes._at = replace(at, reach=reach)
            wanted = {n: each for n, each in voters(nodes).items() if n != led.config.node}
            call = asyncio.ensure_future(one.group(0).set_members(wanted, timeout=60))
            await asked.wait()
            kill(led)
            assert (await told(call)).by_id == wanted
            silent.close()
            for writer in held:
                writer.transport.abort()
            await asyncio.sleep(0.05)

    run_once(main())
