"""A replica that is not what its log says is found, stops, and is made anew from a majority's."""

import asyncio
import errno
import logging
import threading
import time
from contextlib import asynccontextmanager, suppress

import pytest
from click.testing import CliRunner

import phx
from phx._core.driver import ERROR_CLOSED, ERROR_OVERLOADED, DriverError
from phx.applier import GroupState
from phx.checkpoint.digests import Agreed, Ring, Verdict
from phx.cli.repair import repair
from phx.durable.lmdb import LmdbMachine
from phx.errors import CheckpointFailed, GroupStopped
from phx.machines import Counter, KeyValue
from phx.node import divergence
from phx.node.divergence import Divergence
from phx.node.fetcher import Want
from phx.transfer.messages import CHECKPOINT, DIGESTS, OFFER_WANTED, Fetch
from phx.types import AGREED_EVERY
from phx.verify import examine
from tests.api.catch_up import QUIET
from tests.api.cluster import all_applied, cluster, config_of, introduce, until

pytestmark = pytest.mark.usefixtures("no_leaks")


class Odd(Counter):
    """Counts one value twice where it is told to."""

    wrong = False

    def apply(self, entry):
        if Odd.wrong and entry.value == b"1000000" and self.spoilt:
            self.total += 7
        return super().apply(entry)

    def apply_batch(self, entries):
        return [self.apply(entry) for entry in entries]

    spoilt = False


def noting(members=3, said=None, odd=None):
    """A Divergence that asks `said`: {node: list of Agreed}."""
    asked = []

    def ask(node, group, above):
        asked.append((node, group, above))
        found = (said or {}).get(node)
        return None if found is None else [one for one in found if one.instance > above]

    made = Divergence(
        lambda: members,
        peers=lambda: sorted(said or {}),
        ask=ask,
        odd=lambda group, verdict: odd.append((group, verdict)) if odd is not None else None,
    )
    made.start = lambda: None  # rounds come when a test says
    return made, asked


def at(state, number, total=0):
    """The group has come to an agreed instance."""
    state.applied = number * AGREED_EVERY
    state.digest = 100 + number
    state.machines[0].total = total or number
    return state


def what(number, total=0, chain=0):
    machine = Counter()
    machine.total = total or number
    state = divergence.state_of({0: machine})
    return Agreed(number * AGREED_EVERY, chain or 100 + number, state)


def test_only_groups_with_news_are_asked_for():
    one, asked = noting(said={2: [what(1)], 3: [what(1), what(2)]})
    one.round()
    assert asked == []
    state = GroupState(7, {0: Counter()})
    one.note(at(state, 1))
    assert one.noted(7, 0) == [what(1)]
    assert one.noted(7, AGREED_EVERY) == one.noted(8, 0) == []
    one.round()
    assert asked == [(2, 7, 0), (3, 7, 0)]
    one.round()
    assert len(asked) == 2
    one.note(at(state, 2))
    one.round()
    assert asked[2:] == [(2, 7, AGREED_EVERY)]  # node 3 was ahead


def test_a_peer_that_does_not_answer_is_not_asked_for_the_rest():
    one, asked = noting(said={2: None, 3: [what(1)]})
    for group in (7, 8, 9):
        one.note(at(GroupState(group, {0: Counter()}), 1))
    one.round()
    assert [node for node, _, _ in asked] == [2, 3, 3, 3]
    assert one.counters["digests_compared"] == 3


def test_the_odd_one_hears_it_once(caplog):
    odd = []
    one, _ = noting(said={2: [what(1), what(2)], 3: [what(1), what(2)]}, odd=odd)
    state = GroupState(7, {0: Counter()})
    one.note(at(state, 1))
    one.round()
    assert (odd, caplog.records) == ([], [])
    one.note(at(state, 2, total=55))
    one.round()
    one.round()
    ((group, verdict),) = odd
    assert (group, verdict.equal, verdict.differs) == (7, AGREED_EVERY, 2 * AGREED_EVERY)
    (record,) = [one for one in caplog.records if "majority is equal" in one.message]
    assert record.levelno == logging.CRITICAL
    # Its state is made anew: what it noted was of the old one.
    one.forget(7)
    one.note(at(state, 3))
    one.round()
    assert len(odd) == 1
    assert one.noted(7, 0) == [what(3)]


