# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Adaptive rejection; see gate.pxd."""

from libc.string cimport memset

from phx._core.native cimport *

cdef u64 GATE_OPEN = 0xFFFFFFFFFFFFFFFF
cdef u64 NONE = 0xFFFFFFFFFFFFFFFF
cdef u64 ROUND_STAY_US_MAX = 250000
cdef u64 RETRY_US_MIN = 1000
cdef u64 RETRY_US_MAX = 1000000


cdef u64 span_us(u64 target_us) noexcept nogil:
    return min(max(target_us, <u64>SPAN_US_MIN), <u64>SPAN_US_MAX)


cdef u64 gate_stay_us(const Gate* g, u64 target_us) noexcept nogil:
    """How long values may stay: the target, or twice what is normal, whichever is more."""
    return max(target_us, 2 * g.normal_us)


cdef void gate_left(Gate* g, u64 n, u64 stay_us, u64 waiting) noexcept nogil:
    g.departed += n
    g.least_us = min(g.least_us, stay_us)
    g.low = min(g.low, waiting)


cdef void begin(Gate* g, u64 target_us, u64 now_us) noexcept nogil:
    g.began_us = now_us
    g.due_us = now_us + span_us(target_us)
    # Long enough for several batches, so that it does not matter whether one more has just left.
    if g.limit:
        g.due_us = now_us + max(span_us(target_us), min(g.normal_us, <u64>ROUND_STAY_US_MAX)) \
            * ROUND_SPANS
    g.departed = 0
    g.refused = 0
    g.least_us = NONE
    g.low = NONE


cdef void no_queue(Gate* g) noexcept nogil:
    g.base = g.peak = 0
    g.records = g.since = 0
    g.run_us = g.run_departed = 0


cdef void open_up(Gate* g) noexcept nogil:
    g.slow = 0
    g.limit = 0
    no_queue(g)


# New highs of the standing queue. One that is a little above the last is none: a closed loop of
# callers goes up and down, and stays what it is.
cdef void note_queue(Gate* g, u64 target_us) noexcept nogil:
    if g.least_us <= target_us:
        g.base = g.peak = 0
        g.records = g.since = 0
    elif g.peak == 0 or g.since >= SPANS_FORGOTTEN:
        g.base = g.peak = max(g.low, <u64>1)
        g.records = g.since = 0
    elif g.low > g.peak + g.peak // 8:
        g.peak = g.low
        g.records += 1
        g.since = 0
    else:
        g.since += 1


# Down slowly, so that a quiet moment is not the measure; up only while the queue does not grow.
cdef void learn(Gate* g, u64 elapsed_us) noexcept nogil:
    if g.normal_us == 0:
        g.normal_us = g.least_us
    elif g.least_us < g.normal_us:
        g.normal_us -= (g.normal_us - g.least_us) // 32
    elif g.peak == 0 or g.since >= SPANS_STEADY:
        g.normal_us += (g.least_us - g.normal_us) // 8
    g.learned_us = min(g.learned_us + elapsed_us, <u64>LEARNED_US)


cdef bint overloaded(const Gate* g, u64 target_us) noexcept nogil:
    """The queue stands and grows, though as much leaves as ever does; or has done so for long."""
    cdef bint full = <double>g.run_departed >= 0.75 * g.best * <double>g.run_us
    return (g.records >= RECORDS_MIN and g.low >= 2 * g.base and g.low > GATE_FLOOR
            and g.learned_us >= LEARNED_US and (full or g.run_us >= SPANS_ABOVE_SLOW * span_us(target_us)))


