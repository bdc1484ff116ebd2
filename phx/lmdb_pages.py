"""The pages of an LMDB file, checked without LMDB.

LMDB checksums nothing and believes its pages: a flipped bit in one of them may be a wrong answer
or a crash of the process. So whoever has reason to doubt a file looks at its pages first. What is
checked: both meta pages; every page of every tree, that it says what it must, lies in the file and
has its keys in order and within the bounds that the page above states; the counts that LMDB keeps;
and that no page is used twice or both used and free. What values hold is not known here.

Format (0.9, little-endian, 64-bit), as far as it is looked at:

    page      pgno u64, pad u16, flags u16, then lower u16 and upper u16, or pages u32; 16 bytes
    meta      at 16: magic u32, version u32, address u64, mapsize u64, two trees, last u64, txn u64
    tree      pad u32, flags u16, depth u16, branches u64, leaves u64, overflows u64, entries u64,
              root u64; 48 bytes; the first one of a meta holds what is free, the second the names
    node      low u16, high u16, flags u16, key bytes u16, key, data; data bytes: low + high << 16;
              in a branch low, high and flags together are the page below
    free      key: transaction u64; data: count u64, then so many page numbers
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

__all__ = ["page_findings"]

MAGIC = 0xBEEFC0DE
VERSION = 1
PAGE_BYTES_MAX = 1 << 16
HEADER = struct.Struct("<QHHHH")
META = struct.Struct("<IIQQ")
TREE = struct.Struct("<IHHQQQQQ")
ENDS = struct.Struct("<QQ")
NODE = struct.Struct("<HHHH")
WORD = struct.Struct("<Q")
COUNT = struct.Struct("<I")
META_AT = HEADER.size
TREES_AT = META_AT + META.size
ENDS_AT = TREES_AT + 2 * TREE.size

BRANCH, LEAF, OVERFLOW, META_PAGE, LEAF2, SUBPAGE = 1, 2, 4, 8, 0x20, 0x40
BIG, SUBTREE, DUPLICATES = 1, 2, 4  # of nodes
UNORDERED = 0x02 | 0x08 | 0x20 | 0x40  # reversed and integer keys, and such values
MANY = 0x04  # values of a key may be many
NO_ROOT = (1 << 64) - 1
DEPTH_MAX = 32  # as LMDB's cursors
PAGES_AT = 12  # in the header of a large value
FREE = 2
FINDINGS_MAX = 100


class Tree(NamedTuple):
    """A tree as LMDB describes it."""

    pad: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int


class Odd(Exception):
    """A page that cannot be gone on from."""


class Value(NamedTuple):
    """A key, the flags of its node, and where in the file its data lies."""

    key: bytes
    flags: int
    at: int
    size: int


class Seen:
    """Counts of one tree while it is walked."""

    def __init__(self) -> None:
        self.branches = self.leaves = self.overflows = self.entries = 0


class Pages:
    """The pages of one file, and what each of them was found to be used for."""

    def __init__(self, data: mmap.mmap, page_bytes: int, last: int) -> None:
        self.data = data
        self.page_bytes = page_bytes
        self.last = last
        self.used = bytearray(last + 1)
        self.findings: list[str] = []

    def note(self, what: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(what)

    def take(self, page: int, count: int = 1) -> None:
        if not 2 <= page <= self.last or page + count - 1 > self.last:
            raise Odd(f"page {page} is not one of the file's {self.last + 1}")
        taken = self.used[page : page + count].translate(None, b"\0")
        if taken:
            # To go on there might be for ever.
            raise Odd(f"a page of {page} to {page + count - 1} is used twice")
        self.used[page : page + count] = b"\1" * count

    def header(self, page: int) -> tuple[int, int, int]:
        """(flags, lower, upper) of a page that says who it is."""
        number, _, flags, lower, upper = HEADER.unpack_from(self.data, page * self.page_bytes)
        if number != page:
            raise Odd(f"page {page} says that it is page {number}")
        return flags, lower, upper

    # --- trees

    def walk(self, name: str, tree: Tree) -> Iterator[Value]:
        """Every value of a tree, in its order; then its counts are compared."""
        seen = Seen()
        if tree.root != NO_ROOT:
            ordered = not tree.flags & UNORDERED
            yield from self.below(tree, tree.root, 1, b"", None, ordered, seen)
        # LMDB counts pages of a key's many values in part.
        counted = (
            ("entries",) if tree.flags & MANY else ("branches", "leaves", "overflows", "entries")
        )
        for what in counted:
            if getattr(seen, what) != getattr(tree, what):
                self.note(f"{name}: {getattr(seen, what)} {what} instead of {getattr(tree, what)}")

    def below(
        self,
        tree: Tree,
        page: int,
        depth: int,
        low: bytes,
        high: bytes | None,
        ordered: bool,
        seen: Seen,
    ) -> Iterator[Value]:
        """A page and all below it; keys must be low or above, and below high (None: no bound)."""
        try:
            self.take(page)
            flags, lower, upper = self.header(page)
            wanted = LEAF if depth == tree.depth else BRANCH
            if flags & (BRANCH | LEAF | OVERFLOW | META_PAGE) != wanted or depth > DEPTH_MAX:
                raise Odd(f"page {page} has flags {flags:#x} at depth {depth} of {tree.depth}")
            if flags & LEAF2:
                seen.leaves += 1
                seen.entries += (lower - HEADER.size) // 2
                return
            nodes = self.nodes(page, lower, upper)
            self.check_order(page, nodes, wanted, low, high, ordered)
        except Odd as odd:
            self.note(str(odd))
            return
        if wanted == LEAF:
            seen.leaves += 1
            for at, key, node_flags, size in nodes:
                yield from self.leaf(at, key, node_flags, size, seen)
            return
        seen.branches += 1
        for number, (at, key, _, _) in enumerate(nodes):
            child = int.from_bytes(self.data[at : at + 6], "little")
            first = key if number else low
            last = nodes[number + 1][1] if number + 1 < len(nodes) else high
            yield from self.below(tree, child, depth + 1, first, last, ordered, seen)

    def nodes(self, page: int, lower: int, upper: int) -> list[tuple[int, bytes, int, int]]:
        """(place in the file, key, flags, data bytes) of every node of a page."""
        count = (lower - HEADER.size) // 2
        if lower % 2 or count < 1 or not lower <= upper <= self.page_bytes:
            raise Odd(f"page {page} has impossible bounds {lower} and {upper}")
        start = page * self.page_bytes
        branch = self.header(page)[0] & BRANCH
        found = []
        taken = 0
        for offset in struct.unpack_from(f"<{count}H", self.data, start + HEADER.size):
            if not upper <= offset <= self.page_bytes - NODE.size or offset % 2:
                raise Odd(f"page {page} has a node at {offset}")
            small, large, flags, key_bytes = NODE.unpack_from(self.data, start + offset)
            size = 0 if branch else small | large << 16
            inside = 8 if flags & BIG and not branch else size
            end = offset + NODE.size + key_bytes + inside
            if end > self.page_bytes:
                raise Odd(f"page {page} has a node that ends beyond it")
            taken += end - offset + (end - offset) % 2
            at = start + offset + NODE.size
            key = bytes(self.data[at : at + key_bytes])
            found.append((start + offset, key, 0 if branch else flags, size))
        if taken != self.page_bytes - upper:
            raise Odd(f"page {page} has nodes of {taken} bytes in {self.page_bytes - upper}")
        return found

    def check_order(
        self,
        page: int,
        nodes: list[tuple[int, bytes, int, int]],
        kind: int,
        low: bytes,
        high: bytes | None,
        ordered: bool,
    ) -> None:
        if not ordered:
            return
        keys = [key for _, key, _, _ in nodes]
        if kind == BRANCH:
            keys = keys[1:]  # the first stands for everything below the second
        if any(before >= after for before, after in pairwise(keys)):
            raise Odd(f"page {page} has keys out of order")
        if keys and (keys[0] < low or (high is not None and keys[-1] >= high)):
            raise Odd(f"page {page} has keys that belong elsewhere")

    def leaf(self, at: int, key: bytes, flags: int, size: int, seen: Seen) -> Iterator[Value]:
        place = at + NODE.size + len(key)
        if flags & ~(BIG | SUBTREE | DUPLICATES) or (flags & BIG and flags & SUBTREE):
            self.note(f"page {at // self.page_bytes} has a node with flags {flags:#x}")
            return
        seen.entries += 1
        if flags & BIG:
            (page,) = WORD.unpack_from(self.data, place)
            try:
                seen.overflows += self.take_large(page, size)
            except Odd as odd:
                self.note(str(odd))
                return
            place = page * self.page_bytes + HEADER.size
        elif flags & DUPLICATES:
            seen.entries += self.duplicates(Value(key, flags, place, size)) - 1
        yield Value(key, flags, place, size)

    def take_large(self, page: int, size: int) -> int:
        """The pages of a value that has some of its own."""
        needed = (HEADER.size - 1 + size) // self.page_bytes + 1
        self.take(page)
        flags, _, _ = self.header(page)
        (pages,) = COUNT.unpack_from(self.data, page * self.page_bytes + PAGES_AT)
        # More than needed: a shorter value took the place of a longer one.
        if flags & (BRANCH | LEAF | OVERFLOW | META_PAGE) != OVERFLOW or pages < needed:
            raise Odd(f"page {page} does not begin a value of {needed} pages")
        if pages > 1:
            self.take(page + 1, pages - 1)
        return int(pages)

    def content(self, value: Value) -> bytes:
        return bytes(self.data[value.at : value.at + value.size])

    def tree(self, value: Value) -> Tree | None:
        if value.size == TREE.size:
            return Tree(*TREE.unpack_from(self.data, value.at))
        self.note(f"page {value.at // self.page_bytes} describes a tree in {value.size} bytes")
        return None

    def duplicates(self, value: Value) -> int:
        """How many values one key has, in a page inside its node or in a tree of their own."""
        page = value.at // self.page_bytes
        if value.flags & SUBTREE:
            tree = self.tree(value)
            if tree is None:
                return 1
            for _ in self.walk(f"the values of a key in page {page}", tree):
                pass
            return tree.entries
        if value.size < HEADER.size:
            self.note(f"page {page} has a node without the page that should be in it")
            return 1
        _, _, flags, lower, _ = HEADER.unpack_from(self.data, value.at)
        if not flags & SUBPAGE or not HEADER.size < lower <= value.size:
            self.note(f"page {page} has a node without the page that should be in it")
            return 1
        return int(lower - HEADER.size) // 2

    # --- what is free

    def free(self, tree: Tree) -> None:
        for value in self.walk("the list of free pages", tree):
            data = self.content(value)
            if len(value.key) != 8 or not data or len(data) != 8 + 8 * WORD.unpack_from(data)[0]:
                self.note("the list of free pages has an entry of an impossible size")
                continue
            for (page,) in WORD.iter_unpack(data[8:]):
                if not 2 <= page <= self.last:
                    self.note(f"the list of free pages names page {page}")
                elif self.used[page] == FREE:
                    self.note(f"page {page} is free twice")
                elif self.used[page]:
                    self.note(f"page {page} is used and free")
                self.used[page] = FREE


def page_findings(path: Path) -> list[str]:
    """Everything that is wrong with the pages of ``data.mdb``, a line each; [] if nothing is.

    The file is only read, and LMDB is not asked. Raises OSError if it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(0, 2)
        if file.tell() < 2 * META_AT:
            return [f"{file.tell()} bytes: not even two pages"]
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return findings_of(data)


