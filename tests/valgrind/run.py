"""A short native workload under valgrind's memcheck: ``python tests/valgrind/run.py``.

    --site PATH   where phx is installed or compiled in place (the checkout)
    --seconds N   after which it has failed (600)

Only errors with a frame of phx in one of their stacks count: CPython reads what it has not written
in places of its own. Exit code: 0 if there is none, 1 if there is, 2 if valgrind is not there.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def of_phx(error: ElementTree.Element) -> bool:
    if error.findtext("kind", "").startswith("Leak_"):
        return False  # CPython keeps what it has at its end; phx counts its own, see smoke.py
    frames = [frame.findtext("obj", "") for frame in error.iter("frame")]
    return any("/phx/_core/" in name for name in frames)


def text_of(error: ElementTree.Element) -> str:
    lines = [error.findtext("what") or error.findtext("xwhat/text") or error.findtext("kind", "?")]
    for frame in error.iter("frame"):
        where = f"{frame.findtext('file', '?')}:{frame.findtext('line', '?')}"
        lines.append(f"    {frame.findtext('fn', '?')} ({where})")
    return "\n".join(lines[:25])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--site", type=Path, default=ROOT)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    if shutil.which("valgrind") is None:
        print("valgrind is not installed")
        return 2
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="phx-valgrind.") as folder:
        found = Path(folder) / "found.xml"
        command = ["valgrind", "--tool=memcheck", "--xml=yes", f"--xml-file={found}", "-q"]
        command += ["--leak-check=no", "--errors-for-leak-kinds=none", "--num-callers=25"]
        command += [sys.executable, "-P", str(HERE / "smoke.py"), folder]
        environment = {**os.environ, "PYTHONMALLOC": "malloc", "PYTHONPATH": str(options.site)}
        done = subprocess.run(command, env=environment, timeout=options.seconds)
        errors = list(ElementTree.parse(found).getroot().iter("error"))
    mine = [error for error in errors if of_phx(error)]
    for error in mine:
        print(text_of(error))
    print(f"{len(mine)} errors in phx, {len(errors) - len(mine)} elsewhere, ", end="")
    print(f"exit code {done.returncode}, {time.monotonic() - start:.0f} s")
    return 1 if mine or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
