"""Snapshots of the ready-made machines, and what a machine without any goes on doing."""

import io
import threading
import time
from hashlib import blake2b
from zlib import crc32

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx.durable.lmdb import LmdbMachine
from phx.errors import Damaged
from phx.machine import CopyView, StateMachine, has_snapshots, is_compared, no_rest
from phx.machines import Counter, KeyValue, Leases, kv
from phx.machines.counter import encode_add
from phx.machines.kv import encode_cas, encode_delete, encode_get, encode_multi, encode_set
from phx.machines.lease import encode_acquire, encode_release
from phx.machines.objects import PIECE_BYTES
from phx.types import Entry

KEYS = st.sampled_from(["a", "b", b"a", b"\xff", "", "\ud7ff", "long" * 90])
COMMANDS = st.lists(
    st.one_of(
        st.builds(encode_set, KEYS, st.binary(max_size=9)),
        st.builds(encode_delete, KEYS),
        st.builds(encode_cas, KEYS, st.integers(0, 9), st.none() | st.binary(max_size=2)),
    ),
    max_size=30,
)


def apply(machine, commands):
    return [machine.apply(Entry(value=command)) for command in commands]


def snapshot_of(state):
    out = io.BytesIO()
    state.snapshot(out)
    return out.getvalue()


def restored(kind, data):
    made = kind()
    made.restore(io.BytesIO(data))
    return made


# --- key-value


@given(COMMANDS, COMMANDS)
def test_a_restored_dictionary_goes_on_as_if_it_had_applied_everything(before, after):
    source = KeyValue()
    apply(source, before)
    frozen = source.digest()
    view = source.freeze()
    results = apply(source, after)
    made = restored(KeyValue, snapshot_of(view))
    view.close()
    assert made.digest() == frozen
    assert apply(made, after) == results
    assert made.digest() == source.digest()
    assert sorted(map(repr, made.items())) == sorted(map(repr, source.items()))
    assert snapshot_of(made) == snapshot_of(source)


def by_the_book(machine):
    """The digest, worked out of what the machine says."""
    total = 0
    for key, value in machine.items():
        raw = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
        head = f"{'s' if isinstance(key, str) else 'b'}{len(raw)}:{machine.version(key)}:"
        made = blake2b(head.encode() + raw + value, digest_size=8).digest()
        total += int.from_bytes(made, "little")
    return f"{machine._version:016x}{total % (1 << 64):016x}".encode()


@given(COMMANDS, COMMANDS)
def test_the_digest_of_a_view_is_that_of_the_machine_when_it_was_frozen(before, after):
    machine = KeyValue()
    apply(machine, before)
    assert machine.digest() == by_the_book(machine)
    view, frozen = machine.freeze(), machine.digest()
    guard = encode_multi([("a", True)], [encode_delete("a")], [encode_set("b", b"multi")])
    apply(machine, [*after, guard])
    made = restored(KeyValue, snapshot_of(view))
    apply(made, [*after, guard])
    assert view.digest(no_rest) == frozen
    assert made.digest() == machine.digest() == by_the_book(machine) == by_the_book(made)


