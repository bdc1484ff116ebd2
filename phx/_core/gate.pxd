"""Whether one more value is let in, or turned away at once because too many wait for too long.

    gate_left     some values left: were applied
    gate_turn     judges what was seen since the last time; a caller's clock, no other
    gate_limit    so many may wait; GATE_OPEN: as many as the fixed limits allow

Nothing is turned away while work leaves as fast as it comes, however long it stays: a slow disk, a
group commit, ten thousand values in flight, an election are no overload. Overload is a queue that
stands and goes on growing; docs/design/flow.md has the argument, and its sources.
"""

from phx._core.native cimport *

cdef enum:
    GATE_FLOOR = 16              # so many may wait in any case
    SPANS_ABOVE = 3              # without a short stay, before anything is turned away
    SPANS_ABOVE_SLOW = 20        # the same, if less leaves than did: a machine that stood still
    RECORDS_MIN = 2              # and so often more waited than ever
    LEARNED_US = 1000000         # with values on their way; what is normal is not known before
    SPANS_STEADY = 8             # without a record: what stays so long is normal
    SPANS_FORGOTTEN = 50         # records that are so old say nothing
    ROUND_SPANS = 4              # while some are turned away it is judged so often
    SLOW_ROUNDS = 8              # with less than half of the best: what is normal has changed
    SPAN_US_MIN = 5000
    SPAN_US_MAX = 100000

cdef u64 GATE_OPEN

# Of a group, or of a node. All zero: nothing was seen.
cdef struct Gate:
    u64 began_us                 # what follows counts since then; 0: nothing was seen
    u64 due_us
    u64 departed
    u64 refused
    u64 least_us                 # shortest stay of what left
    u64 low                      # fewest that waited, right after some left
    u64 base                     # `low` when stays first were above the target
    u64 peak                     # and its last record
    u64 run_us                   # how long no stay was short,
    u64 run_departed             # and what left meanwhile
    u64 normal_us                # how long stays are while as much leaves as comes
    u64 limit                    # 0: open
    double pace                  # values per us, over the last spans
    double best                  # its highest, slowly forgotten
    double rate                  # what the limit is made of
    u32 records
    u32 since                    # spans since the last record
    u32 slow                     # rounds in a row in which less than half of the best left
    u64 learned_us

cdef void gate_left(Gate* g, u64 n, u64 stay_us, u64 waiting) noexcept nogil
# Call it when `now_us` has reached due_us, before one more is let in. `waiting`: values now.
cdef void gate_turn(Gate* g, u64 target_us, u64 waiting, u64 now_us) noexcept nogil
# When to come again: after about one stay, and when what is too much has left.
cdef u64 gate_retry_us(const Gate* g, u64 target_us, u64 waiting) noexcept nogil
cdef u64 gate_stay_us(const Gate* g, u64 target_us) noexcept nogil

cdef inline u64 gate_limit(const Gate* g) noexcept nogil:
    return g.limit if g.limit else GATE_OPEN
