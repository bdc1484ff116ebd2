"""Compares the micro-benchmarks with the baseline: `python benchmarks/micro/compare.py`.

    --update             write the baseline instead
    --only TEXT          those whose name contains it; may be given several times
    --no-instructions    time only
    --no-time            instructions only
    --instructions-max P how many per cent more instructions are too many (3)
    --time-max P         how many per cent more time (15), of the median and of the fastest round
    --rounds N           so many rounds (15)
    --baseline FILE      (benchmarks/micro/baseline.json)

Instructions are counted by callgrind, inside the measured part only: they hardly depend on what
else the machine does. They depend on the compiler, on Cython, and on the memcpy that the C library
chooses for the processor: where the baseline was made with others, that is said, and nothing fails
for it.

Exit code: 0 if nothing became slower, 1 if something did, 2 if it could not be measured.
"""

import argparse
import gc
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
BASELINE = HERE / "baseline.json"
VALGRIND_SECONDS = 900
# Or a long memcpy is one instruction for each byte: callgrind counts the turns of `rep movsb`.
NO_REP = ":".join(f"glibc.cpu.x86_rep_{what}_threshold=0x7fffffff" for what in ("movsb", "stosb"))
# What instructions depend on beside the sources, and what times do.
SAME_CODE = ("compiler", "cython", "python", "libc", "architecture", "processor")
SAME_TIME = ("processor", "cores", "system")

Figures = dict[str, dict[str, float]]


# --- where it is measured


def first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0].strip() if done.stdout else ""


def processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.exists() else None
    return found[1].strip() if found else platform.processor() or platform.machine()


def setting() -> dict[str, str]:
    """What the figures depend on."""
    import Cython

    compiler = (sysconfig.get_config_var("CXX") or "c++").split()[0]
    return {
        "compiler": first_line([os.environ.get("CXX", compiler), "--version"]),
        "cython": Cython.__version__,
        "python": platform.python_version(),
        "libc": " ".join(platform.libc_ver()),
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.release()}",
        "valgrind": first_line(["valgrind", "--version"]) if shutil.which("valgrind") else "",
    }


# --- measuring


def chosen_names(only: list[str]) -> list[str]:
    import suite

    return [name for name in suite.BENCHES if not only or any(text in name for text in only)]


def times(names: list[str], rounds: int) -> dict[str, list[float]]:
    """Nanoseconds of an operation in each round; the rounds of all take turns."""
    import suite

    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="phx-micro.") as folder:
        for number in range(rounds):
            for at, name in enumerate(names):
                bench = suite.BENCHES[name]
                place = Path(folder) / f"{number}-{at}"
                loop = bench.loop(bench.count, place)
                gc.collect()
                gc.disable()
                found[name].append(loop.run() / bench.count)
                gc.enable()
                if number == 0:
                    loop.check()
                del loop
                shutil.rmtree(place, ignore_errors=True)
    return found


def count_here(names: list[str], folder: Path) -> None:
    """Runs in the process that callgrind watches: one file of figures for each name, in order."""
    import suite
    from phx_micro import measure

    gc.disable()  # when it runs depends on everything that was allocated before
    for at, name in enumerate(names):
        bench = suite.BENCHES[name]
        # The first time symbols are bound, tables grow, and the C library learns block sizes.
        bench.loop(bench.least, folder / f"first-{at}").run()
        measure.counted()
        loop = bench.loop(bench.count, folder / f"{at}")
        loop.run()
        measure.counted()
        loop.check()


def total_of(dump: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", dump.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no figures in {dump.name}")
    return int(found[1])


def instructions(names: list[str]) -> dict[str, float]:
    """Instructions of an operation. RuntimeError if valgrind did not do its work."""
    import suite

    with tempfile.TemporaryDirectory(prefix="phx-micro.") as name:
        folder = Path(name)
        out = folder / "callgrind"
        command = ["valgrind", "-q", "--tool=callgrind", f"--callgrind-out-file={out}"]
        command += ["--toggle-collect=phx_micro_measured*", "--dump-before=phx_micro_counted*"]
        command += [sys.executable, str(HERE / "compare.py"), "--count-in", name, *names]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        environment["GLIBC_TUNABLES"] = NO_REP
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=VALGRIND_SECONDS
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        found = {}
        for at, name in enumerate(names):
            # Dump 1 holds the first time of the first benchmark, dump 2 its second, and so on.
            total = total_of(folder / f"callgrind.{2 * at + 2}")
            if total == 0:
                raise RuntimeError(f"nothing was counted for {name}")
            found[name] = total / suite.BENCHES[name].count
        return found


def measure(options: argparse.Namespace, names: list[str]) -> Figures:
    figures: Figures = {name: {} for name in names}
    if not options.no_time:
        for name, values in times(names, options.rounds).items():
            figures[name]["ns"] = round(statistics.median(values), 2)
            figures[name]["ns_best"] = round(min(values), 2)
    if not options.no_instructions:
        for name, value in instructions(names).items():
            figures[name]["instructions"] = round(value, 1)
    return figures


