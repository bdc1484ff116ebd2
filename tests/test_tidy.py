"""House rules that a machine can check: directions, sizes, stubs, no way back to the GIL."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PHX = ROOT / "phx"
CORE = PHX / "_core"
SIM = PHX / "sim"
BENCH = PHX / "bench"

MODULE_LINES_MAX = 700
FUNCTION_LINES_MAX = 70
LINE_MAX = 100
FILE_BYTES_MAX = 1 << 20


def project_files() -> list[Path]:
    """Everything that belongs to the project: what git knows or would add, else all there is."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [
            path
            for path in ROOT.rglob("*")
            if not any(
                part.startswith(".") or part in {"build", "dist", "venv"} or part.endswith("-info")
                for part in path.relative_to(ROOT).parts
            )
        ]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def files(*suffixes: str, under: Path = ROOT) -> list[Path]:
    return [p for p in project_files() if p.suffix in suffixes and p.is_relative_to(under)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def complain(problems: list[str]) -> None:
    assert not problems, "\n" + "\n".join(problems)


# --- who may import whom

# Native modules, from the ground up. A module cimports from its own storey and those below it.
# What Python needs of `engine` alone may stand in `engine_door`, beside it.
STOREYS = [
    {"native"},
    {"ballot", "batch", "codec", "gate", "members", "window"},
    {"effects", "state", "wire"},
    {
        "acceptor",
        "barrier",
        "elections",
        "groups",
        "learner",
        "leases",
        "liveness",
        "membership",
        "peers",
        "phase2",
        "points",
        "proposals",
        "proposer",
        "read_table",
        "reads",
        "rejoin",
        "relaxed",
        "reports",
        "routing",
        "votes",
    },
    {"engine"},
    {
        "disk",
        "journal",
        "journal_limits",
        "memdisk",
        "replay",
        "segment",
        "shelf",
        "survey",
        "trace",
        "writer",
    },
    {"chunk", "chunk_index", "plan", "settler"},
    {"delivery", "entries", "port", "published", "session_codec", "sessions", "waiters"},
    {
        "driver",
        "driver_state",
        "flow",
        "group_table",
        "handover",
        "handshake",
        "hosting",
        "inputs",
        "life",
        "lookups",
        "member_table",
        "options",
        "peer_table",
        "poller",
        "queues",
        "read_tickets",
        "driver_status",
        "segment_check",
        "sending",
        "transport",
        "upkeep",
    },
]
SIM_STOREYS = [
    {"agenda", "chance", "clock", "history", "machine"},
    {"reference", "watch_frames", "watch_records", "workload"},
    {"configurations"},
    {"invariants"},
    {
        "watch_callers",
        "watch_kept",
        "watch_lives",
        "watch_lost",
        "watch_members",
        "watch_odd",
        "watch_reads",
        "watch_relaxed",
    },
    {"host"},
    {
        "asking",
        "catchup",
        "changing",
        "damage",
        "diverging",
        "doctoring",
        "durability",
        "handing",
        "hosted",
        "saving",
        "upkeep",
    },
    {"equip", "lives"},
    {"world"},
    {"altering", "looking", "losing", "network", "straying"},
]
# What needs threads, sockets or real files has no place in a simulation.
NOT_SIMULATED = {
    "driver", "driver_state", "driver_status", "flow", "group_table", "handover", "handshake",
    "hosting", "life", "lookups", "member_table", "options", "peer_table", "poller", "port",
    "queues", "segment_check", "sending", "transport", "upkeep", "writer",
}  # fmt: skip
# A host calls the rooms that do its work, the watch that of its claims, and a world its network.
SIM_BACK = {
    ("asking", "world"), ("host", "asking"), ("host", "catchup"), ("host", "diverging"),
    ("host", "doctoring"), ("host", "durability"), ("host", "handing"), ("host", "hosted"),
    ("host", "lives"), ("host", "saving"), ("host", "upkeep"), ("host", "changing"),
    ("invariants", "watch_lives"), ("invariants", "watch_lost"), ("invariants", "watch_members"),
    ("invariants", "watch_relaxed"), ("world", "losing"), ("world", "network"),
}  # fmt: skip
BENCH_STOREYS = [{"limit"}, {"limit_door"}]
BENCH_CIMPORTS = {f"phx._core.{name}" for name in ("disk", "native", "port")}
PURE_STOREYS = 5  # so many know no clock, no socket, no file and no thread
STOREY = {module: number for number, modules in enumerate(STOREYS) for module in modules}
PURE_CIMPORTS = {"cython", "libc.stdint", "libc.stdlib", "libc.string"}
# Beside the pure ones: the doors by which Python comes in, and only in a .pyx.
DOOR_CIMPORTS = {"cpython.buffer", "cpython.bytes", "cpython.ref", "cpython.object"}

# What each Python module or folder may import of phx, besides itself. The longest prefix counts.
# The compiled values and tables that the API hands out.
VALUES = {f"phx._core.{name}" for name in ("delivery", "entries", "session_codec", "waiters")}
GROUND = {"phx.types", "phx.errors", "phx.config", "phx._version"} | VALUES
STORE = {f"phx._core.{name}" for name in ("codec", "chunk", "chunk_index", "plan", "settler")}
NODE = GROUND | {"phx.machine", "phx.machines", "phx.applier", "phx.node", "phx.group"}
NODE |= {"phx.asking", "phx.door", "phx.pressure", "phx.leaders", "phx.reading", "phx.stops"}
MAY_IMPORT = {
    "phx": {"phx"},
    "phx.types": GROUND,
    "phx.errors": GROUND,
    "phx.config": GROUND,
    "phx._version": set(),
    "phx.membership": GROUND | {"phx._core.members"},
    "phx.lmdb_files": GROUND,
    "phx.store_facts": GROUND | STORE | {"phx.store"},
    "phx.durability": GROUND,
    "phx.store_peers": GROUND | STORE | {"phx.store"},
    "phx.store_first": GROUND | STORE | {"phx.store"},
    "phx.store_hosted": GROUND
    | STORE
    | {"phx.membership", "phx.store", "phx.store_members", "phx.store_trim"},
    "phx.store_folder": GROUND | STORE | {"phx.lmdb_files", "phx.store_members", "phx.store_mend"},
    "phx.store_members": GROUND | STORE | {"phx.membership"},
    "phx.store_trim": GROUND | STORE,
    "phx.store_stats": GROUND,
    "phx.store_mend": GROUND | STORE,
    "phx.store_file": GROUND | STORE | {"phx.lmdb_files", "phx.store_folder"},
    "phx.store": GROUND
    | STORE
    | {"phx.store_file", "phx.store_folder", "phx.store_mend", "phx.store_stats", "phx.store_trim"}
    | {"phx.membership", "phx.store_members"},
    "phx.checkpoint": GROUND | {"phx._core.codec", "phx.machine", "phx.membership"},
    "phx.lmdb_pages": set(),
    "phx.verify": GROUND
    | STORE
    | {"phx._core.ballot", "phx._core.segment", "phx._core.survey", "phx.checkpoint", "phx.durable"}
    | {"phx.lmdb_files", "phx.lmdb_pages", "phx.store_facts", "phx.store_folder"}
    | {"phx.store_hosted", "phx.store_mend", "phx.store_members", "phx.store_peers"},
    "phx.transfer": GROUND | {"phx._core.codec", "phx.checkpoint", "phx.membership"},
    "phx.durable": GROUND | {"phx.machine", "phx.lmdb_files"},
    "phx.pressure": GROUND,
    "phx.keys": GROUND,
    "phx.leaders": GROUND,
    "phx.machine": GROUND,
    "phx.machines": GROUND | {"phx.machine"},
    "phx.stops": GROUND | {"phx.applier"},
    "phx.applier": NODE | {"phx._core.driver", "phx.store"},
    "phx.asking": GROUND | {"phx._core.options"},
    "phx.reading": NODE | {"phx._core.driver", "phx._core.published"},
    "phx.door": NODE | {"phx._core.driver", "phx.store"},
    "phx.group": NODE | {"phx._core.driver", "phx.store"},
    "phx.node": NODE
    | {"phx._core.driver", "phx.checkpoint", "phx.durable", "phx.store", "phx.transfer"}
    | {
        "phx._core.codec",
        "phx._core.group_table",
        "phx._core.member_table",
        "phx._core.peer_table",
        "phx._core.plan",
        "phx._core.read_tickets",
        "phx._core.segment",
        "phx._core.segment_check",
        "phx._core.survey",
    }
    | {"phx.lmdb_pages", "phx.membership", "phx.store_folder"}
    | {"phx.store_facts", "phx.store_first", "phx.store_members", "phx.store_mend"}
    | {"phx.store_hosted", "phx.store_peers", "phx.durability"},
    "phx.recovery": NODE
    | STORE
    | {"phx._core.ballot", "phx._core.members", "phx._core.survey", "phx.checkpoint"}
    | {"phx.durable", "phx.membership", "phx.store", "phx.store_facts", "phx.store_first"}
    | {"phx.store_folder", "phx.store_hosted", "phx.store_members", "phx.transfer"}
    | {"phx.verify"},
    "phx.blocking": NODE,
    "phx.sim": GROUND
    | STORE
    | {"phx._core.engine", "phx.checkpoint", "phx.machine", "phx.machines", "phx.store_trim"}
    | {"phx.membership", "phx.store_facts", "phx.store_members", "phx.store_mend", "phx.transfer"}
    | {"phx._core.members", "phx.durability", "phx.store_hosted"},
    "phx.testing": NODE
    | {"phx.sim", "phx.blocking", "phx._core.codec", "phx._core.engine_door"}
    | {"phx.store_hosted", "phx.verify"},
    "phx.bench": NODE | {"phx.testing"},
    "phx.server": NODE | {"phx", "phx.blocking"},
    "phx.admin": NODE | {"phx", "phx.blocking"},
    "phx.bench.limit_run": {"phx.bench.limit_door"},
    "phx.bench.limit_worker": {"phx.bench.limit_door"},
    "phx.cli": NODE
    | {"phx", "phx.blocking", "phx.sim", "phx.testing", "phx.bench", "phx.server", "phx.admin"}
    | {"phx.checkpoint", "phx.recovery", "phx.store", "phx.store_folder", "phx.store_trim"}
    | {"phx.verify"},
}
CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+cimport\b|cimport\s+([\w., ]+))", re.MULTILINE)


