"""Builds every planted bug beside the checkout and shows by what it dies.

    python tests/mutants/run.py [--only NAME …] [--fast] [--jobs 2] [--seeds 2000] [--json FILE]
    python tests/mutants/run.py --update        (after a change that moves the simulator's seeds)

A mutant is a patch in this folder. Its head says what is broken, and by whom it is to be killed:

    Title:  what the mutant does
    Breaks: the invariants
    Rule:   where the rule stands that it breaks
    Where:  module and function
    Killer: sim PROFILE INVARIANT [seed=N]      or      test PATH::NAME
    Fast:   yes                                  (part of the short run of CI)

Each is applied to a copy of the tree and built there: modules that the patch does not touch are
those of the checkout, which must be built. Killers are tried in their order; after them the
default profile of the simulator, up to --seeds seeds. A mutant is killed only if the simulator
names an invariant or a claim of a checker, or a named test fails in an assertion. A crash, a hang,
an exception, a changed transcript or digest is no kill. The unpatched tree must pass the very
seeds and tests that kill.

Exits with 1 if a mutant survives, does not apply or does not build, or if the control fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "build" / "mutants"
PAGE = ROOT / "docs" / "design" / "mutants.md"

# What a run of the simulator may end with that is a broken claim about the protocol.
CLAIMS = re.compile(r"U\d+[a-z]?|linearizable|exactly-once|liveness|bounded|halted")
# Failures of a named test that are a broken claim: its assertions, and the checkers' own error.
ASSERTIONS = re.compile(r"(\w+\.)*(AssertionError|Violation)\b|assert |Failed: DID NOT RAISE")
BLOCKS = (1, 15, 100)  # seeds in the first looks; later ones are larger
BLOCK_SEEDS = 250
ODD_MAX = 5  # crashes and the like, after which the simulator is given up
SEED_LIMIT_S = 20.0  # a seed that takes longer hangs
TEST_LIMIT_S = 300.0
BUILD_LIMIT_S = 600.0


class Broken(Exception):
    """A mutant that cannot be judged: the patch does not apply, or does not build."""


@dataclass(frozen=True)
class Killer:
    """Who is to kill: a profile of the simulator, or a test."""

    kind: str
    what: str
    invariant: str = ""
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Killer:
        words = text.split()
        if len(words) == 2 and words[0] == "test" and "::" in words[1]:
            return cls("test", words[1])
        if len(words) in (3, 4) and words[0] == "sim":
            seed = 0
            if len(words) == 4:
                if not words[3].startswith("seed="):
                    raise ValueError(f"not a killer: {text}")
                seed = int(words[3][5:])
            return cls("sim", words[1], words[2], seed)
        raise ValueError(f"not a killer: {text}")


@dataclass(frozen=True)
class Mutant:
    name: str
    path: Path
    title: str
    breaks: str
    rule: str
    where: str
    killers: tuple[Killer, ...]
    fast: bool = False

    @classmethod
    def read(cls, path: Path) -> Mutant:
        head: dict[str, list[str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("--- "):
                break
            if line.strip():
                name, colon, text = line.partition(":")
                if not colon:
                    raise ValueError(f"{path.name}: not a line of a head: {line}")
                head.setdefault(name, []).append(text.strip())
        try:
            one = {name: " ".join(head[name]) for name in ("Title", "Breaks", "Rule", "Where")}
            killers = tuple(map(Killer.parse, head["Killer"]))
        except KeyError as missing:
            raise ValueError(f"{path.name}: no line {missing.args[0]}") from None
        fast = head.get("Fast") == ["yes"]
        return cls(
            path.stem, path, one["Title"], one["Breaks"], one["Rule"], one["Where"], killers, fast
        )

    def files(self) -> list[str]:
        """What the patch changes, relative to the root."""
        found = re.findall(r"^\+\+\+ b/(\S+)", self.path.read_text(encoding="utf-8"), re.MULTILINE)
        if not found:
            raise Broken("the patch changes nothing")
        return sorted(found)


@dataclass
class Outcome:
    """What became of a mutant."""

    name: str
    killed: bool = False
    by: str = ""
    """The invariant, or the test."""
    how: str = ""
    """The profile and the first seed that failed, or "test"."""
    message: str = ""
    killer: Killer | None = None
    broken: str = ""
    notes: list[str] = field(default_factory=list)
    """What happened on the way that is no kill."""
    seconds: float = 0.0


@dataclass
class Run:
    """What the simulator said of some seeds."""

    invariant: str = ""
    """Broken by `seed`; "": none that is a kill."""
    seed: int = 0
    message: str = ""
    note: str = ""
    """What went wrong that is no kill."""


def mutants(folder: Path = HERE) -> list[Mutant]:
    return [Mutant.read(path) for path in sorted(folder.glob("*.patch"))]


# --- a tree


def place(source: Path, target: Path, own: bool = False) -> None:
    """Link a file, or copy it if it will be changed (or cannot be linked)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not own:
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            return
    shutil.copy2(source, target)


