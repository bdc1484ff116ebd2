# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Keeping the journal short; see upkeep.pxd."""

from libc.stdio cimport snprintf
from libc.string cimport memset

from phx._core.codec cimport RecordHeader
from phx._core.driver_state cimport DriverState, Floor, Settled
from phx._core.engine cimport engine_settle_plan
from phx._core.inputs cimport (
    input_floor, input_poison, input_pressure, input_retire, input_settled, input_sync,
)
from phx._core.journal cimport journal_pressure, journal_recycle, journal_wants_spare
from phx._core.journal_limits cimport JournalRoom, old_segments_end, room_fits, room_pressure
from phx._core.native cimport *
from phx._core.queues cimport (
    CHORE_SETTLE, Chore, chores_push, chores_spare, outbox_event, outbox_log,
)
from phx._core.state cimport (
    Effects, EngineOptions, Event, PRESSURE_FULL, SettleItem,
)
from phx._core.transport cimport LOG_ERROR, READ_BYTES
from phx._core.writer cimport writer_idle, writer_retry

cdef enum:
    EVENT_POISONED = 64
    EVENT_PRESSED = 65
    # why the journal takes no new values: verdict of that event
    PRESSED_BY_NOTHING = 0      # it does
    PRESSED_BY_LIMIT = 1        # its own; first_seq: bytes in use or about to be
    PRESSED_BY_QUEUE = 2        # the disk is slow; first_seq: bytes that wait for it
    PRESSED_BY_DISK = 3         # no segment can be made; group: errno
    NO_INDEX = 0xFFFFFFFF
    RETRY_US = 1000000
    CARRY_US = 5000000
    CARRY_PRESSED_US = 250000   # the same with a journal at its limit
    BUSY_US = 5000
    CARRY_FREE_BYTES = 16384     # may be carried over at any time
    CARRY_GAIN = 4               # times what is carried over has to be freed

cdef u64 NEVER = 0xFFFFFFFFFFFFFFFF


# --- floors

cdef void note_floor(DriverState* s, const Effects* effects) noexcept nogil:
    cdef Floor floor
    if effects.floor_lsn <= s.floor_lsn:
        return
    if not s.floors.empty() and s.floors.back().lsn >= effects.floor_lsn:
        return
    floor.lsn = effects.floor_lsn
    floor.after = effects.floor_after
    s.floors.push_back(floor)


cdef void recycle(DriverState* s) noexcept nogil:
    cdef bint moved = False
    while not s.floors.empty() and s.floors.front().after <= s.durable:
        s.floor_lsn = s.floors.front().lsn
        s.floors.pop_front()
        moved = True
    if moved:
        journal_recycle(s.journal, s.floor_lsn)
        s.pressure_lsn = 0
        if phx_load(&s.writer.full):
            writer_retry(s.writer)


# --- pressure

# What a turn may make of what it reads and of what phase 1 found, at most.
cdef u64 turn_bytes(DriverState* s) noexcept nogil:
    cdef const EngineOptions* o = &s.options.engine
    return (<u64>s.transport.links.size() * (READ_BYTES + <u64>o.frame_bytes_max)
            + 4 * <u64>o.batch_bytes_max + <u64>o.value_bytes_max)


cdef JournalRoom room_of(DriverState* s) noexcept nogil:
    cdef JournalRoom room
    room.queued_bytes = <u64>phx_load(&s.writer.queued_bytes)
    room.segment_bytes = s.options.journal.segment_bytes
    journal_pressure(s.journal, &room.live_bytes, &room.bytes_max)
    return room


cdef void press(DriverState* s, int level) noexcept nogil:
    if level > s.pressure:
        s.settle_retry_us = min(s.settle_retry_us, s.now_us + CARRY_PRESSED_US)
    s.pressure = level
    input_pressure(s, level)
    s.again = True


# Why there is any, to whoever can say it in words. While the disk has no room nothing else counts.
cdef void tell_pressed(DriverState* s, const JournalRoom* room, bint stuck) noexcept nogil:
    cdef Event event
    cdef int by = PRESSED_BY_NOTHING
    memset(&event, 0, sizeof(Event))
    if s.pressure:
        event.group = <u32>phx_load(&s.journal.full_errno) if stuck else 0
        event.first_seq = room.live_bytes + room.queued_bytes
        by = PRESSED_BY_DISK if event.group else PRESSED_BY_LIMIT
        if not stuck and room.queued_bytes > s.options.journal_queue_bytes_max // 2:
            event.first_seq = room.queued_bytes
            by = PRESSED_BY_QUEUE
    if by == s.pressed_by:
        return
    if by and s.pressed_by and by != PRESSED_BY_DISK and s.pressed_by != PRESSED_BY_DISK:
        return  # these two may come and go with every turn
    s.pressed_by = by
    event.kind = EVENT_PRESSED
    event.verdict = <u8>by
    outbox_event(&s.outbox, NO_INDEX, &event)


