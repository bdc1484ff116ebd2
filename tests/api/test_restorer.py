"""Who may touch the state of a group while it is being restored."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from phx.checkpoint.catalog import ROOT, Catalog
from phx.errors import CheckpointFailed
from phx.node.restorer import Restorer
from phx.node.room import Room
from phx.sim.files import MemoryFiles

pytestmark = pytest.mark.usefixtures("no_leaks")


class Lab:
    """Groups 0 and 1 and one thread, which stays at group 0 until `gate`; `fails`: it cannot."""

    def __init__(self, monkeypatch, fails=False):
        self.gate, self.begun, self.over = (threading.Event() for _ in range(3))
        self.fails = fails
        self.rebuilt = []
        self.wanted = set()
        self.states = {n: SimpleNamespace(group=n, stopped=None, removed=False) for n in range(2)}
        driver = SimpleNamespace(resume=lambda group, frontier: None)
        self.restorer = Restorer(
            Catalog.open(MemoryFiles(), ROOT),
            Path(),
            self.states,
            driver,
            lambda group: {},
            lambda state, frontier: None,
            self.stuck,
        )
        monkeypatch.setattr(self.restorer, "_restore", self.restore)
        self.room = SimpleNamespace(
            opened=lambda: None,
            _alone=lambda: False,
            states=self.states,
            _restorer=self.restorer,
            _transfers=SimpleNamespace(fetcher=self.wanted, rebuild=self.rebuilt.append),
        )

    def restore(self, state):
        self.begun.set()
        assert self.gate.wait(5)
        if self.fails:
            raise OSError("no")

    def stuck(self, state, error):
        self.rebuild(state.group)  # as one that needs a checkpoint of another node
        self.over.set()

    def rebuild(self, group):
        return Room.rebuild(self.room, group)


@pytest.mark.parametrize("wanted", [False, True])
def test_a_group_is_not_made_anew_while_it_is_being_restored(monkeypatch, wanted):
    lab = Lab(monkeypatch)
    lab.wanted |= {0, 1} if wanted else set()  # the engine says that nobody has its log
    lab.restorer.start([0, 1], 1)
    try:
        assert lab.begun.wait(5)
        for group in range(2):  # the other one waits for its turn
            with pytest.raises(CheckpointFailed, match="is being restored"):
                lab.rebuild(group)
        assert lab.rebuilt == []
    finally:
        lab.gate.set()
        lab.restorer._threads[0].join(5)
        lab.restorer.end()
    lab.rebuild(0)
    assert lab.rebuilt == [0]


def test_one_that_cannot_be_restored_may_be_made_anew(monkeypatch):
    lab = Lab(monkeypatch, fails=True)
    lab.restorer.start([0], 1)
    lab.gate.set()
    try:
        assert lab.over.wait(5)
        assert lab.rebuilt == [0]
    finally:
        lab.restorer.end()
