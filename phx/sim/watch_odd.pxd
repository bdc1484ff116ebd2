"""The claims about replicas that diverge (U9i): only the odd one stops, it is said since when, and
what it took of its state after that is of no use to it any more.

A seat is *odd* from the instance on that its machine, or its chained checksum, made something else
of than was decided: because an act said so, or because its state was made of a checkpoint that an
odd one took. It is *found* once a comparison in this life has said so, *marked* while it is to be
made anew.
"""

from phx._core.native cimport *
from phx.sim.invariants cimport Watch

# A life begins: its machines are new, what was found before is forgotten, marks stay.
cdef void watch_odd_life(Watch* w, u32 node) noexcept nogil
# The seat's state is not what was decided, from this instance on; 0: it is.
cdef void watch_odd(Watch* w, u32 node, u32 group, u64 since) noexcept nogil
cdef u64 odd_since(Watch* w, u32 node, u32 group) noexcept nogil
# It stops: a majority is equal at `differs` and not to this seat, which was equal at `equal`.
cdef void watch_found(Watch* w, u32 node, u32 group, u64 equal, u64 differs) noexcept nogil
cdef bint odd_found(Watch* w, u32 node, u32 group) noexcept nogil
# It is to be made anew, durably; or it was.
cdef void watch_marked(Watch* w, u32 node, u32 group, bint on) noexcept nogil
cdef bint odd_marked(Watch* w, u32 node, u32 group) noexcept nogil
# It tells a caller what its machine says. True: nobody is to believe it.
cdef bint watch_answers(Watch* w, u32 node, u32 group) noexcept nogil
# Its machine is made of a checkpoint; `odd`: of a state that was odd; `own`: it was not fetched.
cdef void watch_made_of(Watch* w, u32 node, u32 group, u64 through, bint odd,
                        bint own) noexcept nogil
# It begins to give one away.
cdef void watch_gives(Watch* w, u32 node, u32 group, u64 through, bint odd) noexcept nogil
