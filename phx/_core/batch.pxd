"""The value of an instance: a batch of proposed values, byte-identical on every replica.

Body header (24 bytes), then ``runs`` runs:

    offset  size  field
    0       1     kind      BODY_NOOP (nothing follows), BODY_BATCH or BODY_MEMBERSHIP
    1       1     version   BODY_VERSION
    2       2     runs
    4       4     values    over all runs
    8       8     epoch     ballot of the leader that packed this body: the fencing token
    16      8     time_us   wall clock of that leader when it packed it

Run header (32 bytes), then ``bytes`` of items. A run is a stretch of consecutive sequence numbers
of one session, and a session is (node, incarnation) within a group:

    0       4     node
    4       4     incarnation
    8       8     low_water   lowest sequence still outstanding at that node when it sent the run
    16      8     first_seq
    24      4     count
    28      4     bytes

Item: bytes u32 | machine u16 | flags u16 | payload. Not padded.

What apply sees stands in here and nowhere else, stamped when the value is first packed; the
ballot of the record never reaches it (docs/design/protocol.md).
"""

from phx._core.native cimport *

cdef enum:
    BODY_VERSION = 1
    BODY_HEADER_BYTES = 24
    RUN_HEADER_BYTES = 32
    ITEM_HEADER_BYTES = 8

cdef enum BodyKind:
    BODY_NOOP = 0
    BODY_BATCH = 1
    BODY_MEMBERSHIP = 2    # has no runs: members.pxd

cdef packed struct BodyHeader:
    u8 kind
    u8 version
    u16 runs
    u32 values
    u64 epoch
    u64 time_us

cdef packed struct RunHeader:
    u32 node
    u32 incarnation
    u64 low_water
    u64 first_seq
    u32 count
    u32 bytes

cdef packed struct ItemHeader:
    u32 bytes
    u16 machine
    u16 flags

# Walks the runs of a checked body; one that changes members has none. Usage: run_begin, then while
# run_next: … it.run, it.items.
cdef struct RunIterator:
    const u8* at
    const u8* end
    u32 left
    RunHeader run
    const u8* items

cdef Block* body_noop(u64 epoch, u64 time_us) noexcept nogil
# Whole structure of data[0:count] is sound: header, run lengths, item lengths, counts add up; or a
# membership value's.
cdef bint body_check(const u8* data, u64 count) noexcept nogil
cdef void run_begin(RunIterator* it, const u8* body, u64 count) noexcept nogil
cdef bint run_next(RunIterator* it) noexcept nogil
# Bytes of the first `values` items at items[0:bytes] (for splitting a run); 0 if they do not fit.
cdef u64 items_prefix(const u8* items, u64 nbytes, u32 values) noexcept nogil
# Most whole items of items[0:nbytes] that fit in `budget` bytes (at least one); their bytes in
# *used.
cdef u32 items_fit(const u8* items, u64 nbytes, u32 count, u64 budget, u64* used) noexcept nogil
# items[0:nbytes] is exactly `count` whole items.
cdef bint items_check(const u8* items, u64 nbytes, u32 count) noexcept nogil