@pytest.mark.parametrize("keys", [0, 1, 127, 128, 129, 1000])
def test_a_digest_rests_after_a_while_and_what_rest_raises_passes(keys):
    rests = []
    machine = large(keys)
    view = machine.freeze()
    assert view.digest(lambda: rests.append(1)) == machine.digest() == by_the_book(machine)
    assert len(rests) == -(-keys // 128)

    def wanted_no_more():
        raise InterruptedError

    if keys:
        with pytest.raises(InterruptedError):
            view.digest(wanted_no_more)


def test_the_digest_of_a_view_of_leases_is_that_of_when_it_was_frozen():
    machine = Leases(clock=lambda: 5)
    for number in range(300):
        command = encode_acquire(f"n{number}", "x", 1_000_000)
        machine.apply(Entry(value=machine.prepare(command)))
    view, frozen, rests = machine.freeze(), machine.digest(), []
    machine.apply(Entry(value=encode_release("n7", 8)))
    assert view.digest(lambda: rests.append(1)) == frozen != machine.digest()
    assert len(rests) == 3


@given(st.permutations([("a", b"1", 4), ("b", b"2", 2), (b"a", b"", 9), ("c", b"3", 1)]))
def test_equal_dictionaries_write_equal_bytes_in_whatever_order_they_were_filled(items):
    made = KeyValue()
    made._items = {key: (value, version) for key, value, version in items}
    made._version = 9
    assert snapshot_of(made) == snapshot_of(restored(KeyValue, snapshot_of(made)))
    sorted_one = KeyValue()
    sorted_one._items = {key: (value, version) for key, value, version in sorted(items, key=repr)}
    sorted_one._version = 9
    assert snapshot_of(made) == snapshot_of(sorted_one)


def large(keys):
    machine = KeyValue()
    for number in range(keys):
        machine.apply(Entry(value=encode_set(f"key {number}", b"%d" % number + bytes(20))))
    return machine


def test_many_keys_come_in_buckets_and_in_pieces():
    machine = large(3 * kv.KEYS_A_BUCKET + 5)
    for number in range(0, 9000, 3):
        machine.apply(Entry(value=encode_delete(f"key {number}")))
    pieces = []

    class Pieces:
        def write(self, data):
            pieces.append(bytes(data))

    machine.snapshot(Pieces())
    assert len(pieces) > 1
    assert max(map(len, pieces)) < 2 * PIECE_BYTES
    made = restored(KeyValue, b"".join(pieces))
    assert made.digest() == machine.digest()
    assert len(made) == len(machine)
    assert snapshot_of(made) == b"".join(pieces)
    assert list(made.items()) != list(machine.items())  # the order of a dict is no state


def test_a_piece_may_be_kept_by_nobody():
    """A writer may hold on to what it is given: it is not written over."""
    machine, kept = large(20_000), []

    class Keeps:
        def write(self, data):
            kept.append(data)

    machine.snapshot(Keeps())
    assert b"".join(kept) == snapshot_of(machine)


@pytest.mark.parametrize("read_max", [1, 3, 7])
def test_restore_reads_pieces_of_any_size(read_max):
    data = snapshot_of(large(50))

    class Short(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, read_max) if size > 0 else read_max)

    made = KeyValue()
    made.restore(Short(data))
    assert made.digest() == large(50).digest()


def test_a_view_is_written_while_the_machine_goes_on():
    machine = large(20_000)
    frozen = machine.digest()
    view = machine.freeze()
    reached, go = threading.Event(), threading.Event()
    out = bytearray()

    class Slow:
        def write(self, data):
            out.extend(data)
            reached.set()
            assert go.wait(30)

    thread = threading.Thread(target=view.snapshot, args=(Slow(),))
    thread.start()
    assert reached.wait(20)
    for number in range(0, 30_000, 2):
        machine.apply(Entry(value=encode_set(f"key {number}", b"new")))
        machine.apply(Entry(value=encode_delete(f"key {number + 1}")))
    assert thread.is_alive()
    machine.retire()
    go.set()
    thread.join(20)
    view.close()
    assert restored(KeyValue, bytes(out)).digest() == frozen != machine.digest()


def test_to_freeze_does_not_cost_what_it_costs_to_write():
    machine = large(50_000)
    freezing, writing = [], []
    for _ in range(3):
        began = time.perf_counter()
        view = machine.freeze()
        freezing.append(time.perf_counter() - began)
        began = time.perf_counter()
        snapshot_of(view)
        writing.append(time.perf_counter() - began)
        view.close()
    assert min(freezing) < min(writing) / 5


def test_every_damaged_snapshot_is_refused_and_changes_nothing():
    source = KeyValue()
    apply(source, [encode_set("a", b"1"), encode_set("b", b"22"), encode_set(b"c", b"")])
    data = snapshot_of(source)
    spoilt = [data[:end] for end in range(len(data))]
    spoilt += [
        data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        for at in range(len(data))
        for bit in range(8)
    ]
    spoilt += [data + b"\0", data + data]
    for bad in spoilt:
        made = KeyValue()
        with pytest.raises(Damaged):
            made.restore(io.BytesIO(bad))
        assert len(made) == 0
        assert apply(made, [encode_get("a")]) == [None]


