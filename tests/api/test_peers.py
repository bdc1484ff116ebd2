"""Other nodes as they move, come and go: names, addresses that were told, nodes that join."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

import phx
from phx import errors
from phx._core.driver import ERROR_MEMBER, ERROR_OVERLOADED, DriverError
from phx.cli.commands import phx as command
from phx.membership import roster_of
from phx.node import control
from phx.node.addresses import Addresses, is_name, pick
from phx.node.changes import CHANGE_UNMET
from phx.node.room import Room
from phx.store_peers import Learned, pack, unpack
from phx.types import learner, voter
from tests.ports import at_ports, free_address, free_ports

from .cluster import Journal, all_applied, cluster, config_of, introduce, until


class Names:
    """Stands in for the resolver: what a host has at the moment. Numbers are what they are."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.hosts: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._before = socket.getaddrinfo
        patch.setattr("phx.node.addresses.socket.getaddrinfo", self._answer)

    def _answer(self, host, port, *args, **more):
        if host not in self.hosts:
            return self._before(host, port, *args, **more)
        self.asked.append(host)
        if not self.hosts[host]:
            raise socket.gaierror(socket.EAI_NONAME, "nobody")
        kind = socket.AF_INET, socket.SOCK_STREAM, 6, ""
        return [(*kind, (one, 0)) for one in self.hosts[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def met(node: phx.Node, *others: int) -> Callable[[], bool]:
    return lambda: all(node.status().peers[one].connected for one in others)


# --- names


def test_a_name_is_looked_up_afresh_at_every_attempt(run, tmp_path, names):
    """A pod that comes back under the same name with another address, and again."""

    async def main():
        ports = free_ports(2)
        members = {1: f"127.0.0.1:{ports[0]}", 2: f"two.test:{ports[1]}"}
        names.hosts["two.test"] = ["127.0.0.9"]  # where nobody is
        one = phx.Node(config_of(tmp_path, 1, members=members), Journal, bootstrap=True)
        async with one:
            await until(lambda: names.asked.count("two.test") > 3)
            assert not one.status().peers[2].connected
            for at in ("127.0.0.2", "127.0.0.3", "127.0.0.2"):
                config = config_of(tmp_path, 2, members=members, bind=f"{at}:{ports[1]}")
                async with phx.Node(config, Journal, bootstrap=True) as two:
                    names.hosts["two.test"] = [at]
                    await until(lambda two=two: met(one, 2)() and met(two, 1)())
                    await asyncio.gather(*(node.wait_ready(timeout=20) for node in (one, two)))
                    await one.group(0).propose(b"x")
                await until(lambda: not one.status().peers[2].connected)
            assert one.status().peers[2].address == members[2]

    run(main())


def test_a_name_that_has_no_address_at_the_start_gets_one_later(run_once, tmp_path, names):
    async def main():
        ports = free_ports(2)
        members = {1: f"127.0.0.1:{ports[0]}", 2: f"two.test:{ports[1]}"}
        names.hosts["two.test"] = []
        config = config_of(tmp_path, 2, members=members, bind=f"127.0.0.1:{ports[1]}")
        async with phx.Node(
            config_of(tmp_path, 1, members=members), Journal, bootstrap=True
        ) as one:
            with pytest.raises(errors.SystemFailure, match="no address"):
                await phx.Node(config, Journal, bootstrap=True).open()
            names.hosts["two.test"] = ["127.0.0.1"]
            async with phx.Node(config, Journal, bootstrap=True) as two:
                await until(lambda: met(one, 2)() and met(two, 1)())

    run_once(main())


def test_of_several_addresses_of_a_name_each_is_tried(run_once, tmp_path, names):
    async def main():
        ports = free_ports(2)
        members = {1: f"127.0.0.1:{ports[0]}", 2: f"two.test:{ports[1]}"}
        names.hosts["two.test"] = ["127.0.0.8", "127.0.0.9", "127.0.0.4"]
        config = config_of(tmp_path, 2, members=members, bind=f"127.0.0.4:{ports[1]}")
        async with (
            phx.Node(config_of(tmp_path, 1, members=members), Journal, bootstrap=True) as one,
            phx.Node(config, Journal, bootstrap=True) as two,
        ):
            await until(lambda: met(one, 2)() and met(two, 1)())

    run_once(main())


def test_who_fetches_does_not_wait_for_a_resolver_that_hangs(tmp_path, names, monkeypatch):
    """Nor does the node that closes, which waits for those who fetch."""
    names.hosts["two.test"] = ["127.0.0.9"]
    members = {1: "127.0.0.1:7001", 2: "two.test:7002"}
    addresses = Addresses(config_of(tmp_path, 1, members=members))
    addresses.begin({})
    addresses.members()
    names.hosts["two.test"] = ["127.0.0.8"]
    assert addresses.reach(2) == ("127.0.0.8", 7002)
    freed, asked = threading.Event(), []

    def hangs(host):
        asked.append(host)
        freed.wait(20)
        return ["127.0.0.7"]

    monkeypatch.setattr("phx.node.addresses.resolve", hangs)
    try:
        since = time.monotonic()
        assert addresses.reach(2) == ("127.0.0.8", 7002)
        assert addresses.reach(2) == ("127.0.0.8", 7002)
        assert time.monotonic() < since + 8
        assert asked == ["two.test"], "one question at a time"
    finally:
        freed.set()
    assert addresses.reach(2) == ("127.0.0.7", 7002)


def test_which_of_the_addresses_of_a_name_is_dialled():
    found = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert pick([], "10.0.0.1", 0) == ""
    assert pick(found, "", 0) == pick(found, "10.9.9.9", 5) == "10.0.0.1"
    assert pick(found, "10.0.0.2", 0) == pick(found, "10.0.0.2", 1) == "10.0.0.2"
    assert pick(found, "10.0.0.2", 2) == "10.0.0.3"
    assert pick(found, "10.0.0.3", 3) == "10.0.0.1"
    assert pick(found[:1], "10.0.0.1", 9) == "10.0.0.1"


@pytest.mark.parametrize(
    ("address", "name"),
    [("10.0.0.1:7", False), ("[::1]:7", False), ("[fe80::1%eth0]:7", False), ("", False),
     ("localhost:7", True), ("localhost:0", False), ("db-0.db.prod.svc:7", True)],
)  # fmt: skip
def test_what_is_a_name(address: str, name: bool) -> None:
    assert is_name(address) == name


def test_without_names_there_is_no_thread_for_them(run_once, tmp_path):
    import threading

    async def main():
        async with cluster(tmp_path):
            assert [t for t in threading.enumerate() if t.name == "phx-names"] == []

    run_once(main())


# --- addresses that were told


def test_an_address_that_was_told_outlives_the_node_until_its_configuration_is_edited(
    run_once, tmp_path
):
    async def main():
        members = {**at_ports(1), 2: "127.0.0.1:1", 3: "127.0.0.1:2"}
        config = config_of(tmp_path, 1, members=members)

        async def addresses(config: phx.Config) -> dict[int, str | None]:
            async with phx.Node(config, Journal, bootstrap=True) as node:
                return {number: one.address for number, one in node.status().peers.items()}

        async with phx.Node(config, Journal, bootstrap=True) as node:
            node.set_address(2, "127.0.0.1:7")
            assert node.status().peers[2].address == "127.0.0.1:7"
        assert await addresses(config) == {2: "127.0.0.1:7", 3: "127.0.0.1:2"}
        assert await addresses(config) == {2: "127.0.0.1:7", 3: "127.0.0.1:2"}
        edited = config_of(tmp_path, 1, members={**members, 3: "127.0.0.1:8"})
        assert await addresses(edited) == {2: "127.0.0.1:7", 3: "127.0.0.1:8"}
        edited = config_of(tmp_path, 1, members={**members, 2: "127.0.0.1:9"})
        assert await addresses(edited) == {2: "127.0.0.1:9", 3: "127.0.0.1:2"}
        # What was learned before the file was edited is gone for good.
        assert await addresses(config) == {2: "127.0.0.1:1", 3: "127.0.0.1:2"}

    run_once(main())


def test_a_member_that_moved_is_found_after_a_restart_of_the_other(run_once, tmp_path):
    async def main():
        ports = free_ports(3)
        members = {1: f"127.0.0.1:{ports[0]}", 2: f"127.0.0.1:{ports[1]}"}
        moved = config_of(tmp_path, 2, members=members, bind=f"127.0.0.1:{ports[2]}")
        one = config_of(tmp_path, 1, members=members)
        async with phx.Node(moved, Journal, bootstrap=True) as two:
            async with phx.Node(one, Journal, bootstrap=True) as node:
                node.set_address(2, f"127.0.0.1:{ports[2]}")
                await until(met(two, 1))
            async with phx.Node(one, Journal) as node:
                await until(lambda: met(two, 1)() and met(node, 2)())

    run_once(main())


def test_a_member_that_moved_is_dialled_where_a_change_of_members_says(run_once, tmp_path):
    """Of two nodes the one with the lower id dials: nobody finds node 3 by being dialled by it."""

    async def main():
        at = at_ports(1, 2, 3)
        async with cluster(tmp_path, members=at, groups=2) as (one, two, three):
            await one.group(0).propose(b"before")
            await three.close()
            elsewhere = free_address()
            members = {n: voter(told) for n, told in (at | {3: elsewhere}).items()}
            for group in (0, 1):
                changed = await one.group(group).set_members(members, 1, timeout=30)
                assert changed.by_id[3].address == elsewhere
            for node in (one, two):
                await until(lambda node=node: node.status().peers[3].address == elsewhere)
            await two.group(0).propose(b"while it was away")
            moved = config_of(tmp_path, 3, members=at, bind=elsewhere)
            async with phx.Node(moved, Journal) as again:
                assert f"127.0.0.1:{again.port}" == elsewhere != at[3]
                await until(lambda: met(one, 3)() and met(two, 3)(), seconds=30)
                await all_applied([one, two, again])
                assert again.group(0).members().by_id[3].address == elsewhere
                await two.close()
                # And after a start with a configuration that says where it was.
                async with phx.Node(two.config, Journal) as later:
                    assert later.status().peers[3].address == elsewhere
                    await until(met(later, 3), seconds=30)

    run_once(main())


def test_what_the_store_knows_of_addresses_is_checked(tmp_path):
    peers = {4: Learned("a.test:7000", ""), 2: Learned("10.0.0.2:1", "10.0.0.1:1")}
    packed = pack(peers)
    assert unpack(packed, tmp_path) == peers
    assert unpack(pack({}), tmp_path) == {}
    for at in range(len(packed)):
        bad = bytearray(packed)
        bad[at] ^= 1
        with pytest.raises(errors.Damaged):
            unpack(bytes(bad), tmp_path)
    for end in range(len(packed)):
        with pytest.raises(errors.Damaged):
            unpack(packed[:end], tmp_path)


def test_damaged_addresses_are_noted_and_those_of_the_configuration_count(
    run_once, tmp_path, monkeypatch
):
    async def main():
        config = config_of(tmp_path, 1, members={**at_ports(1), 2: "127.0.0.1:1"})
        async with phx.Node(config, Journal, bootstrap=True) as node:
            monkeypatch.setattr("phx.store_peers.pack", lambda peers: b"no such thing")
            node.set_address(2, "127.0.0.1:7")
        monkeypatch.undo()
        async with phx.Node(config, Journal) as node:
            assert node.status().peers[2].address == "127.0.0.1:1"
            assert node.status().damage["found"] == 1

    run_once(main())


# --- peers that no configuration has


def guest(folder, number: int, join: list[str], **changes) -> phx.Node:
    """A node that is a member of nothing; not public so far."""
    members = {number: "127.0.0.1:0"}
    config = config_of(folder, number, members=members, **changes)
    node = phx.Node(config, Journal, bootstrap=True)
    node._room = Room(config, Journal, bootstrap=True, join=join)
    return node


def test_a_node_that_joins_learns_who_is_there_and_is_connected_once_it_is_added(run, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            ports = {node.config.node: node.port for node in nodes}
            join = ["127.0.0.1:1", f"127.0.0.1:{ports[2]}"]  # nobody is at the first
            async with guest(tmp_path, 4, join) as four:
                await until(lambda: set(four.status().peers) == {1, 2, 3})
                found = {number: one.address for number, one in four.status().peers.items()}
                assert found == {number: f"127.0.0.1:{port}" for number, port in ports.items()}
                assert not any(one.connected for one in four.status().peers.values())
                for node in nodes:
                    assert 4 not in node.status().peers
                    await asyncio.to_thread(node._room.peers.add, 4, f"127.0.0.1:{four.port}")
                await until(met(four, 1, 2, 3))
                await until(lambda: all(met(node, 4)() for node in nodes))
                await nodes[0].group(0).propose(b"x")
                assert nodes[0].status().peers[4].address == f"127.0.0.1:{four.port}"
            for node in nodes:
                await asyncio.to_thread(node._room.peers.drop, 4)
                assert 4 not in node.status().peers
            await nodes[0].group(0).propose(b"y")

    run(main())


def test_a_peer_that_was_added_is_one_after_a_restart_and_keeps_its_store(run_once, tmp_path):
    async def main():
        members = at_ports(1)
        config = config_of(tmp_path, 1, nodes=1, members=members)
        async with guest(tmp_path, 4, [members[1]]) as four:
            async with phx.Node(config, Journal, bootstrap=True) as one:
                one._room.peers.add(4, f"127.0.0.1:{four.port}")
                await until(lambda: met(one, 4)() and met(four, 1)())
            async with phx.Node(config, Journal) as one:
                await until(lambda: met(one, 4)() and met(four, 1)())
                one._room.peers.drop(4)
            async with phx.Node(config, Journal) as one:
                assert one.status().peers == {}
                one._room.peers.add(4, f"127.0.0.1:{four.port}")
                await until(lambda: met(one, 4)() and met(four, 1)())
                one._room.peers.drop(4)
        # The same id with another disk: refused, though it was let go of long ago.
        async with (
            phx.Node(config, Journal) as one,
            guest(tmp_path / "other", 4, [members[1]]) as four,
        ):
            four._room.peers.add(1, members[1])  # or it would not be heard at all
            one._room.peers.add(4, f"127.0.0.1:{four.port}")
            await until(lambda: four.status().peers[1].refused == "another store")
            assert not met(one, 4)()

    run_once(main())


def test_who_is_met_while_it_is_let_go_of_keeps_its_store(run_once, tmp_path, monkeypatch):
    async def main():
        members = at_ports(1)
        config = config_of(tmp_path, 1, nodes=1, members=members)
        async with (
            phx.Node(config, Journal, bootstrap=True) as one,
            guest(tmp_path, 4, ["127.0.0.1:1"]) as four,
        ):
            four._room.peers.add(1, members[1])
            one._room.peers.add(4, free_address())  # where it is not
            lives = one._room._lives
            keep = lives.keep_peers
            monkeypatch.setattr(lives, "look", lambda: True)

            def slow():
                keep()
                if not met(one, 4)():
                    one.set_address(4, f"127.0.0.1:{four.port}")
                    while not met(one, 4)():
                        time.sleep(0.01)

            monkeypatch.setattr(lives, "keep_peers", slow)
            await asyncio.wait_for(asyncio.to_thread(one._room.peers.drop, 4), 20)
            assert one.status().peers == {}
            assert lives.store_of(4) == four._room._store.identity.store_id

    run_once(main())


def test_who_comes_with_another_store_is_not_told_who_is_there(run_once, tmp_path, caplog):
    async def main():
        members = at_ports(1)
        config = config_of(tmp_path, 1, nodes=1, members=members)
        async with phx.Node(config, Journal, bootstrap=True) as one:
            async with guest(tmp_path, 4, [members[1]]) as four:
                one._room.peers.add(4, f"127.0.0.1:{four.port}")
                await until(met(one, 4))
            one._room.peers.drop(4)
            async with guest(tmp_path / "other", 4, [members[1]]) as four:
                await until(lambda: "was used with another store" in caplog.text)
                assert four.status().peers == {}

    run_once(main())


def test_who_asks_another_cluster_is_told_so(run_once, tmp_path, caplog):
    async def main():
        members = at_ports(1)
        async with (
            phx.Node(config_of(tmp_path, 1, nodes=1, members=members), Journal, bootstrap=True),
            guest(tmp_path, 4, [members[1]], cluster="another") as four,
        ):
            await until(lambda: "refused: another cluster" in caplog.text)
            assert four.status().peers == {}

    run_once(main())


def test_a_member_is_not_let_go_of(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            with pytest.raises(DriverError) as caught:
                await asyncio.to_thread(nodes[0]._room.peers.drop, 2)
            assert caught.value.code == ERROR_MEMBER
            with pytest.raises(errors.ConfigError):
                await asyncio.to_thread(nodes[0]._room.peers.drop, 1)
            await nodes[0].group(0).propose(b"x")

    run_once(main())


def test_a_node_that_nobody_adds_can_be_closed(no_leaks, run_once, tmp_path):
    async def main():
        async with guest(tmp_path, 4, ["127.0.0.1:1", "no.such.host.invalid:2"]) as four:
            await asyncio.sleep(0.3)
            introduce([four])
            assert four.groups == []
            assert four.status().groups == 0

    run_once(main())


# --- phx peers


def shown(*words: object) -> Result:
    return CliRunner().invoke(command, ["peers", *map(str, words)])


def test_the_command_shows_the_other_nodes_and_tells_where_they_have_moved(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            folder, two = nodes[0].config.dir, nodes[1]
            answer = await asyncio.to_thread(shown, folder, "--json")
            assert answer.exit_code == 0, answer.output
            found = json.loads(answer.stdout)["peers"]
            assert [one["node"] for one in found] == [2, 3]
            assert all(one["connected"] and one["refused"] is None for one in found)
            assert [one["address"] for one in found] == [f"127.0.0.1:{n.port}" for n in nodes[1:]]
            lines = (await asyncio.to_thread(shown, folder)).stdout.splitlines()
            assert re.fullmatch(rf"node 2 at 127.0.0.1:{two.port}: connected for \d+ s", lines[0])
            answer = await asyncio.to_thread(shown, folder, "--move", 2, "127.0.0.1:1")
            assert answer.exit_code == 0, answer.output
            assert "node 2 at 127.0.0.1:1: away for 0 s" in answer.stdout
            assert nodes[0].status().peers[2].address == "127.0.0.1:1"
            back = await asyncio.to_thread(shown, folder, "--move", 2, f"localhost:{two.port}")
            assert back.exit_code == 0, back.output
            await until(met(nodes[0], 2))

    run_once(main())


def test_what_the_command_cannot_do(run_once, tmp_path):
    async def main():
        async with cluster(tmp_path) as nodes:
            folder = nodes[0].config.dir
            for words, why in (
                ((9, "127.0.0.1:1"), "no member"),
                ((1, "127.0.0.1:1"), "no peer of this one"),
                ((2, "nowhere"), "not host:port"),
                ((2, "no.such.host.invalid:1"), "has no address"),
            ):
                answer = await asyncio.to_thread(shown, folder, "--move", *words)
                assert answer.exit_code == 1
                assert why in answer.stderr
        return folder

    folder = run_once(main())
    answer = shown(folder)
    assert answer.exit_code == 1
    assert "no node runs" in answer.stderr


@pytest.mark.parametrize(
    "request_",
    [
        {"do": "move"},
        {"do": "move", "node": 2},
        {"do": "move", "node": "2", "address": "a:1"},
        {"do": "move", "node": True, "address": "a:1"},
        {"do": "move", "node": 2, "address": 7},
        {"do": "peers", "more": 1},
    ],
)
def test_what_is_no_request_is_answered_so(run_once, tmp_path, request_):
    async def main():
        async with phx.Node(config_of(tmp_path, 1), Journal, bootstrap=True) as node:
            answer = await asyncio.to_thread(control.ask, node.config.dir, request_)
            assert answer.keys() == {"error"}

    run_once(main())


@pytest.fixture
def gone_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phx.node.peers.GONE_S", 0.2)
    monkeypatch.setattr("phx.node.peers.AGAIN_S", 0.05)


def strangers(node: phx.Node) -> set[int]:
    return set(node.status().peers) - set(node.config.members)


@pytest.mark.usefixtures("gone_soon")
def test_who_was_added_for_a_change_that_failed_is_let_go_of(run, tmp_path, monkeypatch):
    """Of two new ones the second cannot be added; then the change itself cannot be begun."""

    async def main():
        async with cluster(tmp_path, groups=1, balance=False) as nodes:
            await nodes[0].group(0).propose(b"1")
            lead = next(node for node in nodes if node.group(0).is_leader)
            changes, peers = lead._room.changes, lead._room.peers
            told = lead.group(0).members()
            add = type(peers).add

            def refuses(self: object, node: int, address: str) -> None:
                if node == 5:
                    raise errors.ConfigError(["no room"])
                add(peers, node, address)

            with monkeypatch.context() as patch:
                patch.setattr(type(peers), "add", refuses)
                new = {**told.by_id, 4: learner("127.0.0.1:9"), 5: learner("127.0.0.1:9")}
                assert changes.answer(0, roster_of(told.version + 1, new)).verdict == CHANGE_UNMET
            await until(lambda: strangers(lead) == set())

            def fails(group: int, roster: bytes) -> int:
                raise DriverError(ERROR_OVERLOADED, "full")

            with monkeypatch.context() as patch:
                patch.setattr(changes, "_table", SimpleNamespace(change=fails))
                new = {**told.by_id, 6: learner("127.0.0.1:9")}
                added = []

                def adds(self: object, node: int, address: str) -> None:
                    add(peers, node, address)
                    added.append(node)

                patch.setattr(type(peers), "add", adds)
                # (Not while it does not lead, which it may not for a moment.)
                await until(lambda: changes.answer(0, roster_of(told.version + 1, new)) and added)
                assert added == [6]
            await until(lambda: strangers(lead) == set())

    run(main())


def test_a_start_lets_go_of_who_is_a_member_of_nothing(run, tmp_path, monkeypatch):
    """As of a change that was on its way when the node stopped."""

    async def main():
        config = config_of(tmp_path, 1, nodes=1)
        async with phx.Node(config, Journal, bootstrap=True) as node:
            node._room.peers.add(7, "127.0.0.1:9")
        async with phx.Node(config, Journal) as node:
            assert strangers(node) == {7}
        monkeypatch.setattr("phx.node.peers.GONE_S", 0.2)
        monkeypatch.setattr("phx.node.peers.AGAIN_S", 0.05)
        async with phx.Node(config, Journal) as node:
            await until(lambda: strangers(node) == set())

    run(main())
