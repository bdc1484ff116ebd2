# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Records by position; see watch_records.pxd."""

from libc.string cimport memcpy, memset

from phx._core.codec cimport RecordHeader, record_stride
from phx._core.native cimport *


cdef u64 records_rewind(Records* r, u64 lsn, u64 durable) noexcept nogil:
    cdef u64 kept = 0
    while not r.written.empty() and r.written.back().lsn >= lsn:
        kept += r.written.back().end <= durable
        r.written.pop_back()
    r.unsynced = min(r.unsynced, r.written.size())
    r.unwritten = min(r.unwritten, r.written.size())
    return kept


cdef Written record_read(const u8* data, u64 lsn, RecordHeader* header) noexcept nogil:
    cdef Written one
    memset(&one, 0, sizeof(one))
    memcpy(header, data, sizeof(RecordHeader))
    one.lsn = lsn
    one.end = lsn + record_stride(header.body_bytes)
    one.crc = header.crc
    one.kind = header.kind
    one.group = header.group
    one.instance = header.index
    one.ballot = header.ballot
    return one


cdef const Written* records_next_durable(Records* r, u64 lsn) noexcept nogil:
    if r.unsynced >= r.written.size() or r.written[r.unsynced].end > lsn:
        return NULL
    r.unsynced += 1
    return &r.written[r.unsynced - 1]


cdef const Written* records_next_written(Records* r, u64 lsn) noexcept nogil:
    if r.unwritten >= r.written.size() or r.written[r.unwritten].end > lsn:
        return NULL
    r.unwritten += 1
    return &r.written[r.unwritten - 1]


cdef void records_died(Records* r) noexcept nogil:
    r.unsynced = r.unwritten = r.written.size()


cdef const Written* record_at(const Records* r, u64 lsn) noexcept nogil:
    cdef size_t low = 0, high = r.written.size(), middle
    while low < high:
        middle = (low + high) // 2
        if r.written[middle].lsn < lsn:
            low = middle + 1
        else:
            high = middle
    if low < r.written.size() and r.written[low].lsn == lsn:
        return &r.written[low]
    return NULL


cdef bint record_is(const Written* one, const RecordHeader* replayed, u32 value) noexcept nogil:
    return one.kind == replayed.kind and one.group == replayed.group \
        and one.instance == replayed.index and one.ballot == replayed.ballot and one.value == value
