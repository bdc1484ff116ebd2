"""The simulator's own machine does what the model of the history checker says."""

import io
from random import Random

import pytest

from phx.errors import Damaged
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


def filled(entries):
    machine = SimMachine()
    machine.apply_batch(entries)
    return machine


def snapshot_of(state):
    out = io.BytesIO()
    state.snapshot(out)
    return out.getvalue()


def test_what_is_restored_goes_on_as_if_it_had_applied_everything():
    entries = [Entry(0, i, encode_put(i * 5 % 7, b"v" * (i % 4))) for i in range(20)]
    source = filled(entries)
    view = source.freeze()
    frozen = source.digest()
    more = [Entry(0, 20, encode_append(3, b"more")), Entry(0, 21, encode_delete(0))]
    results = source.apply_batch(more)
    data = snapshot_of(view)
    view.close()
    made = SimMachine()
    made.restore(io.BytesIO(data))
    assert made.digest() == frozen != source.digest()
    assert made.apply_batch(more) == results
    assert made.digest() == source.digest()
    assert snapshot_of(made) == snapshot_of(source)


def test_snapshots_of_registers_that_are_not_whole_are_refused():
    data = snapshot_of(filled([Entry(0, i, encode_put(i, b"abc")) for i in range(3)]))
    whole = {4 + 11 * registers for registers in range(4)}  # shorter ones are other snapshots
    for end in set(range(len(data))) - whole:
        with pytest.raises(Damaged):
            SimMachine().restore(io.BytesIO(data[:end]))
    with pytest.raises(Damaged):
        SimMachine().restore(io.BytesIO(data[:4] + data[15:26] + data[4:15]))


def test_a_plan_to_fail_is_no_state():
    machine = filled([Entry(0, 1, encode_put(1, b"x"))])
    machine.spoil(FAIL_NEXT)
    made = SimMachine()
    made.restore(io.BytesIO(snapshot_of(machine)))
    assert made.spoilt is None
    assert machine.spoilt == FAIL_NEXT