# --- comparing


def differences(keys: tuple[str, ...], then: dict[str, str], now: dict[str, str]) -> list[str]:
    return [
        f"{key}: {then.get(key, '?')!r} then, {now[key]!r} now"
        for key in keys
        if then.get(key) != now[key]
    ]


def slower(
    kind: str, percent: float, then: Figures, now: Figures
) -> list[tuple[str, float, float, float]]:
    """(name, then, now, per cent more) of everything above the limit."""
    found = []
    for name, figures in now.items():
        if kind in figures and then.get(name, {}).get(kind):
            before, after = then[name][kind], figures[kind]
            more = 100 * (after / before - 1)
            # Others at work spoil a median more easily than the fastest round.
            best, fastest = then[name].get(f"{kind}_best"), figures.get(f"{kind}_best")
            as_fast = best and fastest and 100 * (fastest / best - 1) <= percent
            if more > percent and not as_fast:
                found.append((name, before, after, more))
    return found


def table(now: Figures, then: Figures) -> str:
    import suite

    width = max(map(len, now), default=0)
    lines = [f"{'':{width}}  {'instructions':>13} {'':>7}  {'ns':>10} {'':>7}  per"]
    for name, figures in now.items():
        cells = []
        for kind, room in (("instructions", 13), ("ns", 10)):
            value, before = figures.get(kind), then.get(name, {}).get(kind)
            cells.append(f"{'-' if value is None else format(value, ',.1f'):>{room}}")
            known = value is not None and before
            cells.append(f"{format(100 * (value / before - 1), '+.1f') + '%' if known else '':>7}")
        lines.append(
            f"{name:{width}}  {cells[0]} {cells[1]}  {cells[2]} {cells[3]}  "
            f"{suite.BENCHES[name].unit}"
        )
    return "\n".join(lines)


def verdict(options: argparse.Namespace, base: dict[str, Any], now: Figures) -> int:
    """Says what became slower than the baseline; the exit code."""
    here, then = setting(), base["benchmarks"]
    limits = {
        "instructions": (options.instructions_max, SAME_CODE),
        "ns": (options.time_max, SAME_TIME),
    }
    failed = False
    for kind, (percent, keys) in limits.items():
        found = slower(kind, percent, then, now)
        changed = differences(keys, base["setting"], here)
        if changed and any(kind in figures for figures in now.values()):
            print(f"\nThe baseline's {kind} come from elsewhere, and fail nothing:")
            print("\n".join(f"    {line}" for line in changed))
        for name, before, after, more in found:
            print(f"slower: {name}: {after:,.1f} {kind} instead of {before:,.1f} (+{more:.1f} %)")
        failed |= bool(found) and not changed
    for name in now.keys() - then.keys():
        print(f"not in the baseline: {name}")
    return 1 if failed else 0


def update(path: Path, base: dict[str, Any], now: Figures) -> None:
    """Figures that were not measured this time stay, if they come from the same setting."""
    import suite

    here = setting()
    same = base.get("setting") == here
    merged = dict(base["benchmarks"]) if same else {}
    for name, figures in now.items():
        merged[name] = {**merged.get(name, {}), **figures, "per": suite.BENCHES[name].unit}
    ordered = {name: merged[name] for name in suite.BENCHES if name in merged}
    path.write_text(json.dumps({"setting": here, "benchmarks": ordered}, indent=1) + "\n")
    print(f"\n{len(ordered)} benchmarks are in {path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--update", action="store_true", help="write the baseline")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT")
    parser.add_argument("--no-instructions", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--instructions-max", type=float, default=3, metavar="PERCENT")
    parser.add_argument("--time-max", type=float, default=15, metavar="PERCENT")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument("--count-in", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.count_in is not None:
        count_here(options.names, options.count_in)
        return 0
    if not options.no_instructions and shutil.which("valgrind") is None:
        print("valgrind is not installed: --no-instructions does without")
        return 2
    names = chosen_names(options.only)
    if not names:
        print("no benchmark has such a name")
        return 2
    base: dict[str, Any] = {"setting": {}, "benchmarks": {}}
    if options.baseline.exists():
        base = json.loads(options.baseline.read_text())
    elif not options.update:
        print(f"{options.baseline} is not there: --update writes it")
        return 2
    try:
        now = measure(options, names)
    except (RuntimeError, subprocess.TimeoutExpired) as problem:
        print(f"could not be measured: {problem}")
        return 2
    print(table(now, base["benchmarks"]))
    if options.update:
        update(options.baseline, base, now)
        return 0
    return verdict(options, base, now)


if __name__ == "__main__":
    sys.exit(main())
