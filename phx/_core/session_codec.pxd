"""The bytes of a group's session table, as a checkpoint keeps it and a peer is sent it.

Canonical: two tables that answer alike from here on have equal bytes, however they came to be; how
much room a row has taken for its bits does not show. A decoder takes no bytes that an encoder would
not write. Little-endian:

    offset  size  field
    0       4     crc      CRC-32C of everything after it
    4       4     version  TABLE_VERSION
    8       4     group
    12      4     rows     0 .. SESSION_ROWS_MAX
    16      8     next     first instance that the table has not seen: frontier + 1
    24      4     chain    the group's chained checksum before `next`
    28      4     pad      0
    32      8     epoch    highest BodyHeader.epoch before `next`
    40      ...   rows, ascending nodes

Row (24 bytes), then its bits:

    0       4     node
    4       4     incarnation
    8       8     base     everything below it is done; it is not; at least 1
    16      4     span     highest sequence that is done - base, below SEQUENCES_MAX; 0: none is.
                           base + span is below 2**64 - 1, which is no sequence of any body
    20      4     pad      0
    24      ...   bit k, lowest first: sequence base + 1 + k is done; zeros to a multiple of 8 bytes

Nothing has happened before instance 1: then rows, chain and epoch are 0.
"""

from phx._core.native cimport *
from phx._core.sessions cimport SessionTable

cdef enum:
    TABLE_VERSION = 1
    TABLE_HEADER_BYTES = 40
    TABLE_ROW_BYTES = 24
    TABLE_BYTES_MAX = 525864     # 64 rows of 24 + 8192 bytes, and the header

cdef packed struct TableHeader:
    u32 crc
    u32 version
    u32 group
    u32 rows
    u64 next
    u32 chain
    u32 pad
    u64 epoch

cdef packed struct TableRow:
    u32 node
    u32 incarnation
    u64 base
    u32 span
    u32 pad

cdef enum TableVerdict:
    TABLE_OK = 0
    TABLE_SHORT = 1              # it ends before its end
    TABLE_BAD_CRC = 2
    TABLE_BAD_VERSION = 3
    TABLE_BAD_NUMBER = 4         # a field that is out of its range
    TABLE_BAD_ORDER = 5          # rows that are not in ascending order
    TABLE_BAD_BITS = 6           # they do not end where the span says
    TABLE_BAD_PADDING = 7
    TABLE_LONG = 8               # bytes behind its end

# How many bytes table_encode writes.
cdef u64 table_size(const SessionTable* table) noexcept nogil
cdef void table_encode(const SessionTable* table, u8* out) noexcept nogil
# A TableVerdict. `out` must be empty; if the bytes are refused, it is empty afterwards. Memory: at
# most 8 KiB for each row that is there.
cdef int table_decode(const u8* data, u64 count, SessionTable* out) noexcept nogil
# Why, as a ValueError.
cdef object table_error(int verdict)
cdef bytes table_to_bytes(const SessionTable* table)
