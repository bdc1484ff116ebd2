"""The control socket of a running node, and `phx checkpoint take`."""

import asyncio
import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent import futures

import pytest
from click.testing import CliRunner

import phx
from phx import errors
from phx.cli.commands import phx as command
from phx.machines import Counter
from phx.node import control
from tests.api.cluster import Journal, config_of
from tests.api.test_blocking import blocking_cluster

pytestmark = pytest.mark.usefixtures("no_leaks")

QUIET = {"interval_instances": 0, "interval_us": 0}


def called(*words):
    return CliRunner().invoke(command, ["checkpoint", "take", *map(str, words)])


def raw(folder, request):
    """The answer to these bytes; b"": the connection was closed without one."""
    with socket.socket(socket.AF_UNIX) as connection, control.address_in(folder) as address:
        connection.settimeout(10)
        connection.connect(address)
        connection.sendall(request)
        with connection.makefile("rb") as opened:
            return opened.readline()


@pytest.fixture
def node(tmp_path):
    """One with three groups, of which the first two have applied something."""
    settings = {"groups": 3, "checkpoints": QUIET}
    with blocking_cluster(tmp_path, Counter, nodes=1, **settings) as nodes:
        for group in (0, 1):
            for _ in range(5):
                nodes[0].group(group).propose(b"1")
        yield nodes[0]


def test_take_asks_the_running_node_for_all_groups_or_one(node):
    folder = node.config.dir
    shown = called(folder, "--json")
    assert shown.exit_code == 0, shown.output
    answer = json.loads(shown.stdout)
    assert answer["failed"] == []
    assert {0, 1} <= {one["group"] for one in answer["taken"]}
    for one in answer["taken"]:
        assert os.path.exists(os.path.join(one["path"], "manifest"))
        assert one["frontier"] <= node.group(one["group"]).status().applied_through
    node.group(1).propose(b"1")
    before = node.status().checkpoints["taken"]
    shown = called(folder, "--group", 1)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("group 1, frontier ")
    assert node.status().checkpoints["taken"] == before + 1


def test_what_cannot_be_taken_is_said_and_fails(node, tmp_path):
    shown = called(node.config.dir, "--group", 9)
    assert shown.exit_code == 1
    assert "group 9 is not hosted" in shown.stderr
    with blocking_cluster(tmp_path / "b", Journal, nodes=1, groups=1) as nodes:
        nodes[0].group(0).propose(b"1")
        shown = called(nodes[0].config.dir)
        assert shown.exit_code == 1
        assert "group 0: CheckpointFailed: machine 0 of group 0 gives no view" in shown.stderr


def test_only_its_user_may_connect_and_a_closed_node_leaves_nothing(tmp_path):
    with blocking_cluster(tmp_path, Counter, nodes=1, groups=1) as nodes:
        folder = nodes[0].config.dir
        mode = (folder / "control").stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not (folder / "control").exists()
    with pytest.raises(errors.SystemFailure, match="no node runs"):
        control.ask(folder, {"do": "checkpoint", "group": None})
    shown = called(folder)
    assert shown.exit_code == 1
    assert "no node runs" in shown.stderr


@pytest.mark.parametrize(
    "request_",
    [b"\n", b"{}\n", b"[]\n", b"null\n", b'{"do": "checkpoint"}\n', b"\xff\xfe\n",
     b"[" * 4000 + b"\n",
     b'{"do": "exit", "group": 1}\n', b'{"do": "checkpoint", "group": true}\n',
     b'{"do": "checkpoint", "group": "1"}\n', b'{"do": "checkpoint", "group": -1}\n',
     b'{"do": "checkpoint", "group": 1}\nx', b"x" * 5000],
)  # fmt: skip
def test_what_is_no_request_is_refused_and_the_next_one_is_served(node, request_):
    answer = json.loads(raw(node.config.dir, request_))
    assert answer.keys() == {"error"}
    assert control.ask(node.config.dir, {"do": "checkpoint", "group": 0})["taken"]


def test_whoever_says_nothing_holds_up_nobody_and_is_dropped(node, monkeypatch):
    monkeypatch.setattr(control, "REQUEST_S", 0.3)
    folder = node.config.dir
    silent = [socket.socket(socket.AF_UNIX) for _ in range(control.CONNECTIONS_MAX - 1)]
    try:
        for one in silent:
            with control.address_in(folder) as address:
                one.connect(address)
            one.sendall(b'{"do"')
        assert control.ask(folder, {"do": "checkpoint", "group": 0})["taken"]
        for one in silent:
            one.settimeout(10)
            assert one.recv(1) == b""
    finally:
        for one in silent:
            one.close()


def test_without_a_descriptor_for_a_caller_it_is_tried_again_and_not_at_once(node, monkeypatch):
    tried = []
    accept = socket.socket.accept

    def scarce(listener):
        tried.append(time.monotonic())
        if len(tried) <= 2:
            raise OSError(errno.EMFILE, "planted")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    assert control.ask(node.config.dir, {"do": "checkpoint", "group": 0})["taken"]
    assert len(tried) == 3
    assert tried[2] - tried[0] >= 2 * control.ACCEPT_S


