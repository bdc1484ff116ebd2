# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Lives of nodes, and groups that come and go; see watch_lives.pxd."""

from phx._core.native cimport *
from phx._core.state cimport Engine, Replica, find_group
from phx._core.window cimport SLOT_CHOSEN, Slot, window_find
from phx.sim.configurations cimport configurations_created
from phx.sim.invariants cimport NodeWatch, Seat, Watch, fail_at, of
from phx.sim.reference cimport Log, cell_kept_ballot, reference_forget, reference_value
from phx.sim.watch_lost cimport lost_started
from phx.sim.watch_members cimport members_kept, members_started
from phx.sim.watch_records cimport records_died
from phx.sim.watch_relaxed cimport relaxed_started


# No acceptance that others may have counted is missing.
cdef void check_kept(Watch* w, NodeWatch* n, u32 group, u64 settled) noexcept nogil:
    cdef Log* log = &w.ref.logs[group]
    cdef Replica* r = find_group(n.engine, group)
    cdef Slot* slot
    cdef u64 instance, ballot
    if settled > log.end:
        fail_at(w, b"U3", n.node, group, settled, 0, b"the store holds what is not decided")
        return
    for instance in range(r.chosen_through + 1, log.cells.size()):
        ballot = members_kept(w, n, r, instance) if w.changing \
            else cell_kept_ballot(&log.cells[instance], n.node)
        if ballot == 0:
            continue
        slot = window_find(&r.window, instance)
        if slot == NULL or (slot.ballot < ballot and not slot.flags & SLOT_CHOSEN):
            fail_at(w, b"U3", n.node, group, instance, ballot,
                    b"an acceptance is forgotten over a restart")


# What holds of a group when its engine has it: at a start, or as it is hosted.
cdef void seat_begins(Watch* w, NodeWatch* n, u32 group, u64 settled) noexcept nogil:
    cdef Replica* r = find_group(n.engine, group)
    cdef Seat* seat = &n.seats[group]
    if (r != NULL) != (group < w.configured or seat.hosts):
        fail_at(w, b"U15", n.node, group, 0, 0,
                b"begins with it or without it, and its store says otherwise")
    if r == NULL:
        return
    if r.promised < seat.exposed or r.promised < seat.durable:
        fail_at(w, b"U4", n.node, group, 0, max(seat.exposed, seat.durable),
                b"a promise is forgotten over a restart")
    check_kept(w, n, group, settled)
    seat.promised = seat.seen = r.promised
    seat.through = r.chosen_through
    seat.handed = seat.restored = 0
    seat.applied = 0
    seat.acked_ballot = 0
    seat.told = r.floor
    seat.told_turn = 0
    if r.floor < seat.kept:
        fail_at(w, b"U9b", n.node, group, r.floor, 0, b"begins with less than its floor")


cdef void watch_started(Watch* w, u32 node, Engine* engine, u32 incarnation,
                        const u64* settled) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef u32 group
    n.engine = engine
    n.incarnation = incarnation
    n.life += 1
    n.durable = max(n.durable, engine.durable)
    for group in range(w.groups):
        seat_begins(w, n, group, settled[group])
    lost_started(w, n)
    relaxed_started(w, n)
    if w.changing:
        members_started(w, n)


cdef void watch_died(Watch* w, u32 node) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    n.engine = NULL
    records_died(&n.records)
    reference_forget(w.ref, node)


# --- groups that come and go (U15)

cdef void watch_created(Watch* w, u32 group, const u8* roster, u64 count) noexcept nogil:
    cdef const char* why = NULL
    cdef u32 value = reference_value(w.ref, group, roster, count, &why)
    if value == 0:
        fail_at(w, b"U2", 0, group, 0, 0, why)
    else:
        configurations_created(w.ref, group, value)


cdef void watch_over(Watch* w, u32 node, u32 group) noexcept nogil:
    if w.ref.logs[group].configurations.back().who.members:
        fail_at(w, b"U15", node, group, w.ref.logs[group].end, 0,
                b"called over, and its last value is not decided")


cdef void watch_hosts(Watch* w, u32 node, u32 group, bint hosts) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if hosts and seat.gone:
        fail_at(w, b"U15", node, group, 0, 0,
                b"is to host again what it dropped: what it voted there is forgotten")
    if not hosts and w.ref.logs[group].configurations.back().who.members:
        fail_at(w, b"U15", node, group, 0, 0, b"lets go of a group that is not over")
    seat.hosts = hosts
    if not hosts:
        seat.gone = True
        seat.lost = False             # its votes are not needed any more


cdef void watch_hosted(Watch* w, u32 node, u32 group, u64 settled) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    seat_begins(w, n, group, settled)
    n.seats[group].suspect = False
    n.seats[group].ended = 0


cdef void watch_begun(Watch* w, u32 node, u32 group, u64 base) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if seat.handed:
        fail_at(w, b"U9e", node, group, seat.handed, 0,
                b"begins anew when it had been handed values")
    seat.handed = base


cdef void watch_unhosted(Watch* w, u32 node, u32 group) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    if not n.seats[group].gone:
        fail_at(w, b"U15", node, group, 0, 0, b"dropped, and its store says that it hosts it")
    n.seats[group].dropped = True
    # (The next turn gives away what was made since the last one.)
    n.seats[group].dropped_turn = n.turn + 1


cdef bint takes_part(Watch* w, NodeWatch* n, u32 group, u64 made) noexcept nogil:
    cdef Seat* seat = &n.seats[group]
    if group < w.configured:
        return True
    if not seat.hosts and not seat.gone:
        fail_at(w, b"U15", n.node, group, 0, 0,
                b"takes part in a group that its store does not say it hosts")
        return False
    if seat.dropped and made > seat.dropped_turn:
        fail_at(w, b"U15", n.node, group, 0, 0, b"takes part in a group that it dropped")
        return False
    return True
