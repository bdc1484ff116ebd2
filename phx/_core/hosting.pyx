# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Groups of a driver that come and go; see hosting.pxd."""

from libc.string cimport memset

from phx._core.barrier cimport CHANGE_NOT_LEADING
from phx._core.driver_state cimport DriverState, GroupWanted, Opening
from phx._core.flow cimport flow_add, flow_drop
from phx._core.inputs cimport (
    input_change_known, input_change_members, input_drop_group, input_floor, input_group,
    input_restoring,
)
from phx._core.members cimport Roster, roster_write
from phx._core.native cimport *
from phx._core.published cimport published_blank
from phx._core.queues cimport inbox_blank, outbox_blank, submissions_forget
from phx._core.state cimport Replica, find_group


cdef void opened(DriverState* s, u32 group, const Opening* opening) noexcept nogil:
    if opening.floor > 1:
        input_floor(s, group, opening.floor)
    if opening.paused:
        input_restoring(s, group, True)


cdef int hosting_begin(DriverState* s, u32 group, const Opening* opening) noexcept nogil:
    if input_group(s, group, opening.generation, opening.settled_through) != 0:
        return -1
    flow_add(s, group, opening)
    opened(s, group, opening)
    return 0


cdef void blank(DriverState* s, u32 index, u32 group) noexcept nogil:
    cdef i64 nbytes = 0
    inbox_blank(&s.inbox, index, group)
    outbox_blank(&s.outbox, index, group)
    published_blank(s.published, index)
    submissions_forget(&s.submissions, s.submitted, group, &nbytes)


cdef int hosting_add(DriverState* s, u32 group, GroupWanted* wanted) noexcept nogil:
    if input_group(s, group, wanted.opening.generation, wanted.opening.settled_through) != 0:
        return GROUP_NOT
    wanted.index = find_group(s.engine, group).index
    blank(s, wanted.index, group)
    flow_add(s, group, &wanted.opening)
    opened(s, group, &wanted.opening)
    if wanted.members != NULL and input_change_known(
            s, group, wanted.version, wanted.members, wanted.members_bytes, wanted.instance,
            wanted.floor, wanted.active) != 0:
        hosting_drop(s, group)
        return GROUP_NOT
    s.again = True
    return 0


cdef int hosting_end(DriverState* s, u32 group) noexcept nogil:
    cdef Replica* r = find_group(s.engine, group)
    cdef Roster nobody
    cdef Block* value
    cdef int verdict
    if r == NULL:
        return CHANGE_NOT_LEADING
    memset(&nobody, 0, sizeof(Roster))
    nobody.version = <u64>r.version + 1
    nobody.ballot = 1  # (The engine puts its own in.)
    value = roster_write(&nobody)
    verdict = input_change_members(s, group, value.data, value.size)
    block_unref(value)
    s.again = True
    return verdict


cdef void settling_forget(DriverState* s, u32 group) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(s.settling.size()):
        if s.settling[i].group != group:
            s.settling[kept] = s.settling[i]
            kept += 1
    s.settling.resize(kept)


cdef void hosting_drop(DriverState* s, u32 group) noexcept nogil:
    cdef u32 index
    if find_group(s.engine, group) == NULL:
        return
    index = find_group(s.engine, group).index
    settling_forget(s, group)
    flow_drop(s, group)
    input_drop_group(s, group)
    blank(s, index, group)
    s.again = True
