"""Runs coroutines, on each kind of event loop."""

import asyncio

import pytest


@pytest.fixture(scope="session", autouse=True)
def uvloop_warm():
    """libuv keeps a pipe of its own from its first loop to the end of the process."""
    try:
        import uvloop
    except ImportError:
        return
    uvloop.new_event_loop().close()


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Runs a coroutine on each kind of loop."""
    factory = None
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner.run


@pytest.fixture
def run_once():
    with asyncio.Runner() as runner:
        yield runner.run
