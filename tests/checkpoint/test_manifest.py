"""A manifest says all or nothing: what phx would not write is refused."""

import dataclasses
from hashlib import blake2b
from typing import Any

import msgpack
import pytest
from checkpoint_lab import CLUSTER, MIB, PACKED, membership, moved, table
from hypothesis import given, settings
from hypothesis import strategies as st

from phx.checkpoint import manifest as module
from phx.checkpoint.catalog import Hasher
from phx.checkpoint.manifest import (
    DURABLE,
    MEMORY,
    FileEntry,
    MachineEntry,
    Manifest,
    block_bytes_of,
    decode,
    encode,
    folder_name,
)
from phx.errors import Damaged, Foreign

HEAD = module.HEAD.size


def entry(name: str = "machine-0", data: bytes = b"abc") -> FileEntry:
    hasher = Hasher(block_bytes_of(len(data)))
    hasher.update(data)
    return hasher.entry(name)


def manifest(**changed: Any) -> Manifest:
    fields: dict[str, Any] = {
        "cluster": CLUSTER,
        "group": 7,
        "frontier": 4096,
        "epoch": 3 << 20,
        "config": 0,
        "members": (1, 2, 3),
        "sessions": table(),
        "chain": 0xABCD,
        "machines": (MachineEntry(0, MEMORY, 0), MachineEntry(9, DURABLE, -1, bytes(16))),
        "files": (entry(),),
        "taken_by": 2,
        "taken_us": 1_700_000_000_000_000,
        "phx": "0.1.0",
    }
    return Manifest(**fields | changed)


def sealed(body: bytes, version: int = 1) -> bytes:
    """Whatever body, with a head and a digest that are right."""
    head = module.HEAD.pack(module.MAGIC, version, len(body))
    return head + body + blake2b(head + body, digest_size=32).digest()


def body_of(made: Manifest) -> dict[str, Any]:
    return dict(msgpack.unpackb(encode(made)[HEAD:-32], raw=False))


def test_what_is_encoded_is_decoded() -> None:
    one = manifest()
    assert decode(encode(one)) == one
    assert one.light
    assert one.size_bytes == 3
    assert folder_name(one) == f"{4096:020d}-{one.content.hex()[:8]}"


def test_the_ident_is_of_the_state_and_not_of_who_wrote_it_down() -> None:
    one = manifest()
    assert manifest(taken_by=3, taken_us=5, phx="9").content == one.content
    assert manifest(members=(1, 2)).content != one.content
    assert manifest(files=(entry(data=b"abd"),)).content != one.content


@given(
    frontier=st.integers(1, (1 << 62) - 1),
    group=st.integers(0, (1 << 20) - 1),
    chain=st.integers(0, (1 << 32) - 1),
    epoch=st.integers(0, (1 << 64) - 1),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    members=st.sets(st.integers(1, (1 << 20) - 1), min_size=1, max_size=15),
)
def test_round_trip(
    frontier: int, group: int, chain: int, epoch: int, sizes: list[int], members: set[int]
) -> None:
    one = manifest(
        frontier=frontier,
        group=group,
        chain=chain,
        epoch=epoch,
        sessions=table(group, frontier, chain, epoch),
        members=tuple(sorted(members)),
        files=tuple(entry(f"f{at}", bytes(size)) for at, size in enumerate(sizes)),
        machines=tuple(MachineEntry(at * 3, MEMORY, at) for at in range(len(sizes))),
    )
    packed = encode(one)
    assert decode(packed) == one
    assert encode(decode(packed)) == packed


def test_each_flipped_bit_is_found() -> None:
    packed = encode(manifest())
    for bit in range(len(packed) * 8):
        spoilt = bytearray(packed)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            decode(bytes(spoilt))


def test_each_shortened_or_lengthened_one_is_found() -> None:
    packed = encode(manifest())
    for size in range(len(packed)):
        with pytest.raises(Damaged):
            decode(packed[:size])
    with pytest.raises(Damaged):
        decode(packed + b"\0")


def test_another_format_version_is_foreign_and_not_damaged() -> None:
    with pytest.raises(Foreign, match="version 3"):
        decode(sealed(b"whatever it will be", version=3))


# --- members that changed


def test_members_that_changed_are_in_it_with_where_and_above_which_ballot() -> None:
    told = membership()
    one = manifest(**moved(told))
    packed = encode(one)
    assert decode(packed) == one
    assert decode(packed).membership == told
    assert one.changed_members == (1, 4, 5)
    assert int.from_bytes(packed[8:12], "little") == 2
    body = body_of(one)
    assert body["roster"] == told.roster
    assert (body["config"], body["members"]) == (3, [1, 4, 5])
    assert (body["since"], body["floor"]) == (told.instance, told.floor)


def test_a_group_whose_members_never_changed_has_the_manifest_that_it_always_had() -> None:
    """Its bytes, and so its ident, are what a phx without membership wrote and reads."""
    one = manifest(config=1)
    packed = encode(one)
    assert int.from_bytes(packed[8:12], "little") == 1
    assert set(body_of(one)) == module.KEYS
    assert len(module.KEYS) == 15
    assert one.changed_members == ()


