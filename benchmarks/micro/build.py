"""Builds the native loops for the phx that is imported, once for each state of the sources.

The loops call the functions of phx's own compiled modules, so what is measured is the library as
it is built, not a copy of it. They go to build/micro/, under a name that changes with their
sources, with phx's declarations, with Cython and with Python.
"""

import contextlib
import hashlib
import io
import os
import sys
import sysconfig
from pathlib import Path

import Cython

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
if list((ROOT / "phx" / "_core").glob(f"codec{sysconfig.get_config_var('EXT_SUFFIX')}")):
    sys.path.insert(0, str(ROOT))  # compiled in place: that is what is meant

import phx  # noqa: E402

LOOPS = HERE / "phx_micro"
MODULES = ("measure", "codec_loops", "engine_loops", "log_loops", "queue_loops")
PHX = Path(phx.__file__).resolve().parent
COMPILE = ["-std=c++17", "-O3", "-g1", "-pthread", "-Wno-sign-compare"]  # as setup.py does
COMPILE += os.environ.get("PHX_MICRO_FLAGS", "").split()  # for tests, which measure nothing


def version_of_sources() -> str:
    """Of everything that the built modules depend on."""
    seen = hashlib.sha256(f"{Cython.__version__} {sys.version} {PHX} {COMPILE}".encode())
    sources = [*LOOPS.iterdir(), *(PHX / "_core").glob("*.pxd"), *(PHX / "_core").glob("*.h")]
    for source in sorted(sources):
        if source.suffix in {".pyx", ".pxd", ".h"}:
            seen.update(source.name.encode() + source.read_bytes())
    return seen.hexdigest()[:16]


def build(site: Path) -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    modules = [
        Extension(
            f"phx_micro.{name}",
            [str(LOOPS / f"{name}.pyx")],
            language="c++",
            include_dirs=[str(LOOPS), str(PHX / "_core")],
            extra_compile_args=COMPILE,
            extra_link_args=["-pthread"],
        )
        for name in MODULES
    ]
    made = cythonize(
        modules,
        build_dir=str(site / "cython"),
        include_path=[str(HERE), str(PHX.parent)],
        compiler_directives={"language_level": 3},
        quiet=True,
    )
    command = build_ext(Distribution({"ext_modules": made}))
    command.build_lib, command.build_temp = str(site), str(site / "objects")
    command.parallel = 2
    command.ensure_finalized()
    with contextlib.redirect_stdout(io.StringIO()):
        command.run()
    (site / "phx_micro" / "__init__.py").write_bytes((LOOPS / "__init__.py").read_bytes())


def ready() -> Path:
    """Builds the loops if need be, and makes `import phx_micro` find them; their folder."""
    site = ROOT / "build" / "micro" / version_of_sources()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    if not all((site / "phx_micro" / f"{name}{suffix}").exists() for name in MODULES):
        build(site)
    if str(site) not in sys.path:
        sys.path.insert(0, str(site))
    return site


if __name__ == "__main__":
    print(ready())