cdef void watch(Gate* g, u64 target_us, u64 elapsed_us) noexcept nogil:
    """While everything is let in."""
    note_queue(g, target_us)
    g.pace += (<double>g.departed / <double>elapsed_us - g.pace) / 8
    g.best = max(g.pace, g.best - g.best / 256)
    if g.least_us > gate_stay_us(g, target_us):
        g.run_us += elapsed_us
        g.run_departed += g.departed
    else:
        g.run_us = g.run_departed = 0
    if (g.since == 0 and g.run_us >= SPANS_ABOVE * span_us(target_us)
            and overloaded(g, target_us)):
        # Less than ever left if the machine stood still for a moment: that is not what it can do.
        g.rate = g.best = max(g.best, <double>g.run_departed / <double>g.run_us)
        g.limit = limit_of(g, target_us)
    else:
        learn(g, elapsed_us)


cdef u64 limit_of(const Gate* g, u64 target_us) noexcept nogil:
    """Little's law: so many wait if each stays so long and so many leave."""
    return max(<u64>GATE_FLOOR, <u64>(g.rate * <double>gate_stay_us(g, target_us)))


cdef void hold(Gate* g, u64 target_us, u64 elapsed_us) noexcept nogil:
    """While some are turned away."""
    if g.refused == 0:
        open_up(g)
        return
    g.pace += (<double>g.departed / <double>elapsed_us - g.pace) / 8
    g.best = max(g.pace, g.best - g.best / 256)
    if g.pace >= g.best * 0.5:
        g.slow = 0
        g.rate = max(g.pace, g.rate - g.rate / 16)
    else:
        g.slow += 1
    # Turning some away must not cost throughput. If it does they would not have waited in a queue:
    # the disk has become slower, say, and what stays so long is normal now.
    if g.slow == SLOW_ROUNDS:
        g.normal_us = max(g.normal_us, g.least_us)
        g.best = g.pace
        g.slow = 0
    g.limit = limit_of(g, target_us)


cdef void gate_turn(Gate* g, u64 target_us, u64 waiting, u64 now_us) noexcept nogil:
    cdef u64 elapsed_us = now_us - g.began_us
    if g.began_us == 0 or waiting == 0:
        # Nobody waits: there is no queue, and whatever was learned of one is over.
        if g.limit:
            open_up(g)
        no_queue(g)
        if g.departed:
            learn(g, span_us(target_us))
        begin(g, target_us, now_us)
    elif g.departed == 0 or elapsed_us == 0:
        # Nothing leaves: an election, a long sync. That says nothing about how much is too much.
        g.due_us = now_us + span_us(target_us) // 4
    else:
        if g.limit:
            hold(g, target_us, elapsed_us)
        else:
            watch(g, target_us, elapsed_us)
        begin(g, target_us, now_us)


cdef u64 gate_retry_us(const Gate* g, u64 target_us, u64 waiting) noexcept nogil:
    cdef u64 wait_us = gate_stay_us(g, target_us)
    if g.limit and waiting > g.limit and g.rate > 0:
        wait_us += <u64>(<double>(waiting - g.limit) / g.rate)
    return min(max(wait_us, RETRY_US_MIN), RETRY_US_MAX)


cdef class GateDoor:
    """The same, driven by hand from tests."""

    cdef Gate g
    cdef u64 target_us
    cdef readonly u64 waiting

    def __init__(self, u64 target_us):
        memset(&self.g, 0, sizeof(Gate))
        self.target_us = target_us
        self.waiting = 0

    def offer(self, u64 now_us, u64 n=1):
        """Whether `n` more are let in."""
        if now_us >= self.g.due_us:
            gate_turn(&self.g, self.target_us, self.waiting, now_us)
        if self.waiting >= gate_limit(&self.g):
            self.g.refused += n
            return False
        self.waiting += n
        return True

    def left(self, u64 n, u64 stay_us):
        """`n` of them are applied, of which the youngest stayed so long."""
        self.waiting -= n
        gate_left(&self.g, n, stay_us, self.waiting)

    def retry_us(self):
        return gate_retry_us(&self.g, self.target_us, self.waiting)

    @property
    def limit(self):
        return self.g.limit

    @property
    def normal_us(self):
        return self.g.normal_us
