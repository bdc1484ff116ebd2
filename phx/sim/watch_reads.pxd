"""U14: read points. What a node publishes is what its engine believes; it covers what is announced.

A read that asks notes the highest instance of its group that any node knows to be chosen when it
begins: its point is taken by an engine later. One under a lease looks at what was published at the
end of a turn, so it notes the highest that was announced: handed on, by a turn that has published
it before. What an engine has counted in a turn that is not over nobody can have heard of.
"""

from phx._core.native cimport *
from phx._core.published cimport Published
from phx.sim.invariants cimport Watch

# A node hands on what it knows to be chosen, through this instance.
cdef inline void watch_announced(Watch* w, u32 group, u64 through) noexcept nogil:
    w.announced[group] = max(w.announced[group], through)

# The highest instance that any node knows to be chosen at this moment, or ever knew.
cdef u64 known_through(Watch* w, u32 group) noexcept nogil
# A read of the group that began when `known` was known has got this read point.
cdef void watch_read_point(Watch* w, u32 node, u32 group, u64 known, u64 point) noexcept nogil
# The same of a point that was asked for, while leases are claimed; `quorum`: it is of what a
# majority accepted, and may lie above what is decided.
cdef void watch_asked_point(Watch* w, u32 node, u32 group, u64 known, u64 point,
                            bint quorum) noexcept nogil
# The node's turn has ended: what it publishes of the group.
cdef void watch_published(Watch* w, u32 node, Published* published, u32 group) noexcept nogil
