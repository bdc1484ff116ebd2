"""The key-value machine against a dictionary."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phx.machines.kv import (
    MULTI_MAX,
    KeyValue,
    Malformed,
    encode_cas,
    encode_delete,
    encode_get,
    encode_multi,
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


SIMPLE = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, VALUES),
        st.tuples(st.just("get"), KEYS),
        st.tuples(st.just("del"), KEYS),
    ),
    max_size=4,
)
TESTS = st.lists(st.tuples(KEYS, st.one_of(st.booleans(), st.integers(0, 8), VALUES)), max_size=3)
ENCODERS = {"set": encode_set, "get": encode_get, "del": encode_delete}


def encoded(commands):
    return [ENCODERS[verb](*rest) for verb, *rest in commands]


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


def holds(machine, key, what):
    """A test of a guard, said in terms of what the machine shows."""
    if what is True or what is False:
        return (key in machine) == what
    return machine.version(key) == what if isinstance(what, int) else machine.get(key) == what


@given(SIMPLE, st.lists(st.tuples(TESTS, SIMPLE, SIMPLE), max_size=8))
def test_a_multi_is_its_commands_in_a_row_if_its_guard_holds_before_the_first(begin, multis):
    together, alone = KeyValue(), KeyValue()
    for command in encoded(begin):
        apply(together, command)
        apply(alone, command)
    for guard, then, otherwise in multis:
        held = all(holds(alone, *test) for test in guard)
        expected = [apply(alone, one) for one in encoded(then if held else otherwise)]
        got = apply(together, encode_multi(guard, encoded(then), encoded(otherwise)))
        assert got == (held, expected)
        assert got.held is held
        assert together.digest() == alone.digest()


def test_a_multi_moves_what_two_keys_hold():
    machine = KeyValue()
    apply(machine, encode_set("from", b"100"))
    move = encode_multi(
        [("from", 1), ("to", False)],
        [encode_set("to", b"100"), encode_delete("from"), encode_get("to")],
        [encode_get("from"), encode_get("to")],
    )
    assert apply(machine, move) == (True, [2, True, [b"100", 2]])
    assert apply(machine, move) == (False, [None, [b"100", 2]])
    assert machine.items() == [("to", b"100")]


def test_a_multi_is_little_more_than_its_commands():
    commands = [encode_set(f"key {n}", b"v" * 20) for n in range(10)]
    assert len(encode_multi([], commands)) == sum(map(len, commands)) + 10


def test_a_multi_has_so_many_tests_and_commands_and_not_more():
    machine, test, command = KeyValue(), ("k", False), encode_get("k")
    half = MULTI_MAX // 2
    assert apply(machine, encode_multi([test] * half, [command] * half)).held
    with pytest.raises(ValueError, match="at most"):
        encode_multi([test] * half, [command] * half, [command])
    many = [["k", False]] * half, [["get", "k"]] * half, [["get", "k"]]
    assert isinstance(apply(machine, msgpack.packb(["multi", *many])), Malformed)


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
    msgpack.packb(["set", "k", b"v", 1]),
    msgpack.packb([b"set", "k", b"v"]),
    msgpack.packb({"set": 1, "k": 2, b"v": 3}),
    msgpack.packb(["set", 5, b"v"]),
    msgpack.packb(["set", ["k"], b"v"]),
    msgpack.packb(["get", "k", 1]),
    msgpack.packb(["cas", "k", "1", b"v"]),
    msgpack.packb(["pop", "k"]),
    msgpack.packb(["set", "k", b"v"]) + b"\0",
    msgpack.packb({b"a": 1}),
    b"\x81\x90\x01",
    msgpack.packb(["multi", "k"]),
    msgpack.packb(["multi", [], []]),
    msgpack.packb(["multi", [], [], [], []]),
    msgpack.packb(["multi", [], [], None]),
    msgpack.packb(["multi", {"k": True}, [], []]),
]

SET = ["set", "k", b"v"]
MALFORMED_MULTIS = [  # each with a command that would be done if it were sound
    ([[1, True]], [SET], []),
    ([["k", None]], [SET], []),
    ([["k", 1.0]], [SET], []),
    ([["k", "v"]], [SET], []),
    ([["k"]], [SET], []),
    ([["k", True, 1]], [SET], []),
    ([["j", True], ["k", None]], [SET], [SET]),
    ([], [SET, ["set", "k", "text"]], []),
    ([], [SET, ["set", "k"]], []),
    ([], [SET, ["get", ["k"]]], []),
    ([], [SET, ["get", 7]], []),
    ([], [SET, ["del", "k", 1]], []),
    ([], [SET, ["cas", "k", 0, b"w"]], []),
    ([], [SET, ["multi", [], [SET], []]], []),
    ([], [SET, 5], []),
    ([], [SET], [["pop", "k"]]),  # in the branch that is not taken
]


@pytest.mark.parametrize("multi", MALFORMED_MULTIS)
def test_of_a_malformed_multi_nothing_is_done(multi):
    machine = KeyValue()
    before = machine.digest()
    assert isinstance(apply(machine, msgpack.packb(["multi", *multi])), Malformed)
    assert machine.digest() == before


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
    apply(machine, b"\x94\xa5multi" + value)
    apply(machine, b"\x94\xa5multi\x90\x91" + value + b"\x90")
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


def test_a_batch_goes_through_apply_where_that_is_another():
    class Counting(KeyValue):
        seen = 0

        def apply(self, entry):
            self.seen += 1
            return super().apply(entry)

    one = Counting()
    assert one.apply_batch([Entry(value=encode_set("k", b"%d" % n)) for n in range(3)]) == [1, 2, 3]
    assert one.seen == 3


def test_a_batch_is_its_commands_one_by_one():
    one, other = KeyValue(), KeyValue()
    sound = [
        command
        for n in range(9)
        for command in (
            encode_set(f"k{n % 3}", b"%d" % n), encode_set(b"k", b"%d" % n), encode_get("k1"),
            encode_cas("k2", n, b"x"), encode_delete("k0"),
            encode_multi([("k1", True)], [encode_get("k1")]),
        )
    ]  # fmt: skip
    values = [
        value for pair in zip(sound, MALFORMED * len(sound), strict=False) for value in pair
    ]  # each malformed one between two sound ones
    assert len(values) > 2 * len(MALFORMED)
    batch = [Entry(value=value) for value in values]
    assert one.apply_batch(batch) == [other.apply(entry) for entry in batch]
    assert one.digest() == other.digest()