# Besides, while the disk is so slow that records pile up in memory.
cdef void watch_pressure(DriverState* s) noexcept nogil:
    cdef JournalRoom room
    cdef u64 queued = <u64>phx_load(&s.writer.queued_bytes)
    cdef u64 queue_max = s.options.journal_queue_bytes_max
    cdef int before = s.pressure, level
    cdef bint stuck = phx_load(&s.writer.full) != 0
    if not stuck and before == 0 and queued <= queue_max and s.pressure_lsn != 0 \
            and s.lsn_end < s.pressure_lsn + s.options.journal.segment_bytes // 16:
        return
    s.pressure_lsn = s.lsn_end
    room = room_of(s)
    level = room_pressure(&room, turn_bytes(s), s.options.engine.pending_bytes_max, before)
    if stuck or queued > (queue_max // 2 if before else queue_max):
        level = PRESSURE_FULL
    if level != before:
        press(s, level)
    tell_pressed(s, &room, stuck)


cdef void upkeep_poison(DriverState* s, int error) noexcept nogil:
    cdef Event event
    cdef char line[400]
    if s.poisoned:
        return
    s.poisoned = True
    input_poison(s)
    snprintf(line, 400, "the journal failed (%d): this node votes no more. %s", error,
             s.journal.text)
    outbox_log(&s.outbox, LOG_ERROR, line)
    memset(&event, 0, sizeof(Event))
    event.kind = EVENT_POISONED
    outbox_event(&s.outbox, NO_INDEX, &event)
    s.again = True


# --- settling

# Members of a group write alike. If all settled at the same moment, every sync of a majority would
# stand behind the writes of a store; so each begins up to two segments earlier.
cdef u64 settle_at(DriverState* s) noexcept nogil:
    cdef const EngineOptions* o = &s.options.engine
    cdef u64 rank = 0
    cdef u32 i
    for i in range(o.n_members):
        rank += o.members[i] < o.node
    return s.options.settle_bytes - min(
        2 * s.options.journal.segment_bytes * rank // o.n_members, s.options.settle_bytes // 2)


# How much is to be freed: about two segments, more if the journal is long.
cdef u64 goal_bytes(DriverState* s) noexcept nogil:
    cdef u64 segment = s.options.journal.segment_bytes
    if s.pressure:
        # What is carried over from there must fit into what is left.
        return segment
    return 4 * segment if s.lsn_end - s.floor_lsn > 2 * s.options.settle_bytes else 2 * segment


# Moves the floor to settle_upto. What is not chosen yet is written again by that; when that is most
# of it (a quorum is missing), doing it over and over would only wear the disk.
cdef bint retire(DriverState* s) noexcept nogil:
    s.settle_running = False
    s.again = True
    s.retire_lsn = s.lsn_end
    s.retire_bytes = s.settle_upto - s.floor_lsn
    return input_retire(s, s.settle_upto) == 0


# To move the floor, what every group has below it is written again, though nobody uses it: its
# promise, and what is settled. After a few values that is not worth while. What stays below is
# replayed at a start.
cdef bint retire_pays(DriverState* s) noexcept nogil:
    cdef u64 cost = 2 * s.flows.size() * sizeof(RecordHeader)
    return (cost <= CARRY_FREE_BYTES or s.settle_asked or s.pressure != 0
            or s.settle_upto - s.floor_lsn >= CARRY_GAIN * cost)


# All that is chosen below settle_upto is written. False: something was chosen since.
cdef bint planned(DriverState* s) noexcept nogil:
    cdef JournalRoom room = room_of(s)
    s.settle_running = False
    s.again = True
    if not retire_pays(s):
        return True
    if not room_fits(&room, s.settle_upto - s.floor_lsn):
        s.settle_upto = old_segments_end(s.journal, s.floor_lsn, s.durable, room.segment_bytes)
        if s.settle_upto <= s.floor_lsn:
            return True
    return retire(s)


cdef void watch_retired(DriverState* s) noexcept nogil:
    if s.retire_bytes == 0 or s.lsn_end == s.retire_lsn:
        return
    if s.lsn_end - s.retire_lsn > s.retire_bytes // 2:
        s.settle_retry_us = s.now_us + (CARRY_PRESSED_US if s.pressure else CARRY_US)
    s.retire_bytes = 0


cdef void start_plan(DriverState* s, u64 upto) noexcept nogil:
    cdef Chore chore
    cdef Settled settled
    cdef size_t i
    memset(&chore, 0, sizeof(Chore))
    chore.kind = CHORE_SETTLE
    chore.first = upto
    chore.items = phx_new[vector[SettleItem]]()
    engine_settle_plan(s.engine, upto, chore.items)
    s.settle_upto = upto
    s.settling.clear()
    if chore.items.empty():
        phx_delete(chore.items)
        chore.items = NULL
        if not planned(s):
            outbox_log(&s.outbox, LOG_ERROR, "nothing to settle, and yet the journal is needed")
            s.settle_retry_us = s.now_us + RETRY_US
        return
    for i in range(chore.items.size()):
        settled.group = chore.items[0][i].group
        settled.through = chore.items[0][i].instance
        if s.settling.empty() or s.settling.back().group != settled.group:
            s.settling.push_back(settled)
        else:
            s.settling.back().through = settled.through
    s.settle_plans += 1
    s.settle_entries += chore.items.size()
    s.settle_running = True
    if not chores_push(&s.chores, &chore):
        phx_delete(chore.items)
        upkeep_settle_failed(s)


cdef void settle_all(DriverState* s) noexcept nogil:
    s.unsettled = False
    s.settle_asked = s.settle_wanted
    s.settle_wanted = False
    start_plan(s, s.durable)


cdef void upkeep_settled(DriverState* s, u64 upto) noexcept nogil:
    cdef size_t i
    if not s.settle_running or upto != s.settle_upto:
        return
    for i in range(s.settling.size()):
        input_settled(s, s.settling[i].group, s.settling[i].through)
    s.settling.clear()
    # Something accepted below was chosen since the plan was made: another plan takes it along.
    if not planned(s):
        start_plan(s, s.settle_upto)


cdef void upkeep_settle_failed(DriverState* s) noexcept nogil:
    s.settle_running = False
    s.settling.clear()
    s.unsettled = True
    s.settle_retry_us = s.now_us + RETRY_US


# Only what is durable is settled. Of relaxed groups some may be only written.
cdef bint all_durable(DriverState* s) noexcept nogil:
    if s.engine.relaxed_end <= s.durable:
        return True
    input_sync(s)
    s.again = s.again or s.engine.records != NULL
    return False


cdef void settle(DriverState* s) noexcept nogil:
    cdef u64 end
    if s.settle_running or s.poisoned or s.now_us < s.settle_retry_us:
        return
    if s.settle_wanted:
        # Everything that was chosen must be written, or it would be left out.
        if writer_idle(s.writer) and all_durable(s):
            settle_all(s)
        return
    # (At the limit there is nothing to wait for: only this makes room.)
    if (s.lsn_end - s.floor_lsn > settle_at(s) or s.pressure) and s.floors.empty():
        end = old_segments_end(s.journal, s.floor_lsn, s.durable, goal_bytes(s))
        if end > s.floor_lsn:
            s.settle_asked = True
            start_plan(s, end)
            return
    if s.unsettled and s.now_us >= s.chosen_us + s.options.settle_idle_us \
            and s.pressure == 0 and writer_idle(s.writer) and all_durable(s):
        settle_all(s)


# The plan under way may hold what is trimmed now: the store leaves that out, and so will the next.
cdef void upkeep_floored(DriverState* s, u32 group, u64 floor, u64 settled) noexcept nogil:
    input_settled(s, group, settled)
    input_floor(s, group, floor)
    s.again = True


# --- the turn

cdef void upkeep_turn(DriverState* s, const Effects* effects) noexcept nogil:
    if not effects.chosen.empty():
        s.chosen_us = s.now_us
        s.unsettled = True
    watch_retired(s)
    note_floor(s, effects)
    recycle(s)
    watch_pressure(s)
    settle(s)
    if journal_wants_spare(s.journal):
        chores_spare(&s.chores, s.now_us)


cdef u64 upkeep_deadline(DriverState* s) noexcept nogil:
    cdef u64 at = NEVER
    if s.settle_running or s.poisoned:
        return at
    if s.settle_wanted or s.pressure:
        at = s.settle_retry_us
    elif s.unsettled:
        at = max(s.settle_retry_us, s.chosen_us + s.options.settle_idle_us)
    # Due, and yet waiting for the journal thread: look again in a moment.
    return max(at, s.now_us + BUSY_US)
