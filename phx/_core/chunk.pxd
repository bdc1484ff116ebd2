"""Chunks: settled entries in a few large values of fixed sizes, as the store keeps them.

A chunk is one value in LMDB, and its size is one of three (a single entry may need a larger one).
Few and large, because every put takes the GIL; of fixed sizes, because then the pages that one
leaves are used whole by the next. `value_bytes` is the size class less CHUNK_PAGE_HEADER, so that
with LMDB's own header it fills its overflow pages to the last byte.

Every word is little-endian.

    offset                          size           part
    0                               entries_bytes  entries, by group and then instance
    entries_bytes                   …              zeros
    value_bytes - 64 - 32 * rows    32 * rows      packed index
    value_bytes - 64                64             footer

Entry, padded with zeros to a multiple of eight. It is what `entries` are everywhere else
(engine_supply), with a checksum where those have a zero:

    0       8     instance
    8       4     bytes
    12      4     crc         CRC-32C of group u32, bytes u32, instance u64, then the body
    16      …     body

Row of the packed index: a stretch of consecutive instances of one group, at most about
CHUNK_ROW_BYTES long, so that an entry is found by a binary search and a short walk. Rows are in
the order of their entries and leave no gap between them:

    0       4     group
    4       4     count       entries in the stretch
    8       8     first       instance
    16      8     offset      of its first entry
    24      8     bytes

Footer:

    0       4     crc         CRC-32C of the rows, then of the footer from offset 4 on
    4       4     magic       0x4B434850, the letters PHCK
    8       2     version     CHUNK_VERSION
    10      2     flags       0
    12      4     rows
    16      8     id          the key it is stored under
    24      8     entries_bytes
    32      8     entries
    40      8     value_bytes
    48      16    store_id

The *tail* (rows and footer) is stored a second time, by itself, under the same key in a table
beside the chunks: py-lmdb reads every page of a value that it is asked for, so that an open that
took the indexes out of the chunks would read the whole store.

Nothing in a chunk is believed because it was right once: every entry is checked again each time it
is served, and no offset leads outside the value.
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *

cdef enum:
    CHUNK_MAGIC = 0x4B434850
    CHUNK_VERSION = 1
    CHUNK_PAGE_HEADER = 16           # of LMDB 0.9, at the start of a value's first overflow page
    CHUNK_ENTRY_HEADER = 16
    CHUNK_ROW_BYTES = 16384
    CHUNK_SMALL = 64 << 10
    CHUNK_MIDDLE = 512 << 10
    CHUNK_LARGE = 8 << 20

cdef packed struct ChunkEntry:
    u64 instance
    u32 bytes
    u32 crc

cdef packed struct ChunkRow:
    u32 group
    u32 count
    u64 first
    u64 offset
    u64 bytes

cdef packed struct ChunkFooter:
    u32 crc
    u32 magic
    u16 version
    u16 flags
    u32 rows
    u64 id
    u64 entries_bytes
    u64 entries
    u64 value_bytes
    u8 store_id[16]

cdef enum ChunkVerdict:
    CHUNK_OK = 0
    CHUNK_BAD_FOOTER = 1      # not a chunk, or not one of this length
    CHUNK_BAD_VERSION = 2
    CHUNK_BAD_ID = 3          # a chunk of another store, or stored under another key
    CHUNK_BAD_CRC = 4         # rows or footer
    CHUNK_BAD_ROWS = 5        # rows that cannot be
    CHUNK_BAD_ENTRY = 6       # checksum or header of an entry
    CHUNK_NOT_HERE = 7        # an instance is not in the chunk that should hold it
    CHUNK_GAP = 8             # over all chunks: an instance is missing, or held twice
    CHUNK_BAD_GROUPS = 9      # the table of groups does not fit the chunks, or cannot be read
    CHUNK_BAD_ZEROS = 10      # between entries and rows; found by chunk_verify only

# Borrowed bytes, and where its parts lie.
cdef struct ChunkView:
    const u8* data
    const ChunkRow* rows
    const ChunkFooter* footer
    u64 entries_bytes
    u32 n_rows

# Consecutive entries of one group that lie side by side.
cdef struct ChunkSpan:
    const u8* at
    u64 bytes
    u64 first
    u64 count

# Consecutive entries of a group that are not what was written.
cdef struct DamagedSpan:
    u32 group
    u64 first
    u64 last

# A chunk being filled: entries grow upwards from data[0]; rows are put in at the end.
cdef struct ChunkWriter:
    u8* data                 # borrowed, value_bytes of it
    u64 value_bytes
    u64 id
    u64 at
    u64 entries
    vector[ChunkRow] rows

cdef inline u64 chunk_stride(u64 body_bytes) noexcept nogil:
    return (CHUNK_ENTRY_HEADER + body_bytes + 7) & ~<u64>7

# Size of the value for `bytes` of entries and rows still to be stored, of which the first entry
# takes `first_bytes`: the largest class that will be at least half full.
cdef u64 chunk_value_bytes(u64 bytes, u64 first_bytes) noexcept nogil

cdef void chunk_begin(ChunkWriter* w, u8* data, u64 value_bytes, u64 id) noexcept nogil
# Must this entry begin a new row?
cdef bint chunk_breaks(const ChunkWriter* w, u32 group, u64 instance) noexcept nogil
# False: it does not fit, nothing was changed. Entries must come in order of group and instance.
cdef bint chunk_add(ChunkWriter* w, u32 group, u64 instance, const u8* body,
                    u32 count) noexcept nogil
# The same for the body of a record, checked and its checksum unsalted, as journal_read_span gives
# it. The entry's checksum is made from the record's: what it covers was looked at when the record
# was checked, and not again.
cdef bint chunk_add_record(ChunkWriter* w, const RecordHeader* record) noexcept nogil
# Rows, footer, checksum, and zeros between.
cdef void chunk_end(ChunkWriter* w, const u8* store_id) noexcept nogil
# Bytes of the tail of an ended chunk.
cdef u64 chunk_tail_bytes(const ChunkWriter* w) noexcept nogil

# Footer and rows of a tail are whole, belong to `store_id` and `id`, and lead nowhere outside the
# value. A ChunkVerdict; out.data is NULL.
cdef int chunk_open_tail(ChunkView* out, const u8* tail, u64 tail_bytes, u64 id,
                         const u8* store_id) noexcept nogil
# The same of a whole chunk (entries themselves are not looked at).
cdef int chunk_open(ChunkView* out, const u8* data, u64 value_bytes, u64 id,
                    const u8* store_id) noexcept nogil
# The same for a chunk that was opened before: no checksum over the rows, so the cost does not
# depend on the size. What a damaged row can do then is caught by chunk_span and chunk_copy.
cdef int chunk_view(ChunkView* out, const u8* data, u64 value_bytes, u64 id,
                    const u8* store_id) noexcept nogil
# Entries from `first` on up to `last`, at least one and otherwise at most bytes_max. `hint`: a row
# of the group not behind the one with `first`.
cdef int chunk_span(const ChunkView* view, u32 hint, u32 group, u64 first, u64 last, u64 bytes_max,
                    ChunkSpan* out) noexcept nogil
# Copy to `out`, check every checksum there, and clear it (the `entries` format). 0, or the instance
# that is damaged.
cdef u64 chunk_copy(const ChunkSpan* span, u32 group, u8* out) noexcept nogil
# Every entry of an opened chunk. A ChunkVerdict, and then where.
cdef int chunk_verify(const ChunkView* view, u32* bad_group, u64* bad_instance) noexcept nogil
# The body behind a row's entry, if its header and checksum are good and it ends before row_end.
cdef const u8* chunk_entry(const u8* at, const u8* row_end, u32 group, u64 instance,
                           u32* count) noexcept nogil
# Entry number k of a row, at `at`, is damaged: can it be seen where the next one begins? (By its
# length, if that leads to the next instance, or to the end of the row.)
cdef bint chunk_next_seen(const ChunkRow* row, const u8* at, const u8* end, u64 k) noexcept nogil

# Raises ChunkDamage.
cdef int raise_damage(int verdict, u64 chunk, u32 group, u64 instance) except -1

# Entries gathered from several chunks into one bytes object: add in order, take once.
cdef class Gather:
    cdef u32 group
    cdef u64 next             # instance wanted next
    cdef u64 last
    cdef u64 left             # bytes still allowed
    cdef u64 total
    cdef bytes store_id
    cdef vector[ChunkSpan] spans
    cdef vector[u64] chunks
