# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Which groups have reads that wait; see read_table.pxd."""

from phx._core.native cimport *
from phx._core.state cimport *


cdef GroupReads* reads_of(Engine* e, Replica* r) noexcept nogil:
    if r.reads == NULL:
        r.reads = phx_new[GroupReads]()
        r.reads.place = <u32>e.reads.active.size()
        e.reads.active.push_back(r.index)
        if e.reads.at_us == 0:
            e.reads.at_us = e.now_us + pause_us(e)
    return r.reads


cdef void reads_leave(Engine* e, Replica* r) noexcept nogil:
    cdef GroupReads* g = r.reads
    cdef u32 last
    if g == NULL or g.lined or not (
            g.leader.tickets.empty() and g.quorum.tickets.empty() and g.askers.empty()):
        return
    last = e.reads.active.back()
    e.reads.active[g.place] = last
    e.replicas[last].reads.place = g.place
    e.reads.active.pop_back()
    if e.reads.active.empty():
        e.reads.at_us = 0
    phx_delete[GroupReads](g)
    r.reads = NULL


cdef void reads_again(Engine* e, Replica* r) noexcept nogil:
    cdef size_t i
    cdef Asking* a
    if r.reads == NULL:
        return
    a = &r.reads.quorum
    for i in range(a.tickets.size()):
        a.tickets[i].first = 0
        a.tickets[i].told_us = 0
    a.awaited = False
    r.reads.told.clear()
    reads_line(e, r)


cdef u64 pause_us(Engine* e) noexcept nogil:
    return e.options.heartbeat_us // 2
