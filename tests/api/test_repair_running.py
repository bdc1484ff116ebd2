"""`phx repair --group` beside a node that runs: asked in its control socket, and waited for."""

import asyncio
import json

import pytest
from click.testing import CliRunner

from phx.cli.commands import phx as command
from phx.machines import Counter
from phx.node import control
from phx.node.folder import Folder
from tests.api.catch_up import QUIET
from tests.api.cluster import all_applied, cluster, until
from tests.api.test_blocking import blocking_cluster

pytestmark = pytest.mark.usefixtures("no_leaks")


def called(folder, *words):
    return CliRunner().invoke(command, ["repair", str(folder), *map(str, words)])


def marked(node):
    return sorted(path.parent.name for path in node.config.dir.glob("checkpoints/*/rebuild"))


def test_the_node_that_runs_makes_its_groups_anew_and_the_command_says_so(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path, Counter, groups=3, checkpoints=QUIET) as nodes:
            three = nodes[2]
            for group in range(3):
                await nodes[0].group(group).propose_many([b"1"] * 50)
                await all_applied(nodes, group)
                three.group(group).machine().total += 1000
            words = ("--group", 1, "--group", 0, "--group", 1, "--json")
            shown = await asyncio.to_thread(called, three.config.dir, *words)
            assert shown.exit_code == 0, shown.output
            assert json.loads(shown.stdout) == {"repaired": [0, 1], "failed": []}
            assert [three.group(group).machine().total for group in range(3)] == [50, 50, 1050]
            await until(lambda: not marked(three))
            shown = await asyncio.to_thread(called, three.config.dir, "--group", 2)
            assert shown.exit_code == 0, shown.output
            assert shown.stdout == "group 2 was made anew from a checkpoint of another node\n"
            assert three.group(2).machine().total == 50
            await three.group(2).propose(b"1")

    run_once(main())


def test_what_cannot_be_made_anew_is_said_and_fails(tmp_path):
    with blocking_cluster(tmp_path, Counter, nodes=1, groups=2, checkpoints=QUIET) as (node,):
        node.group(0).propose(b"1")
        shown = called(node.config.dir, "--group", 0, "--group", 9)
        assert shown.exit_code == 1
        assert "group 9 is not hosted by this node" in shown.stderr
        shown = called(node.config.dir, "--group", 0, "--group", 1)
        assert shown.exit_code == 1
        for group in (0, 1):
            why = f"group {group}: CheckpointFailed: group {group}: no other node has its state"
            assert why in shown.stderr
        assert marked(node) == []
        folder = node.config.dir
    locked = Folder(folder)
    locked.lock(create=False)  # somebody has the folder who is no node
    try:
        shown = called(folder, "--group", 0)
        assert shown.exit_code == 1
        assert "is open already" in shown.stderr
        assert "no node runs in" in shown.stderr
    finally:
        locked.unlock()
    assert marked(node) == []
    assert called(folder, "--group", 0).output == "group 0 is made anew at the next start\n"


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"groups": []}, "which groups"),
        ({"groups": 0}, "groups are a list"),
        ({"groups": ["0"]}, "a group is a number"),
        ({"groups": [True]}, "a group is a number"),
        ({"groups": [-1]}, "not hosted"),
        ({"groups": [0], "timeout": 1}, "what can be asked for"),
        ({}, "what can be asked for"),
    ],
)
def test_what_is_no_request_is_refused_and_begins_nothing(tmp_path, request_, why):
    with blocking_cluster(tmp_path, Counter, nodes=1, groups=1) as (node,):
        answer = control.ask(node.config.dir, {"do": "repair", **request_})
        assert answer.keys() == {"error"}
        assert why in answer["error"]
        assert control.ask(node.config.dir, {"do": "members", "group": 0})["groups"]
        assert marked(node) == []


def test_a_node_that_closes_meanwhile_ends_the_waiting_and_its_next_start_goes_on(
    run_once, tmp_path
):
    async def main():
        async with cluster(tmp_path, Counter, groups=1, checkpoints=QUIET) as nodes:
            three = nodes[2]
            await nodes[0].group(0).propose_many([b"1"] * 50)
            await all_applied(nodes)
            for node in nodes[:2]:
                await node.close()  # nobody has the state
            waiting = asyncio.ensure_future(
                asyncio.to_thread(called, three.config.dir, "--group", 0)
            )
            await until(lambda: three.group(0).status().restoring)
            assert not waiting.done()
            await three.close()
            shown = await asyncio.wait_for(waiting, 20)
            assert shown.exit_code == 1
            assert "Closed" in shown.stderr or "went away" in shown.stderr
            assert marked(three) == ["0"]

    run_once(main())
