"""Builds every .pyx of phx/_core, sim and bench as a C++ extension; pyproject.toml has the rest.

PHX_BUILD is for working on phx itself: one or several, with commas between, of

    debug       assertions of the C++ library, no optimisation, bounds checks, annotated HTML
    asan ubsan  AddressSanitizer, UndefinedBehaviorSanitizer (preload libasan and libstdc++)
    tsan        ThreadSanitizer (preload libtsan)
    coverage    counts executed lines of native code for gcov

PHX_BUILD_ONLY names modules, with commas between, as in phx/_core/*,phx/sim/watch_*: no others
are built.
PHX_BUILD_CACHE is a folder where the C++ that Cython makes is kept, and taken from by other builds
of the same sources, in any of these.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import Cython
from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
CORE = Path("phx", "_core")
NATIVE = [CORE, Path("phx", "sim"), Path("phx", "bench")]
JOBS = int(os.environ.get("PHX_BUILD_JOBS") or os.cpu_count() or 1)

# compiler flags, linker flags; the last -O wins
VARIANTS = {
    "debug": (["-O0", "-UNDEBUG", "-DPHX_DEBUG", "-D_GLIBCXX_ASSERTIONS"], []),
    "asan": (["-O1", "-fno-omit-frame-pointer", "-fsanitize=address"], ["-fsanitize=address"]),
    "ubsan": (
        ["-O1", "-fsanitize=undefined", "-fno-sanitize-recover=undefined"],
        ["-fsanitize=undefined"],
    ),
    "tsan": (["-O1", "-fno-omit-frame-pointer", "-fsanitize=thread"], ["-fsanitize=thread"]),
    "coverage": (["-O0", "--coverage"], ["--coverage"]),
}


ONLY = [name for name in os.environ.get("PHX_BUILD_ONLY", "").split(",") if name]
VARIANT = [name for name in os.environ.get("PHX_BUILD", "").split(",") if name]
if unknown := set(VARIANT) - set(VARIANTS):
    sys.exit(f"PHX_BUILD is one of {', '.join(VARIANTS)}; not {', '.join(sorted(unknown))}")
BUILD = Path("build", "-".join(VARIANT) or "release")  # objects of one are no use to another


def kept_for(directives: dict[str, object]) -> Path | None:
    """Where the C++ of these sources is kept. (Cython's own cache counts where its files stand, and
    pip puts it into a new folder for each build.)"""
    if not (cache := os.environ.get("PHX_BUILD_CACHE")):
        return None
    key = hashlib.sha256(
        f"{Cython.__version__} {sorted(directives.items())} {'coverage' in VARIANT}".encode()
    )
    for source in sorted(path for folder in NATIVE for path in (ROOT / folder).glob("*.p[yx][xd]")):
        key.update(f"{source.relative_to(ROOT)} ".encode() + source.read_bytes())
    return Path(cache, key.hexdigest())


def sources() -> list[Path]:
    found = [
        source
        for folder in NATIVE
        for source in sorted(path.relative_to(ROOT) for path in (ROOT / folder).glob("*.pyx"))
    ]
    chosen = [one for one in found if any(one.with_suffix("").match(name) for name in ONLY)]
    if ONLY and not chosen:
        sys.exit(f"PHX_BUILD_ONLY: no module is {' or '.join(ONLY)}")
    return chosen or found


def extensions() -> list[Extension]:
    compile_args = ["-std=c++17", "-O3", "-g" if "debug" in VARIANT else "-g1", "-pthread"]
    link_args = ["-pthread"]
    for name in VARIANT:
        compile_args += VARIANTS[name][0]
        link_args += VARIANTS[name][1]
    directives = {"language_level": 3}
    if "debug" in VARIANT:
        directives |= {"boundscheck": True, "wraparound": True, "initializedcheck": True}
    modules = [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            language="c++",
            include_dirs=[str(CORE)],
            depends=[str(header) for header in sorted(CORE.glob("*.h"))],
        )
        for source in sources()
    ]
    if {"egg_info", "dist_info", "sdist"} & set(sys.argv):
        return modules  # nothing will be compiled
    kept = kept_for(directives)
    if kept and kept.exists():
        # Newer than all that it was made of, so that it is taken as it is.
        shutil.copytree(kept, BUILD / "cython", copy_function=shutil.copy, dirs_exist_ok=True)
    made: list[Extension] = cythonize(
        modules,
        build_dir=str(BUILD / "cython"),
        compiler_directives=directives,
        annotate="debug" in VARIANT,
        emit_linenums="coverage" in VARIANT,  # gcov then speaks of lines of the .pyx
        # On macOS workers are spawned, and would run this file again.
        nthreads=JOBS if sys.platform == "linux" else 0,
        quiet=True,
    )
    if kept and not kept.exists() and not ONLY:
        shutil.copytree(BUILD / "cython", fresh := kept.with_suffix(f".{os.getpid()}"))
        fresh.rename(kept)
    for module in made:  # not before: the C++ names what it is made with, and is one for all
        module.extra_compile_args = compile_args
        module.extra_link_args = link_args
    return made


setup(
    ext_modules=extensions(),
    options={"build": {"build_base": str(BUILD)}, "build_ext": {"parallel": JOBS}},
)
