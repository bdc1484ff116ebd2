"""What every loop has in common: a measured part, run once, and a check of what it did.

A loop is made for `count` operations. Its constructor gets everything ready, run() does the
operations and says how long they took, check() raises AssertionError if they did not do what they
are there for. Nothing but the measured part is timed, and nothing else is counted by callgrind.
"""

from phx._core.native cimport i64, u64

cdef extern from "measure.h":
    i64 phx_micro_timed(void (*part)(void*) noexcept, void* arg)

cdef extern from "measure.h" nogil:
    void phx_micro_counted()
    u64 phx_micro_opaque(u64 word)

cdef class Loop:
    cdef readonly u64 count          # operations of run()
    cdef i64 ns                      # of the measured parts so far
    cdef u64 seen                    # a sum over what was computed
    cdef void go(self) noexcept      # the measured part of most loops
