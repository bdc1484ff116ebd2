"""Every input of the engine, as the driver gives it: noted in the trace if there is one, then told.

Nothing else in the driver may call an input of the engine (tests/trace/test_tables.py), or a trace
could not be replayed. A body stays as it is during the call, so an input whose result belongs into
the trace is noted after it.
"""

from phx._core.codec cimport RecordHeader
from phx._core.driver_state cimport DriverState
from phx._core.engine cimport *
from phx._core.native cimport *
from phx._core.state cimport Effects
from phx._core.trace cimport *


cdef inline int input_group(DriverState* s, u32 group, u32 generation,
                            u64 settled_through) noexcept nogil:
    cdef int result = engine_add_group(s.engine, group, generation, settled_through)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_GROUP, group, generation, settled_through, 0, <u32>result, NULL,
                    0)
    return result


cdef inline void input_gone(DriverState* s, u32 group, u32 generation) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_GONE, group, generation, 0, 0, 0, NULL, 0)
    engine_gone(s.engine, group, generation)


cdef inline void input_drop_group(DriverState* s, u32 group) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_DROP_GROUP, group, 0, 0, 0, 0, NULL, 0)
    engine_drop_group(s.engine, group)


cdef inline int input_replay(DriverState* s, const RecordHeader* header, const u8* body,
                             u64 lsn) noexcept nogil:
    cdef int result = engine_replay(s.engine, header, body, lsn)
    if s.trace != NULL:
        trace_replayed(s.trace, header, body, lsn, <u32>result)
    return result


cdef inline u32 input_start(DriverState* s, u64 next_lsn, u64 now_us, u64 wall_us) noexcept nogil:
    cdef u32 incarnation = engine_start(s.engine, next_lsn, now_us, wall_us)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_START, 0, 0, next_lsn, now_us, incarnation, &wall_us, 8)
    return incarnation


cdef inline void input_receive(DriverState* s, u32 peer, const u8* data, u64 count) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_RECEIVE, 0, peer, 0, 0, 0, data, count)
    engine_receive(s.engine, peer, data, count)


cdef inline int input_submit(DriverState* s, u32 group, u64 first_seq, u32 count, Block* block,
                             u64 offset, u64 nbytes, u64 deadline_us) noexcept nogil:
    cdef int verdict = engine_submit(s.engine, group, first_seq, count, block, offset, nbytes,
                                     deadline_us)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_SUBMIT, group, count, first_seq, deadline_us, <u32>verdict,
                    block.data + offset, nbytes)
    return verdict


cdef inline int input_read(DriverState* s, u32 group, u64 ticket, u32 flags,
                           u64 deadline_us) noexcept nogil:
    cdef int verdict = engine_read(s.engine, group, ticket, flags, deadline_us)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_READ, group, flags, ticket, deadline_us, <u32>verdict, NULL, 0)
    return verdict


cdef inline void input_durable(DriverState* s, u64 lsn) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_DURABLE, 0, 0, lsn, 0, 0, NULL, 0)
    engine_durable(s.engine, lsn)


cdef inline void input_written(DriverState* s, u64 lsn) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_WRITTEN, 0, 0, lsn, 0, 0, NULL, 0)
    engine_written(s.engine, lsn)


cdef inline u64 input_durability(DriverState* s, u32 group, u64 within_us) noexcept nogil:
    cdef u64 lsn = engine_durability(s.engine, group, within_us)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_DURABILITY, group, 0, within_us, lsn, 0, NULL, 0)
    return lsn


cdef inline void input_sync(DriverState* s) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_SYNC, 0, 0, 0, 0, 0, NULL, 0)
    engine_sync(s.engine)


cdef inline void input_advance(DriverState* s, u64 now_us, u64 wall_us) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_ADVANCE, 0, 0, now_us, wall_us, 0, NULL, 0)
    engine_advance(s.engine, now_us, wall_us)


cdef inline int input_connected(DriverState* s, u32 peer, u32 incarnation,
                                const u8* store_id) noexcept nogil:
    cdef int result = engine_connected(s.engine, peer, incarnation, store_id)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_CONNECTED, 0, peer, incarnation, 0, <u32>result, store_id, 16)
    return result


cdef inline void input_disconnected(DriverState* s, u32 peer) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_DISCONNECTED, 0, peer, 0, 0, 0, NULL, 0)
    engine_disconnected(s.engine, peer)


cdef inline int input_add_peer(DriverState* s, u32 node, const u8* store_id) noexcept nogil:
    cdef int result = engine_add_peer(s.engine, node, store_id)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_ADD_PEER, 0, node, 0, 0, <u32>result, store_id,
                    16 if store_id != NULL else 0)
    return result


