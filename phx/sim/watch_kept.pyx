# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The claims about checkpoints; see watch_kept.pxd."""

from phx._core.native cimport *
from phx._core.state cimport Replica, find_group
from phx._core.window cimport Slot, window_find
from phx.sim.invariants cimport Kept, Seat, Watch, fail_at, of
from phx.sim.reference cimport (
    hash_bytes, log_applied, reference_chain, reference_loaded, reference_state, reference_table,
    reference_value, reference_wrote,
)


# --- what the store keeps

cdef void watch_row(Watch* w, u32 node, u32 group, u64 kept_from, u64 settled) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if kept_from < seat.kept:
        fail_at(w, b"U9b", node, group, kept_from, 0, b"the store's floor has fallen")
    if settled < seat.row or kept_from > settled + 1:
        fail_at(w, b"U9g", node, group, settled, 0,
                b"the store's row has fallen, or leaves a gap below its floor")
    if kept_from > w.ref.logs[group].end + 1:
        fail_at(w, b"U9a", node, group, kept_from, 0, b"what is not decided was given up")
    seat.kept = kept_from
    seat.row = settled


cdef void watch_store(Watch* w, u32 node) noexcept nogil:
    cdef size_t group
    for group in range(of(w, node).seats.size()):
        of(w, node).seats[group].kept = 1
        of(w, node).seats[group].row = 0


cdef void watch_floored(Watch* w, u32 node, u32 group, u64 turn) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    cdef u64 floor = find_group(of(w, node).engine, group).floor
    if floor < seat.told:
        fail_at(w, b"U9b", node, group, floor, 0, b"the engine's floor has fallen")
    if floor > seat.told:
        seat.told = floor
        seat.told_turn = turn


cdef void watch_cover(Watch* w, u32 node, u32 group, u64 cover) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if seat.kept > cover + 1:
        fail_at(w, b"U9a", node, group, seat.kept, 0,
                b"the log below is given up, and no checkpoint stands for all of it")


# --- states

cdef void check_state(Watch* w, const char* kind, u32 node, u32 group, u64 through, const u8* data,
                      u64 count, u64 state) noexcept nogil:
    cdef const char* why = b"a state of what is not decided"
    cdef u32 chain = 0
    if of(w, node).seats[group].odd:
        return
    if 0 < through <= w.ref.logs[group].end:
        why = reference_table(w.ref, group, through, data, count, &chain)
        if why == NULL and not reference_chain(w.ref, group, through, chain):
            why = b"another chained checksum than was seen there first"
    if why != NULL:
        fail_at(w, b"U9c", node, group, through, 0, why)
    elif not reference_state(w.ref, group, through, state):
        fail_at(w, kind, node, group, through, 0,
                b"another state of the machine than was seen there first")


cdef void watch_checkpoint(Watch* w, u32 node, u32 group, u64 through, const u8* table, u64 count,
                           u64 state) noexcept nogil:
    if of(w, node).seats[group].applied != log_applied(&w.ref.logs[group], through):
        fail_at(w, b"U9c", node, group, through, 0, b"captured at another instance than it says")
    check_state(w, b"U7", node, group, through, table, count, state)


cdef void taken_on(Watch* w, u32 node, u32 group, u64 through, const u8* table, u64 count,
                   u64 state) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    check_state(w, b"U9c", node, group, through, table, count, state)
    seat.handed = seat.restored = through
    seat.applied = log_applied(&w.ref.logs[group], through)


cdef void watch_restored(Watch* w, u32 node, u32 group, u64 through, const u8* table, u64 count,
                         u64 state) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if seat.handed:
        fail_at(w, b"U9e", node, group, seat.handed, 0, b"restored when it had been handed values")
    taken_on(w, node, group, through, table, count, state)


cdef void watch_swapped(Watch* w, u32 node, u32 group, u64 through, const u8* table, u64 count,
                        u64 state, bint anew) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if seat.handed >= through and not anew:
        fail_at(w, b"U9e", node, group, seat.handed, 0, b"replaced by a machine that is behind it")
    taken_on(w, node, group, through, table, count, state)


cdef void watch_mended(Watch* w, u32 node, u32 group, u64 instance, const u8* body,
                       u64 count) noexcept nogil:
    cdef const char* why = NULL
    cdef u32 value = reference_value(w.ref, group, body, count, &why)
    if value == 0 or instance > w.ref.logs[group].end \
            or w.ref.logs[group].cells[instance].decided != value:
        fail_at(w, b"U9h", node, group, instance, 0,
                b"what took the place of a damaged entry is not what was decided")


cdef void watch_wrote(Watch* w, u32 group, u64 hash) noexcept nogil:
    reference_wrote(w.ref, group, hash)


cdef void watch_loaded(Watch* w, u32 node, u32 group, u64 hash) noexcept nogil:
    if not reference_loaded(w.ref, group, hash):
        fail_at(w, b"U9f", node, group, 0, 0, b"restored from bytes that no machine wrote")


# --- installs

cdef u64 hash_of(const Slot* slot) noexcept nogil:
    return hash_bytes(slot.value.data, slot.value.size) if slot.value != NULL else 0


cdef void watch_installing(Watch* w, u32 node, u32 group, u64 through) noexcept nogil:
    cdef Replica* r = find_group(of(w, node).engine, group)
    cdef Kept one
    cdef Slot* slot
    w.promised = r.promised
    w.held.clear()
    for one.instance in range(max(through + 1, r.window.base), r.accepted_last + 1):
        slot = window_find(&r.window, one.instance)
        if slot != NULL and slot.ballot:
            one.ballot = slot.ballot
            one.hash = hash_of(slot)
            w.held.push_back(one)


cdef void watch_installed(Watch* w, u32 node, u32 group, u64 through) noexcept nogil:
    cdef Replica* r = find_group(of(w, node).engine, group)
    cdef Slot* slot
    cdef size_t i
    if r.promised < w.promised:
        fail_at(w, b"U9d", node, group, through, w.promised, b"an install takes a promise back")
    if r.chosen_through < through:
        fail_at(w, b"U9d", node, group, through, 0, b"installed, and not known to be chosen")
    for i in range(w.held.size()):
        # What was chosen behind it may have become known by it.
        if w.held[i].instance <= r.chosen_through:
            continue
        slot = window_find(&r.window, w.held[i].instance)
        if slot == NULL or slot.ballot != w.held[i].ballot or hash_of(slot) != w.held[i].hash:
            fail_at(w, b"U9d", node, group, w.held[i].instance, w.held[i].ballot,
                    b"an install takes back an acceptance behind its frontier")
