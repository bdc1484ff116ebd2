# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The claims about relaxed groups; see watch_relaxed.pxd."""

from phx._core.codec cimport RECORD_ACCEPT, RECORD_CHOSEN, RecordHeader
from phx._core.native cimport *
from phx.sim.invariants cimport NodeWatch, Seat, Watch, accepted, fail_at, of
from phx.sim.reference cimport (
    Cell, cell_written_in, reference_cell, reference_only_written, reference_power,
)
from phx.sim.watch_records cimport Written, records_next_written


cdef void watch_relaxed(Watch* w, u32 node, u32 group, bint on, u64 turn) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef Seat* seat = &n.seats[group]
    n.relaxes = True
    if on and not seat.row_relaxed:
        fail_at(w, b"U10r", node, group, 0, 0,
                b"tells what is only written, and its store would not know that")
    if seat.relaxed and not on:
        seat.relaxed_until = turn
        seat.acked_ballot = 0        # what was acknowledged is looked at once more
    seat.relaxed = on


cdef void watch_row_relaxed(Watch* w, u32 node, u32 group, bint on) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef Seat* seat = &n.seats[group]
    n.relaxes = True
    if seat.row_relaxed and not on:
        if seat.lost and not seat.said:
            fail_at(w, b"U10r", node, group, 0, seat.before,
                    b"its store forgets that it is suspect before its journal says so")
        elif seat.relaxed or reference_only_written(w.ref, node, group):
            fail_at(w, b"U10r", node, group, 0, 0,
                    b"its store forgets that it is relaxed before all that it told is durable")
    seat.row_relaxed = on


cdef void record_written(Watch* w, NodeWatch* n, const Written* one) noexcept nogil:
    if one.kind == RECORD_CHOSEN:
        reference_cell(w.ref, one.group, one.instance).heard |= <u32>1 << (n.node - 1)
    else:
        accepted(w, n.node, one.group, one.instance, one.ballot, False)


cdef void watch_written(Watch* w, u32 node, u64 lsn) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef const Written* one
    while True:
        one = records_next_written(&n.records, lsn)
        if one == NULL:
            return
        if one.relaxed:
            record_written(w, n, one)


cdef void watch_power(Watch* w, u32 node) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef Seat* seat
    cdef u32 group
    if not n.relaxes:
        return
    for group in range(w.groups):
        seat = &n.seats[group]
        seat.before = max(max(seat.before, seat.promised), max(seat.durable, seat.exposed))
        if seat.row_relaxed or reference_only_written(w.ref, node, group):
            seat.lost = True
            seat.said = False
            seat.lost_in = n.incarnation
    w.written_lost += reference_power(w.ref, node)


cdef void relaxed_started(Watch* w, NodeWatch* n) noexcept nogil:
    cdef Seat* seat
    cdef u32 group
    for group in range(w.groups):
        seat = &n.seats[group]
        seat.relaxed = False
        seat.relaxed_until = 0
        if seat.suspect and not seat.lost:
            # It cannot know what it lacks: it is held to what whoever has lost something is.
            seat.before = max(max(seat.before, seat.promised), max(seat.durable, seat.exposed))
            seat.lost = True
            seat.said = False
            seat.lost_in = n.incarnation - 1


cdef bint relaxed_emits(Watch* w, NodeWatch* n, const RecordHeader* header,
                        const Written* one) noexcept nogil:
    if header.group >= w.groups or not n.seats[header.group].relaxed or one.value == 0:
        return False
    if header.kind != RECORD_ACCEPT and header.kind != RECORD_CHOSEN:
        return False
    return w.ref.values[one.value].change == 0


cdef bint relaxed_tells(NodeWatch* n, u32 group, const Cell* cell, u64 ballot) noexcept nogil:
    cdef Seat* seat = &n.seats[group]
    cdef u32 bit = <u32>1 << (n.node - 1)
    if not seat.relaxed and (seat.relaxed_until == 0 or n.made > seat.relaxed_until):
        return False
    return (cell.decided and cell.heard & bit) or cell_written_in(cell, ballot, n.node)
