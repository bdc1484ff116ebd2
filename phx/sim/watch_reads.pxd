"""What must hold of read points: the claim U14 (invariants.pxd)."""

from phx._core.native cimport *
from phx.sim.invariants cimport Watch

# A read begins: the highest instance that any node knows to be chosen, or ever knew.
cdef u64 known_through(Watch* w, u32 group) noexcept nogil
# It was given this point; `quorum`: of what a majority accepted, so that it may lie above what is
# decided.
cdef void watch_read_point(Watch* w, u32 node, u32 group, u64 known, u64 point,
                           bint quorum) noexcept nogil
