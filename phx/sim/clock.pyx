# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""See clock.pxd."""

from phx._core.native cimport i64, u64


cdef u64 clock_shows(const Clock* c, u64 now_us) noexcept nogil:
    return c.shown_us + (now_us - c.true_us) * c.rate_ppm // 1000000


cdef void clock_set(Clock* c, u64 now_us, u64 rate_ppm, u64 jump_us) noexcept nogil:
    c.shown_us = clock_shows(c, now_us) + jump_us
    c.true_us = now_us
    c.rate_ppm = rate_ppm


cdef u64 clock_reaches(const Clock* c, u64 shown_us, u64 now_us) noexcept nogil:
    cdef u64 shows = clock_shows(c, now_us)
    if shown_us <= shows:
        return now_us
    if c.rate_ppm == 0:
        return <u64>0x7FFFFFFFFFFFFFFF
    if shown_us - shows > <u64>1 << 40:
        return now_us + (<u64>1 << 40)
    return now_us + ((shown_us - shows) * 1000000 + c.rate_ppm - 1) // c.rate_ppm
