# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The claims about replicas that diverge; see watch_odd.pxd."""

from phx._core.native cimport *
from phx.sim.invariants cimport Seat, Watch, fail_at, of


cdef void watch_odd_life(Watch* w, u32 node) noexcept nogil:
    cdef size_t group
    for group in range(of(w, node).seats.size()):
        of(w, node).seats[group].odd = 0
        of(w, node).seats[group].found = False


cdef void watch_odd(Watch* w, u32 node, u32 group, u64 since) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if not (since and seat.odd):     # (it is odd since it was)
        seat.odd = since


cdef u64 odd_since(Watch* w, u32 node, u32 group) noexcept nogil:
    return of(w, node).seats[group].odd


cdef void watch_found(Watch* w, u32 node, u32 group, u64 equal, u64 differs) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if seat.odd == 0:
        fail_at(w, b"U9i", node, group, equal, 0, b"stops as odd, and is what was decided")
    elif not equal < seat.odd <= differs:
        fail_at(w, b"U9i", node, group, seat.odd, 0,
                b"is odd from here on, and another interval is named")
    seat.found = True


cdef bint odd_found(Watch* w, u32 node, u32 group) noexcept nogil:
    return of(w, node).seats[group].found


cdef void watch_marked(Watch* w, u32 node, u32 group, bint on) noexcept nogil:
    of(w, node).seats[group].marked = on
    of(w, node).seats[group].renewed = False


cdef bint odd_marked(Watch* w, u32 node, u32 group) noexcept nogil:
    return of(w, node).seats[group].marked


cdef bint watch_answers(Watch* w, u32 node, u32 group) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if seat.found:
        fail_at(w, b"U9i", node, group, seat.odd, 0, b"answers, and was found to be odd")
    return seat.odd != 0


cdef void watch_made_of(Watch* w, u32 node, u32 group, u64 through, bint odd,
                        bint own) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if own and seat.marked:
        fail_at(w, b"U9i", node, group, through, 0,
                b"made of a checkpoint of its own, and it was to be made anew")
    elif own and odd and seat.found:
        fail_at(w, b"U9i", node, group, through, 0,
                b"made of what it took when it was odd, and that was found")
    seat.odd = through if odd else 0
    seat.found = False
    seat.renewed = True


cdef void watch_gives(Watch* w, u32 node, u32 group, u64 through, bint odd) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if seat.marked and not seat.renewed:
        fail_at(w, b"U9i", node, group, through, 0,
                b"gives a checkpoint away, and is to be made anew")
    elif odd and seat.found:
        fail_at(w, b"U9i", node, group, through, 0,
                b"gives away what it took when it was odd, and that was found")
