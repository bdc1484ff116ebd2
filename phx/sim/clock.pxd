"""A host's clocks: they drift, jump, and stop; the true time is the agenda's."""

from phx._core.native cimport i64, u64

cdef struct Clock:
    u64 true_us        # since when the rate has been what it is
    u64 shown_us       # and what the clock showed then
    u64 rate_ppm       # a million: right; 0: it stands still
    i64 wall_us        # what the wall clock is off

cdef u64 clock_shows(const Clock* c, u64 now_us) noexcept nogil
# From now on another rate; and at once `jump_us` more.
cdef void clock_set(Clock* c, u64 now_us, u64 rate_ppm, u64 jump_us) noexcept nogil
# The true time at which it will show `shown_us`: now if it does, never if it stands still.
cdef u64 clock_reaches(const Clock* c, u64 shown_us, u64 now_us) noexcept nogil
