"""A segment file: its bytes, its name, and walking over its records. Pure.

Segment file (``segment_bytes``, zero-filled once when made, reused many times):

    offset                  size  field
    0                       4096  header, below; zeros where nothing is named
    4096                    …     records, each at 4096 + (its lsn - base_lsn); never past the end

Header, all of it in the first 512 bytes, so that a sector holds all or nothing of it:

    offset  size  field
    0       8     magic                the letters PHX1SEG and a zero
    8       4     version              SEGMENT_VERSION
    12      4     node
    16      8     cluster
    24      16    store_id
    40      8     generation           0: a spare, zero-filled and never written to
    48      8     base_lsn             position of the byte at 4096
    56      8     previous_generation  of the segment before; 0: there is none
    64      8     previous_end_lsn     where the records of that segment end; what follows is cut
    72      8     segment_bytes
    80      8     zero
    88      4     crc                  CRC-32C of bytes 0 .. 88
    92      4     zero

Generations only grow, and a record's checksum carries the generation of its segment
(record_salt), so that a reused segment never replays its past. Segments are a chain by
previous_generation; a link that is missing above the floor is damage. A header is written when
everything before it is durable, and is durable itself before the first record: so a header that
exists proves all before it, records of a generation without its header prove that the header was
lost, and a generation whose header never landed may be used again.

Name of a file: eight hexadecimal digits and ``.segment``; the number means nothing.
"""

from phx._core.native cimport *
from phx._core.codec cimport RecordHeader

cdef enum:
    SEGMENT_HEADER_BYTES = 4096
    SEGMENT_HEADER_USED = 96
    SEGMENT_VERSION = 1
    SEGMENT_NAME_BYTES = 24
    SEGMENT_BYTES_DEFAULT = 33554432
    SEGMENT_BYTES_MOST = 1073741824

cdef packed struct SegmentHeader:
    u64 magic
    u32 version
    u32 node
    u64 cluster
    u8 store_id[16]
    u64 generation
    u64 base_lsn
    u64 previous_generation
    u64 previous_end_lsn
    u64 segment_bytes
    u64 zero
    u32 crc
    u32 zero2

cdef enum SegmentVerdict:
    SEGMENT_OK = 0
    SEGMENT_BLANK = 1      # all zeros (or cut short): being made when the lights went out
    SEGMENT_BAD = 2        # neither a header nor zeros
    SEGMENT_FOREIGN_VERSION = 3  # a good checksum, an unknown version

# What a walk over the records of one segment found.
cdef struct SegmentScan:
    u64 end_lsn            # after the last good record in one piece from the base on
    u64 records
    u64 floor_lsn          # highest FLOOR among them
    u64 mark_lsn           # highest MARK, also beyond the first bad place
    u64 dirt_end_lsn       # after the last byte that is not zero; end_lsn if only zeros follow

# Writes all 4096 bytes to `out`.
cdef void segment_seal(SegmentHeader* header, u8* out) noexcept nogil
cdef int segment_parse(const u8* data, u64 count, SegmentHeader* out) noexcept nogil
# data: the bytes from offset 4096 on. Walks good records up to `count` bytes; then, if `resync`,
# goes on at every eighth byte after the bad place and looks for marks.
cdef void segment_scan(const u8* data, u64 count, u64 base_lsn, u64 generation, bint resync,
                       SegmentScan* out) noexcept nogil
# Does one of these records, or a mark anywhere, belong to one of the generations first .. last? (In
# a file whose header is bad.)
cdef u64 segment_belongs(const u8* data, u64 count, u64 first, u64 last) noexcept nogil
# data[0:count] is whole records from position `lsn` on with bodies of at most body_bytes_max, by
# their lengths alone. Mixes `salt` into their checksums and counts them into *records; *floor_lsn
# becomes the highest FLOOR. False: it is not (some may be salted by then).
cdef bint segment_salt(u8* data, u64 count, u64 lsn, u32 salt, u32 body_bytes_max, i64* records,
                       u64* floor_lsn) noexcept nogil
# Bytes of the whole records at the start of data[0:count] that fit in `room`.
cdef u64 segment_fit(const u8* data, u64 count, u64 room) noexcept nogil
cdef void segment_name(u32 number, char* out) noexcept nogil
cdef bint segment_number(const char* name, u32* out) noexcept nogil