def lay_out(tree: Path, changed: Iterable[str], root: Path = ROOT) -> None:
    """A tree beside the checkout: everything that is needed to build `changed`, and to run.

    Sources that compile are there only if they are to be compiled again: those in `changed`, or
    all, when a header is among them.
    """
    changed = set(changed)
    every = any(name.endswith((".pxd", ".h", "setup.py")) for name in changed)
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (root / name).exists():
            place(root / name, tree / name, name in changed)
    for top in ("phx", "tests"):
        for source in sorted((root / top).rglob("*")):
            name = source.relative_to(root).as_posix()
            if not source.is_file() or "__pycache__" in name or name.startswith("phx/build/"):
                continue
            if source.suffix == ".pyx" and not every and name not in changed:
                continue
            if source.suffix in (".cpp", ".c", ".html"):
                continue
            if source.suffix == ".so" and (
                every
                or f"{source.parent.relative_to(root)}/{source.name.split('.')[0]}.pyx" in changed
            ):
                continue
            place(source, tree / name, name in changed)


def apply_patch(tree: Path, patch: Path) -> None:
    """All of it, or Broken."""
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)}
    for check in (["--check"], []):
        done = subprocess.run(
            ["git", "apply", "-p1", "--whitespace=nowarn", *check, str(patch)],
            cwd=tree, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise Broken(f"does not apply: {done.stderr.strip()}")


def key_of(tree: Path) -> str:
    """Of what the modules that are compiled here depend on."""
    digest = hashlib.sha256(sys.version.encode())
    for source in sorted(tree.glob("phx/**/*")):
        if source.suffix in (".pyx", ".pxd", ".h"):
            digest.update(str(source.relative_to(tree)).encode() + source.read_bytes())
    digest.update((tree / "setup.py").read_bytes())
    return digest.hexdigest()[:24]


def compile_tree(tree: Path, cache: Path) -> None:
    """Compile what stands in the tree as source, or take it from the cache. Raises Broken."""
    sources = sorted(tree.glob("phx/**/*.pyx"))
    if not sources:
        return
    kept = cache / key_of(tree)
    if not kept.exists():
        environment = os.environ | {"PHX_BUILD_JOBS": "1"}
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=tree, env=environment, capture_output=True, text=True, check=False,
            timeout=BUILD_LIMIT_S,
        )  # fmt: skip
        if done.returncode != 0:
            raise Broken(f"does not build: {done.stderr.strip()[-2000:]}")
        fresh = kept.with_suffix(f".{os.getpid()}.{tree.name}")
        for source in sources:
            for made in source.parent.glob(f"{source.stem}.*.so"):
                place(made, fresh / made.relative_to(tree))
        if not fresh.exists():
            raise Broken("does not build: no module was made")
        try:
            fresh.rename(kept)
        except OSError:
            shutil.rmtree(fresh)
        shutil.rmtree(tree / "build", ignore_errors=True)
        return
    for made in kept.rglob("*.so"):
        place(made, tree / made.relative_to(kept))


def prepare(mutant: Mutant, work: Path = WORK, root: Path = ROOT) -> Path:
    """The mutant, built, in a tree of its own. Raises Broken."""
    tree = work / "trees" / mutant.name
    lay_out(tree, mutant.files(), root)
    apply_patch(tree, mutant.path)
    compile_tree(tree, work / "built")
    return tree


# --- killing


