# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Where a record lies on a simulated disk, and flipping a bit of it; see damage.pxd."""

from phx._core.codec cimport RECORD_ACCEPT, RECORD_FLOOR, RECORD_MARK, RECORD_PROMISE
from phx._core.memdisk cimport MemoryDiskState, MemoryFile
from phx._core.native cimport *
from phx._core.segment cimport (
    SEGMENT_HEADER_BYTES, SEGMENT_OK, SegmentHeader, segment_parse,
)
from phx.sim.host cimport Host
from phx.sim.invariants cimport NodeWatch, Watch, Written


# The file that holds this position: the newest generation whose stream begins at or below it.
cdef MemoryFile* file_at(MemoryDiskState* disk, u64 lsn, u64* offset) noexcept:
    cdef MemoryFile* found = NULL
    cdef MemoryFile* file
    cdef SegmentHeader header
    cdef u64 best = 0
    cdef size_t i
    for i in range(disk.files.size()):
        file = disk.files[i]
        if not file.seen or not file.kept:
            continue
        if segment_parse(file.medium.data(), file.medium.size(), &header) != SEGMENT_OK:
            continue
        if header.generation > best and header.base_lsn <= lsn:
            best = header.generation
            offset[0] = SEGMENT_HEADER_BYTES + lsn - header.base_lsn
            found = file
    if found != NULL and offset[0] >= found.medium.size():
        return NULL
    return found


cdef bint flip_record(Watch* watch, Host host, u64 which, u64 bit) noexcept:
    cdef NodeWatch* n = &watch.node[host.index]
    cdef u64 marked = 0, floor = 0, offset = 0, at
    cdef size_t i, first = n.records.written.size(), end = 0
    cdef const Written* one
    cdef MemoryFile* file
    for i in range(n.records.unsynced):
        one = &n.records.written[i]
        if one.end > n.durable:
            break
        if one.kind == RECORD_MARK:
            marked = max(marked, one.instance)
        elif one.kind == RECORD_FLOOR:
            floor = max(floor, one.instance)
    for i in range(n.records.written.size()):
        one = &n.records.written[i]
        if one.lsn >= floor and one.end <= marked:
            first = min(first, i)
            end = i + 1
    if first >= end:
        return False
    for i in range(end - first):
        one = &n.records.written[first + (which + i) % (end - first)]
        if one.kind == RECORD_ACCEPT or one.kind == RECORD_PROMISE:
            file = file_at(host.disk.state, one.lsn, &offset)
            if file != NULL:
                break
    else:
        return False
    at = offset + bit // 8 % (one.end - one.lsn)
    if at >= file.medium.size() or at >= file.now.size():
        return False
    file.medium[at] = file.medium[at] ^ <u8>(1 << (bit % 8))
    file.now[at] = file.now[at] ^ <u8>(1 << (bit % 8))
    return True
