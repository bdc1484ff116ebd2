"""Figures of the store."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SettleStats", "StoreStats"]


@dataclass(frozen=True, slots=True)
class SettleStats:
    """What one `settle` did.

    Attributes:
        entries, entry_bytes: settled now; bytes of their bodies.
        skipped: entries of the plan that were in the store already.
        chunks, value_bytes: written; bytes of the chunks.
        commits: synced transactions.
        read_bytes: of the journal, in ``reads`` pieces.
        seconds: the whole call.
    """

    entries: int
    entry_bytes: int
    skipped: int
    chunks: int
    value_bytes: int
    commits: int
    read_bytes: int
    reads: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StoreStats:
    """The store at this moment.

    Attributes:
        groups, entries: settled; entries that are kept.
        chunks, value_bytes, used_bytes: of all chunks; used is what entries and indexes take.
        kept_bytes: of the used ones, about.
        small_chunks: of the two smaller size classes; `merge` works them off.
        dead_chunks: of which nothing is kept; `trim` removes them.
        index_rows: of the index in memory, 24 bytes each.
        file_bytes, map_bytes: of LMDB's file as used, and its map.
        commits, settled_entries, settled_bytes, merges, trims, reads: since the store was opened.
        failed: why it cannot be written any more; None: it can.
    """

    groups: int
    entries: int
    chunks: int
    value_bytes: int
    used_bytes: int
    kept_bytes: int
    small_chunks: int
    dead_chunks: int
    index_rows: int
    file_bytes: int
    map_bytes: int
    commits: int
    settled_entries: int
    settled_bytes: int
    merges: int
    trims: int
    reads: int
    failed: str | None
