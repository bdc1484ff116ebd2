"""Streams of chance, from the seed alone: splitmix64 (Steele, Lea, Flood 2014).

Every link, disk and host has a stream of its own, so that taking an act out of a plan disturbs the
rest of the run as little as can be; that is what makes shrinking work.
"""

from phx._core.native cimport u64

cdef struct Chance:
    u64 state

cdef inline u64 chance_mix(u64 z) noexcept nogil:
    z = (z ^ (z >> 30)) * <u64>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <u64>0x94D049BB133111EB
    return z ^ (z >> 31)

cdef inline u64 chance_next(Chance* c) noexcept nogil:
    c.state += <u64>0x9E3779B97F4A7C15
    return chance_mix(c.state)

# 0 .. below-1 (0 if below is 0); the bias is below 2**-32 for what is asked here.
cdef inline u64 chance_below(Chance* c, u64 below) noexcept nogil:
    if below == 0:
        return 0
    return ((chance_next(c) >> 32) * below) >> 32

# low .. high, both included.
cdef inline u64 chance_between(Chance* c, u64 low, u64 high) noexcept nogil:
    if high <= low:
        return low
    return low + chance_below(c, high - low + 1)

# True in so many of a million cases.
cdef inline bint chance_ppm(Chance* c, u64 ppm) noexcept nogil:
    return ppm != 0 and chance_below(c, 1000000) < ppm

cdef inline Chance chance_of(u64 seed, u64 which) noexcept nogil:
    cdef Chance c
    c.state = chance_mix(seed + <u64>0x9E3779B97F4A7C15 * (which + 1))
    return c
