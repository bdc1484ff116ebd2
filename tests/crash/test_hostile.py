"""Strangers at the port of a working cluster: closed, one log line, nothing grows, nothing commits.

What each kind of bad frame is answered with stands in tests/driver/test_transport.py; here real
processes are looked at from outside.
"""

import random
import shutil
import socket
import struct
import time

import pytest
from crew import MIB, Crew, needs_proc, until

from phx import Config
from phx._core.codec import encode_frame

pytestmark = [pytest.mark.processes, pytest.mark.slow, needs_proc]

HELLO, ENGINE = 1, 2
VICTIM = 3  # the node that every other one dials
CLOSED = "closed: "


def talk(port: int, data: bytes, wait_s: float = 5.0) -> bytes:
    """Send `data` and listen until the connection is closed; what came back."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as stranger:
        stranger.settimeout(wait_s)
        answer = b""
        try:
            stranger.sendall(data)
            while more := stranger.recv(65_536):
                answer += more
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer


def cluster_id(cluster) -> int:
    return Config.from_mapping(cluster.config(1)).cluster_id


def hello(
    cluster,
    node: int,
    *,
    dest: int = VICTIM,
    versions=(5, 5),
    store=b"?" * 16,
    of: int | None = None,
) -> bytes:
    payload = struct.pack("<HHI16sQII", *versions, 1, store, 0, 0, 0)
    return encode_frame(HELLO, node, dest, cluster_id(cluster) if of is None else of, payload)


def changed(frame: bytes, at: int, data: bytes) -> bytes:
    return frame[:at] + data + frame[at + len(data) :]


def hostile(cluster) -> dict[str, bytes]:
    good = hello(cluster, 1)
    return {
        "random bytes": random.Random(1).randbytes(20_000),
        "http": b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
        "oversize length": changed(good, 8, struct.pack("<I", 0xFFFFFFFF)),
        "wrong frame version": changed(good, 4, b"\x09"),
        "no common protocol version": hello(cluster, 1, versions=(7, 9)),
        "foreign cluster": hello(cluster, 1, of=12345),
        "flipped bit": changed(good, 50, bytes([good[50] ^ 1])),
        "for another node": hello(cluster, 1, dest=2),
        "no member": hello(cluster, 9),
        "no hello first": encode_frame(ENGINE, 1, VICTIM, cluster_id(cluster), b"x" * 100),
    }


def commits(cluster, nodes, tag: str) -> None:
    for node in nodes:
        for group in range(cluster.groups):
            answer = cluster[node].call(
                "propose", group=group, value=f"{tag}/{node}/{group}", timeout_s=10.0
            )
            assert answer["error"] is None, answer


def places(cluster, nodes) -> dict:
    return {
        node: {group: place[1] for group, place in view.items()}
        for node, view in cluster.each("positions", nodes=nodes).items()
    }


@pytest.mark.timeout(90)
def test_bad_bytes_close_the_connection_with_one_line_and_change_nothing(crew):
    cluster = crew(groups=3)
    cluster.start(bootstrap=True)
    cluster.ready()
    commits(cluster, cluster.ids, "before")
    cluster.led()
    cluster.converged()
    victim, port = cluster[VICTIM], cluster.ports[VICTIM]
    before, descriptors = places(cluster, cluster.ids), victim.descriptors()
    for name, data in hostile(cluster).items():
        seen = len(victim.lines())
        talk(port, data)
        until(lambda seen=seen: len(victim.lines()) > seen, 5, f"a log line about {name}")
        time.sleep(0.15)
        lines = victim.lines()[seen:]
        assert len(lines) == 1, (name, lines)
        assert CLOSED in lines[0], (name, lines)
        time.sleep(0.1)  # the number of such lines in a second is limited
    assert places(cluster, cluster.ids) == before, "something was committed"
    assert victim.descriptors() == descriptors
    status = victim.call("status")
    assert all(peer["connected"] for peer in status["peers"].values()), status["peers"]
    commits(cluster, cluster.ids, "after")


@pytest.mark.timeout(90)
def test_an_impostor_with_another_store_does_not_cut_off_the_real_peer(crew):
    cluster = crew(groups=3)
    cluster.start(bootstrap=True)
    cluster.ready()
    commits(cluster, cluster.ids, "before")
    cluster.led()
    victim, port = cluster[VICTIM], cluster.ports[VICTIM]
    seen = {node: len(cluster[node].lines()) for node in cluster.ids}
    for _ in range(3):
        talk(port, hello(cluster, 1))
    until(lambda: len(victim.lines()) > seen[VICTIM], 5, "a log line")
    time.sleep(0.3)
    lines = victim.lines()[seen[VICTIM] :]
    assert any("store" in line for line in lines)
    assert not any("replaced" in line for line in lines), lines
    assert len(lines) <= 3, lines
    assert cluster[1].lines()[seen[1] :] == [], "the real node lost its connection"
    commits(cluster, cluster.ids, "after")


@pytest.mark.timeout(90)
def test_a_flood_of_strangers_makes_nothing_grow(crew):
    cluster = crew(groups=3)
    cluster.start(bootstrap=True)
    cluster.ready()
    commits(cluster, cluster.ids, "before")
    cluster.led()
    cluster.converged()
    victim, port = cluster[VICTIM], cluster.ports[VICTIM]
    before, descriptors = places(cluster, cluster.ids), victim.descriptors()
    kinds = list(hostile(cluster).values())
    chance = random.Random(2)

    def flood(count: int) -> None:
        for number in range(count):
            data = kinds[number % len(kinds)]
            talk(port, chance.randbytes(chance.randrange(2_000)) if number % 3 else data)

    flood(60)  # whatever is allocated once
    memory, lines = victim.memory_bytes(), len(victim.lines())
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    flood(300)
    for one in idle:
        one.close()
    assert victim.alive
    until(lambda: victim.descriptors() <= descriptors, 10, "descriptors are given back")
    grown = victim.memory_bytes() - memory
    assert grown < 4 * MIB, f"it grew by {grown} bytes"
    assert len(victim.lines()) - lines < 200, "the log is flooded"
    assert places(cluster, cluster.ids) == before
    commits(cluster, cluster.ids, "after")


@pytest.mark.timeout(90)
def test_a_node_of_another_cluster_gets_nowhere(crew, tmp_path):
    cluster = crew(groups=3)
    cluster.start(bootstrap=True)
    cluster.ready()
    commits(cluster, cluster.ids, "before")
    cluster.led()
    cluster.converged()
    before = places(cluster, cluster.ids)
    (tmp_path / "foreign").mkdir()
    foreign: Crew = crew(groups=3, cluster="another", folder=tmp_path / "foreign")
    for node in (2, 3):  # a configuration with other people's addresses in it
        foreign.ports[node] = cluster.ports[node]
    foreign.start(1, bootstrap=True)
    for group in range(3):
        answer = foreign[1].call("propose", group=group, value="foreign", timeout_s=1.5)
        assert answer["error"] == "NoQuorum", answer
    for node in (2, 3):
        assert any("another cluster" in line for line in cluster[node].lines())
        assert len(cluster[node].lines()) < 60
    assert places(cluster, cluster.ids) == before
    commits(cluster, cluster.ids, "after")


def connected(cluster, node: int) -> int:
    return sum(view["connected"] for view in cluster[node].call("status")["peers"].values())


@pytest.mark.timeout(90)
@pytest.mark.parametrize("node", [1, 3])
def test_a_node_that_lost_its_disk_is_refused_under_its_old_id(crew, node):
    """It has forgotten its promises. Its peers know by its store id that it is another one."""
    cluster = crew(groups=3)
    cluster.start(bootstrap=True)
    cluster.ready()
    commits(cluster, cluster.ids, "before")
    for one in cluster.ids:  # who never met it cannot know that it is another one
        until(lambda one=one: connected(cluster, one) == len(cluster.ids) - 1, 20, "all have met")
    cluster.kill(node)
    shutil.rmtree(cluster.config(node)["dir"])
    cluster.start(node, bootstrap=True)
    others = [one for one in cluster.ids if one != node]
    cluster.ready(nodes=others)
    commits(cluster, others, "without")
    answer = cluster[node].call("propose", group=0, value="wiped", timeout_s=2.0)
    assert answer["error"] == "NoQuorum", answer
    assert connected(cluster, node) == 0
    assert all(place == 0 for place in places(cluster, [node])[node].values())
    told = [line for one in others for line in cluster[one].lines() if "store" in line]
    assert told, "nobody says why"
    assert len(told) < 60
    for one in others:
        for group in range(3):
            assert "wiped" not in cluster[one].call("log", group=group)
