"""From a settle plan to chunks, and from small or thin chunks to others. GIL released throughout.

A plan lists entries by (group, instance) that lie in the journal in the order in which they were
written. A *pass* is as much of the journal as fits in pass_bytes: it is read in a few large reads,
its entries are picked out of memory in the order of the plan, and the chunks built from them. Which
entries a pass takes is decided by the highest position of any entry of the group up to that one, so
that every pass carries every group on without a gap, whatever the order of positions.

An entry whose record cannot be read may be *given*: its body is had from elsewhere, and looked at
only then.

Values that change the members of a group are named with the chunk that they go into: who passes one
has to know the members (phx/store_members.py).
"""

from phx._core.chunk cimport ChunkView, ChunkWriter
from phx._core.chunk_index cimport ChunkIndex
from phx._core.journal cimport Journal
from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx._core.plan cimport SettlePlan
from phx._core.state cimport SettleItem

cdef enum SettleVerdict:
    SETTLE_OK = 0
    SETTLE_DONE = 1          # nothing is left of the plan
    SETTLE_GAP = 2           # the plan leaves an instance out, or is not in order
    SETTLE_UNREADABLE = 3    # the journal could not give the record; `journal_error` says why
    SETTLE_OTHER = 4         # another record stands there

cdef struct Picked:
    u32 item                 # of the plan
    u32 bytes
    const RecordHeader* record

cdef struct Given:
    u32 group
    u64 instance
    Block* record            # whole, as it would stand in the journal

cdef struct Stretch:         # of the journal, in memory
    u64 lsn
    Block* block

cdef class Settler:
    cdef ChunkIndex index
    cdef SettlePlan plan              # keeps the items and the journal alive
    cdef const SettleItem* items
    cdef size_t n_items
    cdef Journal* journal
    cdef u64 pass_bytes
    cdef vector[u64] reach            # of each item: decides its pass; REACH_SKIP once it is done
    cdef vector[Stretch] stretches    # of this pass, ascending
    cdef vector[Block*] singles       # records read one by one
    cdef vector[Picked] picked        # of this pass, in order of the plan
    cdef vector[Given] given
    cdef vector[size_t] rosters       # of picked: the membership values of the chunk built last
    cdef size_t at                    # next of picked
    cdef u64 left_bytes               # entries and rows that picked[at:] will take, at most
    cdef ChunkWriter writer
    cdef u8* room
    cdef u64 room_bytes
    cdef int journal_error
    cdef size_t bad_item
    cdef readonly u64 skipped         # items that were settled already
    cdef readonly u64 entries
    cdef readonly u64 entry_bytes     # of their bodies
    cdef readonly u64 read_bytes      # of the journal
    cdef readonly u64 reads           # in so many pieces

    cdef int check(self, int verdict) except -1
    cdef int weigh(self) noexcept nogil
    cdef int next_pass(self) noexcept nogil
    cdef bint sparse(self, u64 wanted, u64 span) noexcept nogil
    cdef u64 typical_bytes(self) noexcept nogil
    cdef void read_stretches(self, u64 begin, u64 end) noexcept nogil
    cdef int locate(self, size_t item, const u8** record, u64* room) noexcept nogil
    cdef bint is_wanted(self, const SettleItem* wanted, const u8* record, u64 room) noexcept nogil
    cdef const u8* given_record(self, const SettleItem* wanted) noexcept nogil
    cdef int pick(self, size_t item) noexcept nogil
    cdef int build(self) noexcept nogil
    cdef void end_pass(self) noexcept nogil

cdef struct Patch:           # the body of an entry, in the place of one that is damaged
    u32 group
    u32 bytes
    u64 instance
    const u8* body

cdef class Merger:
    cdef ChunkIndex index
    cdef list held                    # keeps the values alive
    cdef vector[ChunkView] views
    cdef vector[u32] slots
    cdef vector[Patch] patches        # ascending
    cdef ChunkWriter writer
    cdef u8* room

    cdef const Patch* patch_of(self, u32 group, u64 instance) noexcept nogil
    cdef u64 floor(self, u32 group) noexcept nogil
    cdef u64 kept_bytes(self) noexcept nogil
    cdef int build(self, u32* bad_group, u64* bad_instance, size_t* bad_view) noexcept nogil
