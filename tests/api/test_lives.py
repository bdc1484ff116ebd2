"""The ceiling of promises, where the driver does not take it at once."""

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest

from phx._core.driver import ERROR_CLOSED, ERROR_OVERLOADED, DriverError
from phx.errors import StoreError
from phx.node import lives as module
from phx.node.lives import Lives
from phx.store import Store
from phx.store_facts import CEILING_STEP, Facts, read, write

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


def asking(store: Store):
    def ask(action):
        future: Future[object] = Future()
        try:
            future.set_result(action(store))
        except BaseException as error:
            future.set_exception(error)
        return future

    return ask


def lives_of(store: Store, folder, driver: BusyDriver) -> Lives:
    lives = Lives(config_of(folder, 1, nodes=1), asking(store))
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


# --- a leave to go on without a journal


def allowed(store: Store) -> Facts:
    """The journal was found lost, which `phx repair --rejoin` has allowed."""
    facts = Facts(incarnation=3).found_lost()
    facts = replace(facts, allowed=facts.lost, groups=(0,), lease_us=800_000)
    write(store, facts)
    return facts


def full(store: Store, facts: Facts) -> None:
    raise StoreError("planted: full")


def test_a_node_does_not_go_on_with_a_leave_that_cannot_be_taken_back(tmp_path, store, monkeypatch):
    """It would be good for the next loss, too, which nobody has allowed."""
    allowed(store)
    lives = Lives(config_of(tmp_path, 1, nodes=3), asking(store))
    lives.begin(0, None, create=False)
    with monkeypatch.context() as broken:
        broken.setattr(module, "write", full)
        with pytest.raises(StoreError, match="planted"):
            lives.serve(BusyDriver())  # type: ignore[arg-type]
    lives.serve(BusyDriver())  # type: ignore[arg-type]
    facts = read(store)
    assert facts is not None
    assert facts.allowed == 0


def test_nothing_rejoins_while_the_leave_stands(tmp_path, store, monkeypatch):
    """It could vote, and lose its journal once more."""
    facts = allowed(store)
    driver = BusyDriver()
    marked = {"group": 0, "promised": 0, "highest_seen": facts.ceiling << 20}
    monkeypatch.setattr(driver, "group_statuses", lambda: [marked])
    lives = Lives(config_of(tmp_path, 1, nodes=3), asking(store))
    lives.begin(0, None, create=False)
    with monkeypatch.context() as broken:
        broken.setattr(module, "write", full)
        with pytest.raises(StoreError, match="planted"):
            lives.serve(driver)  # type: ignore[arg-type]
    lives.look()
    assert driver.told == [], "the store thread's idle time may come before its answer"
    lives.serve(driver)  # type: ignore[arg-type]
    assert driver.told == [facts.ceiling + CEILING_STEP]


@pytest.mark.parametrize("room", [True, False])
def test_the_leave_ends_where_a_life_begins_on_a_journal_that_knows_of_the_loss(
    tmp_path, store, monkeypatch, room
):
    facts = allowed(store)
    journal = SimpleNamespace(incarnation=facts.lost, counter=0)
    lives = Lives(config_of(tmp_path, 1, nodes=3, groups=1), asking(store))
    if not room:
        monkeypatch.setattr(module, "write", full)
        with pytest.raises(StoreError, match="planted"):
            lives.begin(0, journal, create=False)  # type: ignore[arg-type]
        return
    lives.begin(0, journal, create=False)  # type: ignore[arg-type]
    after = read(store)
    assert after is not None
    assert after.allowed == 0
    assert after.incarnation > facts.incarnation


def test_the_leave_stands_while_the_journal_does_not_know_of_the_loss(tmp_path, store):
    facts = allowed(store)
    journal = SimpleNamespace(incarnation=facts.lost - 1, counter=0)
    lives = Lives(config_of(tmp_path, 1, nodes=3, groups=1), asking(store))
    lives.begin(0, journal, create=False)  # type: ignore[arg-type]
    after = read(store)
    assert after is not None
    assert after.allowed == facts.lost


def test_a_life_begins_above_all_that_its_journal_has_promised(tmp_path, store):
    """The store may be an older one: what lies above its ceiling is lost with the journal."""
    write(store, Facts(ceiling=0, incarnation=3, groups=(0,), lease_us=800_000))
    journal = SimpleNamespace(incarnation=3, counter=5 * CEILING_STEP)
    lives = Lives(config_of(tmp_path, 1, nodes=3, groups=1), asking(store))
    lives.begin(0, journal, create=False)  # type: ignore[arg-type]
    after = read(store)
    assert after is not None
    assert after.ceiling > 5 * CEILING_STEP
