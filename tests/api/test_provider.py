"""What a node gives to those that fetch, and how many at a time."""

import socket
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager

import pytest

from phx.applier import GroupState
from phx.checkpoint.catalog import ROOT, Catalog
from phx.checkpoint.files import OsFiles
from phx.checkpoint.taking import run, take
from phx.node import provider as module
from phx.node.line import Lines, now_us
from phx.node.provider import Pins, Provider
from phx.transfer.messages import (
    REFUSED,
    REFUSED_BUSY,
    Cut,
    Declined,
    Ends,
    Fetch,
    Greeting,
    pack_refused,
)
from phx.transfer.receiver import Asker, Receiver, Wish
from tests.checkpoint.checkpoint_lab import capture, part

pytestmark = pytest.mark.usefixtures("no_leaks")

CLUSTER = 7
GREETING = Greeting(1, b"s" * 16)


class Driver:
    floor = 1
    leading = False

    def group_status(self, group):
        return {"floor": self.floor, "leading": self.leading}

    def read(self, group, instance):
        return 0


class Node:
    """A provider of group 0, node 2, and who asks it."""

    def __init__(self, folder, transfers_max=2):
        (folder / "theirs").mkdir()
        (folder / "ours").mkdir()
        self.catalog = Catalog.open(OsFiles(folder / "theirs"), ROOT)
        self.ours = OsFiles(folder / "ours")
        self.driver, self.asked = Driver(), []
        self.state = GroupState(0, {})
        self.provider = Provider(
            self.catalog,
            {0: self.state},
            self.driver,
            None,
            self.ask,
            lambda group, above: [],
            cluster=CLUSTER,
            node=2,
            transfers_max=transfers_max,
            bytes_per_s=64 << 20,
        )
        self.lines = Lines()

    def ask(self, group):
        self.asked.append(group)
        return Future()

    def take(self, frontier, mib=1):
        state = capture(frontier, 0, (part(0, [bytes(mib << 20)]),), cluster=CLUSTER)
        manifest = run(take(self.catalog.files, ROOT, state))
        self.catalog.add(manifest)
        return manifest

    @contextmanager
    def connection(self, side):
        """A connection that has said its FETCH."""
        here, there = socket.socketpair()
        self.provider.handed([(there.detach(), 1, side.hello(GREETING))])
        one = self.lines.adopt(here)
        try:
            yield one
        finally:
            self.lines.close(one)

    def asker(self, **more):
        return Asker(Ends(CLUSTER, 1, 2), Fetch("offer", 0, **more), now_us())

    def receiver(self, manifest):
        wish = Wish(0, manifest.content, 0, 1 << 30)
        return Receiver(self.ours, ROOT, Ends(CLUSTER, 1, 2), wish, now_us())

    def offer(self, **more):
        side = self.asker(**more)
        with self.connection(side) as one:
            self.lines.run(one, side, lambda: side.ended, b"")
        return side.offer

    def fetch(self, manifest):
        side = self.receiver(manifest)
        with self.connection(side) as one:
            try:
                self.lines.run(one, side, lambda: side.ended, b"")
            finally:
                side.close()
        return side


@pytest.fixture
def node(tmp_path):
    made = Node(tmp_path)
    yield made
    made.provider.end()


def until(holds):
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def threads():
    return [one for one in threading.enumerate() if one.name.startswith("phx-provide")]


def test_few_threads_answer_many_one_after_the_other(node):
    manifest = node.take(10)
    names = set()
    for _ in range(30):
        found = node.offer()
        assert (found.frontier, found.ident, found.busy) == (10, manifest.content, 0)
        names |= {one.name for one in threads()}
        until(lambda: node.provider._idle == len(threads()))
    assert len(names) == 1


def test_it_ends_when_nobody_comes(node, monkeypatch):
    monkeypatch.setattr(module, "IDLE_S", 0.1)
    node.offer()
    until(lambda: not threads())
    assert node.offer().frontier == 0


