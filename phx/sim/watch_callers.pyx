# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""U8; see watch_callers.pxd."""

from phx._core.native cimport *
from phx.sim.invariants cimport Watch, fail_at, of
from phx.sim.reference cimport OP_OPEN, OP_REJECTED, OP_UNKNOWN, Op, reference_named, reference_op


cdef u64 watch_submitting(Watch* w) noexcept nogil:
    return reference_op(w.ref)


cdef void watch_submitted(Watch* w, u32 node, u32 group, u64 sequence, const u8* value,
                          u64 count) noexcept nogil:
    reference_named(w.ref, node, of(w, node).incarnation, group, sequence, value, count)


cdef void watch_acked(Watch* w, u32 node, u32 group, u64 op) noexcept nogil:
    cdef Op* told = &w.ref.ops[op]
    if told.acked or told.verdict != OP_OPEN:
        fail_at(w, b"U8", node, group, told.sequence, 0, b"a caller is told twice")
    if not told.applied or told.node != node or told.group != group:
        fail_at(w, b"U8", node, group, told.sequence, 0,
                b"acknowledged, and the log does not apply it")
    told.acked = True


cdef void watch_dropped(Watch* w, u32 node, u32 group, u64 op) noexcept nogil:
    if not w.ref.ops[op].applied:
        fail_at(w, b"U7", node, group, w.ref.ops[op].sequence, 0,
                b"chosen, waited for, and left out although it was never applied")


cdef void watch_verdict(Watch* w, u64 op, bint rejected) noexcept nogil:
    cdef Op* told = &w.ref.ops[op]
    if told.acked or told.verdict != OP_OPEN:
        fail_at(w, b"U8", told.node, told.group, told.sequence, 0, b"a caller is told twice")
    told.verdict = OP_REJECTED if rejected else OP_UNKNOWN
    if rejected and told.decided:
        fail_at(w, b"U8", told.node, told.group, told.sequence, 0, b"rejected, and it is chosen")
