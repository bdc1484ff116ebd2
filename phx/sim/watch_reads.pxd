"""U14: read points. What a node publishes is what its engine believes; it covers what is announced.

A node announces an instance when it hands it on as chosen, in the turn in which anybody can first
hear of it. A read notes the highest one announced of its group when it begins.
"""

from phx._core.native cimport *
from phx._core.published cimport Published
from phx.sim.invariants cimport Watch

# A node hands on what it knows to be chosen, through this instance.
cdef inline void watch_announced(Watch* w, u32 group, u64 through) noexcept nogil:
    w.known[group] = max(w.known[group], through)

# A read of the group that began when `known` was announced has got this read point.
cdef void watch_read_point(Watch* w, u32 node, u32 group, u64 known, u64 point) noexcept nogil
# The node's turn has ended: what it publishes of the group.
cdef void watch_published(Watch* w, u32 node, Published* published, u32 group) noexcept nogil
