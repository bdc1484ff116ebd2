"""The manifest of a checkpoint: what it is of, and what its files must be, byte by byte.

Bytes, little-endian:

    offset  size  field
    0       8     magic     PHXCKPT1
    8       4     version   1; 2 with members that changed
    12      4     body      bytes of the body, at most BODY_BYTES_MAX
    16      ...   the body
    ...     32    digest    BLAKE2b-32 of everything before it

The body is a msgpack map with sorted keys, in the shortest encoding; a decoder takes no bytes that
an encoder would not write. Keys: docs/design/checkpoints.md, section 4.

A group whose members never changed has a manifest of version 1, byte by byte what it was before
members could; any other has one of version 2, which a phx that knows of no members refuses.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgpack

from phx._core.codec import crc32c
from phx.checkpoint.compression import CODECS, PLAIN
from phx.checkpoint.files import Files
from phx.errors import Damaged, Foreign
from phx.membership import Membership
from phx.types import GROUP_ID_MAX, MACHINE_ID_MAX, MEMBERS_MAX, NODE_ID_MAX

__all__ = [
    "DURABLE",
    "FILES_MAX",
    "MANIFEST",
    "MANIFEST_BYTES_MAX",
    "MEMORY",
    "FileEntry",
    "MachineEntry",
    "Manifest",
    "block_bytes_of",
    "decode",
    "encode",
    "folder_name",
    "members_of",
    "read_all",
    "read_manifest",
    "state_digest",
]

MANIFEST = "manifest"
MAGIC = b"PHXCKPT1"
VERSION, VERSION_MEMBERS = 1, 2
CONFIG_FIRST = 1  # version of the members that the configuration names
HEAD = struct.Struct("<8sII")
DIGEST_BYTES = 32
BODY_BYTES_MAX = 4 << 20
MANIFEST_BYTES_MAX = HEAD.size + BODY_BYTES_MAX + DIGEST_BYTES

MULTI_PAXOS = 1
MEMORY, DURABLE = 1, 2
FILES_MAX = 64
BLOCK_BYTES_MIN = 1 << 20
BLOCKS_MAX = 4096
BLOCK_DIGEST_BYTES = 16
STATE_DIGEST_BYTES = 16
U32_MAX, U64_MAX, I64_MAX = (1 << 32) - 1, (1 << 64) - 1, (1 << 63) - 1
FRONTIER_MAX = (1 << 62) - 1  # no driver takes a higher instance

TABLE = struct.Struct("<IIIIQIIQ")  # the head of a session table
TABLE_VERSION = 1
TABLE_ROWS_MAX = 64
TABLE_BYTES_MAX = 525_864

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

FILE_KEYS = {"blake2b", "block_bytes", "blocks", "bytes", "codec", "name", "raw_bytes"}
MACHINE_KEYS = {"digest", "file", "id", "kind"}
SHARED_KEYS = {
    "chain", "cluster", "config", "epoch", "files", "frontier", "group", "kind", "machines",
    "members", "sessions",
}  # fmt: skip
KEYS = SHARED_KEYS | {"content", "phx", "taken_by", "taken_us"}
MEMBERS_KEYS = {"floor", "roster", "since"}
KEYS_OF = {VERSION: KEYS, VERSION_MEMBERS: KEYS | MEMBERS_KEYS}


def block_bytes_of(size_bytes: int) -> int:
    """Into blocks of which size a file is divided: a power of two, so that they are few enough."""
    block = BLOCK_BYTES_MIN
    while size_bytes > block * BLOCKS_MAX:
        block *= 2
    return block


def state_digest(digest: bytes) -> bytes:
    """A machine's ``digest()``, of whatever length, as a manifest has it."""
    return blake2b(digest, digest_size=STATE_DIGEST_BYTES).digest() if digest else b""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a checkpoint.

    Attributes:
        name: in the checkpoint's folder; never a path.
        size_bytes: all of it, as it lies on the disk.
        digest: BLAKE2b-32 of all of that.
        blocks: BLAKE2b-16 of each block of ``block_bytes_of(size_bytes)``, one after the other.
        codec: one of `compression.CODECS`.
        raw_bytes: what a machine reads of it; default: all of it, as it is.
    """

    name: str
    size_bytes: int
    digest: bytes
    blocks: bytes
    codec: str = PLAIN
    raw_bytes: int = -1

    def __post_init__(self) -> None:
        if self.raw_bytes == -1:
            object.__setattr__(self, "raw_bytes", self.size_bytes)

    def block(self, number: int) -> bytes:
        """The digest of one block, counted from 0."""
        at = number * BLOCK_DIGEST_BYTES
        return self.blocks[at : at + BLOCK_DIGEST_BYTES]


@dataclass(frozen=True, slots=True)
class MachineEntry:
    """One machine of the group.

    Attributes:
        machine: its id.
        kind: MEMORY or DURABLE.
        file: index of the file that its snapshot is in; -1: the state is in the machine's own files
            (DURABLE only).
        digest: `state_digest` of its digest at the frontier; b"": it offers none that is cheap.
    """

    machine: int
    kind: int
    file: int
    digest: bytes = b""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint is of. Raises ValueError for what cannot be.

    Attributes:
        cluster, group: ids.
        frontier: K: it is the state of exactly the instances 1 .. K; at least 1.
        epoch: the highest ballot in which a value of an instance <= K was first packed.
        config, members: version of the configuration, and node ids, at K.
        membership: who they are by the log, from which instance on (at most K) and above which
            ballot; None: they never changed, and are those of the configuration.
        sessions: the session table as of K, in bytes.
        chain: the group's chained checksum over the instances <= K.
        machines: by ascending ids.
        files: those that lie beside the manifest.
        taken_by, taken_us, phx: node, wall clock time in microseconds, version of phx: for people.
        content: BLAKE2b-32 of all but those three, and the floor of the membership, of which two
            nodes may have been told differently. Equal on every node that wrote the same state.
    """

    cluster: int
    group: int
    frontier: int
    epoch: int
    config: int
    members: tuple[int, ...]
    sessions: bytes = field(repr=False)
    chain: int
    machines: tuple[MachineEntry, ...]
    files: tuple[FileEntry, ...]
    membership: Membership | None = None
    taken_by: int = 0
    taken_us: int = 0
    phx: str = ""
    content: bytes = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        shared = dict(sorted(_shared(self).items()))
        content = blake2b(_pack(shared), digest_size=DIGEST_BYTES).digest()
        object.__setattr__(self, "content", content)

    @property
    def ident(self) -> str:
        return self.content.hex()

    @property
    def changed_members(self) -> tuple[int, ...]:
        """Node ids, if they ever changed; (): those of the configuration."""
        return self.members if self.membership is not None else ()

    @property
    def light(self) -> bool:
        """The state of some machine is not in it, but in that machine's own files."""
        return any(machine.file < 0 for machine in self.machines)

    @property
    def size_bytes(self) -> int:
        """Of all files, without the manifest."""
        return sum(one.size_bytes for one in self.files)

    @property
    def raw_bytes(self) -> int:
        """What machines read of all files."""
        return sum(one.raw_bytes for one in self.files)


