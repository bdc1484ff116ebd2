# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The bytes of a segment file; see segment.pxd."""

from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset, strlen, strcmp

from phx._core.native cimport *
from phx._core.codec cimport (
    RECORD_FLOOR, RECORD_HEADER_BYTES, RECORD_MARK, RecordHeader, phx_crc32c, record_check,
    record_salt, record_stride)

cdef enum:
    CRC_AT = 88

cdef u64 SEGMENT_MAGIC = 0x0047455331584850


# --- header

cdef void segment_seal(SegmentHeader* header, u8* out) noexcept nogil:
    header.magic = SEGMENT_MAGIC
    header.version = SEGMENT_VERSION
    header.zero = 0
    header.zero2 = 0
    header.crc = phx_crc32c(0, header, CRC_AT)
    memset(out, 0, SEGMENT_HEADER_BYTES)
    memcpy(out, header, SEGMENT_HEADER_USED)


cdef int segment_parse(const u8* data, u64 count, SegmentHeader* out) noexcept nogil:
    cdef u64 at, used = SEGMENT_HEADER_BYTES if count > SEGMENT_HEADER_BYTES else count
    cdef bint zeros = True
    for at in range(used):
        if data[at] != 0:
            zeros = False
            break
    if zeros:
        return SEGMENT_BLANK
    if used < SEGMENT_HEADER_USED:
        return SEGMENT_BAD
    memcpy(out, data, SEGMENT_HEADER_USED)
    if out.magic != SEGMENT_MAGIC or out.crc != phx_crc32c(0, data, CRC_AT):
        return SEGMENT_BAD
    if out.version != SEGMENT_VERSION:
        return SEGMENT_FOREIGN_VERSION
    return SEGMENT_OK


# --- records

cdef inline bint mark_at(const u8* data, u64 count, u64 lsn, u32 salt, u64* mark) noexcept nogil:
    # Marks have no body, so this looks at 32 bytes whatever they hold: a search over a segment full
    # of hostile bytes stays linear. A mark never speaks of what comes after it.
    cdef RecordHeader header
    if count < RECORD_HEADER_BYTES or data[8] != RECORD_MARK:
        return False
    memcpy(&header, data, RECORD_HEADER_BYTES)
    if header.body_bytes != 0 or header.index > lsn:
        return False
    if phx_crc32c(0, data + 4, RECORD_HEADER_BYTES - 4) != (header.crc ^ salt):
        return False
    mark[0] = header.index
    return True


cdef void resync_marks(const u8* data, u64 at, u64 count, u64 base_lsn, u32 salt,
                       SegmentScan* out) noexcept nogil:
    cdef u64 word, mark = 0, dirt = at
    while at + 8 <= count:
        memcpy(&word, data + at, 8)
        if word != 0:
            dirt = at + 8
            if mark_at(data + at, count - at, base_lsn + at, salt, &mark) and mark > out.mark_lsn:
                out.mark_lsn = mark
        at += 8
    out.dirt_end_lsn = base_lsn + dirt


cdef void segment_scan(const u8* data, u64 count, u64 base_lsn, u64 generation, bint resync,
                       SegmentScan* out) noexcept nogil:
    cdef u32 salt = record_salt(generation)
    cdef u64 stride, at = 0
    cdef RecordHeader header
    memset(out, 0, sizeof(SegmentScan))
    while True:
        stride = record_check(data + at, count - at, salt, <u32>0xFFFFFFFF)
        if stride == 0:
            break
        memcpy(&header, data + at, RECORD_HEADER_BYTES)
        # Neither a floor nor a mark can speak of what comes after it.
        if header.index <= base_lsn + at:
            if header.kind == RECORD_FLOOR and header.index > out.floor_lsn:
                out.floor_lsn = header.index
            elif header.kind == RECORD_MARK and header.index > out.mark_lsn:
                out.mark_lsn = header.index
        out.records += 1
        at += stride
    out.end_lsn = base_lsn + at
    out.dirt_end_lsn = out.end_lsn
    if resync:
        resync_marks(data, at, count, base_lsn, salt, out)


