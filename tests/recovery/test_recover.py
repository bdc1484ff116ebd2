"""A majority is lost: one node goes on as a new cluster, which grows again."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

import phx
from phx import errors
from phx.machines import Counter
from phx.types import voter
from phx.verify import examine
from tests.api.cluster import cluster, config_of, until
from tests.api.members_lab import counters, joining, kill, leader_of
from tests.ports import at_ports

from .recovery_lab import NAME, NEW, content, made, new_config, recover, write_toml

QUIET = {"interval_instances": 0, "interval_us": 0}


async def lost_cluster(folder, values=30, checkpoint_at=None, **changes):
    """Three nodes with so many values in group 0; all gone, by SIGKILL as it were."""
    async with cluster(folder, counters, **{"checkpoints": QUIET, **changes}) as nodes:
        for number in range(values):
            await nodes[number % 3].group(0).propose(b"1")
            if number == checkpoint_at:
                await asyncio.gather(*(node.group(0).checkpoint() for node in nodes))
        await until(lambda: len({n.group(0).status().applied_through for n in nodes}) == 1)
        epoch = nodes[0].group(0).leader().epoch
        for node in nodes:
            kill(node)
    return [folder / f"node{number}" for number in (1, 2, 3)], epoch


@pytest.mark.parametrize("kind", ["log", "checkpoint", "trimmed"])
def test_one_of_three_goes_on_and_grows_to_three(run_once, tmp_path, kind):
    async def main():
        options = QUIET | {"hold_instances": 2, "hold_bytes": 0, "hold_us": 0}
        changes = {"checkpoints": options if kind == "trimmed" else QUIET}
        at = None if kind == "log" else 15
        folders, epoch = await lost_cluster(tmp_path, checkpoint_at=at, **changes)
        config = new_config(tmp_path, **changes)
        path = write_toml(tmp_path / "new.toml", config)
        before = content(folders[1])
        said = await asyncio.to_thread(recover, folders[1], "--config", path)
        assert said.exit_code == 0, said.output
        assert "Nothing was written" in said.output
        assert not config.dir.exists()
        said = await asyncio.to_thread(
            recover, folders[1], "--config", path, "--i-know-data-may-be-lost", "--json"
        )
        assert said.exit_code == 0, said.output
        told = json.loads(said.stdout)
        assert told["made"] is True
        assert {one["group"]: one["here"] for one in told["groups"]} == {0: [2], 1: [2]}
        assert told["groups"][0]["accepted_above"] + told["groups"][0]["chosen_through"] >= 30
        assert (told["groups"][0]["kept_from"] > 5) == (kind != "log")
        assert content(folders[1]) == before
        assert examine(config.dir, whole=True).findings == []
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(phx.Node(config, counters))
            await one.wait_ready(timeout=20)
            assert one.group(0).machine().total == 30
            assert one.group(1).machine().total == 0
            assert one.group(0).leader().epoch > epoch + (1 << 45)
            assert (await one.group(0).propose(b"1")).value == 31
            members = one.group(0).members()
            assert (dict(members.by_id), members.active) == (
                {NEW: voter(config.members[NEW])},
                True,
            )
            new = await stack.enter_async_context(
                joining(tmp_path, [12, 13], [one], cluster=NAME, **changes)
            )
            for joiner in new:
                assert (await one.add_member(joiner.number, joiner.at)).failed == {}
            nodes = [one, *[await joiner.opened() for joiner in new]]
            await asyncio.gather(*(node.wait_ready(timeout=20) for node in nodes))
            fetched = [node.status().transfers["fetched"] for node in nodes[1:]]
            assert fetched == ([0, 0] if kind == "log" else [1, 1])
            await nodes[1].group(0).propose(b"1")
            await until(lambda: {n.group(0).machine().total for n in nodes} == {32})
            # Each of the three is as good as the first one.
            await one.close()
            await asyncio.gather(*(node.wait_ready(timeout=30) for node in nodes[1:]))
            assert (await nodes[2].group(0).propose(b"1", timeout=20)).value == 33

    run_once(main())


def test_a_recovered_node_starts_again_and_is_recovered_again(run_once, tmp_path):
    async def main():
        folders, _ = await lost_cluster(tmp_path, values=5)
        config = new_config(tmp_path)
        await asyncio.to_thread(made, folders[:1], config)
        epochs = []
        for total in (6, 7):
            async with phx.Node(config, counters) as one:
                await one.wait_ready(timeout=20)
                assert (await one.group(0).propose(b"1")).value == total
                epochs.append(one.group(0).leader().epoch)
        again = new_config(tmp_path, 21, cluster="test, once more")
        await asyncio.to_thread(made, [config.dir], again)
        async with phx.Node(again, counters) as one:
            await one.wait_ready(timeout=20)
            assert (await one.group(0).propose(b"1")).value == 8
            assert one.group(0).members().version == 3
            epochs.append(one.group(0).leader().epoch)
        assert epochs == sorted(set(epochs))

    run_once(main())


def test_nodes_of_the_old_cluster_are_refused(run_once, tmp_path, caplog):
    """Two of the three come back, and look for the third one, at whose address the new one is."""

    async def main():
        at = at_ports(1, 2, 3)
        folders, _ = await lost_cluster(tmp_path, values=5, members=at)
        config = new_config(tmp_path, members={NEW: at[3]})
        await asyncio.to_thread(made, folders[2:], config)
        async with AsyncExitStack() as stack:
            one = await stack.enter_async_context(phx.Node(config, counters))
            await one.wait_ready(timeout=20)
            old = [
                await stack.enter_async_context(
                    phx.Node(config_of(tmp_path, n, members=at), counters)
                )
                for n in (1, 2)
            ]
            await asyncio.gather(*(node.wait_ready(timeout=20) for node in old))
            await until(lambda: "closed: another cluster" in caplog.text)
            assert not any(node.status().peers[3].connected for node in old)
            # They are two clusters: what one of them takes the other never hears of.
            await old[0].group(0).propose(b"100")
            assert (await one.group(0).propose(b"1")).value == 6
            assert (await old[1].group(0).propose(b"1")).value == 106
            assert dict(one.status().peers) == {}
            for node in (1, 2, 3):
                with pytest.raises(errors.ConfigError, match="never a member again"):
                    await one.group(0).add_member(node, at[node], timeout=5)

    run_once(main())


def test_what_only_the_others_had_is_lost_and_what_was_accepted_is_taken(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, counters, checkpoints=QUIET) as nodes:
            for _ in range(5):
                await nodes[0].group(0).propose(b"1")
            await until(lambda: all(n.group(0).status().applied_through >= 5 for n in nodes))
            behind = next(node for node in nodes if not node.group(0).is_leader)
            kill(behind)
            others = [node for node in nodes if node is not behind]
            await asyncio.gather(*(node.wait_ready(timeout=20) for node in others))
            for _ in range(7):
                await leader_of(others).group(0).propose(b"1")
            for node in others:
                kill(node)
        config = new_config(tmp_path)
        folder = tmp_path / f"node{behind.config.node}"
        await asyncio.to_thread(made, [folder], config)
        async with phx.Node(config, counters) as one:
            await one.wait_ready(timeout=20)
            assert one.group(0).machine().total == 5
        # With one that had them all nothing is lost, whatever the other has.
        config = new_config(tmp_path, 12)
        await asyncio.to_thread(made, [folder, tmp_path / f"node{others[0].config.node}"], config)
        async with phx.Node(config, counters) as one:
            await one.wait_ready(timeout=20)
            assert one.group(0).machine().total == 12

    run_once(main())


def test_members_that_changed_before_are_followed(run_once, tmp_path):
    """{1, 2, 3} -> {1, 2, 4}; 1 and 2 are lost, and 4 goes on; 3 is a member of nothing."""

    async def main():
        async with cluster(tmp_path, counters) as nodes, joining(tmp_path, [4], nodes) as (four,):
            await nodes[0].group(0).propose(b"1")
            assert (await nodes[0].replace_member(3, 4, four.at)).failed == {}
            node = await four.opened()
            await node.group(0).propose(b"1")
            await until(lambda: nodes[2].status().removed == (0, 1))
            await until(lambda: node.group(0).machine().total == 2)
        config = new_config(tmp_path)
        with pytest.raises(errors.ConfigError, match="no survivor is a member of group 0"):
            await asyncio.to_thread(made, [tmp_path / "node3"], config)
        await asyncio.to_thread(made, [tmp_path / "node4"], config)
        async with phx.Node(config, counters) as one:
            await one.wait_ready(timeout=20)
            assert one.group(0).machine().total == 2
            assert one.group(0).members().version == 4
            for old in (1, 2, 3, 4):
                with pytest.raises(errors.ConfigError, match="never a member again"):
                    await one.group(1).add_member(old, "127.0.0.1:1", timeout=5)

    run_once(main())


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cluster": "test"}, "cluster: 'test' is the old one's name"),
        ({"node": 2}, "node: 2 was a node of the old cluster"),
        ({"groups": 3}, "no survivor is a member of group 2, which would begin empty"),
        ({"groups": [1]}, "group 0, which survivors have, is not among them"),
        ({"members": {NEW: "a:1", 12: "b:1"}}, "members: this node alone"),
        ({"join": ["127.0.0.1:1"]}, "members: this node alone"),
    ],
)
def test_what_cannot_be_the_first_node_is_refused(folders, tmp_path, changes, why):
    config = new_config(tmp_path, **changes)
    with pytest.raises(errors.ConfigError, match=why):
        made(folders[:1], config)
    assert not config.dir.exists()


def test_folders_that_do_not_go_together_are_refused(folders, tmp_path, run_once):
    config = new_config(tmp_path)
    with pytest.raises(errors.Locked):
        made([folders[0], folders[0]], config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.NotBootstrapped):
        made([tmp_path / "empty"], config)
    config.dir.mkdir()
    (config.dir / "something").touch()
    with pytest.raises(errors.ConfigError, match="is not empty"):
        made(folders[:1], config)
    assert [path.name for path in config.dir.iterdir()] == ["something"]


def test_a_cluster_with_a_directory_is_refused(run_once, tmp_path):
    async def main():
        async with phx.Node(
            config_of(tmp_path, 1, nodes=1, directory=True), counters, bootstrap=True
        ) as node:
            await node.wait_ready(timeout=20)
            await node.create_group(70, [1], timeout=20)
            kill(node)
        config = new_config(tmp_path)
        with pytest.raises(errors.StoreError, match="has a directory"):
            await asyncio.to_thread(made, [tmp_path / "node1"], config)
        assert not config.dir.exists()

    run_once(main())


def test_a_node_that_runs_is_no_survivor(run_once, tmp_path):
    async def main():
        async with phx.Node(config_of(tmp_path, 1, nodes=1), Counter, bootstrap=True):
            with pytest.raises(errors.Locked):
                await asyncio.to_thread(made, [tmp_path / "node1"], new_config(tmp_path))

    run_once(main())
