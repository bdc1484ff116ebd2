"""What a fetcher makes of offers: who says that he has trimmed nothing may know no more himself."""

from types import SimpleNamespace

import pytest

from phx.checkpoint.catalog import ROOT, Catalog
from phx.node.fetcher import Fetcher, Want
from phx.sim.files import MemoryFiles
from phx.transfer.messages import Offer

TRIMMED = Offer(frontier=50, ident=b"i" * 32, size_bytes=9, floor=51)
NOTHING = Offer(frontier=0, floor=1)
"""Of a peer that has the whole log, or of one that lies as far behind as this node."""


class Lagging:
    """A group of which this node has applied, and knows to be chosen, what is up to `chosen`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, local: int = 0) -> None:
        self.fetched: list[int] = []
        self.installed: list[int] = []
        self.chosen = 10
        catalog = Catalog.open(MemoryFiles(), ROOT)
        if local:
            kept = [SimpleNamespace(frontier=local, light=False, group=0)]
            monkeypatch.setattr(catalog, "of", lambda group: kept)
        state = SimpleNamespace(group=0, stopped=None, removed=False, applied=self.chosen)
        installer = SimpleNamespace(
            catalog=catalog,
            states={0: state},
            driver=SimpleNamespace(group_status=self.status),
            paused=set(),
            ending=None,
        )
        peers = SimpleNamespace()
        self.want = Want(0, False)
        self.fetcher = Fetcher(
            installer, peers, lambda group, error: None, fetches_max=1, reserve_bytes=0
        )
        monkeypatch.setattr(self.fetcher, "_fetch", self.fetch)
        monkeypatch.setattr(self.fetcher, "_install", self.install)

    def status(self, group: int) -> dict[str, int]:
        return {"chosen_through": self.chosen, "floor": 1}

    def fetch(self, want: Want, offers: dict[int, Offer], above: int) -> bool:
        self.fetched.append(above)
        return True

    def install(self, manifest: SimpleNamespace, **_: bool) -> None:
        self.installed.append(manifest.frontier)

    def attempt(self, monkeypatch: pytest.MonkeyPatch, **offers: Offer) -> bool:
        monkeypatch.setattr(self.fetcher, "_offers", lambda *_: dict(enumerate(offers.values())))
        return self.fetcher._attempt(self.want)


def test_a_peer_that_lags_as_well_does_not_keep_a_node_from_fetching(monkeypatch):
    group = Lagging(monkeypatch)
    for _ in range(3):
        if group.attempt(monkeypatch, one=TRIMMED, two=NOTHING):
            break
    assert group.fetched == [10]


def test_nothing_is_fetched_when_the_log_goes_on_after_all(monkeypatch):
    group = Lagging(monkeypatch)
    assert not group.attempt(monkeypatch, one=TRIMMED, two=NOTHING)
    group.chosen = 12
    assert group.attempt(monkeypatch, one=TRIMMED, two=NOTHING)
    assert group.fetched == []


def test_where_all_have_trimmed_it_is_fetched_at_once(monkeypatch):
    group = Lagging(monkeypatch)
    assert group.attempt(monkeypatch, one=TRIMMED, two=TRIMMED)
    assert group.fetched == [10]


def test_its_own_checkpoint_must_reach_the_floor_of_those_that_know_more(monkeypatch):
    short = Lagging(monkeypatch, local=30)
    for _ in range(3):
        if short.attempt(monkeypatch, one=TRIMMED, two=NOTHING):
            break
    assert (short.installed, short.fetched) == ([], [10])
    far = Lagging(monkeypatch, local=50)
    for _ in range(3):
        if far.attempt(monkeypatch, one=TRIMMED, two=NOTHING):
            break
    assert (far.installed, far.fetched) == ([50], [])