def test_the_ident_is_of_the_members_but_not_of_who_counted_them_when() -> None:
    told = membership()
    one = manifest(**moved(told))
    assert one.content != manifest().content
    assert manifest(**moved(membership(floor=told.floor + 1))).content == one.content
    assert manifest(**moved(membership(instance=3999))).content != one.content
    assert manifest(**moved(membership(version=4))).content != one.content


def test_each_flipped_bit_of_one_with_members_is_found() -> None:
    packed = encode(manifest(**moved(membership())))
    for bit in range(len(packed) * 8):
        spoilt = bytearray(packed)
        spoilt[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged):
            decode(bytes(spoilt))


@pytest.mark.parametrize(
    ("version", "changes"),
    [
        (1, {"config": 2}),  # members that changed, and none of them are there
        (1, {"roster": membership().roster, "since": 4000, "floor": PACKED}),
        (2, {}),
        (2, {"roster": b"", "since": 0, "floor": 0}),
        (2, {"config": 3, "members": [1, 4, 5], "roster": membership().roster, "since": 4000}),
    ],
)
def test_a_format_version_with_the_keys_of_another_is_damaged(
    version: int, changes: dict[str, Any]
) -> None:
    body = dict(sorted((body_of(manifest()) | changes).items()))
    with pytest.raises(Damaged):
        decode(sealed(msgpack.packb(body, use_bin_type=True), version))


BAD_MEMBERS: list[dict[str, Any]] = [
    {"config": 2},  # a manifest that forgot them
    {"config": 1 << 40},
    moved(membership()) | {"config": 4},
    moved(membership()) | {"config": 1},
    moved(membership()) | {"members": (1, 2, 3)},
    moved(membership()) | {"members": (1, 4)},
    moved(membership(instance=4097)),  # above the frontier: these do not hold there yet
    moved(membership(active=True)),
]


@pytest.mark.parametrize("changed", BAD_MEMBERS, ids=range(len(BAD_MEMBERS)))
def test_members_that_cannot_be_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        manifest(**changed)


