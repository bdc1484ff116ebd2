"""The control socket outlives whatever is asked for, and whatever goes wrong with that."""

import json
from concurrent.futures import Future

import pytest
from click.testing import CliRunner

from phx.cli.commands import phx as command
from phx.machines import Counter
from phx.node import control
from phx.types import Changed
from tests.api.test_blocking import blocking_cluster

pytestmark = pytest.mark.usefixtures("no_leaks")

SET = {"do": "change", "how": "set", "group": 0, "timeout": 1}


@pytest.fixture
def node(tmp_path):
    with blocking_cluster(tmp_path, Counter, nodes=1, groups=1) as nodes:
        yield nodes[0]


def is_there(node):
    answer = control.ask(node.config.dir, {"do": "members", "group": None})
    assert [one["group"] for one in answer["groups"]] == [0]


@pytest.mark.parametrize(
    ("members", "why"),
    [
        (5, "members are a list"),
        (None, "members are a list"),
        ({"1": "voter"}, "members are a list"),
        ([5], "a member is"),
        ([], "1 .. 15 members"),
        ([[1, "voter", "a:1"], [1, "voter", "b:1"]], "node 1 stands there twice"),
        ([[10**30, "voter", "a:1"]], "a node id is"),
        ([[1, "voter", "nowhere"]], "is not host:port"),
        ([[1, "voter", "\ud800:1"]], "printable"),
    ],
)
def test_members_that_are_none_are_refused(node, members, why):
    answer = control.ask(node.config.dir, {**SET, "members": members})
    assert why in answer["error"]
    is_there(node)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"nodes": 5}, "nodes are a list"),
        ({"nodes": ["1"]}, "a node is a number"),
        ({"group": None}, "one group is moved at a time"),
        ({"members": [1]}, "a change by 'move' says: nodes"),
        ({}, "directory: is false"),
    ],
)
def test_a_move_that_is_none_is_refused(node, changes, why):
    asked = {"do": "change", "how": "move", "group": 0, "nodes": [1], "timeout": 1, **changes}
    answer = control.ask(node.config.dir, asked)
    assert why in answer["error"]
    is_there(node)


def test_a_fault_in_what_is_asked_for_is_the_answer(node, monkeypatch, caplog):
    """Wherever it shows: when it is understood, begun, or done."""
    room, folder = node._room, node.config.dir

    def fault(*_):
        raise RuntimeError("planted")

    wrong = Future()
    wrong.set_result(None)  # no Changed
    for name, patched in (("members", fault), ("decommission", fault),
                          ("decommission", lambda *_: wrong)):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setattr(room._control._orders, name, patched)
            words = {"members": {"group": 0}, "decommission": {"timeout": 1}}[name]
            answer = control.ask(folder, {"do": name, **words})
            assert answer.keys() == {"error"}
            assert "Error: " in answer["error"]
        is_there(node)
    with monkeypatch.context() as patch:
        patch.setattr(room._control, "_take", fault)
        answer = control.ask(folder, {"do": "checkpoint", "group": 0})
        assert answer == {"error": "RuntimeError: planted"}
    is_there(node)
    assert "planted" in caplog.text


def test_who_could_not_be_removed_is_told_that_it_stays_drained(node, monkeypatch):
    """The only voter cannot leave."""
    shown = CliRunner().invoke(command, ["decommission", str(node.config.dir), "--json"])
    assert shown.exit_code == 1, shown.output
    answer = json.loads(shown.stdout)
    assert [one["group"] for one in answer["failed"]] == [0]
    assert answer["priority"] == node.priority == 0
    shown = CliRunner().invoke(command, ["decommission", str(node.config.dir)])
    assert shown.exit_code == 1
    assert f"phx drain {node.config.dir} --back" in shown.stderr

    done = Future()
    done.set_result(Changed({}, {}))
    monkeypatch.setattr(node._room._changes, "all_to", lambda *_: done)
    shown = CliRunner().invoke(command, ["decommission", str(node.config.dir)])
    assert shown.exit_code == 0
    assert "drain" not in shown.stderr
