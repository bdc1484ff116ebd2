"""What the reference and design pages say in tables is what stands in the code."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from phx import config, errors, node
from phx.bench.row import Row
from phx.cli import demo, torture
from phx.cli.commands import phx as command
from phx.sim.acts import ACTS
from phx.sim.fleet import Failure, Result, as_json
from phx.sim.profiles import plan_of

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "phx" / "_core"
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8}

Fields = list[tuple[str, int]]


def table(document: str, heading: str | None = None) -> list[list[str]]:
    """Cells of every table row of a document, or of one of its sections."""
    text = (ROOT / document).read_text()
    if heading is not None:
        text = re.split(r"^## ", text.split(f"\n## {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    # A pipe inside code is written as \|.
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line] for line in lines]


def rows(document: str, heading: str | None = None) -> list[list[str]]:
    """Those rows whose first cell is `code`."""
    return [row for row in table(document, heading) if row[0].startswith("`")]


@pytest.mark.parametrize("section", ["Timing", "Limits", "Journal", "Durability", "Checkpoints"])
def test_configuration_reference_has_every_option_with_its_default_and_range(section: str) -> None:
    expected = []
    for one in dataclasses.fields(getattr(config, section)):
        if one.metadata.get("switch"):
            row = ["true" if one.default else "false", "true, false"]
        elif words := one.metadata.get("words"):
            row = [f'"{one.default}"', ", ".join(f'"{word}"' for word in words)]
        elif one.metadata.get("modes"):
            row = ["none", "a table"]
        else:
            row = [f"{one.default:,}", f"{one.metadata['low']:,} … {one.metadata['high']:,}"]
        expected.append([f"`{one.name}`", *row])
    assert [row[:3] for row in rows("docs/reference/config.md", section.lower())] == expected


def test_configuration_reference_has_every_option_of_the_node() -> None:
    named = {row[0].strip("`") for row in rows("docs/reference/config.md", "The node")}
    sections = {"timing", "limits", "journal", "checkpoints", "durability"}
    assert named == {one.name for one in dataclasses.fields(config.Config)} - sections


@pytest.mark.parametrize("outcome", ["Rejected", "Unknown"])
def test_errors_reference_has_every_error_under_what_it_means(outcome: str) -> None:
    root = getattr(errors, outcome)
    expected = {kind.__name__ for kind in errors.all_errors() if issubclass(kind, root)}
    named = {row[0].strip("`") for row in rows("docs/reference/errors.md", outcome)}
    assert named == expected - {outcome}


@pytest.mark.parametrize("name", sorted(command.commands))
def test_command_line_reference_has_every_option(name: str) -> None:
    assert isinstance(command.commands[name], click.Command)
    options = {
        option.opts[0]
        for option in command.commands[name].params
        if isinstance(option, click.Option) and option.opts[0] != "--version"
    }
    section = rows("docs/reference/cli.md", f"phx {name}")
    named = {row[0].strip("`").split()[0] for row in section if row[0].startswith("`--")}
    assert named == options


@pytest.mark.parametrize(
    ("section", "result"),
    [("phx demo", demo.Result), ("phx bench", Row), ("phx torture", torture.Result)],
)
def test_command_line_reference_has_every_field_of_the_json(section: str, result: type) -> None:
    listed = rows("docs/reference/cli.md", section)
    named = {word for row in listed for word in re.findall(r"`(\w+)`", row[0])}
    fields = {one.name for one in dataclasses.fields(result)}
    assert fields <= named
    assert {word for word in named if "-" not in word} <= fields | {"values_per_s"}


def test_command_line_reference_has_every_field_of_the_simulation() -> None:
    failure = Failure(plan_of(1), "U1", "planted", 7, 3)
    made = as_json(Result("default", 1, failed=[failure]), lambda one: "command")
    fields = set(made) | set(made["failed"][0])
    listed = [row for row in rows("docs/reference/cli.md", "phx sim") if "--" not in row[0]]
    named = {word for row in listed for word in re.findall(r"`(\w+)`", row[0])}
    named |= set(re.findall(r"`(\w+)`", next(row[1] for row in listed if row[0] == "`failed`")))
    assert named == fields


def test_simulation_page_has_every_act() -> None:
    named = {word for row in rows("docs/design/simulation.md", "Acts") for word in row[0].split()}
    assert named == {f"`{kind}`" for kind in ACTS}


def test_protocol_page_has_every_invariant_and_names_what_exists() -> None:
    page = table("docs/design/protocol.md", "The invariants, and where each is kept")
    listed = [row[0] for row in page if re.fullmatch(r"U\d+", row[0])]
    assert listed == [f"U{number}" for number in range(1, 16)]
    named = {path for row in page for path in re.findall(r"`(tests/[\w/.]+)`", row[3])}
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    checker = (ROOT / "tests/engine/engine_checks.py").read_text()
    for row in page:
        if "engine_checks" in row[3]:
            assert re.search(rf"\b{row[0]}\b", checker), row[0]


ROOMS = ("checkpoint", "durable", "machines", "node", "transfer")


def modules(package: str) -> set[str]:
    return {path.stem for path in (ROOT / "phx" / package).glob("*.py") if path.name[0] != "_"}


def test_architecture_has_a_room_for_every_module() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = text.split("\n## Rooms\n")[1].split("\n## ")[0]
    words = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`]+)`", rooms))))
    native = {path.stem for path in CORE.glob("*.pyx") if not path.stem.endswith("_door")}
    native |= {path.stem for path in CORE.glob("*.pxd") if not path.stem.endswith("_door")}
    python = {path.name for path in (ROOT / "phx").glob("*.py") if path.name[0] != "_"}
    native |= {path.stem for path in (ROOT / "phx" / "sim").glob("*.pyx")} - {"watch_door"}
    rooms_of = set().union(*map(modules, ROOMS))
    assert sorted((native | python | rooms_of) - words) == []


def test_the_node_names_each_of_its_modules() -> None:
    listed = re.findall(r"^    (\w+) +\w", node.__doc__ or "", re.MULTILINE)
    assert sorted(listed) == sorted(modules("node") | {"Node"})


# --- byte layouts


def structs(module: str) -> dict[str, Fields]:
    """(field, bytes) of every packed struct that a .pxd declares."""
    found: dict[str, Fields] = {}
    text = (CORE / f"{module}.pxd").read_text()
    for name, body in re.findall(r"cdef packed struct (\w+):[^\n]*\n((?: +.*\n|\n)+)", text):
        fields = re.findall(r"^ +(u\d+) (\w+)(?:\[(\d+)\])?", body, re.MULTILINE)
        found[name] = [(field, SIZES[kind] * int(many or 1)) for kind, field, many in fields]
    return found


def enum(module: str, prefix: str) -> dict[str, int]:
    """Names (without the prefix) and numbers of an enum's members."""
    text = (CORE / f"{module}.pxd").read_text()
    pattern = rf"^ +{prefix}(\w+) = (\d+)"
    return {name: int(number) for name, number in re.findall(pattern, text, re.MULTILINE)}