BAD_FIELDS: list[tuple[str, Any]] = [
    ("cluster", -1),
    ("cluster", True),
    ("cluster", 1.0),
    ("cluster", "x"),
    ("group", 1 << 20),
    ("frontier", 0),
    ("frontier", 1 << 62),
    ("epoch", None),
    ("config", 1 << 64),
    ("members", ()),
    ("members", tuple(range(1, 17))),
    ("members", (0,)),
    ("members", (2, 1)),
    ("members", (1, 1)),
    ("sessions", b""),
    ("sessions", table(group=8)),
    ("sessions", table(frontier=4095)),
    ("sessions", table(frontier=4097)),
    ("sessions", table(chain=1)),
    ("sessions", table(epoch=1)),
    ("sessions", table(rows=65)),
    ("sessions", table()[:-1]),
    ("sessions", b"\0" + table()[1:]),
    ("sessions", table() + bytes(525_864)),
    ("sessions", "text" * 20),
    ("chain", 1 << 32),
    ("machines", ()),
    ("machines", (MachineEntry(0, MEMORY, -1),)),
    ("machines", (MachineEntry(0, MEMORY, 1),)),
    ("machines", (MachineEntry(0, 3, 0),)),
    ("machines", (MachineEntry(-1, MEMORY, 0),)),
    ("machines", (MachineEntry(1 << 16, MEMORY, 0),)),
    ("machines", (MachineEntry(0, MEMORY, 0, b"short"),)),
    ("machines", (MachineEntry(1, MEMORY, 0), MachineEntry(0, DURABLE, -1))),
    ("machines", (MachineEntry(1, MEMORY, 0), MachineEntry(1, DURABLE, -1))),
    ("machines", (MachineEntry(1, MEMORY, 0), MachineEntry(2, MEMORY, 0))),
    ("machines", (MachineEntry(1, DURABLE, -1),)),
    ("files", (entry(), entry("machine-1"))),
    ("files", (entry(), entry())),
    ("files", (FileEntry("a", 3, bytes(31), bytes(16)),)),
    ("files", (FileEntry("a", 3, bytes(32), bytes(32)),)),
    ("files", (FileEntry("a", 3, bytes(32), b""),)),
    ("files", (FileEntry("a", -1, bytes(32), b""),)),
    ("files", (FileEntry("a", 3, bytes(32), bytes(16), "zstd", -2),)),
    ("files", (FileEntry("a", 3, bytes(32), bytes(16), "", 4),)),
    ("files", (FileEntry("a", 3, bytes(32), bytes(16), "lz4", 3),)),
    ("files", (FileEntry("a", 1 << 63, bytes(32), bytes(16)),)),
    ("taken_by", 1 << 20),
    ("taken_us", -1),
    ("phx", "x" * 65),
    ("phx", b"x"),
]


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=range(len(BAD_FIELDS)))
def test_a_field_that_cannot_be_is_refused(name: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        manifest(**{name: value})


PATHS = [
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b/", "-a", ".a", "a\0", "a\n", "ä", "A",
    "x" * 65, "manifest", "c:x", "a b", "~",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS, ids=repr)
def test_a_name_that_is_a_path_or_could_become_one_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        manifest(files=(FileEntry(name, 3, entry().digest, entry().blocks),))
    body = body_of(manifest())
    body["files"][0]["name"] = name
    with pytest.raises(Damaged):
        decode(sealed(msgpack.packb(body)))


def hostile_bodies() -> list[tuple[str, bytes]]:
    """Digests are right; what they are of would not have been written."""
    good = body_of(manifest())
    pack = msgpack.packb

    def changed(**fields: Any) -> bytes:
        return bytes(pack(dict(sorted((good | fields).items()))))

    file, machine = good["files"][0], good["machines"][0]
    return [
        ("empty", b""),
        ("a list", pack([1])),
        ("two objects", pack(good) + pack(1)),
        ("cut short", pack(good)[:-1]),
        ("a map that claims 4 billion entries", b"\xdf\xff\xff\xff\xff"),
        ("nested arrays that claim much", b"\xdd\xff\xff\xff\xff" * 2000),
        ("nested too deep", b"\x91" * 100_000),
        ("unsorted", pack(dict(reversed(good.items())))),
        ("unknown key", changed(zzz=1)),
        ("missing key", pack({k: v for k, v in good.items() if k != "phx"})),
        ("number keys", pack({1: 2})),
        ("a key twice", b"\x82" + pack("chain") + b"\1" + pack("chain") + b"\1"),
        ("a number too long", pack(good).replace(b"\xa6config\0", b"\xa6config\xcc\0")),
        ("content of something else", changed(content=bytes(32))),
        ("text for content", changed(content="x" * 32)),
        ("frontier of nine bytes", changed(frontier=bytes(9))),
        ("frontier as a number", changed(frontier=4096)),
        ("other kind", changed(kind=2)),
        ("true for 1", changed(kind=True)),
        ("timestamp", changed(taken_us=msgpack.Timestamp(1))),
        ("extension", changed(taken_us=msgpack.ExtType(4, b""))),
        ("bad text", pack(good).replace(pack("0.1.0"), b"\xa5\xff\xff\xff\xff\xff")),
        ("members as a map", changed(members={1: 2})),
        ("files as text", changed(files="ab")),
        ("65 files", changed(files=[file] * 65)),
        ("a file of numbers", changed(files=[1])),
        ("codec", changed(files=[file | {"codec": "lz4"}])),
        ("codec as a number", changed(files=[file | {"codec": 1}])),
        ("raw size below 0", changed(files=[file | {"codec": "zstd", "raw_bytes": -1}])),
        ("raw size too large", changed(files=[file | {"codec": "zstd", "raw_bytes": 1 << 63}])),
        ("other raw size", changed(files=[file | {"raw_bytes": 4}])),
        ("other blocks", changed(files=[file | {"block_bytes": 4096}])),
        ("no blocks", changed(files=[file | {"block_bytes": 0}])),
        ("half a block", changed(files=[file | {"block_bytes": MIB // 2}])),
        ("size as a float", changed(files=[file | {"bytes": 3.0}])),
        ("unknown key in a file", changed(files=[file | {"path": "/"}])),
        ("unknown key in a machine", changed(machines=[machine | {"x": 1}, good["machines"][1]])),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "body", [body for _, body in hostile_bodies()], ids=[name for name, _ in hostile_bodies()]
)
def test_a_hostile_body_is_refused(body: bytes) -> None:
    assert body != encode(manifest())[HEAD:-32]
    with pytest.raises(Damaged):
        decode(sealed(body))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_decoded(body: bytes) -> None:
    for data in (body, sealed(body)):
        with pytest.raises((Damaged, Foreign)):
            decode(data)


@settings(max_examples=300)
@given(st.data())
def test_a_changed_body_under_a_right_digest_is_refused_or_canonical(data: st.DataObject) -> None:
    body = bytearray(encode(manifest())[HEAD:-32])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        made = decode(sealed(bytes(body)))
    except Damaged:
        return
    assert encode(made) == sealed(bytes(body))


def test_files_are_divided_into_few_blocks() -> None:
    assert block_bytes_of(0) == block_bytes_of(1) == block_bytes_of(4096 * MIB) == MIB
    assert block_bytes_of(4096 * MIB + 1) == 2 * MIB
    assert block_bytes_of((1 << 63) - 1) == 1 << 51


def test_a_manifest_that_would_be_too_large_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    one = manifest()
    monkeypatch.setattr(module, "BODY_BYTES_MAX", len(encode(one)) - HEAD - 32 - 1)
    with pytest.raises(ValueError, match="too large"):
        encode(one)


def test_fields_of_a_manifest_are_those_that_the_design_lists() -> None:
    fields = {one.name for one in dataclasses.fields(Manifest)}
    assert (fields - {"membership"}) | {"kind"} == module.KEYS
    assert {"roster", "since", "floor"} == module.MEMBERS_KEYS
