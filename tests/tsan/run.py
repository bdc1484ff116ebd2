"""Builds phx with ThreadSanitizer and runs the stress program: ``python tests/tsan/run.py``.

    --seconds N   how long the stress runs, over all parts (60)
    --seed S      what it does, as far as threads let one decide that (1)
    --site PATH   where the build goes, and is taken from if it is there (build/tsan-site)
    --keep        take the build that is there, even if sources are newer
    --build       only build, if sources are newer
    --part P      journal, cluster or cycles only

Exit code: 0 if nothing was found, 1 for a race or another failure, 2 if it could not run.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def build(site: Path) -> None:
    sources = (one for one in (ROOT / "phx").rglob("*.*") if one.suffix not in (".so", ".pyc"))
    newest = max(path.stat().st_mtime for path in sources)
    stamp = site / "built"
    if stamp.exists() and stamp.stat().st_mtime > newest:
        return
    shutil.rmtree(site, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(site),
        ".",
    ]
    # The rest of phx has one thread.
    environment = {**os.environ, "PHX_BUILD": "tsan", "PHX_BUILD_ONLY": "phx/_core/*"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    stamp.touch()


def runtime() -> str:
    compiler = os.environ.get("CXX", "g++")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libtsan.so", "libstdc++.so")
    ]
    if not Path(found[0]).is_absolute():
        sys.exit("the compiler has no libtsan")
    return " ".join(found)


def reports(folder: Path) -> list[str]:
    """What ThreadSanitizer wrote, one text for each warning."""
    text = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("tsan*")))
    return [one for one in re.split(r"={18}\n", text) if "ThreadSanitizer" in one]


def stress(site: Path, options: argparse.Namespace, work: Path) -> int:
    command = [sys.executable, "-P", str(HERE / "stress.py"), "--seed", str(options.seed)]
    command += ["--seconds", str(options.seconds), "--folder", str(work / "data")]
    if options.part:
        command += ["--part", options.part]
    if shutil.which("setarch"):
        # Newer kernels place mappings where ThreadSanitizer wants its own.
        command = ["setarch", "-R", *command]
    settings = {
        "log_path": work / "tsan",
        "suppressions": HERE / "cpython.supp",
        "exitcode": 66,
        "halt_on_error": 0,
        "second_deadlock_stack": 1,
        "history_size": 4,
    }
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime(),
        "TSAN_OPTIONS": ":".join(f"{name}={value}" for name, value in settings.items()),
        "PYTHONPATH": str(site),
        "PYTHONFAULTHANDLER": "1",
    }
    try:
        return subprocess.run(
            command, env=environment, timeout=options.seconds * 4 + 120
        ).returncode
    except subprocess.TimeoutExpired:
        print("the stress program hangs")
        return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "tsan-site")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--part", choices=("journal", "cluster", "cycles"))
    options = parser.parse_args()
    start = time.monotonic()
    if not (options.keep and (options.site / "built").exists()):
        build(options.site)
    print(f"built, {time.monotonic() - start:.0f} s", flush=True)
    if options.build:
        return 0
    with tempfile.TemporaryDirectory(prefix="phx-tsan.") as folder:
        work = Path(folder)
        code = stress(options.site, options, work)
        found = reports(work)
    for one in found:
        print(one)
    print(f"{len(found)} reports, exit code {code}, {time.monotonic() - start:.0f} s")
    return 1 if found or code else 0


if __name__ == "__main__":
    sys.exit(main())