def storey(module: str) -> int | None:
    return STOREY.get(module.removesuffix("_door"))


def cimports(source: str) -> Iterator[str]:
    for match in CIMPORT.finditer(source):
        for module in (match[1] or match[2]).split(","):
            yield module.split(" as ")[0].strip()


def within(module: str, allowed: set[str]) -> bool:
    return any(
        module == name or (name != "phx" and module.startswith(name + ".")) for name in allowed
    )


def imports_of(path: Path, module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of everything of phx that a Python module imports, anywhere in it."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join(parts + ([base] if base else []))
            # `from phx import config` imports a module, `from phx.config import Config` a name.
            names = [
                f"{base}.{alias.name}" if base in {"phx", "phx._core"} else base
                for alias in node.names
            ]
        else:
            continue
        yield from ((node.lineno, name) for name in names if within(name, {"phx", "phx."}))
        yield from (
            (node.lineno, name) for name in names if name.startswith("phx.") and name != "phx"
        )


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", files(".pyx", ".pxd", under=CORE), ids=name_of)
def test_native_modules_cimport_downward(path):
    mine = storey(path.stem)
    assert mine is not None, f"say in STOREYS where {path.stem} lives"
    problems = []
    for module in cimports(path.read_text()):
        if module.startswith("phx."):
            name = module.removeprefix("phx._core.")
            if (theirs := storey(name)) is not None and theirs > mine:
                problems.append(f"{name_of(path)}: {name} lives above {path.stem}")
        elif mine < PURE_STOREYS:
            doors = DOOR_CIMPORTS if path.suffix == ".pyx" else set()
            if module not in PURE_CIMPORTS | doors:
                problems.append(f"{name_of(path)}: {module} has no place in the engine")
    complain(problems)


def test_native_modules_do_not_call_each_other_in_a_circle():
    declared = {
        path.stem: re.findall(r"(?m)^cdef (?!inline\b)[\w* ]*?\b(\w+)\(", path.read_text())
        for path in files(".pxd", under=CORE)
    }
    calls: dict[str, set[str]] = {}
    for path in files(".pyx", under=CORE):
        source = path.read_text()
        words = set(re.findall(r"\w+", source))
        known = {m.removeprefix("phx._core.") for m in cimports(source)} & set(declared)
        calls[path.stem] = {m for m in known - {path.stem} if words & set(declared[m])}
    assert any(calls.values())
    while free := {module for module, called in calls.items() if not called & set(calls)}:
        for module in free:
            del calls[module]
    complain([f"{module} calls {', '.join(sorted(called))}" for module, called in calls.items()])


@pytest.mark.parametrize("path", files(".pyx", ".pxd", under=SIM), ids=name_of)
def test_simulated_modules_cimport_downward_and_nothing_of_the_driver(path):
    floor = {module: number for number, modules in enumerate(SIM_STOREYS) for module in modules}
    mine = floor.get({"watch_door": "watch_kept"}.get(path.stem, path.stem))
    assert mine is not None, f"say in SIM_STOREYS where {path.stem} lives"
    problems = []
    for module in cimports(path.read_text()):
        name = module.rpartition(".")[2]
        if module.startswith("phx._core.") and name.removesuffix("_door") in NOT_SIMULATED:
            problems.append(f"{name_of(path)}: {module} is not simulated")
        if (
            module.startswith("phx.sim.")
            and floor[name] > mine
            and ((path.stem, name) not in SIM_BACK or path.suffix == ".pxd")
        ):
            problems.append(f"{name_of(path)}: {name} lives above {path.stem}")
    complain(problems)


@pytest.mark.parametrize("path", files(".pyx", ".pxd", under=BENCH), ids=name_of)
def test_the_bare_cluster_cimports_downward_and_nothing_of_the_protocol(path):
    floor = {module: number for number, modules in enumerate(BENCH_STOREYS) for module in modules}
    assert path.stem in floor, f"say in BENCH_STOREYS where {path.stem} lives"
    problems = []
    for module in cimports(path.read_text()):
        name = module.rpartition(".")[2]
        if module.startswith("phx.bench."):
            if floor[name] > floor[path.stem]:
                problems.append(f"{name_of(path)}: {name} lives above {path.stem}")
        elif module.startswith("phx.") and module not in BENCH_CIMPORTS:
            problems.append(f"{name_of(path)}: {module} is no part of a bare cluster")
    complain(problems)


@pytest.mark.parametrize("folder", [CORE, SIM], ids=name_of)
def test_nothing_below_cimports_the_benchmarks(folder):
    complain(
        [
            f"{name_of(path)}: {module}"
            for path in files(".pyx", ".pxd", under=folder)
            for module in cimports(path.read_text())
            if within(module, {"phx.bench"})
        ]
    )


@pytest.mark.parametrize("path", files(".py", under=PHX), ids=name_of)
def test_python_modules_import_downward(path):
    module = module_of(path)
    if module == "phx._core":
        area, allowed = module, {"phx._core"}
    else:
        area = max((a for a in MAY_IMPORT if within(module, {a})), key=len, default="")
        assert area, f"say in MAY_IMPORT what {module} may import"
        allowed = MAY_IMPORT[area]
    complain(
        [
            f"{name_of(path)}:{line}: {area} may not import {imported}"
            for line, imported in imports_of(path, module)
            if module != "phx" and not within(imported, allowed | {area})
        ]
    )


def test_only_the_disk_module_syncs_and_only_the_transport_opens_sockets():
    def having(pattern: str) -> set[str]:
        return {
            path.stem
            for path in files(".pyx", ".pxd", ".h", under=CORE)
            if re.search(pattern, path.read_text())
        }

    assert having(r"\b(fdatasync|fsync|F_FULLFSYNC)\s*\(") <= {"disk"}
    assert having(r"\b(socket|accept4|sendmsg|recvmsg|recv)\s*\(") <= {"port", "transport"}


# --- sizes


def functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, line, lines without its docstring) of every function of a Python or Cython file."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first, end = node.body[0], node.end_lineno or node.lineno
                lines = end - node.lineno + 1
                if ast.get_docstring(node, clean=False) is not None:
                    lines -= (first.end_lineno or first.lineno) - first.lineno + 1
                yield node.name, node.lineno, lines
        return
    text = path.read_text().splitlines()
    head = re.compile(r"^(\s*)(?:async\s+def|def|cdef|cpdef)\s[^=]*?(\w+)\s*\(")
    for number, line in enumerate(text):
        if not (match := head.match(line)):
            continue
        last = number
        while "".join(text[number : last + 1]).count("(") > "".join(text[number : last + 1]).count(
            ")"
        ):
            last += 1
        if not text[last].split("#")[0].rstrip().endswith(":"):
            continue  # a declaration
        end = last
        for i in range(last + 1, len(text)):
            if text[i].strip() and not text[i].startswith(match[1] + " "):
                break
            end = i if text[i].strip() else end
        body = "\n".join(text[last + 1 : end + 1])
        doc = re.match(r'\s*"""(?s:.*?)"""', body)
        yield match[2], number + 1, end - number + 1 - (doc[0].count("\n") + 1 if doc else 0)


