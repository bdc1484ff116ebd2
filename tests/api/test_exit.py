"""Leaving the interpreter, Ctrl-C, killed: in processes of their own."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import asyncio, gc, os, sys, threading, time
from pathlib import Path
import phx
from phx import errors
from phx.machines import Counter

folder = Path(sys.argv[1])

def config(nodes=1):
    return phx.Config(cluster="exit", node=1, dir=folder / "node1", groups=2,
                      members={n: "127.0.0.1:0" for n in range(1, nodes + 1)},
                      journal={"segment_bytes": 2 << 20, "journal_bytes_max": 32 << 20,
                               "settle_bytes": 8 << 20})
"""


def start(tmp_path, program, *flags):
    path = tmp_path / "program.py"
    path.write_text(PRELUDE + textwrap.dedent(program))
    environment = os.environ | {"PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(
        [sys.executable, *flags, str(path), str(tmp_path)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(process, seconds=20.0):
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler says where it hangs
        out, err = process.communicate(timeout=10)
        pytest.fail(f"it did not end\n{out}\n{err}")
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def line_of(process, expected):
    line = process.stdout.readline().strip()
    assert line == expected, line + process.stderr.read()


ASYNC_OPEN = """
async def main():
    global node, pending
    node = phx.Node(config(), Counter, bootstrap=True)
    await node.open()
    assert (await node.group(0).propose(b"1")).value == 1
    pending = [node.group(1).propose(b"1") for _ in range(100)]
"""

ENDINGS = {
    "asyncio, still referenced": ASYNC_OPEN + "asyncio.run(main())\n",
    "asyncio, sys.exit inside": ASYNC_OPEN
    + """
async def leave():
    await main()
    sys.exit(0)
asyncio.run(leave())
""",
    "asyncio, in a reference cycle": ASYNC_OPEN
    + """
asyncio.run(main())
node.me = node
del node, pending
""",
    "asyncio, loop never closed": ASYNC_OPEN
    + """
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
""",
    "uvloop": ASYNC_OPEN
    + """
try:
    import uvloop
except ImportError:
    sys.exit(0)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
""",
    "blocking": """
node = phx.blocking.Node(config(), Counter, bootstrap=True)
node.open()
assert node.group(0).propose(b"1").value == 1
""",
    "blocking, threads that still propose": """
node = phx.blocking.Node(config(), Counter, bootstrap=True)
node.open()
def work():
    while True:
        try:
            node.group(0).propose(b"1")
        except errors.PhxError:
            return
for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
""",
    "several nodes": """
nodes = []
for n in range(3):
    one = phx.Config(cluster="exit", node=1, dir=folder / str(n), members={1: "127.0.0.1:0"})
    nodes.append(phx.blocking.Node(one, Counter, bootstrap=True))
    nodes[-1].open()
    nodes[-1].group(0).propose(b"1")
""",
    "an exception nobody catches": """
node = phx.blocking.Node(config(), Counter, bootstrap=True)
node.open()
node.group(0).propose(b"1")
sys.excepthook = lambda *_: None
raise SystemExit(0)
""",
}


@pytest.mark.processes
@pytest.mark.parametrize("ending", ENDINGS)
def test_leaving_without_close_does_not_crash(tmp_path, ending):
    code, out, err = finish(start(tmp_path, ENDINGS[ending], "-W", "ignore::ResourceWarning"))
    assert code == 0, out + err
    assert "Fatal" not in err
    assert "terminate" not in err
    # And nothing was lost by it.
    code, out, err = finish(
        start(
            tmp_path,
            """
        if (folder / "node1").exists():
            with phx.blocking.Node(config(), Counter) as node:
                node.wait_ready()
                assert node.group(0).machine().total >= 1
    """,
        )
    )
    assert code == 0, out + err


@pytest.mark.processes
def test_ctrl_c_ends_a_waiting_propose(tmp_path):
    process = start(
        tmp_path,
        """
        node = phx.blocking.Node(config(nodes=3), Counter, bootstrap=True)
        node.open()
        print("open", flush=True)
        try:
            node.group(0).propose(b"1", timeout=None)     # there is no majority: for ever
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        node.close()
        print("closed", flush=True)
    """,
    )
    line_of(process, "open")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    line_of(process, "interrupted")
    line_of(process, "closed")
    code, _, err = finish(process)
    assert code == 0, err


@pytest.mark.processes
def test_ctrl_c_that_nobody_catches_ends_the_program(tmp_path):
    process = start(
        tmp_path,
        """
        with phx.blocking.Node(config(nodes=3), Counter, bootstrap=True) as node:
            print("open", flush=True)
            node.wait_ready(timeout=600)
    """,
    )
    line_of(process, "open")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code in (130, -signal.SIGINT, 1)
    assert "KeyboardInterrupt" in err
    assert "Fatal" not in err


@pytest.mark.processes
def test_ctrl_c_in_an_asyncio_program_closes_its_node(tmp_path):
    process = start(
        tmp_path,
        """
        async def main():
            async with phx.Node(config(nodes=3), Counter, bootstrap=True) as node:
                print("open", flush=True)
                try:
                    await node.group(0).propose(b"1", timeout=None)
                finally:
                    print("leaving", flush=True)
            print("never", flush=True)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """,
    )
    line_of(process, "open")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    line_of(process, "leaving")
    line_of(process, "interrupted")
    code, _, err = finish(process)
    assert code == 0, err


@pytest.mark.processes
def test_a_killed_process_leaves_its_folder_to_the_next(tmp_path):
    process = start(
        tmp_path,
        """
        node = phx.blocking.Node(config(), Counter, bootstrap=True)
        node.open()
        for n in range(1, 10_000):
            assert node.group(0).propose(b"1").value == n
            print(n, flush=True)
    """,
    )
    for _ in range(50):
        acknowledged = int(process.stdout.readline())
    process.kill()
    acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    process.stderr.close()
    code, out, err = finish(
        start(
            tmp_path,
            """
        with phx.blocking.Node(config(), Counter) as node:
            node.wait_ready()
            print(node.group(0).machine().total)
    """,
        )
    )
    assert code == 0, err
    assert int(out) >= acknowledged


@pytest.mark.processes
def test_fork_and_exit_of_the_child_leave_the_parent_alone(tmp_path):
    code, out, err = finish(
        start(
            tmp_path,
            """
        node = phx.blocking.Node(config(), Counter, bootstrap=True)
        node.open()
        node.group(0).propose(b"1")
        child = os.fork()
        if child == 0:
            try:
                node.group(0).propose(b"1")
            except errors.ForkedError:
                node.close()
                sys.exit(7)           # through atexit and all finalizers
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7, status
        assert node.group(0).propose(b"1").value == 2
        try:
            phx.blocking.Node(config(), Counter).open()
        except errors.Locked:
            print("still locked", flush=True)
        node.close()
    """,
            "-W",
            "ignore::DeprecationWarning",
        )
    )
    assert (code, out) == (0, "still locked\n"), err
