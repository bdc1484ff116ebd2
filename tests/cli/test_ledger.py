"""What a killed writer recorded is read back; what it had not heard about was in flight."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from phx.cli import ledger
from phx.cli.ledger import ACKNOWLEDGED, REJECTED, UNKNOWN, Ledger, LedgerFull, LedgerReader

SMALL = 1 << 16


def test_outcomes_come_back_in_order(tmp_path: Path) -> None:
    writing = Ledger(tmp_path / "l", node=2, slots=6, writers=2, bytes_max=SMALL)
    writing.submitted(5, 1)
    writing.outcome(5, 1, ACKNOWLEDGED, 1000)
    writing.submitted(5, 2)
    writing.outcome(5, 2, UNKNOWN, 1001)
    writing.submitted(0, 1)
    writing.outcome(0, 1, REJECTED, 1002)
    reading = LedgerReader(tmp_path / "l")
    assert (reading.node, reading.slots, reading.salt) == (2, 6, writing.salt)
    assert [(o.slot, o.number, o.outcome, o.time_us) for o in reading.outcomes()] == [
        (5, 1, ACKNOWLEDGED, 1000),
        (5, 2, UNKNOWN, 1001),
        (0, 1, REJECTED, 1002),
    ]
    assert reading.in_flight() == []
    assert [reading.group_index(slot) for slot in range(6)] == [0, 0, 1, 1, 2, 2]
    writing.close()


def test_submitted_without_an_outcome_is_in_flight(tmp_path: Path) -> None:
    writing = Ledger(tmp_path / "l", node=1, slots=3, writers=1, bytes_max=SMALL)
    writing.submitted(0, 1)
    writing.outcome(0, 1, ACKNOWLEDGED, 5)
    writing.submitted(0, 2)
    writing.submitted(2, 1)
    assert LedgerReader(tmp_path / "l").in_flight() == [(0, 2), (2, 1)]
    writing.close()


def test_a_full_ledger_says_so(tmp_path: Path) -> None:
    writing = Ledger(tmp_path / "l", node=1, slots=1, writers=1, bytes_max=256)

    def fill() -> None:
        for number in range(1, 100):
            writing.outcome(0, number, ACKNOWLEDGED, number)

    with pytest.raises(LedgerFull):
        fill()
    kept = list(LedgerReader(tmp_path / "l").outcomes())
    assert [one.number for one in kept] == list(range(1, len(kept) + 1))
    assert len(kept) > 5
    writing.close()


def test_something_else_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(bytes(4096))
    with pytest.raises(ValueError, match="not a ledger"):
        LedgerReader(tmp_path / "l")


@pytest.mark.processes
def test_sigkill_loses_nothing_that_was_recorded(tmp_path: Path) -> None:
    """The last number that the process printed is in the ledger after SIGKILL."""
    program = (
        "import sys, itertools; from pathlib import Path; from phx.cli.ledger import *\n"
        "ledger = Ledger(Path(sys.argv[1]), 1, 1, 1, 1 << 28)\n"
        "for n in itertools.count(1):\n"
        "    ledger.submitted(0, n); ledger.outcome(0, n, ACKNOWLEDGED, n)\n"
        "    if n % 1000 == 0: print(n, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "l")], stdout=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        for _ in range(20):
            printed = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
    printed = int(rest[-1]) if rest else printed
    numbers = [one.number for one in LedgerReader(tmp_path / "l").outcomes()]
    assert numbers[:printed] == list(range(1, printed + 1))
    assert len(LedgerReader(tmp_path / "l").in_flight()) <= 1


def test_keys_and_values_are_distinct() -> None:
    everywhere = [(s, slot, n) for s in (1, 1 << 63) for slot in range(40) for n in range(1, 200)]
    assert len({ledger.key_of(*one) for one in everywhere}) == len(everywhere)
    assert len({ledger.value_of(*one) for one in everywhere}) == len(everywhere)
