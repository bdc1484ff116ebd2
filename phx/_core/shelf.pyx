# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Free segments; see shelf.pxd."""

from libc.errno cimport EIO
from libc.string cimport memcpy, memset

from phx._core.native cimport *
from phx._core.disk cimport pthread_mutex_lock, pthread_mutex_unlock
from phx._core.journal cimport JOURNAL_FULL, JOURNAL_IO, JOURNAL_OK, JOURNAL_SPARES
from phx._core.replay cimport segment_remove
from phx._core.segment cimport (
    SEGMENT_HEADER_BYTES, SEGMENT_NAME_BYTES, SegmentHeader, segment_name, segment_seal)

cdef enum:
    ZEROS_BYTES = 1048576
    ZEROS_AT_ONCE_BYTES = 4 * ZEROS_BYTES


cdef void shelf_header(Journal* j, SegmentHeader* header) noexcept nogil:
    memset(header, 0, sizeof(SegmentHeader))
    header.cluster = j.options.cluster
    header.node = j.options.node
    memcpy(header.store_id, j.options.store_id, 16)
    header.segment_bytes = j.options.segment_bytes


# Zeros all of the file, so that later writes change no metadata, and then the header of a spare.
# A sync of the log stands behind whatever the device was given before it: so not all at once.
cdef i64 fill(Journal* j, i64 file) noexcept nogil:
    cdef u64 most = min(<u64>ZEROS_BYTES, j.options.segment_bytes)
    cdef u8* zeros = <u8*>phx_calloc(1, max(most, <u64>SEGMENT_HEADER_BYTES))
    cdef u64 at = 0, count
    cdef i64 result = 0
    cdef SegmentHeader header
    if zeros == NULL:
        phx_fatal(b"out of memory")
    while at < j.options.segment_bytes and result >= 0:
        count = min(most, j.options.segment_bytes - at)
        result = j.disk.write(j.disk.context, file, zeros, count, at)
        at += count
        if result >= 0 and at % ZEROS_AT_ONCE_BYTES == 0:
            result = j.disk.sync(j.disk.context, file)
    if result >= 0:
        shelf_header(j, &header)
        segment_seal(&header, zeros)
        result = j.disk.write(j.disk.context, file, zeros, SEGMENT_HEADER_BYTES, 0)
    phx_free(zeros)
    if result >= 0:
        result = j.disk.sync(j.disk.context, file)
    if result >= 0:
        result = j.disk.sync_folder(j.disk.context)
    return result


# A new spare, durable; NULL with *result = -errno, and then nothing is left of it.
cdef Segment* make_segment(Journal* j, u32 number, i64* result) noexcept nogil:
    cdef char name[SEGMENT_NAME_BYTES]
    cdef Segment* s
    segment_name(number, name)
    result[0] = j.disk.open(j.disk.context, name, True)
    if result[0] < 0:
        phx_store(&j.errno_seen, -result[0])
        return NULL
    s = phx_new[Segment]()
    memset(s, 0, sizeof(Segment))
    s.file = result[0]
    s.number = number
    s.bytes = j.options.segment_bytes
    result[0] = fill(j, s.file)
    if result[0] < 0:
        phx_store(&j.errno_seen, -result[0])
        segment_remove(j, s)
        return NULL
    phx_add(&j.counters.segments_made, 1)
    return s


# Under the lock. A free segment that no reader is still inside, taken out of the list; or NULL.
cdef Segment* pop_free(Journal* j) noexcept nogil:
    cdef size_t at = j.free.size()
    cdef Segment* s
    while at > 0:
        at -= 1
        s = j.free[at]
        if s.pins == 0:
            j.free[at] = j.free.back()
            j.free.pop_back()
            j.free_bytes -= s.bytes
            return s
    return NULL


cdef void shelf_give(Journal* j, Segment* s) noexcept nogil:
    pthread_mutex_lock(&j.lock)
    j.making_bytes -= s.bytes
    j.free.push_back(s)
    j.free_bytes += s.bytes
    pthread_mutex_unlock(&j.lock)


# No segment could be made (a full disk, say). The reserve, if it is allowed; it stays counted.
cdef Segment* after_failure(Journal* j, bint reserve_too) noexcept nogil:
    cdef Segment* s = NULL
    pthread_mutex_lock(&j.lock)
    if reserve_too:
        s = pop_free(j)
    if s == NULL:
        j.making_bytes -= j.options.segment_bytes
    pthread_mutex_unlock(&j.lock)
    return s


cdef int shelf_take(Journal* j, bint urgent) noexcept nogil:
    cdef u64 step = j.options.segment_bytes
    cdef u64 limit = j.options.journal_bytes_max
    cdef u64 reserve = 1
    cdef u64 used, number = 0
    cdef Segment* s = NULL
    cdef i64 result = 0
    pthread_mutex_lock(&j.lock)
    if j.starting:
        limit = 2 * limit + SHELF_OVER_AT_START * step
    if urgent or j.starting:
        reserve = 0
    used = j.live_bytes + j.taken.size() * step
    if used + (1 + reserve) * step > limit:
        pthread_mutex_unlock(&j.lock)
        phx_store(&j.full_errno, 0)
        return JOURNAL_FULL
    if j.free.size() > reserve:
        s = pop_free(j)
    if s == NULL and j.live_bytes + j.free_bytes + j.making_bytes + step <= limit:
        number = j.next_number
        j.next_number += 1
    if s != NULL or number != 0:
        j.making_bytes += step
    pthread_mutex_unlock(&j.lock)
    if s == NULL and number != 0:
        s = make_segment(j, <u32>number, &result)
        if s == NULL:
            s = after_failure(j, reserve == 0)
    if s == NULL:
        phx_store(&j.full_errno, -result)
        return JOURNAL_IO if result == -EIO else JOURNAL_FULL
    j.taken.push_back(s)
    return JOURNAL_OK


# Under the lock.
cdef bint spare_wanted(Journal* j) noexcept nogil:
    cdef u64 step = j.options.segment_bytes
    return (j.free_bytes + j.making_bytes < JOURNAL_SPARES * step
            and j.live_bytes + j.free_bytes + j.making_bytes + step <= j.options.journal_bytes_max)


cdef bint shelf_wants(Journal* j) noexcept nogil:
    cdef bint wanted
    pthread_mutex_lock(&j.lock)
    wanted = spare_wanted(j) or j.free.size() > j.options.free_segments_max
    pthread_mutex_unlock(&j.lock)
    return wanted


cdef int shelf_tend(Journal* j) noexcept nogil:
    cdef Segment* s = NULL
    cdef u32 number = 0
    cdef i64 result = 0
    pthread_mutex_lock(&j.lock)
    if j.free.size() > j.options.free_segments_max:
        s = pop_free(j)
    elif spare_wanted(j):
        number = j.next_number
        j.next_number += 1
        j.making_bytes += j.options.segment_bytes
    pthread_mutex_unlock(&j.lock)
    if s != NULL:
        segment_remove(j, s)
        phx_add(&j.counters.segments_removed, 1)
        return 1
    if number == 0:
        return 0
    s = make_segment(j, number, &result)
    if s == NULL:
        after_failure(j, False)
        return JOURNAL_IO if result == -EIO else JOURNAL_FULL
    shelf_give(j, s)
    return 1 if shelf_wants(j) else 0