def test_more_transfers_than_allowed_are_declined_and_more_connections_closed(node):
    manifest = node.take(10, mib=8)
    sides = [node.receiver(manifest) for _ in range(2)]
    with node.connection(sides[0]), node.connection(sides[1]):
        until(lambda: node.provider.counters["providing"] == 2)
        with pytest.raises(Declined):
            node.fetch(manifest)
        assert node.offer().busy == 2
    until(lambda: node.provider.counters["providing"] == 0)
    assert node.fetch(manifest).ended
    until(lambda: node.provider.counters["providing"] == 0 and node.provider._busy == 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TALKS_MAX", 0)
        with node.connection(sides[0]), node.connection(sides[1]):
            until(lambda: node.provider.counters["providing"] == 2)
            with pytest.raises((Cut, OSError)):
                node.offer()


def over(node):
    """The time is over of whatever is held."""
    for held in node.provider.pins._held.values():
        held.until_s = 0.0


def test_a_checkpoint_stays_for_who_may_come_again(node):
    first = node.take(10)
    node.fetch(first)
    node.take(20)
    list(node.catalog.drop(0, 1))
    assert [one.frontier for one in node.catalog.of(0)] == [20, 10]
    node.provider.pins.expire()
    assert len(node.provider.pins) == 1
    over(node)
    node.provider.pins.expire()
    list(node.catalog.drop(0, 1))
    assert [one.frontier for one in node.catalog.of(0)] == [20]
    assert node.offer(ident=first.content).frontier == 20


def test_what_was_offered_is_there_when_it_is_fetched(node, monkeypatch):
    """Whoever asks all peers, one after the other, comes later; and busy groups take checkpoints
    all the time."""
    first = node.take(10)
    assert node.offer().ident == first.content
    node.take(20)
    node.take(30)
    list(node.catalog.drop(0, 1))
    assert node.fetch(first).staged is not None


def test_what_was_offered_does_not_stay_for_ever(node, monkeypatch):
    node.take(10)
    node.provider.offer(Fetch("digests", 0))  # nobody is going to fetch it
    assert len(node.provider.pins) == 0
    node.offer()
    node.provider.pins.expire()
    assert len(node.provider.pins) == 1
    monkeypatch.setattr(module, "AFTER_OFFER_S", 0.0)
    node.take(20)
    assert node.offer().frontier == 20
    node.provider.pins.expire()
    assert [held.until_s > time.monotonic() for held in node.provider.pins._held.values()] == [True]


def test_pins_are_counted(node):
    manifest = node.take(10)
    pins = Pins(node.catalog)
    assert pins.hold(manifest)
    assert pins.hold(manifest)
    pins.release(manifest, 0.0)
    pins.expire()
    assert len(pins) == 1
    pins.release(manifest, 0.0)
    pins.expire()
    assert len(pins) == 0
    node.catalog.forget(manifest)
    assert not pins.hold(manifest)


def test_who_wants_more_than_there_is_has_one_taken(node, monkeypatch):
    node.state.applied = 50
    node.take(10)
    assert node.offer(above=5).frontier == 10
    assert node.asked == []
    node.offer(above=10)
    node.offer(above=10)
    assert node.asked == [0]  # one is under way


def test_a_leader_leaves_it_to_others_for_a_while(node, monkeypatch):
    node.state.applied = 50
    node.driver.leading = True
    assert node.offer().leading
    assert node.asked == []
    monkeypatch.setattr(module, "LEADER_WAITS_S", 0.1)
    time.sleep(0.2)
    node.offer()
    assert node.asked == [0]


def test_nothing_is_offered_that_the_log_does_not_go_on_from(node):
    node.take(10)
    node.driver.floor = 12
    assert node.offer().frontier == 0


def test_a_damaged_one_is_put_aside_and_another_taken(node, tmp_path):
    manifest = node.take(10, mib=3)
    (path,) = (tmp_path / "theirs" / ROOT).glob("0/*/machine-0")
    data = bytearray(path.read_bytes())
    data[2 << 20] ^= 1
    path.write_bytes(data)
    with pytest.raises((Cut, OSError)):
        node.fetch(manifest)
    until(lambda: node.asked == [0])
    assert node.catalog.of(0) == []
    assert not path.exists()
    assert list((tmp_path / "theirs/quarantine").iterdir())


def test_a_node_that_closes_cuts_what_is_under_way(node):
    manifest = node.take(10, mib=8)
    with node.connection(node.receiver(manifest)):
        until(lambda: node.provider.counters["providing"] == 1)
        began = time.monotonic()
        node.provider.end()
        assert time.monotonic() - began < 2
        assert not threads()
        with pytest.raises((Cut, OSError)):
            node.offer()


def turned_away(here):
    """It is told so, and nothing else, and at once."""
    with here:
        here.settimeout(5)
        with here.makefile("rb") as heard:
            busy = Ends(CLUSTER, 2, 1).frame(REFUSED, pack_refused(REFUSED_BUSY, "busy"))
            assert heard.read() == busy


def test_those_that_are_too_many_are_told_so(node, monkeypatch):
    here, there = socket.socketpair()
    with monkeypatch.context() as patch:
        patch.setattr(module, "TALKS_MAX", -node.provider._transfers_max)
        node.provider.handed([(there.detach(), 1, b"")])
    turned_away(here)
    assert node.offer().frontier == 0


def test_without_a_thread_connections_are_closed_and_later_ones_served(node, monkeypatch):
    def refused(self):
        raise RuntimeError("can't start new thread")

    pairs = [socket.socketpair() for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        node.provider.handed([(there.detach(), 1, b"") for _, there in pairs])
    for here, _ in pairs:
        turned_away(here)
    assert node.offer().frontier == 0
