# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""How full a journal may become; see journal_limits.pxd."""

from phx._core.disk cimport pthread_mutex_lock, pthread_mutex_unlock
from phx._core.native cimport *
from phx._core.state cimport PRESSURE_FULL, PRESSURE_NONE, PRESSURE_OLD_ONLY


# Records are refused before the journal refuses them, so early that what one turn may emit still
# fits: a block that does not fit would stand before the carry-over that makes room. New values are
# refused two segments earlier: what is open is carried over whole, and stands in up to two segments
# more than before then. If that alone were above the limit at which nobody leads or accepts, it
# would be open for ever.
cdef int room_pressure(const JournalRoom* room, u64 turn_bytes, u64 pending_bytes_max,
                       int before) noexcept nogil:
    cdef u64 segment = room.segment_bytes, budget = room.bytes_max
    cdef u64 held = room.live_bytes + room.queued_bytes
    # (A small journal has its limits nearer to each other.)
    cdef u64 full = min(2 * segment + turn_bytes, max(2 * segment, budget * 3 // 8))
    cdef u64 margin = max(full + 2 * segment, min(full + pending_bytes_max, budget // 2))
    # (Below eight segments there is no room for both. One in which nothing is open takes values.)
    margin = min(margin, budget - 3 * segment)
    if held + full > budget:
        return PRESSURE_FULL
    if held + margin + (before != 0) * segment > budget:
        return PRESSURE_OLD_ONLY
    return PRESSURE_NONE


# All that is below may have to be carried over (a quorum is missing, or much is under way). It is
# queued before the floor that makes room for it: what does not fit would stand before it for ever.
cdef bint room_fits(const JournalRoom* room, u64 below_bytes) noexcept nogil:
    cdef u64 segment = room.segment_bytes
    if below_bytes <= segment:
        return True  # there is a reserve for that
    return room.live_bytes + room.queued_bytes + below_bytes + segment <= room.bytes_max


cdef u64 old_segments_end(Journal* j, u64 floor_lsn, u64 durable_lsn,
                          u64 goal_bytes) noexcept nogil:
    cdef u64 end = 0
    cdef size_t i
    pthread_mutex_lock(&j.lock)
    i = 0
    while i + 1 < j.live.size():
        if end == 0 or j.live[i].end_lsn <= floor_lsn + goal_bytes:
            # A floor in the middle of a segment leaves less of it than a segment.
            if floor_lsn < j.live[i].end_lsn <= durable_lsn:
                end = j.live[i].end_lsn
        i += 1
    pthread_mutex_unlock(&j.lock)
    return end
