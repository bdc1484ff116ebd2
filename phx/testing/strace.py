"""System calls of a running process made slow, or made to fail, by strace."""

from __future__ import annotations

import re
import signal
import subprocess


class Refused(PermissionError):
    """This user may not trace processes here."""


class Strace:
    """Has strace interfere with every `call` of a process and its threads until ``end``.

    Args:
        pid: the process.
        inject: what becomes of the call, in strace's words: ``error=EIO``, ``delay_enter=200000``.
        call: name of the system call.

    Raises:
        Refused: see there. FileNotFoundError: there is no strace. OSError: it did not attach.
    """

    def __init__(self, pid: int, inject: str, call: str = "fdatasync") -> None:
        words = ["-f", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={call}"]
        self.process = subprocess.Popen(
            ["strace", *words, "-e", f"inject={call}:{inject}"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        if not re.search(r"attached", line):
            self.end()
            if "not permitted" in line:
                raise Refused(f"may not trace processes here: {line.strip()}")
            raise OSError(f"strace: {line.strip()}")

    def end(self, *, kindly: bool = True) -> None:
        """Detach; delays that have begun are cut short. Idempotent."""
        assert self.process.stderr is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT if kindly else signal.SIGKILL)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stderr.close()