cdef u64 salted_by(const u8* data, u64 body_bytes, u64 first, u64 last) noexcept nogil:
    cdef u64 generation = first
    cdef u32 crc
    memcpy(&crc, data, 4)
    crc ^= phx_crc32c(0, data + 4, RECORD_HEADER_BYTES - 4 + body_bytes)
    while generation <= last:
        if crc == record_salt(generation):
            return generation
        generation += 1
    return 0


cdef u64 segment_belongs(const u8* data, u64 count, u64 first, u64 last) noexcept nogil:
    # Along the records, as far as lengths lead; then every place where a mark may stand, for the
    # first of them may be damaged, too. Both are linear.
    cdef RecordHeader header
    cdef u64 generation, stride, at = 0
    while at + RECORD_HEADER_BYTES <= count:
        memcpy(&header, data + at, RECORD_HEADER_BYTES)
        stride = record_stride(header.body_bytes)
        if header.kind == 0 or stride > count - at:
            break
        generation = salted_by(data + at, header.body_bytes, first, last)
        if generation != 0:
            return generation
        at += stride
    at = 0
    while at + RECORD_HEADER_BYTES <= count:
        if data[at + 8] == RECORD_MARK:
            memcpy(&header, data + at, RECORD_HEADER_BYTES)
            if header.body_bytes == 0:
                generation = salted_by(data + at, 0, first, last)
                if generation != 0:
                    return generation
        at += 8
    return 0


cdef bint segment_salt(u8* data, u64 count, u64 lsn, u32 salt, u32 body_bytes_max, i64* records,
                       u64* floor_lsn) noexcept nogil:
    cdef u64 stride, at = 0
    cdef RecordHeader* header
    while at < count:
        if count - at < RECORD_HEADER_BYTES:
            return False
        header = <RecordHeader*>(data + at)
        if header.body_bytes > body_bytes_max or header.kind == 0:
            return False
        stride = record_stride(header.body_bytes)
        if stride > count - at:
            return False
        if header.kind == RECORD_FLOOR and floor_lsn[0] < header.index <= lsn + at:
            floor_lsn[0] = header.index
        header.crc ^= salt
        records[0] += 1
        at += stride
    return True


cdef u64 segment_fit(const u8* data, u64 count, u64 room) noexcept nogil:
    cdef u64 stride, at = 0
    cdef RecordHeader* header
    if room > count:
        room = count
    while room - at >= RECORD_HEADER_BYTES:
        header = <RecordHeader*>(data + at)
        stride = record_stride(header.body_bytes)
        if stride > room - at:
            break
        at += stride
    return at


# --- names

cdef void segment_name(u32 number, char* out) noexcept nogil:
    snprintf(out, SEGMENT_NAME_BYTES, b"%08x.segment", number)


cdef bint segment_number(const char* name, u32* out) noexcept nogil:
    cdef u32 number = 0
    cdef int at
    cdef char letter
    if strlen(name) != 16 or strcmp(name + 8, b".segment") != 0:
        return False
    for at in range(8):
        letter = name[at]
        if c'0' <= letter <= c'9':
            number = number * 16 + <u32>(letter - c'0')
        elif c'a' <= letter <= c'f':
            number = number * 16 + <u32>(letter - c'a') + 10
        else:
            return False
    out[0] = number
    return True


# --- the door

def parse_header(bytes data not None):
    """The fields of a segment's header as a dict, or None if ``data`` does not start with one."""
    cdef SegmentHeader h
    if segment_parse(<const u8*><const char*>data, len(data), &h) != SEGMENT_OK:
        return None
    return {"node": h.node, "cluster": h.cluster, "store_id": h.store_id[:16],
            "generation": h.generation,
            "base_lsn": h.base_lsn, "previous_generation": h.previous_generation,
            "previous_end_lsn": h.previous_end_lsn, "segment_bytes": h.segment_bytes}
