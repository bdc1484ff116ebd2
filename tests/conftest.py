"""What every test has: the right phx to import, a bounded time, nothing left behind.

phx may be compiled in place, beside its sources, or installed. `python -m pytest` puts the
checkout first on the path, where an installed phx would be hidden behind sources that are not
compiled: so the checkout is taken if it is compiled, and otherwise kept off the path, here and in
the processes that tests start.
"""

import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent


def choose_phx() -> None:
    """Make `import phx` mean the compiled checkout, else the installed package."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT]
    core = ROOT / "phx" / "_core"
    if any((core / f"codec{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
        sys.path.insert(0, str(ROOT))
        inherited = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([inherited] if inherited else [])])
    else:
        os.environ["PYTHONSAFEPATH"] = "1"


choose_phx()

# A background job of a shell ignores Ctrl-C, and so would all processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Time limits belong to pytest-timeout: a slow machine is no failure of a property.
hypothesis.settings.register_profile("phx", deadline=None, print_blob=True, database=None)
for name, examples in {"short": 20, "long": 5000}.items():
    hypothesis.settings.register_profile(
        name, hypothesis.settings.get_profile("phx"), max_examples=examples
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "phx"))


COUNTERS: dict[tuple[str, str], ctypes.c_int64 | None] = {}  # of a symbol and module; found once


def native_counter(symbol: str) -> int:
    """What the compiled modules count under this name, all together.

    Every one of them has the counter; where the loader did not make one of them all, what one
    module made and another gave back has moved both, and only the sum is right.
    """
    gc.collect()
    counters = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith(("phx._core.", "phx.bench.")):
            continue
        if (symbol, name) not in COUNTERS:
            path = getattr(module, "__file__", None) or ""
            try:
                found = path.endswith(tuple(EXTENSION_SUFFIXES))
                COUNTERS[symbol, name] = (
                    ctypes.c_int64.in_dll(ctypes.CDLL(path), symbol) if found else None
                )
            except ValueError:  # a module that takes nothing of this kind
                COUNTERS[symbol, name] = None
        if (counter := COUNTERS[symbol, name]) is not None:
            counters[ctypes.addressof(counter)] = counter.value
    return sum(counters.values())


def blocks_live() -> int:
    """Native blocks that somebody in this process still holds."""
    return native_counter("phx_live_blocks_counter")


def others_live() -> int:
    """Native structs and other memory that is held, also by Python objects of phx."""
    return native_counter("phx_live_others_counter")


def holdings() -> tuple[int, int, int]:
    tasks = Path("/proc/self/task")  # native threads too, where they can be counted
    threads = len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()
    return blocks_live(), threads, len(os.listdir("/dev/fd"))


def left_behind(before: tuple[int, int, int]) -> list[str]:
    names = ("blocks", "threads", "descriptors")
    return [
        f"{now - then} {name}"
        for name, then, now in zip(names, before, holdings(), strict=True)
        if now > then
    ]


LONG_S = 15.0


def weight_s(item: pytest.Item) -> float:
    """How long a test takes, roughly, by what it is marked with."""
    if slow := item.get_closest_marker("slow"):
        return float(slow.kwargs.get("seconds", 20))
    return 5.0 if item.get_closest_marker("processes") else 0.05


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With -n, files are handed out in this order: long ones spread evenly, the longest first. At
    the end all at once they would wait for each other, and one that is begun last is waited for.
    """
    if not hasattr(config, "workerinput"):
        return
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    weights = {path: sum(map(weight_s, inside)) for path, inside in files.items()}
    order: list[tuple[float, Path]] = []
    for paths in (
        sorted((path for path in files if weights[path] >= LONG_S), key=lambda at: -weights[at]),
        [path for path in files if weights[path] < LONG_S],
    ):
        whole, before = sum(weights[path] for path in paths), 0.0
        for path in paths:
            order.append((before / whole, path))
            before += weights[path]
    items[:] = [item for _, path in sorted(order) for item in files[path]]


def pytest_collection_finish() -> None:
    """Whoever counts what is held collects first, often, and need not go through all tests."""
    gc.collect()
    gc.freeze()


class Failures:
    """Says at once what has failed: a run that is cut off prints no summary."""

    def __init__(self, reporter: pytest.TerminalReporter) -> None:
        self.reporter = reporter

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = str(crash.message if crash else report.longrepr).partition("\n")[0]
            self.reporter.write_line(f"\nFAILED {report.nodeid} ({report.when}) - {why}", red=True)


@pytest.hookimpl(trylast=True)  # after what reports; a worker of -n has nothing that does
def pytest_configure(config: pytest.Config) -> None:
    if reporter := config.pluginmanager.get_plugin("terminalreporter"):
        config.pluginmanager.register(Failures(reporter))


OTHERS = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def path_kept() -> Iterator[None]:
    """A command that a test runs in this process may look for modules in the current folder; what
    comes later, and the processes that it spawns, must not.
    """
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test gives back every native allocation, thread and descriptor that it took.

    Whatever ends a little later than the call that ends it is waited for, for two seconds. Structs
    are counted when the test's own objects are gone too: see pytest_runtest_teardown.
    """
    before = holdings()
    request.node.stash[OTHERS] = others_live()
    yield
    until = time.monotonic() + 2
    while (left := left_behind(before)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not left, "left behind: " + ", ".join(left)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after what holds log records, and their frames
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """After a test with no_leaks, with all fixtures torn down: nothing native is held any more."""
    yield
    if (before := item.stash.get(OTHERS, None)) is None:
        return
    if isinstance(item, pytest.Function):
        item.funcargs.clear()  # pytest would hold the fixtures' values a little longer
    # What was logged while the fixtures ended is held until the next test: so are the errors in it,
    # and with them the frames that they went through.
    logged = item.config.pluginmanager.get_plugin("logging-plugin")
    for handler in (logged.caplog_handler, logged.report_handler):
        handler.reset()
    until = time.monotonic() + 2
    while (now := others_live()) > before and time.monotonic() < until:
        time.sleep(0.02)
    assert now <= before, f"left behind: {now - before} native allocations"
