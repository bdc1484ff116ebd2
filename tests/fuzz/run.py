"""Fuzzing of everything that takes bytes from outside: ``python tests/fuzz/run.py``.

    --target T        frame, record, body, table, chunk, journal, engine, replay, or all (all)
    --executions N    of each target (100,000; of journal, engine and replay a fifth of it)
    --seed S          what is tried; plain: the same seed, the same inputs (1)
    --jobs J          targets at a time (1)
    --engine E        guided (libFuzzer: new coverage is kept and gone on from) or plain; default:
                      guided if there is a clang++ with libFuzzer
    --site PATH       plain: where a phx is installed that was built with PHX_BUILD=asan,ubsan;
                      default: build/asan-site, made if it is not there
    --keep PATH       guided: the growing corpus (build/fuzz-corpus); what is worth keeping goes to
                      tests/fuzz/corpus by --merge
    --replay FILE…    runs these inputs of one --target and nothing else

Exit code: 0 if all executions were clean; 1 for a finding, and its input is in build/fuzz-findings;
2 if nothing could be run. An input is found by its target's name in front of its file's.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CORPUS = HERE / "corpus"
TARGETS = ("frame", "record", "body", "table", "chunk", "journal", "engine", "replay")
SLOW = ("journal", "engine", "replay")
BYTES_MAX = 2048  # of an input under libFuzzer
SILENCE_S = 60  # without an end of one input
MEMORY_MB = 2048
ALLOCATION_MB = 256  # at once


def sanitized_site() -> Path:
    """A phx built with ASan and UBSan by the usual compiler."""
    site = ROOT / "build" / "asan-site"
    if not (site / "phx").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, "."]
        environment = {**os.environ, "PHX_BUILD": "asan,ubsan"}
        subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, check=True)
    return site


def unpacked(target: str) -> Path:
    """A folder with the inputs of tests/fuzz/corpus, which is one archive for each target."""
    folder = ROOT / "build" / "fuzz-seeds" / target
    folder.mkdir(parents=True, exist_ok=True)
    if (CORPUS / f"{target}.zip").exists():
        with zipfile.ZipFile(CORPUS / f"{target}.zip") as archive:
            archive.extractall(folder)
    return folder


class Runner:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.engine = options.engine or ("guided" if build.clang() else "plain")
        self.findings = ROOT / "build" / "fuzz-findings"
        self.findings.mkdir(parents=True, exist_ok=True)
        self.site = None
        if self.engine == "plain":
            self.site = (options.site or sanitized_site()).resolve()
        self.build = build.build(self.engine, max(1, options.jobs))
        self.environment = {
            **os.environ,
            "LD_PRELOAD": build.preload(self.engine),
            "ASAN_OPTIONS": f"detect_leaks=0:max_allocation_size_mb={2 * ALLOCATION_MB}"
            ":quarantine_size_mb=32:malloc_context_size=8",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        self.environment.pop("PYTHONPATH", None)
        if self.site:
            self.environment["PYTHONPATH"] = str(self.site)

    def child(self, *arguments: object) -> list[str]:
        return [sys.executable, "-P", str(HERE / "child.py"), *map(str, arguments)]

    def executions(self, target: str) -> int:
        return self.options.executions // (5 if target in SLOW else 1)

    def guided(self, target: str) -> tuple[int, str]:
        kept = (self.options.keep or ROOT / "build" / "fuzz-corpus") / target
        kept.mkdir(parents=True, exist_ok=True)
        command = self.child("guided", self.build, target)
        command += [f"-runs={self.executions(target)}", f"-seed={self.options.seed}"]
        command += [
            f"-max_len={BYTES_MAX}",
            "-len_control=20",
            "-entropic=0",
            "-print_final_stats=1",
        ]
        command += [f"-rss_limit_mb={MEMORY_MB}", f"-malloc_limit_mb={ALLOCATION_MB}"]
        command += [f"-timeout={SILENCE_S}", f"-artifact_prefix={self.findings}/{target}-"]
        command += [str(kept), str(unpacked(target))]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        ran = re.findall(r"number_of_executed_units: +(\d+)", done.stderr)
        covered = re.findall(r"cov: (\d+)", done.stderr)
        problem = "" if done.returncode == 0 else done.stderr[-8000:]
        print(f"{target}: {ran[-1] if ran else 0} executions, {(covered or ['?'])[-1]} edges")
        return int(ran[-1]) if ran else 0, problem

    def plain(self, target: str) -> tuple[int, str]:
        wanted = self.executions(target)
        with tempfile.TemporaryDirectory(prefix="phx-fuzz.") as folder:
            current = Path(folder) / "current"
            current.write_bytes(bytes(8192))
            command = self.child("plain", self.build, target, self.options.seed, wanted, current)
            command.append(str(unpacked(target)))
            limit = 60 + wanted / 100
            try:
                done = subprocess.run(
                    command, env=self.environment, capture_output=True, text=True, timeout=limit
                )
                problem = "" if done.returncode == 0 else (done.stdout + done.stderr)[-8000:]
            except subprocess.TimeoutExpired:
                problem = f"no end after {limit:.0f} s"
            if not problem:
                print(f"{target}: {wanted} executions", flush=True)
                return wanted, ""
            note = current.read_bytes()
        count = int.from_bytes(note[:8], "little")
        file = self.findings / f"{target}-seed{self.options.seed}-{count}"
        file.write_bytes(note[8 : 8 + count])
        return 0, f"{problem}\n{target}: the input is in {file}"

    def run(self, target: str) -> tuple[int, str]:
        return self.guided(target) if self.engine == "guided" else self.plain(target)

    def replay(self, target: str, files: list[Path]) -> int:
        command = self.child("one", self.build, target, *files)
        return subprocess.run(command, env=self.environment).returncode

    def merge(self, target: str) -> None:
        """The smallest set of inputs that covers what build/fuzz-corpus covers, if it is small."""
        kept = (self.options.keep or ROOT / "build" / "fuzz-corpus") / target
        real = unpacked(target)
        fresh = ROOT / "build" / "fuzz-merge" / target
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        again = self.findings.parent / f"fuzz-guided/{target}.sh"
        words = " ".join(map(shlex.quote, self.child("guided", self.build, target)))
        again.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        again.chmod(0o755)
        command = [str(again), "-merge=1", f"-max_len={BYTES_MAX}", str(fresh)]
        command += [str(real), str(kept)]
        environment = {**self.environment, "PHX_FUZZ_SELF": str(again)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        found = sorted(fresh.glob("*"), key=lambda path: (path.stat().st_size, path.name))
        if done.returncode or not found:
            sys.exit(f"{target}: nothing was merged\n{done.stderr[-2000:]}")
        room = self.options.merge * 1024
        inputs = {path.name: path.read_bytes() for path in sorted(real.glob("seed-*"))}
        for path in found:
            data = path.read_bytes()
            room -= len(data) + 100  # and what an archive needs for it
            if room > 0 and data not in inputs.values():
                inputs[path.name[:12]] = data
        CORPUS.mkdir(exist_ok=True)
        with zipfile.ZipFile(CORPUS / f"{target}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(inputs.items()):
                archive.writestr(zipfile.ZipInfo(name), data)  # the same bytes at any time
        print(f"{target}: {len(inputs)} of {len(found)} inputs kept")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", choices=(*TARGETS, "all"), default="all")
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--engine", choices=("guided", "plain"))
    parser.add_argument("--site", type=Path)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--merge", type=int, metavar="KIB", help="of each target")
    parser.add_argument("--replay", type=Path, nargs="+")
    options = parser.parse_args()
    start = time.monotonic()
    runner = Runner(options)
    print(f"{runner.engine}, built, {time.monotonic() - start:.0f} s", flush=True)
    targets = TARGETS if options.target == "all" else (options.target,)
    if options.replay:
        return runner.replay(targets[0], options.replay) and 1
    if options.merge:
        for target in targets:
            runner.merge(target)
        return 0
    total, found = 0, False
    with ThreadPoolExecutor(options.jobs) as pool:
        for count, problem in pool.map(runner.run, targets):
            total += count
            if problem:
                found = True
                print(problem)
    print(f"{total} executions, {'a finding' if found else 'clean'}, ", end="")
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
