"""The checkpoints of a simulated node: what a crash leaves, and what a start makes of it."""

from random import Random

import pytest

from phx._core.delivery import Sessions
from phx.checkpoint.catalog import ROOT, path_of
from phx.checkpoint.files import Files
from phx.sim.files import Crashed, MemoryFiles
from phx.sim.keeping import Keeping
from phx.sim.machine import SimMachine, encode_put
from phx.sim.wire_text import Run, batch
from phx.types import Entry


class Node:
    """Group 0 of a node, which applies a value an instance."""

    def __init__(self, keep: int = 2) -> None:
        self.keeping = Keeping(1, (1, 2, 3), 0x5EED, keep)
        self.sessions = Sessions(1, [0])
        self.machine = SimMachine()
        self.applied = 0

    def apply(self) -> None:
        self.applied += 1
        value = encode_put(self.applied, b"value")
        self.sessions.offer(0, self.applied, [batch([Run(1, 1, 1, self.applied, [value])], 7, 99)])
        self.machine.apply(Entry(0, self.applied, value))

    def begin(self) -> None:
        view = self.machine.freeze()
        self.keeping.begin(self.sessions.table(0), view, self.machine.digest(), 1)

    def take(self) -> None:
        self.apply()
        self.begin()
        while self.keeping.step():
            pass

    def restored(self) -> int:
        """A start, and the instance that it goes on behind."""
        self.keeping.open()
        machine, manifest, _ = self.keeping.restore(0, SimMachine)
        held = manifest.frontier if manifest else 0
        assert len(machine.items) == held
        return held


def test_the_newest_is_restored_and_so_many_stay() -> None:
    node = Node()
    for _ in range(4):
        node.take()
    assert (node.keeping.cover(0), node.keeping.frontier(0)) == (3, 4)
    node.keeping.crash(True, 1)
    assert node.restored() == 4
    counts = node.keeping.counts
    assert (counts["taken"], counts["dropped"], counts["restored"]) == (4, 2, 1)


def test_a_crash_between_any_two_steps_leaves_the_old_one_or_the_new_one() -> None:
    steps = 0
    finished = False
    while not finished:
        for power in (False, True):
            node = Node(keep=1)
            node.take()
            node.apply()
            node.begin()
            more = [node.keeping.step() for _ in range(steps)]
            finished = not all(more)
            node.keeping.crash(power, steps)
            assert node.restored() in ((2,) if finished else (1, 2)), (steps, power)
            assert node.keeping.counts["abandoned"] == (not finished)
        steps += 1
    assert steps > 8


def test_what_was_cut_short_does_nothing_any_more() -> None:
    node = Node()
    node.take()
    node.apply()
    node.begin()
    node.keeping.step()
    before = node.keeping.files.tree()
    node.keeping.crash(False, 1)
    assert node.keeping.files.tree() == before


def test_a_crash_within_a_step_is_told() -> None:
    node = Node()
    node.apply()
    node.begin()
    node.keeping.crash_at(3)
    while node.keeping.step():
        pass
    assert node.keeping.dead
    node.keeping.crash(False, 1)
    assert not node.keeping.dead
    assert node.restored() == 0


def test_a_damaged_one_is_put_aside_for_the_one_before() -> None:
    hit = []
    for which in range(4):
        node = Node()
        node.take()
        node.take()
        newest = node.keeping.catalog.of(0)[0]
        files = node.keeping.files
        before = {path: files.content(path) for path in files.tree() if not path.endswith("/")}
        assert node.keeping.flip(which, 4001) == 0
        (path,) = (path for path, data in before.items() if files.content(path) != data)
        hit.append(path.startswith(path_of(ROOT, newest)))
        node.keeping.crash(False, 1)
        assert node.restored() == (1 if hit[-1] else 2), path
        counts = node.keeping.counts
        if hit[-1]:
            assert counts["fell_back"] + counts["unreadable"] == 1, path
    assert sorted(hit) == [False, False, True, True]
    assert Node().keeping.flip(0, 0) is None


def test_without_room_none_is_taken_and_nothing_is_left() -> None:
    node = Node()
    node.take()
    before = node.keeping.files.tree()
    node.keeping.fill(10)
    node.take()
    assert node.keeping.counts["failed"] == 1
    assert node.keeping.files.tree() == before
    node.keeping.heal()
    node.take()
    assert node.keeping.frontier(0) == 3


def test_names_that_changed_long_ago_are_on_the_disk() -> None:
    files = MemoryFiles(changes_max=2)
    for name in "abcd":
        files.make_folder(name)
    files.power_loss(Random(1), 0.0)
    assert files.tree() == ["a/", "b/"]


def test_a_stopped_process_has_no_effect() -> None:
    files = MemoryFiles()
    typed: Files = files
    typed.make_folder(ROOT)
    files.stop()
    with pytest.raises(Crashed):
        typed.make_folder("more")
    files.restart()
    assert files.tree() == [f"{ROOT}/"]
