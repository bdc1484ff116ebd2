"""Where every settled instance is: (group, first instance) → (chunk, row), in memory.

Rebuilt at open from the packed indexes of the chunks alone. A group's settled instances are
consecutive, so a row needs no end: it reaches to the next row, the last one to settled_through.
A lookup is two binary searches. 24 bytes for each stretch of a group in a chunk.

What lies below a group's kept_from is forgotten: no row leads there, and every chunk counts what is
left in it. A chunk with nothing left is *dead*, one with less than a quarter *thin*.

What a transaction will add is *staged* first: `commit` after LMDB has committed, else `rollback`.
Not thread-safe by itself; the store holds a lock around every call.

The table of groups, one value beside the chunks, written with them (every word little-endian):

    0       4     crc         CRC-32C of everything after it
    4       4     version     1
    8       8     groups
    16      24 *  group u32, flags u32 (0), kept_from u64, settled_through u64, ascending groups
"""

from phx._core.native cimport *
from phx._core.chunk cimport ChunkView, ChunkWriter

cdef struct IndexRow:
    u64 first                # may lie below kept_from
    u64 bytes                # of entries and rows that are kept; of a part of it, a share by count
    u32 slot                 # of chunks
    u32 row                  # the first of the packed index that belongs to it

cdef struct IndexGroup:
    u32 group
    u64 kept_from            # lowest instance that is still here; settled_through + 1: none is
    u64 settled_through
    u64 staged_from          # the same two once what is staged is committed
    u64 staged_through
    vector[IndexRow] rows    # ascending

cdef struct IndexChunk:      # id 0: the slot is free
    u64 id
    u64 value_bytes
    u64 used_bytes           # entries and rows
    u64 entries
    u64 kept                 # of the entries
    u64 kept_bytes           # of used_bytes, about
    bint damaged             # it is neither merged nor joined, until it is mended

cdef struct StretchRow:      # a stretch of a group in a chunk, not yet in its group
    u32 group
    u32 slot
    u32 row
    u64 first
    u64 count
    u64 bytes                # of its entries and rows

cdef class ChunkIndex:
    cdef readonly bytes store_id
    cdef u8 sid[16]                         # the same bytes
    cdef vector[IndexGroup*] groups         # ascending
    cdef vector[IndexChunk] chunks
    cdef vector[u32] free_slots
    cdef vector[StretchRow] staged
    cdef vector[u32] staged_slots
    cdef vector[u32] dropped_slots          # of chunks that what is staged replaces
    cdef vector[u32] raised                 # groups with another staged_from
    cdef readonly u64 next_id

    cdef IndexGroup* lookup(self, u32 group) noexcept nogil
    cdef IndexGroup* obtain(self, u32 group) noexcept nogil
    cdef u32 slot_of(self, u64 id) noexcept nogil           # 0xFFFFFFFF: no such chunk
    # The chunk just written becomes staged; it takes next_id.
    cdef void stage(self, const ChunkWriter* w) noexcept nogil
    cdef void stage_drop(self, u32 slot) noexcept nogil
    cdef u32 take_slot(self, const IndexChunk* chunk) noexcept nogil
    cdef void put_row(self, const StretchRow* row) noexcept nogil
    cdef void forget_below(self, IndexGroup* g, u64 floor) noexcept nogil
    cdef void forget_staged(self) noexcept nogil
    cdef int read_groups(self, const u8* data, u64 count) noexcept nogil