def test_an_instance_far_beyond_does_not_hide_the_next_ones(caplog):
    said = {2: [what(1), what(1 << 40)], 3: [what(1)]}
    odd = []
    one, asked = noting(said=said, odd=odd)
    state = GroupState(7, {0: Counter()})
    one.note(at(state, 1))
    one.round()
    said[2] = said[3] = [what(1), what(2)]
    one.note(at(state, 2, total=55))
    one.round()
    assert (2, 7, AGREED_EVERY) in asked
    assert len(odd) == 1


def test_who_is_right_says_who_is_not_and_goes_on(caplog):
    odd = []
    one, _ = noting(said={2: [what(1, total=9)], 3: [what(1)]}, odd=odd)
    one.note(at(GroupState(7, {0: Counter()}), 1))
    one.round()
    assert odd == []
    assert "node 2 has diverged at or before 4096 (state; log equal)" in caplog.text


def test_without_a_majority_all_say_so_and_nobody_stops(caplog):
    odd = []
    one, _ = noting(2, {2: [what(1, chain=5)]}, odd)
    one.note(at(GroupState(7, {0: Counter()}), 1))
    one.round()
    one.round()
    assert odd == []
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert "nobody stops" in record.message


def test_a_state_that_is_not_of_the_instance_is_not_told():
    one, _ = noting()
    state = at(GroupState(7, {0: Counter()}), 1)
    state.skip = {0: 5000}  # its files hold a later instance already
    one.note(state)
    assert one.noted(7, 0) == [what(1)._replace(state=b"")]

    class Broken(Counter):
        def digest(self):
            raise OSError("planted")

    one.note(at(GroupState(8, {0: Broken()}), 1))
    assert one.noted(8, 0)[0].state == b""


@pytest.mark.parametrize("machine", [Counter, KeyValue])
def test_a_node_of_a_cluster_of_one_has_no_thread_for_it(run_once, tmp_path, machine):
    async def main():
        options = {"nodes": 1, "limits": {"batch_bytes_max": 256}}
        async with cluster(tmp_path, machine, **options) as (node,):
            await instances(node, AGREED_EVERY)
            assert node.status().transfers["digests_noted"] == 1
            threads = {one.name for one in threading.enumerate()}
            assert not threads & {"phx-digests", "phx-states"}

    run_once(main())


