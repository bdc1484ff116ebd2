"""The ceiling of promises, where the driver does not take it at once."""

from concurrent.futures import Future

import pytest

from phx._core.driver import ERROR_CLOSED, ERROR_OVERLOADED, DriverError
from phx.node.lives import Lives
from phx.store import Store
from phx.store_facts import CEILING_STEP, Facts, read

from .cluster import config_of

pytestmark = pytest.mark.usefixtures("no_leaks")


class BusyDriver:
    """Refuses each kind of call as often as it is told."""

    incarnation = 1

    def __init__(self) -> None:
        self.refuse = {"ceiling": 0, "group_statuses": 0, "status": 0}
        self.code = ERROR_OVERLOADED
        self.told: list[int] = []

    def _take(self, what: str) -> None:
        if self.refuse[what]:
            self.refuse[what] -= 1
            raise DriverError(self.code, "planted")

    def ceiling(self, counter: int) -> None:
        self._take("ceiling")
        self.told.append(counter)

    def group_statuses(self) -> list[dict[str, int]]:
        self._take("group_statuses")
        return [{"group": 0, "promised": 0, "highest_seen": 0}]

    def status(self) -> dict[str, object]:
        self._take("status")
        return {"peers": []}


@pytest.fixture
def store(tmp_path):
    (tmp_path / "store").mkdir()
    one = Store.open(tmp_path / "store", cluster=1, node=1, create=True)
    yield one
    one.close()


def lives_of(store: Store, folder, driver: BusyDriver) -> Lives:
    def ask(action):
        future: Future[object] = Future()
        try:
            future.set_result(action(store))
        except BaseException as error:
            future.set_exception(error)
        return future

    lives = Lives(config_of(folder, 1, nodes=1), ask)
    lives.begin(0, None, create=True)
    lives.serve(driver)  # type: ignore[arg-type]
    return lives


@pytest.mark.parametrize("what", ["ceiling", "group_statuses", "status"])
def test_a_raise_that_the_driver_does_not_take_is_told_again(tmp_path, store, what):
    driver = BusyDriver()
    driver.refuse["group_statuses"] = what == "group_statuses"
    lives = lives_of(store, tmp_path, driver)
    driver.refuse[what] = 2
    lives.wanted(3 * CEILING_STEP)
    assert driver.told == []
    assert not lives.look()
    assert driver.told == []
    assert lives.look()
    assert driver.told == [3 * CEILING_STEP]
    facts = read(store)
    assert isinstance(facts, Facts)
    assert facts.ceiling == 3 * CEILING_STEP
    assert lives.look()
    assert driver.told == [3 * CEILING_STEP]


def test_a_driver_that_is_closed_is_not_asked_again(tmp_path, store):
    driver = BusyDriver()
    lives = lives_of(store, tmp_path, driver)
    driver.refuse["status"], driver.code = 1, ERROR_CLOSED
    with pytest.raises(DriverError, match="planted"):
        lives.look()
