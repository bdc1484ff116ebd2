# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Relaxed durability; see relaxed.pxd."""

from phx._core.codec cimport RECORD_MARK
from phx._core.effects cimport emit_record, mark_first, put_record
from phx._core.native cimport *
from phx._core.state cimport *


cdef bint unsynced(Engine* e) noexcept nogil:
    """Something was only written, and no later record takes it along when it is synced."""
    return e.relaxed_end > max(e.durable, e.lsn_needed)


cdef void note_due(Engine* e, Replica* r) noexcept nogil:
    cdef u64 at_us = e.now_us + r.sync_within_us
    if r.sync_within_us != NO_SYNC and (e.relaxed_due_us == 0 or at_us < e.relaxed_due_us):
        e.relaxed_due_us = at_us


cdef u64 emit_relaxed(Engine* e, Replica* r, u8 kind, u64 index, u64 ballot, const void* body,
                      u32 nbytes, u64* lsn_end) noexcept nogil:
    cdef u64 lsn
    mark_first(e)
    lsn = put_record(e, kind, r.group, index, ballot, body, nbytes)
    e.relaxed_end = e.lsn_end
    e.effects.write = True
    e.mark_due_us = 0
    note_due(e, r)
    if lsn_end != NULL:
        lsn_end[0] = e.lsn_end
    return lsn


cdef void sync_relaxed(Engine* e) noexcept nogil:
    e.relaxed_due_us = 0
    if unsynced(e):
        # Any record that has to be durable will do: the stream has no gaps.
        emit_record(e, RECORD_MARK, 0, e.durable, 0, NULL, 0, NULL)


cdef void wait_written(Engine* e, Replica* r) noexcept nogil:
    cdef Vote vote
    if r.ack_waits:
        return
    r.ack_waits = True
    vote.lsn_end = e.lsn_end
    vote.ballot = 0
    vote.instance = 0
    vote.index = r.index
    e.relaxed.push_back(vote)


cdef u64 durability_set(Engine* e, Replica* r, u64 within_us) noexcept nogil:
    if within_us == 0:
        # What is told from now on comes after this sync.
        sync_relaxed(e)
    elif r.sync_within_us == 0:
        # What was emitted before has to be durable, as it was to be.
        r.hard_lsn = max(r.hard_lsn, e.lsn_needed)
    r.sync_within_us = within_us
    if within_us and unsynced(e):
        note_due(e, r)
    return max(e.lsn_needed, e.relaxed_end)
