"""In which order a checkpoint is installed, and what is given back when a step fails."""

import pytest

from phx.checkpoint.installing import install

ORDER = ["restore", "floor", "swap", "know", "tell", "abandon", "drop"]
STEPS = ["restored", "floored", "swapped", "known", "told", "dropped"]


class Place:
    def __init__(self, passed: bool = False, fails: str = "") -> None:
        self.calls: list[str] = []
        self._passed = passed
        self._fails = fails

    def passed(self) -> bool:
        return self._passed

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self._fails:
            raise OSError(name)

    def restore(self) -> None:
        self._call("restore")

    def floor(self) -> None:
        self._call("floor")

    def swap(self) -> None:
        self._call("swap")

    def know(self) -> None:
        self._call("know")

    def tell(self) -> None:
        self._call("tell")

    def drop(self) -> None:
        self._call("drop")

    def abandon(self) -> None:
        self._call("abandon")


def test_the_engine_is_told_last_and_the_floor_is_durable_before_the_machines_are_changed():
    place = Place()
    assert list(install(place)) == STEPS
    assert place.calls == ORDER


def test_the_engine_knows_the_members_before_it_goes_on_behind_the_checkpoint():
    """Else it votes there under those it knew (`a checkpoint without members`)."""
    place = Place()
    list(install(place))
    assert place.calls.index("floor") < place.calls.index("know") < place.calls.index("tell")


def test_who_has_passed_it_only_raises_his_floor():
    place = Place(passed=True)
    assert list(install(place)) == STEPS[1:]
    assert place.calls == ORDER[1:]


@pytest.mark.parametrize("fails", ["restore", "floor", "swap", "know", "tell"])
def test_what_fails_gives_back_what_was_restored_and_drops_nothing(fails):
    place = Place(fails=fails)
    with pytest.raises(OSError, match=fails):
        list(install(place))
    assert place.calls == [*ORDER[: ORDER.index(fails) + 1], "abandon"]


def test_a_node_that_closes_between_two_steps_gives_it_back():
    place = Place()
    steps = install(place)
    assert next(steps) == "restored"
    steps.close()
    assert place.calls == ["restore", "abandon"]