def test_no_module_is_too_long():
    complain(
        [
            f"{name_of(path)}: {lines} lines"
            for path in files(".py", ".pyx", ".pxd", ".h")
            if (lines := path.read_text().count("\n")) > MODULE_LINES_MAX
        ]
    )


def test_no_function_is_too_long():
    complain(
        [
            f"{name_of(path)}:{line}: {name} has {lines} lines"
            for path in files(".py", ".pyx", ".pxd")
            for name, line, lines in functions(path)
            if lines > FUNCTION_LINES_MAX
        ]
    )


def test_length_of_functions_is_measured(tmp_path):
    body = "    x = 1\n" * 80
    (tmp_path / "a.py").write_text(f'def f(\n    a,\n):\n    """D.\n\n    E."""\n{body}\n\nz = 1\n')
    (tmp_path / "b.pyx").write_text(
        f"cdef int f(int a,\n           int b) noexcept nogil\n"
        f"cdef int g(int a,\n           int b) noexcept nogil:\n{body}\n\ncdef int z = 1\n"
        f"cdef class C:\n    def h(self):\n        pass\n"
    )
    assert list(functions(tmp_path / "a.py")) == [("f", 1, 83)]
    assert list(functions(tmp_path / "b.pyx")) == [("g", 3, 82), ("h", 89, 2)]