def folder_name(manifest: Manifest) -> str:
    """What the folder of a checkpoint is called, in that of its group."""
    return f"{manifest.frontier:020d}-{manifest.ident[:8]}"


def members_of(manifests: Iterable[Manifest]) -> dict[int, Membership]:
    """By group, of those whose members ever changed, who they are by these; one of each group."""
    return {one.group: one.membership for one in manifests if one.membership is not None}


# --- what is allowed


def _refuse_unless(good: bool, why: str) -> None:
    if not good:
        raise ValueError(why)


def _number(value: object, low: int, high: int, what: str) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} must be {low} .. {high}, not {value!r}")


def _bytes(value: object, sizes: tuple[int, ...], what: str) -> None:
    if type(value) is not bytes or len(value) not in sizes:
        raise ValueError(f"{what} must have {' or '.join(map(str, sizes))} bytes")


def _check(made: Manifest) -> None:
    _number(made.cluster, 0, U64_MAX, "cluster")
    _number(made.group, 0, GROUP_ID_MAX, "group")
    _number(made.frontier, 1, FRONTIER_MAX, "frontier")
    _number(made.epoch, 0, U64_MAX, "epoch")
    _number(made.config, 0, U64_MAX, "config")
    _number(made.chain, 0, U32_MAX, "chain")
    _number(made.taken_by, 0, NODE_ID_MAX, "taken_by")
    _number(made.taken_us, 0, U64_MAX, "taken_us")
    _refuse_unless(type(made.phx) is str and len(made.phx) <= 64, "phx must be a short text")
    _refuse_unless(1 <= len(made.members) <= MEMBERS_MAX, f"1 .. {MEMBERS_MAX} members")
    for node in made.members:
        _number(node, 1, NODE_ID_MAX, "a member")
    _refuse_unless(list(made.members) == sorted(set(made.members)), "members must ascend")
    _check_membership(made)
    _check_table(made)
    _refuse_unless(len(made.files) <= FILES_MAX, f"at most {FILES_MAX} files")
    for one in made.files:
        _check_file(one)
    names = [one.name for one in made.files]
    _refuse_unless(len(names) == len(set(names)), "the same name twice")
    _refuse_unless(made.size_bytes <= I64_MAX, "the sizes add up to too much")
    _refuse_unless(made.raw_bytes <= I64_MAX, "the raw sizes add up to too much")
    _check_machines(made)


