"""How machines are given to a node."""

import pytest

from phx.machine import StateMachine, machines_of
from phx.machines import Counter, KeyValue
from phx.types import Entry


def test_one_factory_makes_machine_zero():
    made = machines_of(lambda group: Counter(), 4)
    assert list(made) == [0]
    assert isinstance(made[0], Counter)


def test_a_class_is_a_factory():
    assert isinstance(machines_of(Counter, 4)[0], Counter)
    assert isinstance(machines_of(KeyValue, 4)[0], KeyValue)


def test_factories_by_id_and_a_factory_of_several_are_alike():
    by_id = machines_of({3: Counter, 1: KeyValue}, 4)
    of_several = machines_of(lambda group: {3: Counter(), 1: KeyValue()}, 4)
    for made in (by_id, of_several):
        kinds = [(machine, type(one)) for machine, one in made.items()]
        assert kinds == [(1, KeyValue), (3, Counter)]


def test_a_factory_is_told_its_group():
    groups = []

    def factory(group):
        groups.append(group)
        return Counter()

    machines_of(factory, 9)
    machines_of({0: factory, 1: factory}, 8)
    assert groups == [9, 8, 8]


@pytest.mark.parametrize(
    ("machines", "kind"),
    [
        ({}, ValueError),
        (lambda group: {}, ValueError),
        (lambda group: None, TypeError),
        (lambda group: {0: object()}, TypeError),
        ({-1: Counter}, ValueError),
        ({65_536: Counter}, ValueError),
        ({"0": Counter}, TypeError),
        ({True: Counter}, TypeError),
    ],
)
def test_what_cannot_be_a_machine_is_refused(machines, kind):
    with pytest.raises(kind):
        machines_of(machines, 1)


def test_apply_batch_is_apply_for_each():
    class Lengths(StateMachine):
        def apply(self, entry):
            return len(entry.value)

    one = Lengths()
    assert one.apply_batch([Entry(value=b"a"), Entry(value=b"bb")]) == [1, 2]
    assert one.digest() == b""
    with pytest.raises(NotImplementedError):
        one.snapshot(None)
    with pytest.raises(NotImplementedError):
        one.restore(None)


def test_a_machine_must_apply():
    with pytest.raises(TypeError):
        StateMachine()
