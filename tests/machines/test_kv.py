"""The key-value machine against a dictionary."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx.machines.kv import (
    KeyValue,
    Malformed,
    encode_cas,
    encode_delete,
    encode_get,
    encode_set,
)
from phx.types import Entry

KEYS = st.sampled_from(["a", "b", b"a", "", "\ud7ff"])
VALUES = st.sampled_from([b"", b"1", b"22"])
COMMANDS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, VALUES),
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("del"), KEYS),
        st.tuples(st.just("cas"), KEYS, st.integers(0, 8), st.one_of(VALUES, st.none())),
    ),
    max_size=40,
)


def apply(machine, command):
    return machine.apply(Entry(value=command))


@given(COMMANDS)
def test_it_behaves_like_a_dictionary_with_versions(commands):
    machine, model, version = KeyValue(), {}, 0
    for command in commands:
        result = apply(machine, msgpack.packb(command))
        verb, key, *rest = command
        old = model.get(key)
        if verb == "get":
            assert result == (list(old) if old else None)
            continue
        if verb == "cas" and (old[1] if old else 0) != rest[0]:
            assert result is None
            continue
        value = rest[-1] if rest else None
        if value is not None:
            version += 1
            model[key] = (value, version)
            assert result == version
        else:
            if old:
                version += 1
                del model[key]
            assert result == (bool(old) if verb == "del" else (old[1] if old else 0))
    assert dict(machine.items()) == {key: value for key, (value, _) in model.items()}
    assert {key: machine.version(key) for key, _ in machine.items()} == {
        key: found[1] for key, found in model.items()
    }
    assert len(machine) == len(model)


def test_commands_have_helpers():
    machine = KeyValue()
    assert apply(machine, encode_set("k", b"v")) == 1
    assert apply(machine, encode_get("k")) == [b"v", 1]
    assert apply(machine, encode_cas("k", 1, b"w")) == 2
    assert apply(machine, encode_cas("k", 1, b"x")) is None
    assert machine.get("k") == b"w"
    assert machine.version("k") == 2
    assert "k" in machine
    assert apply(machine, encode_cas("new", 0, b"n")) == 3
    assert apply(machine, encode_delete("k")) is True
    assert apply(machine, encode_delete("k")) is False
    assert apply(machine, encode_get("k")) is None
    assert apply(machine, encode_cas("new", 3, None)) == 3
    assert machine.get("new") is None
    assert machine.version("k") == 0


def test_a_key_that_was_deleted_and_set_again_has_a_new_version():
    machine = KeyValue()
    apply(machine, encode_set("k", b"v"))
    apply(machine, encode_delete("k"))
    apply(machine, encode_set("k", b"v"))
    assert apply(machine, encode_cas("k", 1, b"w")) is None


def test_text_and_bytes_are_different_keys():
    machine = KeyValue()
    apply(machine, encode_set("a", b"text"))
    apply(machine, encode_set(b"a", b"bytes"))
    assert machine.get("a") == b"text"
    assert machine.get(b"a") == b"bytes"


MALFORMED = [
    b"",
    b"\xc1",
    b"\x93",
    msgpack.packb(5),
    msgpack.packb({}),
    msgpack.packb([]),
    msgpack.packb(["set"]),
    msgpack.packb(["set", "k"]),
    msgpack.packb(["set", "k", "text"]),
    msgpack.packb(["set", 5, b"v"]),
    msgpack.packb(["set", ["k"], b"v"]),
    msgpack.packb(["get", "k", 1]),
    msgpack.packb(["cas", "k", "1", b"v"]),
    msgpack.packb(["pop", "k"]),
    msgpack.packb(["set", "k", b"v"]) + b"\0",
    msgpack.packb({b"a": 1}),
    b"\x81\x90\x01",
]


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_command_changes_nothing_and_says_so(value):
    machine = KeyValue()
    before = machine.digest()
    assert isinstance(apply(machine, value), Malformed)
    assert machine.digest() == before


@given(st.binary(max_size=60))
def test_no_bytes_make_it_raise(value):
    machine = KeyValue()
    apply(machine, value)
    apply(machine, b"\x93\xa3set" + value)
    machine.digest()


@given(st.permutations([("a", b"1"), ("b", b"2"), (b"a", b"3")]))
def test_the_digest_does_not_depend_on_the_order_of_keys(pairs):
    machine, sorted_one = KeyValue(), KeyValue()
    for target, order in ((machine, pairs), (sorted_one, sorted(pairs, key=repr))):
        # The same versions on the same keys, reached by other dictionary orders.
        target._items = {key: (value, len(value) + ord(value)) for key, value in order}
        target._version = 9
    assert machine.digest() == sorted_one.digest()


@pytest.mark.parametrize(
    "commands",
    [
        [encode_set("a", b"1")],
        [encode_set("a", b"2")],
        [encode_set(b"a", b"1")],
        [encode_set("a", b"1"), encode_set("a", b"1")],
        [encode_set("a1", b"")],
        [encode_set("a", b"1"), encode_delete("a")],
        [],
    ],
)
def test_states_that_differ_have_digests_that_differ(commands):
    others = [
        [],
        [encode_set("a", b"1")],
        [encode_set("a", b"2")],
        [encode_set(b"a", b"1")],
        [encode_set("a", b"1")] * 2,
        [encode_set("a1", b"")],
        [encode_set("a", b"1"), encode_delete("a")],
    ]

    def digest(given):
        machine = KeyValue()
        for command in given:
            apply(machine, command)
        return machine.digest()

    same = [other for other in others if digest(other) == digest(commands)]
    assert same == [commands]


def test_a_batch_is_its_commands_one_by_one():
    one, other = KeyValue(), KeyValue()
    commands = [Entry(value=encode_set(f"k{n % 3}", b"%d" % n)) for n in range(9)]
    assert one.apply_batch(commands) == [other.apply(command) for command in commands]
    assert one.digest() == other.digest()