def packed(*objects):
    body = b"".join(map(msgpack.packb, objects))
    return body + crc32(body).to_bytes(4, "little")


HEAD = [kv.HEAD, 5, 1]


@pytest.mark.parametrize(
    "objects",
    [
        [],
        [["phx kv 2", 5, 1], ["a", b"1", 1]],
        [[kv.HEAD, 5], ["a", b"1", 1]],
        [{"head": 1}],
        [HEAD],
        [HEAD, ["a", b"1", 1], ["b", b"1", 2]],
        [[kv.HEAD, 5, 2], ["a", b"1", 1], ["a", b"1", 2]],
        [[kv.HEAD, 5, 2], ["a", b"1", 1], ["b", b"1", 1]],
        [HEAD, ["a", b"1", 6]],
        [HEAD, ["a", b"1", 0]],
        [HEAD, ["a", "text", 1]],
        [HEAD, [7, b"1", 1]],
        [HEAD, ["a", b"1"]],
        [HEAD, 7],
    ],
)
def test_snapshots_that_no_machine_wrote_are_refused(objects):
    assert len(restored(KeyValue, packed(HEAD, ["a", b"1", 5]))) == 1
    with pytest.raises(Damaged):
        restored(KeyValue, packed(*objects))


def test_a_subclass_is_frozen_as_what_it_is():
    class Tagged(KeyValue):
        def snapshot(self, writer):
            writer.write(b"tag")
            super().snapshot(writer)

    machine = Tagged()
    view = machine.freeze()
    apply(machine, [encode_set("a", b"1")])
    assert snapshot_of(view) == b"tag" + snapshot_of(KeyValue())


# --- counter


@given(st.integers(-(10**30), 10**30), st.integers())
def test_a_restored_counter_goes_on(total, more):
    source = Counter()
    apply(source, [encode_add(total)])
    view = source.freeze()
    results = apply(source, [encode_add(more)])
    made = restored(Counter, snapshot_of(view))
    view.close()
    assert made.total == total
    assert apply(made, [encode_add(more)]) == results
    assert made.digest() == source.digest()
    assert snapshot_of(made) == snapshot_of(source)


def test_a_number_of_more_digits_than_python_reads_is_restored():
    source = Counter()
    source.total = -(1 << 100_000)
    assert restored(Counter, snapshot_of(source)).total == source.total


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"phx counter 1 ",
        b"phx counter 1 5",
        b"phx counter 2 5\n",
        b"phx counter 1 5\n\n",
        b"phx counter 1 +5\n",
        b"phx counter 1 0x5\n",
        b"phx counter 1 1_0\n",
        b"5\n",
    ],
)
def test_what_is_no_snapshot_of_a_counter_is_refused(data):
    made = Counter()
    made.total = 3
    with pytest.raises(Damaged):
        made.restore(io.BytesIO(data))
    assert made.total == 3


# --- the contract


def test_which_machines_have_snapshots():
    class Bare(StateMachine):
        def apply(self, entry):
            return None

    bare = Bare()
    assert has_snapshots(KeyValue())
    assert has_snapshots(Counter())
    assert not has_snapshots(bare)
    assert bare.freeze() is None
    assert bare.retire() is None
    assert not bare.digest_cheap
    assert Counter.digest_cheap


def test_which_machines_are_compared():
    class Bare(StateMachine):
        def apply(self, entry):
            return None

        def digest(self):
            return b"one"

    class Blind(Bare):
        digest_of_views = True  # and gives no view

    class Viewed(Blind):
        def freeze(self):
            return CopyView(Bare())

    class InFiles(Viewed, LmdbMachine):
        pass

    assert [is_compared(kind()) for kind in (Counter, KeyValue, Leases, Viewed)] == [True] * 4
    assert [is_compared(kind()) for kind in (Bare, Blind, InFiles)] == [False] * 3
    assert Viewed().freeze().digest(no_rest) == b"one"


def test_a_closed_copy_is_written_no_more():
    view = CopyView(Counter())
    view.close()
    with pytest.raises(ValueError, match="closed"):
        view.snapshot(io.BytesIO())
    with pytest.raises(ValueError, match="closed"):
        view.digest(no_rest)