def test_who_goes_away_wants_no_more(node, monkeypatch):
    """Of a request for all groups the next one is not asked for."""
    asked, let = [], threading.Event()
    take = node._room._control._take

    def slowly(group):
        asked.append(group)
        future = take(group)
        if len(asked) == 1:
            let.wait(10)
        return future

    monkeypatch.setattr(node._room._control, "_take", slowly)
    with socket.socket(socket.AF_UNIX) as connection:
        with control.address_in(node.config.dir) as address:
            connection.connect(address)
        connection.sendall(b'{"do": "checkpoint", "group": null}\n')
        end = time.monotonic() + 10
        while not asked:
            assert time.monotonic() < end
            time.sleep(0.005)
    let.set()
    assert control.ask(node.config.dir, {"do": "checkpoint", "group": 2})["failed"] is not None
    assert asked[-1] == 2
    assert len(asked) <= 3


def test_a_folder_deeper_than_an_address_can_say(tmp_path):
    deep = tmp_path / ("a" * 100) / ("b" * 100)
    with blocking_cluster(deep, Counter, nodes=1, groups=1) as nodes:
        nodes[0].group(0).propose(b"1")
        folder = nodes[0].config.dir
        assert len(str(folder)) > 200
        shown = called(folder)
        assert shown.exit_code == 0, shown.output
    assert not (folder / "control").exists()


def test_a_node_that_can_have_no_socket_runs_without(tmp_path, caplog):
    config = config_of(tmp_path, 1, nodes=1)
    (config.dir / "control").mkdir(parents=True)

    async def main():
        async with phx.Node(config, Counter, bootstrap=True) as node:
            await node.wait_ready()
            assert "no control socket" in caplog.text

    asyncio.run(main())
    assert (config.dir / "control").is_dir()


def test_who_says_that_he_sends_no_more_gets_his_answer(node):
    """As `nc -N` and many others do: he closes his half, and reads on."""
    with socket.socket(socket.AF_UNIX) as connection, control.address_in(node.config.dir) as place:
        connection.settimeout(20)
        connection.connect(place)
        connection.sendall(b'{"do": "checkpoint", "group": null}\n')
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as opened:
            answer = json.loads(opened.readline())
    assert [one["group"] for one in answer["taken"]] == [0, 1]
    until = time.monotonic() + 10
    while node._room._control._callers and time.monotonic() < until:
        time.sleep(0.01)
    assert node._room._control._callers == set()


@pytest.mark.parametrize("half", [False, True])
def test_nothing_more_is_taken_for_who_has_gone(node, half):
    taken = []
    gate = threading.Event()

    def take(group):
        taken.append(group)
        future = futures.Future()
        threading.Thread(target=lambda: (gate.wait(20), future.set_result(None))).start()
        return future

    node._room._control._take = take
    with socket.socket(socket.AF_UNIX) as connection, control.address_in(node.config.dir) as place:
        connection.connect(place)
        connection.sendall(b'{"do": "checkpoint", "group": null}\n')
        if half:
            connection.shutdown(socket.SHUT_WR)
        until = time.monotonic() + 10
        while not taken and time.monotonic() < until:
            time.sleep(0.01)
    gate.set()
    while node._room._control._callers and time.monotonic() < until:
        time.sleep(0.01)
    assert node._room._control._callers == set()
    assert taken == [0]


def test_a_half_closed_caller_costs_no_time_while_he_waits(node):
    gate = threading.Event()
    waiting = futures.Future()
    turns = []
    listening = node._room._control
    turn = listening._turn
    listening._turn = lambda: (turns.append(1), turn())
    listening._take = lambda group: waiting
    with socket.socket(socket.AF_UNIX) as connection, control.address_in(node.config.dir) as place:
        connection.settimeout(20)
        connection.connect(place)
        connection.sendall(b'{"do": "checkpoint", "group": 0}\n')
        connection.shutdown(socket.SHUT_WR)
        gate.wait(0.5)
        assert len(turns) < 20
        waiting.set_exception(errors.CheckpointFailed("not now"))
        with connection.makefile("rb") as opened:
            assert json.loads(opened.readline())["failed"][0]["group"] == 0


KILLED = """
import os, signal, sys
import phx.blocking
from phx.machines import Counter
config = phx.Config(cluster="c", node=1, members={1: "127.0.0.1:0"}, dir=sys.argv[1])
node = phx.blocking.Node(config, Counter, bootstrap=True)
node.open()
if len(sys.argv) > 2:
    if not os.fork():
        sys.stdin.read()  # a fork that outlives the node
        os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
@pytest.mark.parametrize("forked", [[], ["forked"]])
def test_after_a_kill_nobody_is_waited_for_and_the_next_node_listens(tmp_path, forked):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "n"), *forked]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(60) == -9
        assert (tmp_path / "n" / "control").exists()
        with pytest.raises(errors.SystemFailure, match="no node runs"):
            control.ask(tmp_path / "n", {"do": "checkpoint", "group": None})
        config = phx.Config(cluster="c", node=1, members={1: "127.0.0.1:0"}, dir=tmp_path / "n")
        with phx.blocking.Node(config, Counter) as node:
            node.wait_ready()
            node.group(0).propose(b"1")
            assert control.ask(config.dir, {"do": "checkpoint", "group": None})["taken"]