cdef inline int input_drop_peer(DriverState* s, u32 node) noexcept nogil:
    cdef int result = engine_drop_peer(s.engine, node)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_DROP_PEER, 0, node, 0, 0, <u32>result, NULL, 0)
    return result


cdef inline int input_change_members(DriverState* s, u32 group, const u8* members,
                                     u64 nbytes) noexcept nogil:
    cdef int result = engine_change_members(s.engine, group, members, nbytes)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_CHANGE_MEMBERS, group, 0, 0, 0, <u32>result, members, nbytes)
    return result


cdef inline int input_change_known(DriverState* s, u32 group, u64 version, const u8* members,
                                   u64 nbytes, u64 instance, u64 floor, bint active) noexcept nogil:
    cdef int result = engine_change_known(s.engine, group, version, members, nbytes, instance,
                                          floor, active)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_CHANGE_KNOWN, group, active, instance, floor, <u32>result,
                    members, nbytes)
    return result


cdef inline void input_supply(DriverState* s, u32 group, u32 peer, u64 first, const u8* entries,
                              u64 nbytes) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_SUPPLY, group, peer, first, 0, 0, entries, nbytes)
    engine_supply(s.engine, group, peer, first, entries, nbytes)


cdef inline void input_applied(DriverState* s, u32 group, u64 instance) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_APPLIED, group, 0, instance, 0, 0, NULL, 0)
    engine_applied(s.engine, group, instance)


cdef inline void input_settled(DriverState* s, u32 group, u64 through) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_SETTLED, group, 0, through, 0, 0, NULL, 0)
    engine_settled(s.engine, group, through)


cdef inline void input_floor(DriverState* s, u32 group, u64 floor) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_FLOOR, group, 0, floor, 0, 0, NULL, 0)
    engine_floor(s.engine, group, floor)


cdef inline int input_install(DriverState* s, u32 group, u64 through, u64 ballot) noexcept nogil:
    cdef int result = engine_install(s.engine, group, through, ballot)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_INSTALL, group, 0, through, ballot, <u32>result, NULL, 0)
    return result


cdef inline void input_done(DriverState* s, u32 group, u64 first_seq, u32 count) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_DONE, group, count, first_seq, 0, 0, NULL, 0)
    engine_done(s.engine, group, first_seq, count)


cdef inline int input_retire(DriverState* s, u64 lsn) noexcept nogil:
    cdef int result = engine_retire(s.engine, lsn)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_RETIRE, 0, 0, lsn, 0, <u32>result, NULL, 0)
    return result


cdef inline void input_stop_group(DriverState* s, u32 group) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_STOP_GROUP, group, 0, 0, 0, 0, NULL, 0)
    engine_stop_group(s.engine, group)


cdef inline void input_restoring(DriverState* s, u32 group, bint on) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_RESTORING, group, 0, on, 0, 0, NULL, 0)
    engine_restoring(s.engine, group, on)


cdef inline void input_ceiling(DriverState* s, u64 counter) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_CEILING, 0, 0, counter, 0, 0, NULL, 0)
    engine_ceiling(s.engine, counter)


cdef inline void input_suspect(DriverState* s, u32 group) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_SUSPECT, group, 0, 0, 0, 0, NULL, 0)
    engine_suspect(s.engine, group)


cdef inline void input_poison(DriverState* s) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_POISON, 0, 0, 0, 0, 0, NULL, 0)
    engine_poison(s.engine)


cdef inline void input_pressure(DriverState* s, int level) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_PRESSURE, 0, 0, <u64>level, 0, 0, NULL, 0)
    engine_pressure(s.engine, level)


cdef inline int input_transfer(DriverState* s, u32 group, u32 to) noexcept nogil:
    cdef int result = engine_transfer(s.engine, group, to)
    if s.trace != NULL:
        trace_input(s.trace, TRACE_TRANSFER, group, to, 0, 0, <u32>result, NULL, 0)
    return result


cdef inline void input_priority(DriverState* s, u32 priority) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_PRIORITY, 0, 0, priority, 0, 0, NULL, 0)
    engine_priority(s.engine, priority)


cdef inline void input_late(DriverState* s, u32 late_us) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_LATE, 0, 0, late_us, 0, 0, NULL, 0)
    engine_late(s.engine, late_us)


cdef inline void input_resign(DriverState* s) noexcept nogil:
    if s.trace != NULL:
        trace_input(s.trace, TRACE_RESIGN, 0, 0, 0, 0, 0, NULL, 0)
    engine_resign(s.engine)


cdef inline Effects* input_turn(DriverState* s) noexcept nogil:
    cdef Effects* effects = engine_turn(s.engine)
    if s.trace != NULL:
        trace_turn(s.trace, effects)
    return effects