async def instances(node, count, group=0):
    """So many values, each in an instance of its own."""
    for _ in range(count // 512 + 1):
        await node.group(group).propose_many([b"0" * 300] * 512)


def test_the_odd_one_stops_and_is_made_anew(run_once, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(divergence, "EVERY_S", 0.3)
    monkeypatch.setattr(Odd, "wrong", True)
    options = {
        "groups": 2,
        "limits": {"batch_bytes_max": 256},
        "checkpoints": QUIET,
    }

    def states(nodes):
        return {node.group(0).machine().total for node in nodes}

    async def main():
        async with cluster(tmp_path, Odd, **options) as nodes:
            one, two, three = nodes
            await instances(one, AGREED_EVERY)
            await all_applied(nodes)
            await until(lambda: three.status().transfers["digests_compared"] >= 1)
            good = await three.group(0).checkpoint()
            three.group(0).machine().spoilt = True
            await one.group(0).propose(b"1000000")
            await all_applied(nodes)
            assert len(states(nodes)) == 2
            bad = await three.group(0).checkpoint()
            await instances(one, AGREED_EVERY)
            await until(lambda: three.status().stopped == (0,), seconds=20)
            with pytest.raises(GroupStopped, match="diverged between 4096 and 8192") as caught:
                await three.group(0).propose(b"1")
            assert "(state; log equal)" in str(caught.value)
            assert three.status().transfers["diverged"] == 1
            assert not one.status().stopped
            assert not two.status().stopped
            await until(
                lambda: (
                    len(list(three.config.dir.glob("quarantine/*/*")))
                    == 1 + (good.frontier > AGREED_EVERY)
                )
            )
            left = [path.name for path in three.config.dir.glob("checkpoints/0/*-*")]
            assert not any(name.startswith(f"{bad.frontier:020d}") for name in left)
            # All else goes on, here too.
            await three.group(1).propose(b"1")
            await one.group(0).propose(b"1")
            await asyncio.wait_for(three.group(0).repair(), 20)
            assert three.status().stopped == ()
            await three.group(0).propose(b"5")
            await all_applied(nodes)
            assert len(states(nodes)) == 1
            await instances(one, AGREED_EVERY)
            await all_applied(nodes)
            await asyncio.sleep(0.7)
            assert [node.status().stopped for node in nodes] == [(), (), ()]

    run_once(main())


@asynccontextmanager
async def counted(folder, groups=1):
    """Three nodes whose machines have counted to 50."""
    async with cluster(folder, Counter, groups=groups, checkpoints=QUIET) as nodes:
        for group in range(groups):
            await nodes[0].group(group).propose_many([b"1"] * 50)
        for group in range(groups):
            await all_applied(nodes, group)
        yield nodes


async def spoilt(nodes, folder):
    """The machine and the checkpoints of group 0 on the third node are wrong; its node closes."""
    three = nodes[2]
    await nodes[0].group(0).propose_many([b"1"] * 50)
    await all_applied(nodes)
    three.group(0).machine().total += 1000
    await three.group(0).checkpoint()
    await nodes[0].group(0).propose_many([b"1"] * 50)
    await all_applied(nodes)
    await three.group(0).checkpoint()
    await three.close()


async def reopened(nodes, folder, options):
    again = nodes[2] = phx.Node(config_of(folder, 3, **options), Counter)
    await again.open()
    introduce(nodes)
    return again


def names(node):
    return sorted(path.name for path in node.config.dir.glob("checkpoints/0/*"))


def test_a_marked_group_is_made_anew_at_the_start(run_once, tmp_path):
    options = {"groups": 2, "checkpoints": QUIET}

    async def main():
        async with cluster(tmp_path, Counter, **options) as nodes:
            await spoilt(nodes, tmp_path)
            again = await reopened(nodes, tmp_path, options)
            await again.wait_ready()
            assert again.group(0).machine().total == 1100
            await again.close()
            folder = again.config.dir
            done = CliRunner().invoke(repair, [str(folder), "--group", "0"])
            assert (done.exit_code, done.output) == (
                0, "group 0 is made anew at the next start\n",
            )  # fmt: skip
            assert examine(folder, whole=True).findings == []
            wrong = {name for name in names(again) if name != "rebuild"}
            assert len(wrong) == 2
            # A start that does not come to it leaves the mark.
            again = nodes[2] = phx.Node(again.config, Counter)
            await again.open()
            assert again.group(0).status().restoring
            await again.close()
            assert "rebuild" in names(again)
            again = await reopened(nodes, tmp_path, options)
            await again.wait_ready()
            assert again.group(0).machine().total == 100
            await until(lambda: "rebuild" not in names(again))
            assert not wrong & set(names(again))
            assert {one.name for one in folder.glob("quarantine/*/*")} == wrong
            await again.group(0).propose(b"1")
            await again.close()
            again = await reopened(nodes, tmp_path, options)
            await again.wait_ready()
            assert again.group(0).machine().total == 101

    run_once(main())


def test_a_group_that_runs_is_made_anew_at_once(run_once, tmp_path):
    async def main():
        async with counted(tmp_path) as nodes:
            three = nodes[2]
            before = three.group(0).machine()
            before.total += 1000
            load = [asyncio.ensure_future(three.group(0).propose(b"1")) for _ in range(200)]
            await asyncio.wait_for(three.group(0).repair(), 20)
            for one in load:
                with suppress(phx.errors.ResultNotKept):
                    await one
            await all_applied(nodes)
            assert {node.group(0).machine().total for node in nodes} == {250}
            assert three.group(0).machine() is not before
            await until(lambda: "rebuild" not in names(three))

    run_once(main())


class Files(LmdbMachine):
    """Counts in files, and says cheaply how much."""

    digest_cheap = True
    wrong = 0

    def __init__(self, group=0):
        super().__init__()

    def apply(self, entry):
        total = int(self.txn.get(b"total") or b"0") + 1 + self.wrong
        self.txn.put(b"total", b"%d" % total)
        self.wrong = 0
        return total

    def digest(self):
        return bytes(self.txn.get(b"total") or b"0")


def test_files_that_diverged_are_not_gone_on_from(run_once, tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "EVERY_S", 0.3)
    options = {"groups": 1, "limits": {"batch_bytes_max": 256}, "checkpoints": QUIET}

    async def main():
        async with cluster(tmp_path, Files, **options) as nodes:
            three = nodes[2]
            three.group(0).machine().wrong = 7
            await instances(nodes[0], AGREED_EVERY)
            await until(lambda: three.status().stopped == (0,), seconds=20)
            await until(lambda: "rebuild" in names(three))
            await three.close()
            again = nodes[2] = phx.Node(config_of(tmp_path, 3, **options), Files)
            await again.open()
            introduce(nodes)
            await again.wait_ready()
            await again.group(0).propose(b"1")
            await all_applied(nodes)
            assert len({node.group(0).machine().digest() for node in nodes}) == 1
            await until(lambda: "rebuild" not in names(again))

    run_once(main())


def judged(node):
    """The node hears that its replica of group 0 is odd, since ever."""
    transfers = node._room._transfers
    verdict = Verdict("odd", "state", 0, AGREED_EVERY, (1, 2))
    transfers.divergence._known._said[0] = verdict
    transfers._odd(0, verdict)


def test_what_a_repair_installs_is_not_put_aside_with_what_was_odd(run_once, tmp_path):
    """The thread that tidies is busy all the while."""

    async def main():
        async with counted(tmp_path) as nodes:
            three = nodes[2]
            three.group(0).machine().total += 1000
            await three.group(0).checkpoint()
            wrong = set(names(three))
            await nodes[0].group(0).propose_many([b"1"] * 50)
            await all_applied(nodes)
            busy = threading.Event()
            three._room._snapshots.between(lambda: busy.wait(20))
            judged(three)
            await until(lambda: three.status().stopped == (0,))
            await asyncio.wait_for(three.group(0).repair(), 20)
            (installed,) = catalog(three).of(0)
            busy.set()
            await until(lambda: "rebuild" not in names(three))
            await three.group(0).checkpoint()  # all that stood in line is done
            assert {one.name for one in three.config.dir.glob("quarantine/*/*")} == wrong
            assert installed.frontier in {int(name[:20]) for name in names(three)}
            assert {node.group(0).machine().total for node in nodes} == {100}

    run_once(main())


def catalog(node):
    return node._room._transfers._catalog


def test_a_checkpoint_of_an_odd_state_that_is_being_written_does_not_count(run_once, tmp_path):
    async def main():
        async with counted(tmp_path) as nodes:
            three = nodes[2]
            begun, busy = threading.Event(), threading.Event()

            def pace(nbytes):
                begun.set()
                busy.wait(20)

            three._room._snapshots._pace = pace
            writing = asyncio.ensure_future(three.group(0).checkpoint())
            await until(begun.is_set)
            judged(three)
            await until(lambda: three.status().stopped == (0,))
            busy.set()
            with pytest.raises(CheckpointFailed, match="not what its log says"):
                await writing
            assert catalog(three).of(0) == names(three) == []
            assert len(list(three.config.dir.glob("quarantine/*/*"))) == 1

    run_once(main())


def test_a_verdict_on_a_state_that_is_gone_stops_nothing(run_once, tmp_path):
    async def main():
        async with counted(tmp_path) as nodes:
            three = nodes[2]
            good = await three.group(0).checkpoint()
            transfers = three._room._transfers
            # As if the group's state was replaced while it was being judged.
            transfers.divergence._known._said.pop(0, None)
            transfers._odd(0, Verdict("odd", "state", 0, AGREED_EVERY, (1, 2)))
            await nodes[0].group(0).propose(b"1")
            await all_applied(nodes)
            await asyncio.sleep(0.2)
            assert three.status().stopped == ()
            assert [one.frontier for one in catalog(three).of(0)] == [good.frontier]

    run_once(main())


def test_nothing_is_taken_from_who_is_in_doubt(run_once, tmp_path):
    """The other two differ: who is right is not known, and so it waits."""

    async def main():
        async with counted(tmp_path) as nodes:
            one, two, three = nodes
            said = {node: Agreed(AGREED_EVERY, 5, b"of %6d" % node.config.node) for node in nodes}
            for node in (one, two):
                provider = node._room._transfers.provider
                provider._noted = lambda group, above, node=node: [said[node]]
            waiting = asyncio.ensure_future(three.group(0).repair())
            await asyncio.sleep(1.5)
            assert not waiting.done()
            wants = three._room._transfers.fetcher.wanted()
            assert "in doubt" in wants[0].why
            said[two] = said[one]
            await asyncio.wait_for(waiting, 20)
            assert three.group(0).machine().total == 50

    run_once(main())


def test_nor_by_who_only_lags(run_once, tmp_path):
    """What he noted himself counts for the majority."""

    async def main():
        async with counted(tmp_path) as nodes:
            said = {1: Agreed(AGREED_EVERY, 5, b""), 2: Agreed(AGREED_EVERY, 6, b"")}
            for node in nodes[:2]:
                await node.group(0).checkpoint()
                number = node.config.node
                node._room._transfers.provider._noted = lambda group, above, n=number: [said[n]]
            transfers = nodes[2]._room._transfers
            fetcher = transfers.fetcher

            def frontiers():
                offers = fetcher._offers(Want(0, anew=False), 0, 1)
                return {node: offer.frontier > 0 for node, offer in offers.items()}

            assert await asyncio.to_thread(frontiers) == {1: False, 2: False}
            transfers.divergence._known._mine[0] = Ring()
            transfers.divergence._known._mine[0].note(said[2])
            assert await asyncio.to_thread(frontiers) == {1: False, 2: True}
            said[1] = said[2]
            assert await asyncio.to_thread(frontiers) == {1: True, 2: True}

    run_once(main())


def test_a_repair_holds_up_no_checkpoint_of_another_group(run_once, tmp_path):
    async def main():
        async with counted(tmp_path, groups=2) as nodes:
            three = nodes[2]
            await nodes[0].close()
            await nodes[1].close()
            snapshots = three._room._snapshots
            turned = three._room.applier.on_turn
            three._room.applier.on_turn = lambda: None  # it comes to no capture
            first = asyncio.ensure_future(three.group(0).checkpoint())
            await until(lambda: snapshots._wanted is not None)
            waiting = asyncio.ensure_future(three.group(0).repair())
            await until(lambda: 0 in three._room._transfers.fetcher)
            three._room.applier.on_turn = turned
            with pytest.raises(CheckpointFailed, match="group 0 is being restored"):
                await asyncio.wait_for(first, 5)
            assert (await asyncio.wait_for(three.group(1).checkpoint(), 5)).frontier
            assert not waiting.done()
            await three.close()
            with pytest.raises(phx.errors.Closed):
                await waiting

    run_once(main())


def test_a_group_that_is_to_be_made_anew_is_not_offered(run_once, tmp_path):
    async def main():
        async with counted(tmp_path) as nodes:
            one, two, three = nodes
            taken = await three.group(0).checkpoint()
            provider = three._room._transfers.provider
            (manifest,) = catalog(three).of(0)
            fetch = Fetch(CHECKPOINT, 0, 0, 0, manifest.content)
            assert provider.offer(Fetch(DIGESTS, 0)).frontier == taken.frontier
            for other in (one, two):
                other._room._transfers.provider.doubted = lambda group: True
            waiting = asyncio.ensure_future(three.group(0).repair())
            await until(lambda: 0 in three._room._transfers.fetcher)
            assert provider.offer(Fetch(OFFER_WANTED, 0)).frontier == 0
            assert provider.begin(fetch) is None
            for other in (one, two):
                other._room._transfers.provider.doubted = lambda group: False
            await asyncio.wait_for(waiting, 20)
            assert await asyncio.to_thread(lambda: provider.offer(Fetch(DIGESTS, 0)).frontier) > 0

    run_once(main())


def test_without_another_member_nothing_is_made_anew(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Counter, nodes=1) as (node,):
            await node.group(0).propose(b"1")
            with pytest.raises(phx.errors.CheckpointFailed, match="no other node"):
                await node.group(0).repair()
            assert node.group(0).machine().total == 1

    run_once(main())


def test_a_node_that_closes_tells_who_waits(run_once, tmp_path):
    async def main():
        async with counted(tmp_path) as nodes:
            three = nodes[2]
            await nodes[0].close()
            await nodes[1].close()
            waiting = asyncio.ensure_future(three.group(0).repair())
            await asyncio.sleep(0.3)
            await three.close()
            with pytest.raises(phx.errors.Closed):
                await waiting
            assert "rebuild" in names(three)

    run_once(main())


class Refusing:
    """A node's driver that does not take some `pause`s."""

    def __init__(self, driver, *errors):
        self.driver = driver
        self.errors = list(errors)

    def __getattr__(self, name):
        return getattr(self.driver, name)

    def pause(self, group):
        if self.errors:
            raise DriverError(self.errors.pop(0), "planted")
        self.driver.pause(group)


def refuse(node, *errors):
    transfers = node._room._transfers
    driver = Refusing(node._room.driver, *errors)
    transfers._driver = transfers.installer.driver = driver
    return driver


def test_a_repair_waits_for_a_driver_whose_queue_is_full(run_once, tmp_path):
    async def main():
        async with counted(tmp_path) as nodes:
            three = nodes[2]
            three.group(0).machine().total += 1000
            driver = refuse(three, ERROR_OVERLOADED, ERROR_OVERLOADED)
            await asyncio.wait_for(three.group(0).repair(), 20)
            assert driver.errors == []
            assert three.group(0).machine().total == 50

    run_once(main())


def test_a_repair_that_cannot_begin_says_why_in_the_errors_of_phx(run_once, tmp_path, monkeypatch):
    async def main():
        async with counted(tmp_path) as nodes:
            three = nodes[2]
            refuse(three, ERROR_CLOSED)
            with pytest.raises(phx.errors.Closed):
                await three.group(0).repair()

            def full(group):
                raise OSError(errno.ENOSPC, "planted")

            monkeypatch.setattr(three._room._transfers, "_mark", full)
            with pytest.raises(CheckpointFailed, match="planted"):
                await three.group(0).repair()
            assert not three.group(0).status().restoring
            assert (await three.group(0).propose(b"1")).value == 51

    run_once(main())


def test_who_closes_waits_for_no_question_that_is_under_way(run_once, tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "EVERY_S", 0.05)
    options = {"groups": 1, "checkpoints": QUIET}

    async def main():
        async with cluster(tmp_path, Counter, **options) as nodes:
            transfers = nodes[2]._room._transfers
            asked = threading.Event()

            def ask(node, group, above):
                asked.set()
                transfers.fetcher._lines.ending.wait(5)

            transfers.divergence._ask = ask
            transfers.divergence.note(at(GroupState(0, {0: Counter()}), 1))
            await until(asked.is_set)
            began = time.monotonic()
            await nodes[2].close()
            assert time.monotonic() - began < 3

    run_once(main())


def test_what_cannot_be_marked_is_said(tmp_path):
    done = CliRunner().invoke(repair, [str(tmp_path), "--group", "0"])
    assert done.exit_code == 1
    assert "is not the folder of a node" in done.output