def test_no_file_is_too_large():
    complain([name_of(p) for p in project_files() if p.stat().st_size > FILE_BYTES_MAX])


def test_lines_are_short_and_clean():
    problems = []
    for path in files(".py", ".pyi", ".pyx", ".pxd", ".h", ".toml"):
        text = path.read_text()
        if text and not text.endswith("\n"):
            problems.append(f"{name_of(path)}: no newline at the end")
        for number, line in enumerate(text.splitlines(), 1):
            # Cython takes its directives from one line.
            if len(line) > LINE_MAX and not line.startswith("# cython: "):
                problems.append(f"{name_of(path)}:{number}: {len(line)} characters")
            if line != line.rstrip() or "\t" in line:
                problems.append(f"{name_of(path)}:{number}: trailing space or tab")
    complain(problems)


def test_every_document_has_one_title():
    problems = []
    for path in files(".md"):
        text = re.sub(r"(?ms)^\s*(```|~~~).*?^\s*\1", "", path.read_text())
        titles = re.findall(r"(?m)^# \S", text)
        if len(titles) != 1:
            problems.append(f"{name_of(path)}: {len(titles)} titles")
    complain(problems)


# --- native modules and their stubs

SOURCES = [path for folder in (CORE, SIM, BENCH) for path in files(".pyx", under=folder)]


