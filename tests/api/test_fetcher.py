"""The wants of a fetcher: who is answered, what is tried again, and when it is over."""

import threading
import time
from types import SimpleNamespace

import pytest

from phx.checkpoint.catalog import ROOT, Catalog
from phx.node.fetcher import Fetcher, Want
from phx.node.restorer import Unfit
from phx.sim.files import MemoryFiles
from phx.transfer.messages import Offer

pytestmark = pytest.mark.usefixtures("no_leaks")


class Lab:
    """A fetcher of group 0, whose transfers and installing are the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **offers: Offer) -> None:
        self.state = SimpleNamespace(group=0, stopped=None, removed=False, applied=100)
        self.offers = dict(enumerate(offers.values(), 1))
        self.taken: list[bytes] = []
        self.unfit: set[bytes] = set()
        self.halted: list[int] = []
        self.unanswered: list[int] = []
        self.paused: set[int] = set()
        installer = SimpleNamespace(
            catalog=Catalog.open(MemoryFiles(), ROOT),
            states={0: self.state},
            driver=SimpleNamespace(group_status=lambda group: {"chosen_through": 100, "floor": 1}),
            paused=self.paused,
            ending=threading.Event(),
            pause=self.paused.add,
        )
        self.fetcher = Fetcher(
            installer,
            SimpleNamespace(),
            lambda group, error: self.halted.append(group),
            fetches_max=1,
            reserve_bytes=0,
        )
        self.fetcher.on_unfit = lambda group, error: self.unanswered.append(group)
        monkeypatch.setattr(self.fetcher, "_offers", self.offered)
        monkeypatch.setattr(self.fetcher, "_receive", self.receive)
        monkeypatch.setattr(self.fetcher, "_install", self.install)

    def offered(self, want: Want, above: int, generation: int) -> dict[int, Offer]:
        none = Offer(floor=1)
        return {n: none if one.ident in want.unfit else one for n, one in self.offers.items()}

    def receive(self, want, node, offer, wish, staged):
        return SimpleNamespace(content=offer.ident)

    def install(self, made: SimpleNamespace, *, verified: bool) -> None:
        self.taken.append(made.content)
        if made.content in self.unfit:
            raise Unfit("of another version")
        self.paused.discard(0)

    def round(self, want: Want) -> bool:
        try:
            return self.fetcher._attempt(want)
        except BaseException as error:
            return self.fetcher._gone_wrong(want, error)


def until(holds):
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def offer(ident: bytes, frontier: int) -> Offer:
    return Offer(frontier=frontier, ident=ident, size_bytes=9, floor=1)


@pytest.mark.parametrize("stopped", [False, True])
def test_one_checkpoint_that_the_machines_do_not_take_is_followed_by_another(monkeypatch, stopped):
    lab = Lab(monkeypatch, one=offer(b"a", 60), two=offer(b"b", 50))
    lab.paused.add(0)
    lab.state.stopped = RuntimeError() if stopped else None
    lab.unfit = {b"a"}
    want = Want(0, True)
    assert not lab.round(want)
    assert (lab.halted, lab.unanswered) == ([], [])
    assert want.pause_s < 5
    assert lab.round(want)
    assert lab.taken == [b"a", b"b"]


@pytest.mark.parametrize("stopped", [False, True])
def test_who_waits_is_told_when_the_machines_take_none(monkeypatch, stopped):
    lab = Lab(monkeypatch, one=offer(b"a", 60), two=offer(b"b", 50))
    lab.paused.add(0)
    lab.state.stopped = RuntimeError() if stopped else None
    lab.unfit = {b"a", b"b"}
    want = Want(0, True)
    assert not lab.round(want)
    assert lab.round(want) is not stopped  # one that stopped waits for another checkpoint
    assert lab.halted == ([] if stopped else [0])
    assert lab.unanswered == [0]


def test_a_second_wish_while_the_first_is_being_met_is_not_lost(monkeypatch):
    """It comes behind the install: the group is paused once more, and must go on once more."""
    lab = Lab(monkeypatch, one=offer(b"a", 60))
    waiting: set[int] = set()
    lab.fetcher.awaited = waiting.__contains__
    install = lab.install

    def twice(made, *, verified):
        install(made, verified=verified)
        if len(lab.taken) == 1:
            lab.paused.add(0)
            lab.fetcher.anew(0)

    monkeypatch.setattr(lab.fetcher, "_install", twice)
    lab.paused.add(0)
    lab.fetcher.anew(0)
    try:
        until(lambda: 0 not in lab.fetcher)
        assert lab.taken == [b"a", b"a"]
        assert not lab.paused
    finally:
        lab.fetcher.end()


@pytest.mark.parametrize("awaited", [False, True])
def test_a_second_wish_before_the_install_is_met_with_it_unless_somebody_waits_still(
    monkeypatch, awaited
):
    """It found the group paused, and so does not pause it; what is new here is as old as there."""
    lab = Lab(monkeypatch, one=offer(b"a", 60))
    lab.fetcher.awaited = lambda group: awaited and len(lab.taken) == 1
    install = lab.install

    def twice(made, *, verified):
        if not lab.taken:
            lab.fetcher.anew(0)
        install(made, verified=verified)

    monkeypatch.setattr(lab.fetcher, "_install", twice)
    lab.paused.add(0)
    lab.fetcher.anew(0)
    try:
        until(lambda: 0 not in lab.fetcher)
        assert len(lab.taken) == 1 + awaited
        assert not lab.paused
    finally:
        lab.fetcher.end()


def test_a_quiet_group_that_nobody_is_ahead_of_is_not_wanted_for_ever(monkeypatch):
    """All is applied here that anybody knows of; who told it so tells it again if need be."""
    behind = Offer(frontier=90, ident=b"i", size_bytes=9, floor=91)
    lab = Lab(monkeypatch, one=behind, two=Offer(floor=1))
    want = Want(0, False)
    assert [lab.round(want) for _ in range(2)] == [False, True]
    only = Lab(monkeypatch, one=behind)
    want = Want(0, False)
    assert [only.round(want) for _ in range(2)] == [False, True]


def test_one_that_somebody_is_ahead_of_stays_wanted_though_nobody_helps_yet(monkeypatch):
    lab = Lab(monkeypatch, one=Offer(floor=130), two=Offer(floor=1))
    want = Want(0, False)
    assert [lab.round(want) for _ in range(4)] == [False] * 4


def refused(self):
    raise RuntimeError("can't start new thread")


def test_a_thread_that_cannot_be_had_now_is_had_with_the_next_want(monkeypatch):
    lab = Lab(monkeypatch, one=offer(b"a", 160))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        lab.paused.add(0)
        with pytest.raises(RuntimeError):
            lab.fetcher.anew(0)
    lab.fetcher.anew(0)
    try:
        until(lambda: 0 not in lab.fetcher)
        assert lab.taken == [b"a"]
    finally:
        lab.fetcher.end(5)


def test_behind_a_hole_that_nobody_fills_a_checkpoint_is_fetched_though_the_group_is_active(
    monkeypatch,
):
    lab = Lab(monkeypatch, one=offer(b"a", 39), two=offer(b"b", 60))
    lab.state.applied = 10
    chosen = iter(range(100, 200))
    lab.fetcher._driver.group_status = lambda g: {"chosen_through": next(chosen), "floor": 1}
    monkeypatch.setattr(lab.fetcher, "entries", lambda *asked: [])
    want = Want(0, False, hole=(40, 40))
    assert lab.round(want)
    assert lab.taken == [b"b"]  # the other one ends below the hole


def test_a_hole_that_was_filled_needs_none(monkeypatch):
    lab = Lab(monkeypatch, one=offer(b"a", 160))
    assert lab.round(Want(0, False, hole=(40, 40)))
    assert lab.taken == []
    lab.fetcher.lost(0, 40, 40)  # it is applied
    assert 0 not in lab.fetcher


def test_a_hole_that_somebody_fills_after_all_needs_none(monkeypatch):
    lab = Lab(monkeypatch, one=offer(b"a", 60), two=offer(b"b", 60))
    lab.state.applied = 10
    asked = []

    def entries(node, group, first, last):
        asked.append((node, first, last))
        return [b"it"] if node == 2 else []

    monkeypatch.setattr(lab.fetcher, "entries", entries)
    assert lab.round(Want(0, False, hole=(40, 45)))
    assert (lab.taken, asked) == ([], [(1, 40, 40), (2, 40, 40)])