def layouts(document: str) -> list[Fields]:
    """Every table of offset, size and field, each checked to have no gap."""
    found: list[Fields] = []
    for row in table(document):
        if row[0] == "0" and row[1].isdigit():
            found.append([])
        if found and row[0].isdigit() and row[1].isdigit() and len(row) >= 3:
            assert int(row[0]) == sum(size for _, size in found[-1]), (document, row)
            found[-1].append((row[2], int(row[1])))
    return found


@pytest.mark.parametrize(
    ("document", "module", "struct"),
    [
        ("wire", "codec", "FrameHeader"),
        ("wire", "transport", "Hello"),
        ("wire", "wire", "MessageHeader"),
        ("wire", "batch", "BodyHeader"),
        ("wire", "batch", "RunHeader"),
        ("journal", "codec", "RecordHeader"),
        ("journal", "segment", "SegmentHeader"),
        ("store", "chunk", "ChunkFooter"),
    ],
)
def test_design_pages_have_the_byte_layouts_of_the_code(
    document: str, module: str, struct: str
) -> None:
    expected = [(name.rstrip("2"), size) for name, size in structs(module)[struct]]
    assert expected in layouts(f"docs/design/{document}.md")


def test_wire_page_has_every_message_with_its_fixed_part() -> None:
    bodies = structs("wire")
    listed = {row[1]: row for row in table("docs/design/wire.md", "Messages") if row[0].isdigit()}
    kinds = enum("wire", "MSG_")
    assert {name: int(row[0]) for name, row in listed.items() if name in kinds} == kinds
    for name in kinds:
        struct = "Chosen" if name == "CONFIRM" else name.title().replace("_", "")
        fields = re.findall(r"(\w+) \((\d+)[^)]*\)", listed[name][3].split("; then")[0])
        expected = bodies.get(f"{struct}Body", [])
        assert [(field, int(size)) for field, size in fields] == expected, name


def test_wire_page_has_the_lane_of_every_message() -> None:
    sent: dict[str, set[str]] = {}
    for path in CORE.glob("*.pyx"):
        pattern = r"(?:send|cast)\([^()]*?LANE_(\w+), MSG_(\w+)"
        for lane, name in re.findall(pattern, path.read_text()):
            sent.setdefault(name, set()).add(lane.lower())
    listed = {row[1]: row[2] for row in table("docs/design/wire.md", "Messages")}
    assert set(sent) == set(enum("wire", "MSG_"))
    assert {name: set(listed[name].split(" or ")) for name in sent} == sent


@pytest.mark.parametrize(
    ("document", "heading", "prefix"),
    [("journal", "Positions and records", "RECORD_")],
)
def test_journal_page_has_every_kind_of_record(document: str, heading: str, prefix: str) -> None:
    page = table(f"docs/design/{document}.md", heading)
    listed = {row[1]: int(row[0]) for row in page if row[0].isdigit() and row[1].isalpha()}
    kinds = enum("codec", prefix)
    kinds.pop("HEADER_BYTES")
    assert listed == kinds