def test_every_native_module_has_its_table_of_contents_and_its_stub():
    complain(
        [
            f"{name_of(path)} has no {suffix}"
            for path in SOURCES
            for suffix in (".pxd", ".pyi")
            if not path.with_suffix(suffix).exists()
        ]
    )


def stub_names(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    names: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = node
        elif isinstance(node, ast.Assign):
            names |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return {name: node for name, node in names.items() if not name.startswith("_")}


def own_names(module: types.ModuleType) -> set[str]:
    """Public names that a module defines: all but modules and what comes from elsewhere."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and getattr(value, "__module__", module.__name__) == module.__name__
    }


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_stub_and_compiled_module_name_the_same_things(source):
    module = importlib.import_module(module_of(source))
    stub = stub_names(ast.parse(source.with_suffix(".pyi").read_text()).body)
    problems = [f"not in the stub: {name}" for name in own_names(module) - set(stub)]
    problems += [f"only in the stub: {name}" for name in stub if not hasattr(module, name)]
    for name, node in stub.items():
        made = getattr(module, name, None)
        if not isinstance(node, ast.ClassDef) or not inspect.isclass(made):
            continue
        members = stub_names(node.body)
        own = {member for member in vars(made) if not member.startswith("_")}
        problems += [f"not in the stub: {name}.{member}" for member in own - set(members)]
        problems += [
            f"only in the stub: {name}.{member}"
            for member, declaration in members.items()
            # A class written in Python does not know the attributes of its objects.
            if not (isinstance(declaration, ast.AnnAssign) and made.__dictoffset__)
            and not hasattr(made, member)
        ]
    complain(sorted(problems))


# --- no way back to the GIL

# In a native function any of these asks for the GIL: to raise, to catch a C++ exception, or to ask.
GIL = re.compile(r"PyGILState_Ensure|\bcatch\s*\(|__Pyx_CppExn2PyErr")


def native_functions(generated: str) -> Iterator[tuple[str, str]]:
    """(name, body) of what Cython made of every cdef function."""
    name, body = "", []
    for line in generated.splitlines():
        if name and line == "}":
            yield name, "\n".join(body)
            name = ""
        elif name:
            body.append(line)
        elif line.endswith("{") and (match := re.match(r"[^\s#/{}][^{]*?\b(__pyx_f_\w+)\(", line)):
            name, body = match[1], []


def calls_for_the_gil(generated: str) -> list[str]:
    """The native functions of a generated C++ file in which the GIL is asked for."""
    return [name for name, body in native_functions(generated) if GIL.search(body)]


def cython(source: Path, out: Path) -> str:
    command = [sys.executable, "-m", "cython", "-3", "--cplus", "-o", str(out), str(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out.read_text()


def newest_source(source: Path) -> float:
    """When the newest file changed that the C++ of a module is made from."""
    seen, todo = set(), [source, source.with_suffix(".pxd")]
    while todo:
        path = todo.pop()
        if path not in seen and path.exists():
            seen.add(path)
            for module in cimports(path.read_text()):
                todo.append(ROOT / f"{module.replace('.', '/')}.pxd")
    return max(path.stat().st_mtime for path in seen)


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """C++ of a native module: what a build left behind if it is newer than its sources."""
    build = ROOT / "build" / "release" / "cython"
    into = tmp_path_factory.mktemp("cython")

    def of(source: Path) -> str:
        within = source.relative_to(ROOT).with_suffix(".cpp")
        for built in (build / within, ROOT / within):
            if built.exists() and built.stat().st_mtime > newest_source(source):
                return built.read_text()
        return cython(source, into / f"{source.stem}.cpp")

    return of


@pytest.mark.timeout(120)
@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_native_functions_never_ask_for_the_gil(source, generated):
    text = generated(source)
    if re.search(r"(?m)^cdef .*\) noexcept nogil:$", source.read_text()):
        assert list(native_functions(text)), "no native function was recognised"
    complain([f"{source.stem}: {name}" for name in calls_for_the_gil(text)])


@pytest.mark.timeout(120)
def test_a_function_that_asks_for_the_gil_is_found(tmp_path):
    source = tmp_path / "planted.pyx"
    source.write_text(
        "from libcpp.vector cimport vector\n"
        "cdef void catches(vector[int]* v) noexcept nogil:\n    v.push_back(1)\n"
        "cdef void asks() noexcept nogil:\n    with gil:\n        print()\n"
        "cdef int says(int a) except -1 nogil:\n    if a:\n        raise ValueError\n    return 0\n"
        "cdef void swallows(int a) noexcept nogil:\n    says(a)\n"
        "cdef int innocent(int a) noexcept nogil:\n    return a + 1\n"
        "def door():\n    cdef vector[int] v\n    catches(&v)\n    asks()\n"
        "    swallows(innocent(1))\n"
    )
    found = calls_for_the_gil(cython(source, tmp_path / "planted.cpp"))
    assert sorted(name.rpartition("_")[2] for name in found) == [
        "asks",
        "catches",
        "says",
        "swallows",
    ]
