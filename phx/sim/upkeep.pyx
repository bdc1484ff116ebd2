# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Floors, settling, pressure; see upkeep.pxd."""

from phx._core.engine cimport (
    engine_pressure, engine_retire, engine_settle_plan, engine_settled,
)
from phx._core.journal cimport (
    journal_prepare_spare, journal_recycle, journal_wants_spare,
)
from phx._core.journal_limits cimport JournalRoom, old_segments_end, room_fits, room_pressure
from phx._core.native cimport *
from phx._core.plan cimport SettlePlan, hold_new
from phx._core.state cimport Effects, PRESSURE_FULL
from phx.sim.agenda cimport AT_COMMIT, AT_SETTLED, AT_SPARE
from phx.sim.chance cimport chance_between
from phx.sim.changing cimport members_row
from phx.sim.durability cimport all_durable
from phx.sim.host cimport Floor, Host
from phx.sim.watch_kept cimport watch_row

from phx.sim.storage import StoreFailed

cdef u64 SETTLE_RETRY_US = 1000000
cdef u64 CARRY_US = 5000000
cdef u64 CARRY_PRESSED_US = 250000


cdef void note_floor(Host h, const Effects* effects) noexcept:
    cdef Floor floor
    if effects.floor_lsn <= h.floor_lsn:
        return
    if not h.floors.empty() and h.floors.back().lsn >= effects.floor_lsn:
        return
    floor.lsn = effects.floor_lsn
    floor.after = effects.floor_after
    h.floors.push_back(floor)


cdef int recycle(Host h) except -1:
    cdef bint moved = False
    while not h.floors.empty() and h.floors.front().after <= h.durable_lsn:
        h.floor_lsn = h.floors.front().lsn
        h.floors.pop_front()
        moved = True
    if moved:
        h.counts.recycled_segments += journal_recycle(h.journal, h.floor_lsn)
        h.retry()
    return 0


# (Nobody else is at the journal: there are no threads here.)
cdef JournalRoom room_of(Host h) noexcept:
    cdef JournalRoom room
    cdef size_t i
    room.live_bytes = h.journal.live_bytes
    room.queued_bytes = 0
    room.bytes_max = h.journal.options.journal_bytes_max
    room.segment_bytes = h.journal_options.segment_bytes
    for i in range(h.queue.size()):
        room.queued_bytes += h.queue[i].block.size
    return room


cdef int watch_pressure(Host h) except -1:
    cdef JournalRoom room = room_of(h)
    # A turn takes one frame here.
    cdef u64 turn_bytes = h.journal_options.segment_bytes // 4 + h.engine_options.frame_bytes_max \
        + 4 * h.engine_options.batch_bytes_max + h.engine_options.value_bytes_max
    cdef int level = PRESSURE_FULL if h.stuck else room_pressure(
        &room, turn_bytes, h.engine_options.pending_bytes_max, h.pressure)
    if level == h.pressure:
        return 0
    h.counts.pressures += h.pressure == 0
    if level > h.pressure:
        h.settle_after_us = min(h.settle_after_us, h.agenda.now_us + CARRY_PRESSED_US)
    h.pressure = level
    if h.tracing is not None:
        held = room.live_bytes + room.queued_bytes
        h.tracing.append((h.agenda.now_us, "pressure", h.node, level, held))
    engine_pressure(h.engine, level)
    h.poke()
    return 0


cdef bint retire(Host h):
    h.settling = False
    h.retire_lsn = h.lsn_end
    h.retire_bytes = h.settle_upto_lsn - h.floor_lsn
    if engine_retire(h.engine, h.settle_upto_lsn) != 0:
        return False
    h.counts.retires += 1
    h.poke()
    return True


cdef bint planned(Host h):
    cdef JournalRoom room = room_of(h)
    h.settling = False
    if not room_fits(&room, h.settle_upto_lsn - h.floor_lsn):
        h.settle_upto_lsn = old_segments_end(h.journal, h.floor_lsn, h.durable_lsn,
                                             room.segment_bytes)
        if h.settle_upto_lsn <= h.floor_lsn:
            return True
    return retire(h)