def run_in(tree: Path, arguments: list[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONSAFEPATH", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree, env=environment, capture_output=True, text=True, check=False, timeout=limit_s,
    )  # fmt: skip


def simulate(tree: Path, profile: str, first: int, count: int) -> Run:
    """These seeds, up to the first that fails."""
    arguments = [
        "-m", "phx.cli", "sim", "--seeds", str(count), "--from", str(first),
        "--profile", profile, "--jobs", "1", "--stop-after", "1", "--no-shrink", "--json",
    ]  # fmt: skip
    try:
        done = run_in(tree, arguments, SEED_LIMIT_S * min(count, 60) + 60)
    except subprocess.TimeoutExpired:
        return Run(note=f"{profile} {first}..{first + count - 1}: hangs")
    return judge_simulation(done.returncode, done.stdout, done.stderr, f"{profile} {first}")


def judge_simulation(code: int, out: str, errors: str, what: str) -> Run:
    """A failure that names a claim is a kill; a crash, a hang or an exception is not."""
    try:
        failed = json.loads(out)["failed"]
    except (ValueError, KeyError, TypeError):
        last = errors.strip().splitlines()[-1:] or [""]
        return Run(note=f"{what}: exit {code}, no result: {last[0][:200]}")
    run = Run()
    for failure in sorted(failed, key=lambda one: one["seed"]):
        run.seed = failure["seed"]
        if CLAIMS.fullmatch(failure["invariant"]):
            run.invariant = failure["invariant"]
            run.message = failure["message"]
            return run
        run.note = f"{what}: seed {run.seed}: {failure['invariant']}, which is no kill"
    return run


def run_tests(tree: Path, tests: list[str], report: Path) -> tuple[list[str], str]:
    """Tests that failed in an assertion, and what else went wrong."""
    report.unlink(missing_ok=True)
    try:
        done = run_in(
            tree,
            ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--junitxml={report}", *tests],
            TEST_LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return [], "hangs"
    return judge_tests(done.returncode, report, done.stdout)


def judge_tests(code: int, report: Path, out: str = "") -> tuple[list[str], str]:
    """Only a failed assertion is a kill; an error, a timeout or a dead interpreter is not."""
    if code not in (0, 1) or not report.exists():
        last = out.strip().splitlines()[-1:] or [""]
        return [], f"exit {code}: {last[0][:200]}"
    failed = []
    note = ""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        for child in case:
            message = child.get("message") or ""
            if child.tag == "failure" and ASSERTIONS.match(message):
                failed.append(f"{case.get('name')}: {message.splitlines()[0][:300]}")
            elif child.tag in ("failure", "error"):
                note = f"{case.get('name')}: {message[:200]}, which is no kill"
    return failed, note


def seed_blocks(seeds: int) -> Iterable[tuple[int, int]]:
    """(first, count): small ones first."""
    first = 1
    for count in BLOCKS:
        if first <= seeds:
            yield first, min(count, seeds - first + 1)
            first += count
    while first <= seeds:
        yield first, min(BLOCK_SEEDS, seeds - first + 1)
        first += BLOCK_SEEDS


def try_simulator(tree: Path, killer: Killer, seeds: int, outcome: Outcome) -> bool:
    blocks = [(killer.seed, 1)] if killer.seed else []
    blocks += seed_blocks(seeds)
    odd = 0
    while blocks and odd < ODD_MAX:
        first, count = blocks.pop(0)
        run = simulate(tree, killer.what, first, count)
        if run.note:
            outcome.notes.append(run.note)
            odd += 1
            if run.seed and run.seed + 1 < first + count:
                blocks.insert(0, (run.seed + 1, first + count - run.seed - 1))
        if run.invariant:
            outcome.killed = True
            outcome.by, outcome.message = run.invariant, run.message
            outcome.how = f"{killer.what} {run.seed}"
            outcome.killer = Killer("sim", killer.what, run.invariant, run.seed)
            return True
    return False


def try_test(tree: Path, killer: Killer, outcome: Outcome) -> bool:
    failed, note = run_tests(tree, [killer.what], tree / "report.xml")
    if note:
        outcome.notes.append(note)
    if not failed:
        return False
    outcome.killed = True
    outcome.by = killer.what
    outcome.how = "test"
    outcome.message = failed[0]
    outcome.killer = killer
    return True


def judge(mutant: Mutant, seeds: int, work: Path = WORK) -> Outcome:
    """Build it, try its killers, then the default profile."""
    outcome = Outcome(mutant.name)
    began = time.monotonic()
    try:
        tree = prepare(mutant, work)
        default = Killer("sim", "default", "")
        for killer in (*mutant.killers, default):
            if killer is default and any(k.what == "default" for k in mutant.killers):
                continue
            if killer.kind == "test":
                try_test(tree, killer, outcome)
            else:
                try_simulator(tree, killer, seeds, outcome)
            if outcome.killed:
                break
    except Broken as broken:
        outcome.broken = str(broken)
    except subprocess.TimeoutExpired:
        outcome.broken = "does not build in time"
    outcome.seconds = time.monotonic() - began
    if outcome.killed:
        shutil.rmtree(work / "trees" / mutant.name, ignore_errors=True)
    return outcome


def control(outcomes: Iterable[Outcome], root: Path = ROOT, work: Path = WORK) -> list[str]:
    """What the unpatched tree fails of that which killed: must be nothing."""
    failed = []
    killers = [one.killer for one in outcomes if one.killer]
    for profile, seed in sorted({(k.what, k.seed) for k in killers if k.kind == "sim"}):
        run = simulate(root, profile, seed, 1)
        if run.invariant or run.note:
            failed.append(f"{profile} {seed}: {run.invariant} {run.message} {run.note}")
    tests = sorted({k.what for k in killers if k.kind == "test"})
    if tests:
        found, note = run_tests(root, tests, work / "control.xml")
        failed += found + ([note] if note else [])
    return failed


# --- the door


def row_of(mutant: Mutant) -> list[str]:
    """Its cells in the table of docs/design/mutants.md, by what its head says."""
    first = mutant.killers[0]
    if first.kind == "test":
        path, name = first.what.split("::")
        by = f"`{name}`"
        how = f"`{path}`"
    else:
        by = first.invariant
        how = f"{first.what} {first.seed}"
    return [f"`{mutant.name}`", mutant.title, mutant.breaks, f"`{mutant.where}`", by, how]


def table(found: Iterable[Mutant]) -> str:
    return "".join(f"| {' | '.join(row_of(one))} |\n" for one in found)


def update(outcomes: Iterable[Outcome], page: Path = PAGE) -> None:
    """Write the seeds that killed into the heads of the patches, and the page's table anew."""
    by_name = {one.name: one.killer for one in outcomes}
    for one in mutants():
        killer = by_name.get(one.name)
        if killer is None or killer.kind != "sim" or one.killers[0].what != killer.what:
            continue
        text = one.path.read_text(encoding="utf-8")
        line = f"Killer: sim {killer.what} {killer.invariant} seed={killer.seed}"
        one.path.write_text(re.sub(r"^Killer: sim .*$", line, text, count=1, flags=re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    rows = re.compile(r"(?:^\| `.*\n)+", re.MULTILINE)
    page.write_text(rows.sub(lambda _: table(mutants()), text, count=1), encoding="utf-8")


def line_of(outcome: Outcome) -> str:
    if outcome.broken:
        return f"{outcome.name:40} BROKEN    {outcome.broken.splitlines()[0][:100]}"
    if not outcome.killed:
        return f"{outcome.name:40} SURVIVES  {'; '.join(outcome.notes)[:160]}"
    what = outcome.by.split("::")[-1] if outcome.how == "test" else outcome.by
    return f"{outcome.name:40} {what[:58]:12} {outcome.how:18} {outcome.seconds:6.1f} s"


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these mutants")
    parser.add_argument("--fast", action="store_true", help="those of the short run")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at once (2)")
    parser.add_argument("--seeds", type=int, default=2000, help="of the simulator, each (2000)")
    parser.add_argument(
        "--update", action="store_true", help="write the seeds found into the patches and the page"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the outcomes")
    given = parser.parse_args(argv)
    if given.jobs < 1 or given.seeds < 1:
        parser.error("at least one job and one seed")
    return given


def chosen(given: argparse.Namespace) -> list[Mutant]:
    found = mutants()
    if given.only:
        unknown = set(given.only) - {one.name for one in found}
        if unknown:
            raise SystemExit(f"no such mutant: {', '.join(sorted(unknown))}")
        found = [one for one in found if one.name in given.only]
    return [one for one in found if one.fast] if given.fast else found


def main(argv: list[str] | None = None) -> int:
    given = arguments(sys.argv[1:] if argv is None else argv)
    picked = chosen(given)
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for outcome in pool.map(lambda one: judge(one, given.seeds), picked):
            outcomes.append(outcome)
            print(line_of(outcome), flush=True)
    failed = control(outcomes)
    for line in failed:
        print(f"control: the unpatched tree fails: {line}")
    if given.update:
        update(outcomes)
    if given.json:
        report = [
            {name: value for name, value in vars(one).items() if name != "killer"}
            for one in outcomes
        ]
        given.json.write_text(json.dumps({"mutants": report, "control": failed}, indent=1))
    survivors = [one.name for one in outcomes if not one.killed]
    by_default = sum(one.how.startswith("default ") for one in outcomes)
    print(
        f"{len(outcomes)} mutants: {len(outcomes) - len(survivors)} killed, {by_default} of them "
        f"under the default profile, in {time.monotonic() - began:.0f} s"
    )
    if survivors:
        print(f"not killed: {', '.join(survivors)}")
    return 1 if survivors or failed else 0


if __name__ == "__main__":
    sys.exit(main())