def _check_membership(made: Manifest) -> None:
    told = made.membership
    if told is None:
        # Whoever took it for one without would go on under members that are none any more.
        _refuse_unless(made.config <= CONFIG_FIRST, f"without members of version {made.config}")
        return
    _refuse_unless(told.version == made.config, "its members are of another version")
    _refuse_unless(told.nodes == made.members, "its members are others")
    _refuse_unless(told.instance <= made.frontier, "its members changed above the frontier")
    _refuse_unless(not told.active, "active is not in a manifest")


def _check_file(one: FileEntry) -> None:
    _refuse_unless(type(one.name) is str and NAME.fullmatch(one.name) is not None, "a bad name")
    _refuse_unless(one.name != MANIFEST, f"a file may not be called {MANIFEST}")
    _number(one.size_bytes, 0, I64_MAX, "bytes")
    _bytes(one.digest, (DIGEST_BYTES,), "blake2b")
    blocks = -(-one.size_bytes // block_bytes_of(one.size_bytes))
    _bytes(one.blocks, (blocks * BLOCK_DIGEST_BYTES,), "blocks")
    _refuse_unless(type(one.codec) is str and one.codec in CODECS, f"codec {one.codec!r}")
    _number(one.raw_bytes, 0, I64_MAX, "raw_bytes")
    plain = one.codec == PLAIN
    _refuse_unless(not plain or one.raw_bytes == one.size_bytes, "raw_bytes of what is not packed")


def _check_machines(made: Manifest) -> None:
    _refuse_unless(1 <= len(made.machines) <= FILES_MAX, f"1 .. {FILES_MAX} machines")
    for one in made.machines:
        _number(one.machine, 0, MACHINE_ID_MAX, "a machine's id")
        _number(one.kind, MEMORY, DURABLE, "a machine's kind")
        low = -1 if one.kind == DURABLE else 0
        _number(one.file, low, len(made.files) - 1, "a machine's file")
        _bytes(one.digest, (0, STATE_DIGEST_BYTES), "a machine's digest")
    ids = [one.machine for one in made.machines]
    _refuse_unless(ids == sorted(set(ids)), "machines must ascend")
    used = sorted(one.file for one in made.machines if one.file >= 0)
    _refuse_unless(used == list(range(len(made.files))), "each file must be of one machine")


def _check_table(made: Manifest) -> None:
    """The session table must be of this group and frontier. Its rows are for the decoder to see."""
    table = made.sessions
    _refuse_unless(type(table) is bytes, "sessions must be bytes")
    _refuse_unless(TABLE.size <= len(table) <= TABLE_BYTES_MAX, "a session table of a bad size")
    crc, version, group, rows, following, chain, pad, epoch = TABLE.unpack_from(table)
    _refuse_unless(crc == crc32c(table[4:]), "the session table's checksum is wrong")
    _refuse_unless(version == TABLE_VERSION, f"a session table of version {version}")
    _refuse_unless(rows <= TABLE_ROWS_MAX and pad == 0, "a bad session table")
    _refuse_unless(group == made.group, f"a session table of group {group}")
    _refuse_unless(following == made.frontier + 1, f"a session table as of instance {following}")
    _refuse_unless(chain == made.chain, "the session table has another chain")
    _refuse_unless(epoch == made.epoch, "the session table has another epoch")


# --- bytes


def _pack(body: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return packed


def _shared(made: Manifest) -> dict[str, Any]:
    """What is the same on every node."""
    told = made.membership
    changed = {} if told is None else {"roster": told.roster, "since": told.instance}
    return changed | {
        "chain": made.chain,
        "cluster": made.cluster,
        "config": made.config,
        "epoch": made.epoch,
        "files": [
            {
                "blake2b": one.digest,
                "block_bytes": block_bytes_of(one.size_bytes),
                "blocks": one.blocks,
                "bytes": one.size_bytes,
                "codec": one.codec,
                "name": one.name,
                "raw_bytes": one.raw_bytes,
            }
            for one in made.files
        ],
        "frontier": made.frontier.to_bytes(8, "little"),
        "group": made.group,
        "kind": MULTI_PAXOS,
        "machines": [
            {"digest": one.digest, "file": one.file, "id": one.machine, "kind": one.kind}
            for one in made.machines
        ],
        "members": list(made.members),
        "sessions": made.sessions,
    }


def encode(manifest: Manifest) -> bytes:
    """The bytes of a manifest. ValueError if they would be too many."""
    body = _shared(manifest) | {
        "content": manifest.content,
        "phx": manifest.phx,
        "taken_by": manifest.taken_by,
        "taken_us": manifest.taken_us,
    }
    version = VERSION
    if manifest.membership is not None:
        version = VERSION_MEMBERS
        body["floor"] = manifest.membership.floor
    packed = _pack(dict(sorted(body.items())))
    _refuse_unless(len(packed) <= BODY_BYTES_MAX, "the manifest is too large")
    head = HEAD.pack(MAGIC, version, len(packed))
    return head + packed + blake2b(head + packed, digest_size=DIGEST_BYTES).digest()


def decode(data: bytes) -> Manifest:
    """A manifest from its bytes, all of them; they may come from anybody.

    Raises Damaged for what `encode` would not have written, Foreign for another format version.
    """
    if not HEAD.size + DIGEST_BYTES <= len(data) <= MANIFEST_BYTES_MAX or data[:8] != MAGIC:
        raise Damaged("not a manifest")
    if blake2b(data[:-DIGEST_BYTES], digest_size=DIGEST_BYTES).digest() != data[-DIGEST_BYTES:]:
        raise Damaged("the manifest's digest is wrong")
    _, version, body_bytes = HEAD.unpack_from(data)
    if version not in KEYS_OF:
        raise Foreign(
            f"the manifest has format version {version}; this is phx for {VERSION_MEMBERS}"
        )
    if HEAD.size + body_bytes + DIGEST_BYTES != len(data):
        raise Damaged("the manifest has another length than it says")
    try:
        manifest = _manifest_of(data[HEAD.size : -DIGEST_BYTES], KEYS_OF[version])
        canonical = encode(manifest) == data
    except (ValueError, TypeError) as error:
        raise Damaged(f"the manifest: {error}") from error
    if not canonical:
        raise Damaged("the manifest is not in the form that phx writes")
    return manifest


def _manifest_of(packed: bytes, keys: set[str]) -> Manifest:
    body = _map(
        msgpack.unpackb(
            packed,
            raw=False,
            strict_map_key=True,
            max_array_len=FILES_MAX,
            max_map_len=len(keys),
            max_ext_len=0,
        ),
        keys,
    )
    frontier = body["frontier"]
    _bytes(frontier, (8,), "frontier")
    return Manifest(
        cluster=body["cluster"],
        group=body["group"],
        frontier=int.from_bytes(frontier, "little"),
        epoch=body["epoch"],
        config=body["config"],
        members=tuple(_list(body["members"])),
        sessions=body["sessions"],
        chain=body["chain"],
        machines=tuple(
            MachineEntry(one["id"], one["kind"], one["file"], one["digest"])
            for one in (_map(each, MACHINE_KEYS) for each in _list(body["machines"]))
        ),
        files=tuple(_file_of(_map(each, FILE_KEYS)) for each in _list(body["files"])),
        membership=(
            Membership(body["roster"], body["since"], body["floor"]) if "roster" in body else None
        ),
        taken_by=body["taken_by"],
        taken_us=body["taken_us"],
        phx=body["phx"],
    )


def _file_of(one: dict[str, Any]) -> FileEntry:
    _number(one["raw_bytes"], 0, I64_MAX, "raw_bytes")
    return FileEntry(
        one["name"], one["bytes"], one["blake2b"], one["blocks"], one["codec"], one["raw_bytes"]
    )


def _map(value: object, keys: set[str]) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError("a map is missing")
    if value.keys() != keys:
        raise ValueError(f"unknown or missing keys: {sorted(value.keys() ^ keys)}")
    return value


def _list(value: object) -> list[Any]:
    if type(value) is not list:
        raise ValueError("a list is missing")
    return value


def read_all(files: Files, path: str, bytes_max: int) -> bytes:
    """A small file. Damaged if it is larger than that."""
    opened = files.read(path)
    try:
        found = bytearray()
        while len(found) <= bytes_max and (more := opened.read(bytes_max + 1 - len(found))):
            found += more
    finally:
        opened.close()
    if len(found) > bytes_max:
        raise Damaged(f"{path}: more than {bytes_max} bytes")
    return bytes(found)


def read_manifest(files: Files, folder: str) -> Manifest:
    """The manifest in the folder of a checkpoint. Raises Damaged, Foreign, OSError."""
    return decode(read_all(files, f"{folder}/{MANIFEST}", MANIFEST_BYTES_MAX))
