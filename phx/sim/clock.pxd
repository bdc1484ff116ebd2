"""A host's clocks: they drift, jump, and stop; the true time is the agenda's."""

from phx._core.native cimport i64, u64

cdef struct Clock:
    u64 true_us        # since when the rate has been what it is
    u64 shown_us       # and what the clock showed then
    u64 rate_ppm       # a million: right; 0: it stands still
    i64 wall_us        # what the wall clock is off

cdef inline u64 clock_shows(const Clock* c, u64 now_us) noexcept nogil:
    return c.shown_us + (now_us - c.true_us) * c.rate_ppm // 1000000

# From now on another rate; and at once `jump_us` more.
cdef inline void clock_set(Clock* c, u64 now_us, u64 rate_ppm, u64 jump_us) noexcept nogil:
    c.shown_us = clock_shows(c, now_us) + jump_us
    c.true_us = now_us
    c.rate_ppm = rate_ppm

# The true time at which the clock will show `shown_us`; now if it does; for ever if it stands still.
cdef inline u64 clock_reaches(const Clock* c, u64 shown_us, u64 now_us) noexcept nogil:
    cdef u64 shows = clock_shows(c, now_us)
    if shown_us <= shows:
        return now_us
    if c.rate_ppm == 0:
        return <u64>0x7FFFFFFFFFFFFFFF
    if shown_us - shows > <u64>1 << 40:
        return now_us + (<u64>1 << 40)
    return now_us + ((shown_us - shows) * 1000000 + c.rate_ppm - 1) // c.rate_ppm
