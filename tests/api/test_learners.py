"""Members that do not vote: they learn from whoever is there, and pass on what is proposed."""

import asyncio

import pytest

import phx
from phx import errors
from phx.types import Role

from .cluster import all_applied, cluster, until
from .members_lab import counters, joining, kill


def test_a_learner_passes_on_proposals_and_reads(run, tmp_path):
    async def main():
        async with cluster(tmp_path, counters, groups=2) as nodes:
            await nodes[0].group(0).propose(b"1")
            async with joining(tmp_path, [4], nodes, groups=2) as (four,):
                added = await nodes[0].add_member(4, four.at, role=Role.LEARNER)
                assert added.failed == {}
                learner = await four.opened()
                await learner.wait_ready(timeout=20)
                for group in (0, 1):
                    before = (await nodes[1].group(group).propose(b"0")).value
                    assert (await learner.group(group).propose(b"5")).value == before + 5
                    assert (await learner.group(group).read(None)).value == before + 5
                    assert not learner.group(group).is_leader
                await all_applied([*nodes, learner], 0)

    run(main())


def test_a_learner_goes_on_with_another_source_when_one_dies(run, tmp_path):
    """Whoever leads is killed, whoever is left goes on: the learner follows, and passes on."""

    async def main():
        async with (
            cluster(tmp_path, counters, groups=1) as nodes,
            joining(tmp_path, [4], nodes, groups=1) as (four,),
        ):
            added = await nodes[0].add_member(4, four.at, role=Role.LEARNER)
            assert added.failed == {}
            learner = await four.opened()
            total = (await learner.group(0).propose(b"1")).value
            lead = next(node for node in nodes if node.group(0).is_leader)
            kill(lead)
            left = [node for node in nodes if node is not lead]
            total = (await asyncio.wait_for(learner.group(0).propose(b"2"), 30)).value
            assert total == 3
            await all_applied([*left, learner], 0)
            # Without a quorum of voters nothing is chosen, however many learners there are.
            kill(left[0])
            with pytest.raises((errors.NoQuorum, errors.TimedOut, errors.TimedOutUnknown)):
                await learner.group(0).propose(b"4", timeout=1.0)
            assert learner.group(0).machine().total == 3

    run(main())


def test_a_learner_that_was_away_catches_up_from_whoever_is_there(run, tmp_path):
    async def main():
        async with (
            cluster(tmp_path, counters, groups=1) as nodes,
            joining(tmp_path, [4], nodes, groups=1) as (four,),
        ):
            added = await nodes[0].add_member(4, four.at, role=Role.LEARNER)
            assert added.failed == {}
            learner = await four.opened()
            await learner.close()
            for _ in range(200):
                await nodes[0].group(0).propose(b"1")
            await all_applied(nodes, 0)
            lead = next(node for node in nodes if node.group(0).is_leader)
            kill(lead)
            async with phx.Node(learner.config, counters) as again:
                await until(lambda: again.group(0).machine().total == 200, seconds=30)

    run(main())
