# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Writing effects; see effects.pxd."""

from phx._core.codec cimport (
    FRAME_ENGINE, RECORD_FLOOR, RECORD_MARK, RECORD_NODE, RECORD_PEER, frame_begin, frame_seal,
    record_append_of, record_stride,
)
from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.window cimport timer_push
from phx._core.wire cimport MSG_HEARTBEAT, MSG_READ_POINT, MSG_REJOIN, message_append

cdef enum:
    HINT_BYTES_MAX = 1048576


cdef u64 hint(u64 before, u64 took) noexcept nogil:
    return min(max(took, before - before // 4), <u64>HINT_BYTES_MAX)


# Records that concern no group name 0 there, or a node, or nothing that is one.
cdef u16 record_space(Engine* e, u8 kind, u32 group) noexcept nogil:
    cdef Replica* r
    if kind == RECORD_NODE or kind == RECORD_PEER or kind == RECORD_FLOOR or kind == RECORD_MARK:
        return 0
    r = find_group(e, group)
    return r.generation if r != NULL else 0


cdef u64 put_record(Engine* e, u8 kind, u32 group, u64 index, u64 ballot, const void* body,
                    u32 nbytes) noexcept nogil:
    cdef u64 lsn = e.lsn_end
    if e.records == NULL:
        e.records = block_new(max(<u64>4096, e.records_hint))
        e.effects.lsn_first = lsn
    e.records = record_append_of(
        e.records, kind, record_space(e, kind, group) if e.generations else 0, group, index, ballot,
        body, nbytes)
    e.lsn_end += record_stride(nbytes)
    return lsn


cdef void mark_first(Engine* e) noexcept nogil:
    if e.records == NULL and e.durable > e.marked:
        e.marked = e.durable
        put_record(e, RECORD_MARK, 0, e.durable, 0, NULL, 0)


cdef u64 emit_record(Engine* e, u8 kind, u32 group, u64 index, u64 ballot, const void* body,
                     u32 nbytes,
                     u64* lsn_end) noexcept nogil:
    cdef u64 lsn
    mark_first(e)
    lsn = put_record(e, kind, group, index, ballot, body, nbytes)
    e.lsn_needed = e.lsn_end
    if e.sync_from_lsn == 0:
        e.sync_from_us = e.now_us
        e.sync_from_lsn = e.lsn_end
    e.effects.sync = True
    e.mark_due_us = 0
    if lsn_end != NULL:
        lsn_end[0] = e.lsn_end
    return lsn


cdef void emit_idle_mark(Engine* e) noexcept nogil:
    if e.records == NULL and e.durable >= e.lsn_needed and e.marked < e.lsn_needed:
        e.marked = e.durable
        put_record(e, RECORD_MARK, 0, e.durable, 0, NULL, 0)
    e.mark_due_us = 0


# Room is made for what came before (`broadcast_hint`). A frame may wait long, at a peer that takes
# nothing, and holds all of its block there: so a small one goes over to a block of its own.
cdef Block* without_room(Block* frame) noexcept nogil:
    cdef Block* fitting
    if frame.capacity <= max(4 * frame.size, <u64>1024):
        return frame
    fitting = block_copy(frame.data, frame.size)
    block_unref(frame)
    return fitting


cdef void seal(Engine* e, Block** box, u32 peer, int lane) noexcept nogil:
    cdef Outgoing out
    if box[0] == NULL:
        return
    frame_seal(box[0], 0, FRAME_ENGINE, e.options.node, peer, e.options.cluster)
    out.peer = peer
    out.after = e.lsn_needed if lane == LANE_LATER else 0
    if out.after < e.start_lsn:
        out.after = e.start_lsn
    if out.after <= e.durable:
        out.after = 0
    if peer == 0:
        e.broadcast_hint = hint(e.broadcast_hint, box[0].size)
    out.frame = without_room(box[0])
    e.effects.outgoing.push_back(out)
    box[0] = NULL


# Of which group a message is. What concerns a node and not a group (group 0 is named then) has
# neither version nor generation.
cdef inline Replica* group_said(Engine* e, u8 kind, u32 group) noexcept nogil:
    if MSG_HEARTBEAT <= kind <= MSG_READ_POINT and kind != MSG_REJOIN:
        return NULL
    return find_group(e, group)


cdef void put(Engine* e, Block** box, u32 peer, int lane, u8 kind, u8 flags, u32 group, u64 ballot,
              const void* fixed, u32 nfixed, const void* body, u64 nbody) noexcept nogil:
    cdef Replica* r = group_said(e, kind, group)
    cdef u64 room
    if box[0] != NULL and box[0].size + nbody >= e.options.frame_bytes_max:
        seal(e, box, peer, lane)
    if box[0] == NULL:
        room = 1024 if nbody < 512 else nbody + 512
        if peer == 0:
            room = max(room, e.broadcast_hint)
        box[0] = frame_begin(block_new(room))
    box[0] = message_append(box[0], kind, flags, r.generation if r != NULL else 0, group,
                            r.version if r != NULL else 1, ballot, fixed, nfixed, body, nbody)


cdef void send(Engine* e, Peer* p, int lane, u8 kind, u8 flags, u32 group, u64 ballot,
               const void* fixed, u32 nfixed, const void* body, u64 nbody) noexcept nogil:
    if not p.connected:
        return
    if lane == LANE_LATER:
        put(e, &p.later, p.node, lane, kind, flags, group, ballot, fixed, nfixed, body, nbody)
    else:
        put(e, &p.now, p.node, lane, kind, flags, group, ballot, fixed, nfixed, body, nbody)


cdef void broadcast(Engine* e, int lane, u8 kind, u8 flags, u32 group, u64 ballot,
                    const void* fixed, u32 nfixed, const void* body, u64 nbody) noexcept nogil:
    if e.connected == 0:
        return
    if lane == LANE_LATER:
        put(e, &e.broadcast_later, 0, lane, kind, flags, group, ballot, fixed, nfixed, body, nbody)
    else:
        put(e, &e.broadcast_now, 0, lane, kind, flags, group, ballot, fixed, nfixed, body, nbody)


cdef void cast(Engine* e, u64 to, int lane, u8 kind, u8 flags, u32 group, u64 ballot,
               const void* fixed, u32 nfixed, const void* body, u64 nbody) noexcept nogil:
    cdef u64 left = to & ~(<u64>1 << e.own_slot)
    cdef u64 there = left
    cdef u32 count = 0
    while left:
        count += e.peers[next_member(&left)].connected
    if count == e.connected:
        broadcast(e, lane, kind, flags, group, ballot, fixed, nfixed, body, nbody)
        return
    while there:
        send(e, &e.peers[next_member(&there)], lane, kind, flags, group, ballot, fixed, nfixed,
             body, nbody)


cdef void seal_frames(Engine* e) noexcept nogil:
    cdef u32 i
    seal(e, &e.broadcast_now, 0, LANE_NOW)
    seal(e, &e.broadcast_later, 0, LANE_LATER)
    for i in range(e.n_slots):
        e.peers[i].answer_bytes = 0
        seal(e, &e.peers[i].now, e.peers[i].node, LANE_NOW)
        seal(e, &e.peers[i].later, e.peers[i].node, LANE_LATER)


cdef void emit_event(Engine* e, u8 kind, u8 verdict, u32 group, u64 first_seq, u32 count,
                     u32 leader) noexcept nogil:
    cdef Event event
    event.kind = kind
    event.verdict = verdict
    event.group = group
    event.count = count
    event.leader = leader
    event.first_seq = first_seq
    e.effects.events.push_back(event)


cdef void tell_leader(Engine* e, Replica* r) noexcept nogil:
    cdef u64 epoch = 0
    if r.leader:
        epoch = r.lead.ballot if r.leader == e.options.node else r.claim
    if r.leader != r.told_leader or epoch != r.told_epoch:
        r.told_leader = r.leader
        r.told_epoch = epoch
        emit_event(e, EVENT_LEADER, 0, r.group, epoch, 0, r.leader)


cdef void role_timer(Engine* e, Replica* r, u64 at_us) noexcept nogil:
    r.role_at_us = at_us
    if at_us:
        timer_push(&e.timers, at_us, r.index, TIMER_ROLE)


cdef void callers_timer(Engine* e, Replica* r, u64 at_us) noexcept nogil:
    r.callers_at_us = at_us
    if at_us:
        timer_push(&e.timers, at_us, r.index, TIMER_CALLERS)


cdef void learn_timer(Engine* e, Replica* r, u64 at_us) noexcept nogil:
    r.learn_at_us = at_us
    if at_us:
        timer_push(&e.timers, at_us, r.index, TIMER_LEARN)


cdef u64 random_below(Engine* e, u64 below) noexcept nogil:
    # xorshift64*: enough for jitter, and the same on every machine.
    cdef u64 x = e.random_state
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    e.random_state = x
    if below == 0:
        return 0
    return ((x * <u64>2685821657736338717) >> 11) % below


cdef void halt_group(Engine* e, Replica* r, u8 why) noexcept nogil:
    if not r.halted:
        r.halted = True
        e.grants_version += 1
        touch(e, r)
        emit_event(e, EVENT_HALTED, why, r.group, 0, 0, r.leader)
