"""Builds the fuzz targets: ``python tests/fuzz/build.py [--engine plain|guided]``.

plain    only ``phxfuzz``, by the usual compiler with ASan and UBSan, against a phx that was
         installed with ``PHX_BUILD=asan,ubsan``
guided   ``phxfuzz`` and all of ``phx/_core`` that it needs, by clang with ASan, UBSan and coverage,
         in one library with libFuzzer: modules of one library share one set of counters, and no
         main program has to embed Python. Only what has changed is compiled again.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CORE = ROOT / "phx" / "_core"
SANITIZE = "-fsanitize=address,undefined"
# As setup.py has it. A packed struct is read by memcpy; the rest of UBSan's list is fatal.
FLAGS = ["-std=c++17", "-O1", "-g1", "-fno-omit-frame-pointer", "-fno-strict-aliasing", "-fwrapv"]
FLAGS += ["-fPIC", "-pthread", SANITIZE, "-fno-sanitize-recover=undefined", "-DNDEBUG"]
TARGETS = sorted(path.stem for path in (HERE / "phxfuzz").glob("*.pyx"))


def clang() -> str | None:
    """A clang++ that brings libFuzzer, or None."""
    names = ["clang++", *(f"clang++-{version}" for version in range(21, 13, -1))]
    for name in [os.environ.get("PHX_FUZZ_CLANG", ""), *names]:
        if name and shutil.which(name) and runtime(name, "fuzzer_no_main").exists():
            return name
    return None


def runtime(compiler: str, name: str, suffix: str = "a") -> Path:
    """A library of clang's runtime: of this processor, by either of the names it has had."""
    folder = subprocess.run(
        [compiler, "-print-runtime-dir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    machine = os.uname().machine
    for path in (Path(folder), Path(folder).parent / "linux"):
        for file in (f"libclang_rt.{name}.{suffix}", f"libclang_rt.{name}-{machine}.{suffix}"):
            if (path / file).exists():
                return path / file
    return Path(folder) / f"libclang_rt.{name}-{machine}.{suffix}"


def core_closure() -> list[str]:
    """The modules of phx/_core that the targets need, directly or not."""
    seen: set[str] = set()
    todo = list((HERE / "phxfuzz").glob("*.p[yx][xd]"))
    while todo:
        text = todo.pop().read_text()
        for name in re.findall(r"from phx\._core\.(\w+) c?import", text):
            if name not in seen:
                seen.add(name)
                todo += [CORE / f"{name}.pxd", CORE / f"{name}.pyx"]
                todo = [path for path in todo if path.exists()]
    return sorted(name for name in seen if (CORE / f"{name}.pyx").exists())


def cythonized(names: dict[str, Path], into: Path) -> dict[str, Path]:
    """Module name to generated C++; compiled again only if something it reads is newer."""
    headers = [*CORE.glob("*.pxd"), *(HERE / "phxfuzz").glob("*.pxd")]
    newest = max(path.stat().st_mtime for path in headers)
    made, stale = {}, []
    for module, source in names.items():
        made[module] = into / f"{module}.cpp"
        limit = max(newest, source.stat().st_mtime)
        if not made[module].exists() or made[module].stat().st_mtime < limit:
            stale.append((module, source))
    for module, source in stale:
        command = [sys.executable, "-m", "cython", "-3", "--cplus", "--module-name", module]
        command += ["-I", str(ROOT), "-I", str(HERE), str(source), "-o", str(made[module])]
        subprocess.run(command, check=True)
    return made


def compile_all(command: list[str], sources: dict[str, Path], jobs: int) -> list[Path]:
    header = max(path.stat().st_mtime for path in CORE.glob("*.h"))
    todo, objects = [], []
    for source in sources.values():
        target = source.with_suffix(".o")
        objects.append(target)
        limit = max(header, source.stat().st_mtime)
        if not target.exists() or target.stat().st_mtime < limit:
            todo.append([*command, "-c", str(source), "-o", str(target)])
    with ThreadPoolExecutor(jobs) as pool:
        for done in pool.map(lambda line: subprocess.run(line, capture_output=True), todo):
            if done.returncode:
                sys.exit(done.stderr.decode())
    return objects


def build(engine: str, jobs: int) -> Path:
    """Path of the library (guided), or of the folder that phxfuzz is in (plain)."""
    into = ROOT / "build" / f"fuzz-{engine}"
    into.mkdir(parents=True, exist_ok=True)
    includes = ["-I", str(CORE), "-I", sysconfig.get_paths()["include"]]
    names = {f"phxfuzz.{name}": HERE / "phxfuzz" / f"{name}.pyx" for name in TARGETS}
    if engine == "plain":
        compiler = os.environ.get("CXX", "g++")
        sources = cythonized(names, into)
        (into / "phxfuzz").mkdir(exist_ok=True)
        (into / "phxfuzz" / "__init__.py").touch()
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        objects = compile_all([compiler, *FLAGS, *includes], sources, jobs)
        for module, target in zip(sources, objects, strict=True):
            out = into / "phxfuzz" / (module.rpartition(".")[2] + suffix)
            if not out.exists() or out.stat().st_mtime < target.stat().st_mtime:
                subprocess.run(
                    [compiler, "-shared", SANITIZE, str(target), "-o", str(out)], check=True
                )
        return into
    compiler = clang()
    if compiler is None:
        sys.exit("no clang++ with libFuzzer (Debian: clang libclang-rt-14-dev); or --engine plain")
    names |= {f"phx._core.{name}": CORE / f"{name}.pyx" for name in core_closure()}
    command = [compiler, *FLAGS, "-fsanitize=fuzzer-no-link", "-fno-sanitize=vptr,function"]
    command += ["-DPHX_FUZZ_GUIDED", "-shared-libasan", "-w", *includes]
    objects = compile_all(command, cythonized(names, into), jobs)
    library = into / "phxfuzz.so"
    if not library.exists() or library.stat().st_mtime < max(o.stat().st_mtime for o in objects):
        # The sanitizer's runtime has hooks for coverage as well, which do nothing; it comes first.
        link = [compiler, "-shared", "-pthread", SANITIZE, "-shared-libasan", "-Wl,-Bsymbolic"]
        link += ["-fno-sanitize=vptr,function", *map(str, objects)]
        link += [str(runtime(compiler, "fuzzer_no_main")), "-o", str(library)]
        subprocess.run(link, check=True)
    return library


def preload(engine: str) -> str:
    """What LD_PRELOAD must hold for the build to load into a Python that has no sanitizers."""
    if engine == "guided":
        compiler = clang()
        assert compiler is not None
        return str(runtime(compiler, "asan", "so"))
    compiler = os.environ.get("CXX", "g++")
    found = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
        for name in ("libasan.so", "libstdc++.so")
    ]
    return " ".join(done.stdout.strip() for done in found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", choices=("plain", "guided"), default="plain")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    print(build(options.engine, options.jobs))
