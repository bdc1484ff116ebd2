"""Members that do not vote: they learn from whoever is there, and pass on what is proposed."""

import asyncio
from contextlib import asynccontextmanager
from itertools import chain

import pytest

import phx
from phx import errors
from phx.types import Role

from .cluster import all_applied, cluster, meshed, until
from .members_lab import counters, joining, kill, leader_of


@asynccontextmanager
async def with_learner(folder, **changes):
    """Three voters, and node 4 beside them, which has caught up."""
    async with (
        cluster(folder, counters, groups=2, **changes) as nodes,
        joining(folder, [4], nodes, groups=2, **changes) as (four,),
    ):
        added = await nodes[0].add_member(4, four.at, role=Role.LEARNER)
        assert added.failed == {}
        learner = await four.opened()
        await learner.wait_ready(timeout=20)
        yield nodes, learner


def test_a_learner_passes_on_proposals_and_reads(run, tmp_path):
    async def main():
        async with with_learner(tmp_path) as (nodes, learner):
            for group in (0, 1):
                assert (await nodes[1].group(group).propose(b"1")).value == 1
                assert (await learner.group(group).propose(b"5")).value == 6
                assert (await learner.group(group).read(None)).value == 6
                assert not learner.group(group).is_leader
            await all_applied([*nodes, learner], 0)

    run(main())


def test_a_learner_goes_on_with_another_source_when_one_dies(run, tmp_path):
    """Whoever leads is killed, whoever is left goes on: the learner follows, and passes on."""

    async def main():
        async with with_learner(tmp_path) as (nodes, learner):
            assert (await learner.group(0).propose(b"1")).value == 1
            lead = leader_of(nodes)
            kill(lead)
            left = [node for node in nodes if node is not lead]
            assert (await asyncio.wait_for(learner.group(0).propose(b"2"), 30)).value == 3
            await all_applied([*left, learner], 0)
            # Without a quorum of voters nothing is chosen, however many learners there are.
            kill(left[0])
            with pytest.raises((errors.NoQuorum, errors.TimedOut, errors.TimedOutUnknown)):
                await learner.group(0).propose(b"4", timeout=1.0)
            assert learner.group(0).machine().total == 3

    run(main())


def test_a_learner_that_was_away_catches_up_from_whoever_is_there(run, tmp_path):
    async def main():
        async with with_learner(tmp_path) as (nodes, learner):
            await learner.close()
            for _ in range(200):
                await nodes[0].group(0).propose(b"1")
            await all_applied(nodes, 0)
            kill(leader_of(nodes))
            async with phx.Node(learner.config, counters) as again:
                await until(lambda: again.group(0).machine().total == 200, seconds=30)

    run(main())


def test_a_learner_that_one_voter_is_silent_to_reads_all_through_the_others(run_once, tmp_path):
    """Each of the three in turn, the leader first: nothing passes between it and the learner, and
    nobody is told. (That there is something new is heard from the leader, or by asking.)"""

    async def main():
        async with (
            with_learner(tmp_path, balance=False) as (nodes, learner),
            meshed([*nodes, learner]) as mesh,
        ):
            await until(lambda: any(node.group(0).is_leader for node in nodes))
            lead = leader_of(nodes)

            def silent(*those):
                for node in nodes:
                    for link in chain(*mesh.between(node.config.node, 4)):
                        link.hold() if node in those else link.release()

            async def more():
                for _ in range(50):
                    result = await lead.group(0).propose(b"1", timeout=30)
                return result.value

            silent(*nodes)
            total = await more()
            with pytest.raises((errors.NoQuorum, errors.TimedOut)):
                await learner.group(0).read(None, consistency="quorum", timeout=1)
            assert learner.group(0).machine().total == 0
            for one in (lead, *(node for node in nodes if node is not lead), lead):
                silent(one)
                total = await more()
                read = await learner.group(0).read(None, consistency="quorum", timeout=40)
                assert read.value == total
                assert learner.group(0).machine().total == total
            assert lead.group(0).is_leader

    run_once(main())
