"""What one thread of a node hands to another, and waits for, also while the node closes."""

import threading

import pytest

from phx.node.line import Ending
from phx.node.threads import handed, result_of


def test_what_was_handed_over_is_run_and_its_result_comes_back():
    future, run = handed(lambda: 7)
    threading.Timer(0.01, run).start()
    assert result_of(future, lambda: False) == 7
    future, run = handed(lambda: 1 // 0)
    run()
    with pytest.raises(ZeroDivisionError):
        result_of(future, lambda: False)


def test_what_was_not_begun_when_the_node_closes_is_never_run():
    """Nor does the thread that comes to it later fail: it has other things to do."""
    ran = []
    future, run = handed(lambda: ran.append(1))
    with pytest.raises(Ending):
        result_of(future, lambda: True)
    run()
    assert ran == []


def test_what_was_begun_when_the_node_closes_is_waited_for():
    begun, go_on = threading.Event(), threading.Event()

    def call():
        begun.set()
        assert go_on.wait(10)
        return 7

    future, run = handed(call)
    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(10)
    threading.Timer(0.3, go_on.set).start()
    assert result_of(future, lambda: True) == 7
    thread.join(10)
