"""What a node wrote into its journal, record by record, in order of position: the bookkeeping.

It says where what stands and what of it is durable; what a record may be is claimed in invariants.
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *

cdef struct Written:             # a record as emitted
    u64 lsn
    u64 end
    u64 instance
    u64 ballot
    u32 crc
    u32 group
    u32 value
    u32 version                  # of members, that it says
    bint ended                   # and that its node is none of them, and they do without it
    bint relaxed                 # it counts when it is written: see watch_relaxed
    u8 kind

cdef struct Records:             # of one node, in all lives
    vector[Written] written
    size_t unsynced              # the first of them that is not known durable,
    size_t unwritten             # or, where groups are relaxed, written

# Positions from `lsn` on are written again. How many of what stood there ended by `durable`.
cdef u64 records_rewind(Records* r, u64 lsn, u64 durable) noexcept nogil
# The header of the record at `data`, and what is kept of it; without a value.
cdef Written record_read(const u8* data, u64 lsn, RecordHeader* header) noexcept nogil
# The next record that is durable, or written, now that all up to `lsn` is; NULL: there is none.
cdef const Written* records_next_durable(Records* r, u64 lsn) noexcept nogil
cdef const Written* records_next_written(Records* r, u64 lsn) noexcept nogil
# The node died: what is not known durable by now may be gone, or be replayed.
cdef void records_died(Records* r) noexcept nogil
# The record at a position, or NULL.
cdef const Written* record_at(const Records* r, u64 lsn) noexcept nogil
# Is `replayed` this record? `value`: what its body is.
cdef bint record_is(const Written* one, const RecordHeader* replayed, u32 value) noexcept nogil
