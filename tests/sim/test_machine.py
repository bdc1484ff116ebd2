"""The simulator's own machine does what the model of the history checker says."""

from random import Random

import pytest

from phx.sim.history import IMPOSSIBLE, KeyValueModel, Operation
from phx.sim.machine import (
    FAIL_HALFWAY,
    FAIL_NEXT,
    MachineSpoilt,
    SimMachine,
    encode_append,
    encode_cas,
    encode_delete,
    encode_get,
    encode_put,
)
from phx.types import Entry


def run(machine, command):
    return machine.apply(Entry(0, 1, command))


def commands(chance):
    """(operation without its result, command), at random, on one key."""
    values = [b"", b"a", b"bc"]
    kind = chance.choice(["get", "put", "append", "cas", "delete"])
    value, old = chance.choice(values), chance.choice([None, *values, b"abc"])
    return {
        "get": lambda: (kind, None, encode_get(9)),
        "put": lambda: (kind, value, encode_put(9, value)),
        "append": lambda: (kind, value, encode_append(9, value)),
        "cas": lambda: (kind, (old, value), encode_cas(9, old, value)),
        "delete": lambda: (kind, None, encode_delete(9)),
    }[kind]()


def test_agrees_with_the_model():
    chance, model, machine = Random(1), KeyValueModel(), SimMachine()
    state, kinds = model.initial, set()
    for _ in range(5000):
        kind, argument, command = commands(chance)
        result = run(machine, command)
        kinds.add((kind, result if isinstance(result, bool) else None))
        state = model.step(state, Operation(0, 9, kind, argument, result, 0, 0))
        assert state is not IMPOSSIBLE
        assert machine.items.get(9) == state
    assert {("cas", True), ("cas", False), ("delete", True), ("delete", False)} <= kinds


def test_digest_is_of_history_and_state_and_not_of_batches():
    one, other = SimMachine(), SimMachine()
    entries = [Entry(0, i, encode_put(i % 3, b"%d" % i)) for i in range(10)]
    one.apply_batch(entries)
    for entry in entries:
        other.apply(entry)
    assert one.digest() == other.digest()
    swapped = SimMachine()
    swapped.apply_batch([entries[1], entries[0], *entries[2:]])
    assert swapped.items == one.items
    assert swapped.digest() != one.digest()


@pytest.mark.parametrize(("how", "applied"), [(FAIL_NEXT, 0), (FAIL_HALFWAY, 2)])
def test_a_spoilt_machine_fails_as_it_was_told(how, applied):
    machine = SimMachine()
    machine.spoil(how)
    with pytest.raises(MachineSpoilt):
        machine.apply_batch([Entry(0, i, encode_put(i, b"x")) for i in range(4)])
    assert len(machine.items) == applied
    machine.spoil(-1)
    machine.apply_batch([Entry(0, 9, encode_put(9, b"x"))])
