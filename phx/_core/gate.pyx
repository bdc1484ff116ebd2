# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Turning away what would wait for too long; see gate.pxd."""

from libc.string cimport memset

from phx._core.native cimport *


# How long it takes to believe that values leave as fast as they can.
cdef u64 busy_us(u64 bound_us) noexcept nogil:
    return min(max(bound_us // 4, <u64>BUSY_US_MIN), <u64>BUSY_US_MAX)


# How often a shut gate is judged: a round of all groups takes no longer than what waits.
cdef u64 span_us(u64 bound_us) noexcept nogil:
    return min(max(2 * bound_us, <u64>SPAN_US_MIN), <u64>SPAN_US_MAX)


cdef void begin(Gate* g, u64 now_us) noexcept nogil:
    g.began_us = now_us
    g.left = 0
    g.left_bytes = 0
    g.refused = False
    g.stalled = False


cdef void gate_open(Gate* g) noexcept nogil:
    g.window = g.window_bytes = 0


# A window of a few is empty at times while many are turned away. Open, it would let all of them in
# until the next value leaves. So it waits for a span in which none left, which overload has not.
cdef bint gate_over(const Gate* g, u64 bound_us, u64 waiting, u64 now_us) noexcept nogil:
    return g.window != 0 and waiting == 0 and now_us > g.last_us + span_us(bound_us)


cdef double follow(double known, double seen) noexcept nogil:
    if seen > known:
        return known + (seen - known) / RISE
    return known - (known - seen) / FALL


cdef void set_window(Gate* g, u64 bound_us) noexcept nogil:
    g.window = max(<u64>GATE_FLOOR, <u64>(g.rate * <double>bound_us))
    g.window_bytes = <u64>(g.rate_bytes * <double>bound_us)


cdef void gate_left(Gate* g, u64 bound_us, u64 n, u64 nbytes, u64 stay_us, u64 waiting,
                    u64 now_us) noexcept nogil:
    cdef bint stall = now_us - g.last_us > STALL_US
    cdef double elapsed_us
    g.last_us = now_us
    if waiting == 0 and not g.refused:
        gate_open(g)
    if g.window == 0 and (waiting == 0 or stall or stay_us <= bound_us // 2):
        begin(g, now_us)
        return
    # A span begins and ends when some leave, and counts those that left after its beginning: no
    # matter how far batches are apart, it is what leaves in that time.
    g.left += n
    g.left_bytes += nbytes
    g.stalled |= stall
    elapsed_us = <double>(now_us - g.began_us)
    if g.window == 0:
        if now_us - g.began_us < busy_us(bound_us):
            return
        g.rate = <double>g.left / elapsed_us
        g.rate_bytes = <double>g.left_bytes / elapsed_us
    else:
        if now_us - g.began_us < span_us(bound_us):
            return
        if not g.refused:
            gate_open(g)
            begin(g, now_us)
            return
        if not g.stalled:
            g.rate = follow(g.rate, <double>g.left / elapsed_us)
            g.rate_bytes = follow(g.rate_bytes, <double>g.left_bytes / elapsed_us)
    set_window(g, bound_us)
    begin(g, now_us)


cdef class GateDoor:
    """The same, driven by hand from tests."""

    cdef Gate g
    cdef u64 bound_us
    cdef readonly u64 waiting
    cdef readonly u64 waiting_bytes

    def __init__(self, u64 bound_us):
        memset(&self.g, 0, sizeof(Gate))
        self.bound_us = bound_us

    def offer(self, u64 n=1, u64 nbytes=0, u64 now_us=0, u64 behind_us=0):
        """Whether `n` more are let in, at that time, while another node is so much later."""
        if gate_over(&self.g, self.bound_us, self.waiting, now_us):
            gate_open(&self.g)
        if gate_full(&self.g, self.waiting, self.waiting_bytes, behind_us):
            self.g.refused = True
            return False
        self.waiting += n
        self.waiting_bytes += nbytes
        return True

    def left(self, u64 n, u64 stay_us, u64 now_us, u64 nbytes=0):
        """`n` of them are applied at that time, of which the youngest stayed so long."""
        self.waiting -= n
        self.waiting_bytes -= nbytes
        gate_left(&self.g, self.bound_us, n, nbytes, stay_us, self.waiting, now_us)

    @property
    def window(self):
        return self.g.window

    @property
    def window_bytes(self):
        return self.g.window_bytes

    @property
    def rate_per_s(self):
        return self.g.rate * 1e6
