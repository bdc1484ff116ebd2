"""Running the command in a process of its own, and looking for processes that it left behind."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def processes_of(mark: str) -> list[int]:
    """Process ids whose environment holds `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # gone, or somebody else's
    return found


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment; every process that was started with it is gone when the test ends."""
    text = f"PHX_TEST_MARK={tmp_path}"
    yield {**os.environ, "PHX_TEST_MARK": str(tmp_path), "TMPDIR": str(tmp_path)}
    if sys.platform == "linux":
        until = time.monotonic() + 5
        while (left := processes_of(text)) and time.monotonic() < until:
            time.sleep(0.05)
        assert left == []


@pytest.fixture
def run(mark: dict[str, str], tmp_path: Path) -> Run:
    """Run ``phx`` with these arguments, to its end."""

    def run_phx(*arguments: object, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "phx.cli", *map(str, arguments)],
            env=mark,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run_phx