def findings_of(data: mmap.mmap) -> list[str]:
    metas: list[tuple[int, int, list[Tree]]] = []
    wrong: list[str] = []
    page_bytes = 0
    for number in (0, 1):
        at = number * page_bytes
        if at + ENDS_AT + ENDS.size > len(data):
            return [*wrong, f"{len(data)} bytes: not even two pages"]
        page, _, flags, _, _ = HEADER.unpack_from(data, at)
        magic, version, _, map_bytes = META.unpack_from(data, at + META_AT)
        trees = [Tree(*TREE.unpack_from(data, at + TREES_AT + TREE.size * n)) for n in (0, 1)]
        last, txn = ENDS.unpack_from(data, at + ENDS_AT)
        if number == 0:
            page_bytes = trees[0].pad
            if page_bytes & (page_bytes - 1) or not 512 <= page_bytes <= PAGE_BYTES_MAX:
                return [f"meta page 0 states a page size of {page_bytes} bytes"]
        if (page, flags, magic, version, trees[0].pad) != (
            number, META_PAGE, MAGIC, VERSION, page_bytes,
        ):  # fmt: skip
            wrong.append(f"meta page {number} is damaged")
        elif txn and txn & 1 != number:
            wrong.append(f"meta page {number} is of transaction {txn}, which is the other one's")
        elif last < 1 or (last + 1) * page_bytes > map_bytes:
            wrong.append(f"meta page {number} names page {last} in a map of {map_bytes} bytes")
        metas.append((txn, last, trees))
    if wrong:
        return wrong
    older, (txn, last, trees) = sorted(metas, key=lambda meta: meta[0])
    if txn - older[0] > 1:
        return [f"meta pages are of transactions {older[0]} and {txn}"]
    if (txn or last > 1) and (last + 1) * page_bytes > len(data):
        return [f"{len(data)} of {(last + 1) * page_bytes} bytes"]
    pages = Pages(data, page_bytes, last)
    try:
        walk_trees(pages, trees)
    except (struct.error, IndexError) as error:
        pages.note(f"a page ends too early: {error}")
    except RecursionError:
        pages.note("trees lie in trees, deeper than LMDB makes them")
    return pages.findings


def walk_trees(pages: Pages, trees: list[Tree]) -> None:
    tables = [
        value
        for value in pages.walk("the table of tables", trees[1])
        if value.flags & SUBTREE and not value.flags & DUPLICATES
    ]
    for value in tables:
        tree = pages.tree(value)
        if tree is not None:
            name = value.key.decode("ascii", "replace")
            for _ in pages.walk(f"table {name}", tree):
                pass
    pages.free(trees[0])
    unused = pages.used.count(0, 2)
    if unused:
        pages.note(f"{unused} pages are neither used nor free")
