"""A node is killed at each step of taking a checkpoint: it has the old one or the new.

All steps, before and after each, take minutes: ``PHX_EVERY_STEP=1``. Without it each ninth is.
"""

import os
from pathlib import Path

import dying
import pytest
from take_worker import VALUES

from phx.checkpoint.catalog import ROOT, Catalog
from phx.checkpoint.files import OsFiles
from phx.verify import examine

WORKER = Path(__file__).with_name("take_worker.py")
pytestmark = pytest.mark.processes


class Alone:
    """A node's folder, over its lives."""

    def __init__(self, folder, lives):
        self.folder = folder
        self.lives = lives
        self.promised = dying.Promises()
        self.count = 0  # of values that each machine has, at least

    def live(self, step, when="before"):
        """How many steps the checkpoint took; None: it was killed at one of them."""
        self.lives.begin(self.folder, step, when)
        code, out = self.lives.end()
        assert code in (0, -9), (step, when, self.lives.errors())
        said = dict(line.split(None, 1) for line in out.splitlines())
        assert "at" in said, (step, when, self.lives.errors())
        memory, odd, durable, also_odd = map(int, said["had"].split())
        assert (odd, also_odd) == (0, 0), (step, when)
        assert memory == durable >= self.count, (step, when)
        self.count = memory + VALUES
        self.look(*map(int, said["at"].split()), code == -9, (step, when))
        return int(said["steps"]) if code == 0 else None

    def look(self, promised, frontier, applied, killed, which):
        """At what lies there: frontier and applied are from before the checkpoint."""
        report = examine(self.folder, whole=True)
        assert report.findings == [], which
        assert report.quarantined == [], which
        self.promised.look(self.folder)
        assert self.promised.of(0) >= promised, which
        found = [one.frontier for one in Catalog.scan(OsFiles(self.folder), ROOT).get(0, ())]
        old = [one for one in found if one < applied]
        assert old in ([], [frontier]), which
        assert len(found) - len(old) <= 1, which
        if not killed:
            assert not old
            assert found
        # The log goes down to what the older of them lacks; without any it goes down to 1.
        assert (report.groups[0].kept_from or 1) - 1 <= min(found, default=0), which


EVERY = 1 if "PHX_EVERY_STEP" in os.environ else 9


@pytest.mark.slow(seconds=60)
@pytest.mark.timeout(390)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_a_step_it_has_the_old_checkpoint_or_the_new(tmp_path, lives, when):
    node, kills = Alone(tmp_path / "node1", lives), 0
    node.live(0)
    steps = node.live(0)
    assert steps > 20
    for step in range(1, steps + 1, EVERY):
        kills += node.live(step, when) is None
        node.live(0)
    print(f"{steps} steps, {kills} kills")
    assert kills >= len(range(1, steps + 1, EVERY)) // 2  # a step that fails is not come back from
