"""What is pinned of a group's log."""

import pytest

from phx.node.floors import Floors


def test_the_lowest_pin_of_a_group_holds():
    floors = Floors({7: 1, 8: 1}.__getitem__)
    assert floors.pinned(7) is None
    low, high = floors.pin(7, 10), floors.pin(7, 30)
    assert floors.pinned(7) == 10
    assert floors.pinned(8) is None
    low.move(20)
    assert floors.pinned(7) == 20
    low.move(5)
    assert floors.pinned(7) == 20
    low.release()
    low.release()
    assert floors.pinned(7) == 30
    with floors.pin(7, 3):
        assert floors.pinned(7) == 3
    assert floors.pinned(7) == 30
    high.release()
    assert floors.pinned(7) is None


def test_what_is_gone_already_is_not_promised():
    floors = Floors({7: 100}.__getitem__)
    pin = floors.pin(7, 50)
    assert pin.first == 100
    assert floors.pin(7, 150).first == 150
    with pytest.raises(ValueError, match="from 1"):
        floors.pin(7, 0)
