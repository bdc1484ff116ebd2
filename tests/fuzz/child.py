"""In the process that runs inputs: loads the targets of a build and hands them what to run.

    python child.py guided LIBRARY TARGET [libFuzzer's arguments]
    python child.py plain FOLDER TARGET SEED EXECUTIONS CURRENT [corpus folders]
    python child.py one FOLDER|LIBRARY TARGET FILE…

Started by run.py, with the sanitizers preloaded.
"""

import importlib.machinery
import importlib.util
import mmap
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Finder:
    """Finds every module that is linked into one library in that library."""

    def __init__(self, library: str) -> None:
        self.library = library

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith(("phx._core.", "phxfuzz.")):
            return None
        loader = importlib.machinery.ExtensionFileLoader(name, self.library)
        return importlib.util.spec_from_file_location(name, self.library, loader=loader)


def load(build: str) -> types.ModuleType:
    if build.endswith(".so"):
        for name in ("phx", "phx._core", "phxfuzz"):
            package = types.ModuleType(name)
            package.__path__ = []
            sys.modules[name] = package
        sys.meta_path.insert(0, Finder(build))  # type: ignore[arg-type]
    else:
        sys.path.insert(0, build)
    return importlib.import_module("phxfuzz.loop")


def corpus(folders: list[str]) -> list[bytes]:
    files = [path for folder in folders for path in sorted(Path(folder).glob("*"))]
    return [path.read_bytes() for path in files if path.is_file()] or [b"\0"]


def main() -> int:
    way, build, target, *rest = sys.argv[1:]
    loop = load(build)
    if way == "guided":
        loop.choose(target)
        # By this name libFuzzer starts itself again, for a merge.
        arguments = [os.environ.get("PHX_FUZZ_SELF", "phxfuzz"), *rest]
        arguments = [argument.encode() for argument in arguments]
        return int(loop.guided(arguments))
    loop.choose(target)
    if way == "one":
        for file in rest:
            loop.run(Path(file).read_bytes())
        return 1 if loop.finish() else 0
    seed, executions, current, *folders = rest
    with open(current, "r+b") as file, mmap.mmap(file.fileno(), 8192) as shared:
        done = loop.plain(corpus(folders), int(seed), int(executions), shared)
    print(f"{target}: {done} executions", flush=True)
    return 1 if loop.finish() else 0


if __name__ == "__main__":
    sys.exit(main())