cdef void start_plan(Host h, u64 upto_lsn):
    cdef SettlePlan plan = SettlePlan()
    engine_settle_plan(h.engine, upto_lsn, &plan.items)
    plan.upto_lsn = upto_lsn
    h.settle_upto_lsn = upto_lsn
    if plan.items.empty():
        if not planned(h):
            h.settle_after_us = h.agenda.now_us + SETTLE_RETRY_US
        return
    plan.hold = hold_new(h.journal, False)
    h.plan = plan
    h.settling = True
    h.agenda.push(h.agenda.now_us + chance_between(&h.chance, 100, h.pace.commit_us_max),
                  AT_COMMIT, h.index, h.life, 0, 0, NULL)


cdef void settle_all(Host h):
    h.unsettled = False
    if h.settling or not h.queue.empty() or h.writing:
        return
    if all_durable(h):
        start_plan(h, h.durable_lsn)
    else:
        h.unsettled = True


cdef void rows_changed(Host h):
    floors = h.store.floors()
    for group in h.plan.through():
        row = floors[group]
        watch_row(h.watch, h.node, group, row.kept_from, row.settled_through)
        members_row(h, group, row.settled_through)


cdef void commit(Host h):
    try:
        h.counts.settled_entries += h.store.settle(h.plan)
        h.counts.settles += 1
        rows_changed(h)
    except StoreFailed:
        h.plan = None
        h.settling = False
        h.unsettled = True
        h.settle_after_us = h.agenda.now_us + SETTLE_RETRY_US
        return
    h.agenda.push(h.agenda.now_us + chance_between(&h.chance, 1, h.pace.commit_us_max),
                  AT_SETTLED, h.index, h.life, 0, 0, NULL)


cdef void settled(Host h):
    cdef dict through = h.plan.through()
    h.plan = None
    for group in sorted(through):
        engine_settled(h.engine, group, through[group])
        h.touch(group)
    # Something accepted below was chosen since the plan was made: another plan takes it along.
    if not planned(h):
        start_plan(h, h.settle_upto_lsn)


cdef int settle(Host h) except -1:
    cdef u64 end
    if h.settling or h.poisoned or h.agenda.now_us < h.settle_after_us:
        return 0
    if (h.lsn_end - h.floor_lsn > h.pace.settle_bytes or h.pressure) and h.floors.empty():
        end = old_segments_end(h.journal, h.floor_lsn, h.durable_lsn,
                               h.journal_options.segment_bytes * (1 if h.pressure else 2))
        if end > h.floor_lsn:
            start_plan(h, end)
            return 0
    if h.unsettled and h.agenda.now_us >= h.chosen_us + h.pace.settle_idle_us \
            and h.pressure == 0 and h.queue.empty() and not h.writing:
        settle_all(h)
    return 0


cdef void make_spare(Host h):
    h.spare_due = False
    if not h.poisoned:
        journal_prepare_spare(h.journal)


# What is not chosen was written again; if that was most of it, not soon once more.
cdef void watch_retired(Host h) noexcept:
    if h.retire_bytes == 0 or h.lsn_end == h.retire_lsn:
        return
    if h.lsn_end - h.retire_lsn > h.retire_bytes // 2:
        h.settle_after_us = h.agenda.now_us + (CARRY_PRESSED_US if h.pressure else CARRY_US)
    h.retire_bytes = 0


cdef int upkeep(Host h) except -1:
    watch_retired(h)
    recycle(h)
    watch_pressure(h)
    settle(h)
    if not h.spare_due and journal_wants_spare(h.journal):
        h.spare_due = True
        h.agenda.push(h.agenda.now_us + chance_between(&h.chance, 100, 20000), AT_SPARE, h.index,
                      h.life, 0, 0, NULL)
    return 0
