"""Users' machines in simulated clusters: a good one passes, each kind of bad one is found."""

import itertools
import re
from hashlib import blake2b
from pathlib import Path

import pytest

from phx.machine import CopyView, StateMachine
from phx.testing.simulation import SimulationFailed, simulate

ROOT = Path(__file__).resolve().parent.parent.parent


class Ledger(StateMachine):
    """A chain of everything that was applied."""

    def __init__(self):
        self.state = b"empty"

    def apply(self, entry):
        self.state = blake2b(self.state + entry.value, digest_size=8).digest()
        return self.state

    def digest(self):
        return self.state


def command(chance):
    return b"%d" % chance.randrange(1000)


@pytest.mark.slow
def test_a_deterministic_machine_passes():
    assert simulate(lambda group: Ledger(), command, seeds=2) > 2 * 2000


def test_a_machine_that_depends_on_its_process_is_found():
    ticket = itertools.count()

    class Counting(Ledger):
        def apply(self, entry):
            self.state = b"%d" % next(ticket)

    with pytest.raises(SimulationFailed) as failed:
        simulate(lambda group: Counting(), command, seeds=1, profile="crash")
    assert failed.value.invariant == "U7"


def test_a_machine_that_depends_on_where_batches_end_is_found():
    class Batching(Ledger):
        def apply_batch(self, entries):
            results = super().apply_batch(entries)
            self.state = blake2b(self.state + b"end", digest_size=8).digest()
            return results

    with pytest.raises(SimulationFailed) as failed:
        simulate(lambda group: Batching(), command, seeds=3, profile="crash")
    assert failed.value.invariant == "U7"


def test_a_machine_that_raises_is_found_with_its_traceback():
    class Fragile(Ledger):
        def apply(self, entry):
            if entry.value == b"7":
                raise ZeroDivisionError("seven")
            return super().apply(entry)

    with pytest.raises(SimulationFailed, match="ZeroDivisionError: seven") as failed:
        simulate(lambda group: Fragile(), command, seeds=3, profile="calm")
    assert failed.value.invariant == "machine"


def test_a_machine_that_loses_results_is_found():
    class Forgetful(Ledger):
        def apply_batch(self, entries):
            return super().apply_batch(entries)[1:]

    with pytest.raises(SimulationFailed, match="gave 0 results") as failed:
        simulate(lambda group: Forgetful(), command, seeds=1, profile="calm")
    assert failed.value.invariant == "machine"


class Kept(Ledger):
    """With checkpoints."""

    def freeze(self):
        frozen = type(self)()
        frozen.state = self.state
        return CopyView(frozen)

    def snapshot(self, writer):
        writer.write(self.state)

    def restore(self, reader):
        self.state = reader.read(100)


def test_a_machine_with_checkpoints_passes():
    assert simulate(lambda group: Kept(), command, seeds=2, profile="checkpoints") > 200


def test_a_machine_that_restores_another_state_is_found():
    class Short(Kept):
        def restore(self, reader):
            self.state = reader.read(7)

    with pytest.raises(SimulationFailed) as failed:
        simulate(lambda group: Short(), command, seeds=1, profile="checkpoints")
    assert failed.value.invariant == "U9c"


@pytest.mark.parametrize("method", ["freeze", "snapshot", "restore"])
def test_a_machine_that_raises_at_a_checkpoint_is_found_with_its_traceback(method):
    def fail(self, *_):
        raise ZeroDivisionError("never")

    broken = type("Broken", (Kept,), {method: fail})
    with pytest.raises(SimulationFailed, match="ZeroDivisionError: never") as failed:
        simulate(lambda group: broken(), command, seeds=1, profile="checkpoints")
    assert failed.value.invariant == "machine"


def test_a_machine_without_digest_and_a_value_that_is_too_large_are_wrong_usage():
    class Bare(StateMachine):
        def apply(self, entry):
            return None

    with pytest.raises(ValueError, match="digest"):
        simulate(lambda group: Bare(), command)
    with pytest.raises(ValueError, match="20000 bytes"):
        simulate(lambda group: Ledger(), lambda chance: bytes(20_000), seeds=1)
    with pytest.raises(ValueError, match="no profile"):
        simulate(lambda group: Ledger(), command, profile="nonsense")


@pytest.mark.parametrize("page", ["test-your-machine", "read-a-simulated-failure"])
def test_the_code_of_the_page_runs(page, capsys):
    text = (ROOT / "docs" / "howto" / f"{page}.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    room = {}
    exec(block, room)
    for name, function in room.items():
        if name.startswith("test_"):
            function()
