# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""U14; see watch_reads.pxd."""

from phx._core.native cimport *
from phx._core.state cimport find_group
from phx.sim.invariants cimport Watch, fail_at


cdef u64 known_through(Watch* w, u32 group) noexcept nogil:
    cdef u64 known = w.known[group]
    cdef u32 i
    for i in range(w.nodes):
        if w.node[i].engine != NULL:
            known = max(known, find_group(w.node[i].engine, group).chosen_through)
    return known


cdef void watch_read_point(Watch* w, u32 node, u32 group, u64 known, u64 point,
                           bint quorum) noexcept nogil:
    # (A point may come of a lease, and none is claimed while clocks are out of bounds.)
    if point < known and not w.leases_void and w.now_us >= w.leases_from_us:
        fail_at(w, b"U14", node, group, point, 0,
                b"a read point that does not cover what was known when the read began")
    if not quorum and point > w.ref.logs[group].end:
        fail_at(w, b"U14", node, group, point, 0, b"a leader's read point above what is decided")
