"""The claims about callers (U8): nobody who was told "rejected" is chosen; nobody is told twice, or
what was not applied."""

from phx._core.native cimport *
from phx.sim.invariants cimport Watch

# The number of a new value.
cdef u64 watch_submitting(Watch* w) noexcept nogil
cdef void watch_submitted(Watch* w, u32 node, u32 group, u64 sequence, const u8* value,
                          u64 count) noexcept nogil
cdef void watch_acked(Watch* w, u32 node, u32 group, u64 op) noexcept nogil
cdef void watch_dropped(Watch* w, u32 node, u32 group, u64 op) noexcept nogil
cdef void watch_verdict(Watch* w, u64 op, bint rejected) noexcept nogil
