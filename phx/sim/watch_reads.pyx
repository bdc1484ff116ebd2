# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""U14; see watch_reads.pxd."""

from phx._core.leases cimport group_lease_until
from phx._core.membership cimport changing
from phx._core.native cimport *
from phx._core.published cimport POINT_NOT_LED, Published, published_look
from phx._core.state cimport ROLE_LEADING, Replica, find_group
from phx.sim.invariants cimport Watch, fail_at, of


cdef void watch_read_point(Watch* w, u32 node, u32 group, u64 known, u64 point) noexcept nogil:
    if point < known:
        fail_at(w, b"U14", node, group, known, 0,
                b"known to be chosen before a read began, and above its read point")


cdef u64 known_through(Watch* w, u32 group) noexcept nogil:
    cdef u64 known = w.known[group]
    cdef u32 i
    for i in range(w.nodes):
        if w.node[i].engine != NULL and find_group(w.node[i].engine, group) != NULL:
            known = max(known, find_group(w.node[i].engine, group).chosen_through)
    return known


cdef void watch_asked_point(Watch* w, u32 node, u32 group, u64 known, u64 point,
                            bint quorum) noexcept nogil:
    # (It may come of a lease, and none is claimed while clocks are out of bounds.)
    if not w.leases_void and w.now_us >= w.leases_from_us:
        watch_read_point(w, node, group, known, point)
    if not quorum and point > w.ref.logs[group].end:
        fail_at(w, b"U14", node, group, point, 0, b"a leader's read point above what is decided")


cdef void watch_published(Watch* w, u32 node, Published* published, u32 group) noexcept nogil:
    cdef Replica* r = find_group(of(w, node).engine, group)
    cdef u64 point = 0, until_us = 0
    if r == NULL or published_look(published, r.index, &point, &until_us) == POINT_NOT_LED:
        return
    if w.changing and changing(r):
        fail_at(w, b"U14", node, group, point, r.lead.ballot,
                b"published as led while it has proposed other members")
    elif r.role != ROLE_LEADING or r.lead.ballot != r.promised:
        fail_at(w, b"U14", node, group, point, 0, b"published as led, and it is not")
    elif r.lead.phase1 != NULL or r.lead.recover_through > r.chosen_through:
        fail_at(w, b"U14", node, group, point, r.lead.ballot,
                b"published as led before all that was open is chosen")
    elif point != r.chosen_through or until_us != group_lease_until(of(w, node).engine, r):
        fail_at(w, b"U14", node, group, point, r.lead.ballot,
                b"published: another instance, or another lease, than the engine's")
