"""Nothing is told to the engine past the trace, and the page says which bytes an event has."""

import re
import struct
from pathlib import Path

from phx.testing import trace_file
from phx.testing.trace_file import Kind

ROOT = Path(__file__).resolve().parent.parent.parent
CORE = ROOT / "phx" / "_core"
SIZES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}
DRIVER = ("driver", "flow", "hosting", "life", "poller", "queues", "transport", "upkeep", "writer")


def inputs() -> set[str]:
    """What engine.pxd declares between its start and the questions."""
    text = (CORE / "engine.pxd").read_text()
    told = text[text.index("# --- before the start") : text.index("# --- questions")]
    return set(re.findall(r"cdef [\w* ]+?\b(engine_\w+)\(", told))


def test_the_driver_tells_the_engine_nothing_past_the_trace():
    names = inputs()
    assert {"engine_receive", "engine_turn", "engine_replay", "engine_add_group"} <= names
    assert len(names) == 37
    for module in DRIVER:
        words = set(re.findall(r"\w+", (CORE / f"{module}.pyx").read_text()))
        assert not words & names, module
    text = (CORE / "inputs.pxd").read_text()
    for name in names:
        assert len(re.findall(rf"\b{name}\(", text)) == 1, name


def test_every_input_is_noted_with_a_kind_of_its_own():
    text = (CORE / "inputs.pxd").read_text()
    bodies = text.split("\ncdef inline ")[1:]
    kinds = [re.findall(r"\bTRACE_(\w+)|trace_(replayed|turn)\(", body) for body in bodies]
    assert all(len(found) == 1 for found in kinds), kinds
    noted = [(kind or call.upper()) for ((kind, call),) in kinds]
    assert sorted(noted) == sorted(kind.name for kind in Kind if Kind.GROUP <= kind <= Kind.TURN)


def kinds_of(text: str, pattern: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(pattern, text, re.MULTILINE)}


def test_kinds_are_the_same_in_code_page_and_reader():
    expected = {kind.name: int(kind) for kind in Kind}
    code = (CORE / "trace.pxd").read_text()
    declared = code[code.index("cdef enum TraceKind") : code.index("cdef packed struct")]
    assert kinds_of(declared, r"^    TRACE_(\w+) = (\d+)") == expected
    page = (ROOT / "docs" / "design" / "trace.md").read_text()
    listed = {name: int(n) for n, name in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", page, re.M)}
    assert listed == expected


def test_structs_are_the_same_in_code_page_and_reader():
    code = (CORE / "trace.pxd").read_text()
    page = (ROOT / "docs" / "design" / "trace.md").read_text()
    found = re.findall(r"cdef packed struct Trace(\w+):[^\n]*\n((?: +.*\n)+)", code)
    assert len(found) == 13
    for name, body in found:
        fields = re.findall(r"^ +([ui]\d+) (\w+)(?:\[(\d+)\])?", body, re.MULTILINE)
        layout = "<" + "".join(f"{many}{SIZES[kind]}" for kind, _, many in fields)
        assert struct.calcsize(layout) == getattr(trace_file, name.upper()).size, name
        row = ", ".join(
            f"{field} ({struct.calcsize('<' + (many or '') + SIZES[kind])})"
            for kind, field, many in fields
        )
        assert f"| `{name}` | {row} |" in page, f"| `{name}` | {row} |"
