"""Whether one more value is let in, for a bound on how long it waits here that the user has stated.

    gate_left     some values left: were applied. Nothing else shuts a gate, or moves its window
    gate_room     how much of a shut one's window is left while another node applies later
    gate_full     whether one more is turned away; set `refused` then
    gate_over     whether it is to be opened, as nobody waits and nothing has left for a span

A gate is open or shut. Open, it lets everything in. It shuts when for a while no value that left
had been here for less than half of the bound: then values leave as fast as they can, and how fast
that is has just been seen. Shut, it lets in as many as leave within the bound (Little's law: so
many wait if each waits so long). It opens when nobody was turned away for a span; or when nobody
waits, unless that is because somebody was turned away just now.

All nodes apply the values of all. One that is later than the others stays so while these let in as
much as they can do. So a node lets in less as long as another, whose callers wait for it, is later:
its window counts as if its own values were applied when that one applies them, which is what this
other node's callers have before them. docs/design/flow.md has the argument.
"""

from phx._core.native cimport *

cdef enum:
    GATE_FLOOR = 4               # so many may wait in any case
    BUSY_US_MIN = 20000          # it shuts after so long without a short stay: bound / 4
    BUSY_US_MAX = 100000
    SPAN_US_MIN = 100000         # a shut one is judged so often: twice the bound
    SPAN_US_MAX = 1000000
    STALL_US = 500000            # an election, a pause: says nothing about how fast values leave
    RISE = 2                     # what is thought to leave goes up by half of what is seen, a span,
    FALL = 16                    # and down by a sixteenth

# Of a group, or of a node. All zero: open, nothing was seen.
cdef struct Gate:
    u64 began_us                 # what follows counts since then
    u64 last_us                  # when some left last
    u64 left
    u64 left_bytes
    double rate                  # values per microsecond; 0: not known
    double rate_bytes
    u64 window                   # so many may wait; 0: open
    u64 window_bytes
    bint refused                 # somebody was turned away since began_us
    bint stalled                 # nothing left for STALL_US, since then

# `n` values (>= 1) were applied, the youngest of which came `stay_us` ago; `waiting` are left.
cdef void gate_left(Gate* g, u64 bound_us, u64 n, u64 nbytes, u64 stay_us, u64 waiting,
                    u64 now_us) noexcept nogil
cdef void gate_open(Gate* g) noexcept nogil
cdef bint gate_over(const Gate* g, u64 bound_us, u64 waiting, u64 now_us) noexcept nogil

# What is left of `window` values, or bytes, of which `rate` leave in a microsecond, if they were to
# be applied `behind_us` later than they are here.
cdef inline u64 gate_room(u64 window, double rate, u64 behind_us) noexcept nogil:
    cdef double taken = rate * <double>behind_us
    return window - <u64>taken if taken < <double>window else 0

cdef inline bint gate_full(const Gate* g, u64 waiting, u64 nbytes, u64 behind_us) noexcept nogil:
    return g.window != 0 and waiting >= GATE_FLOOR and (
        waiting >= gate_room(g.window, g.rate, behind_us)
        or nbytes > gate_room(g.window_bytes, g.rate_bytes, behind_us))
