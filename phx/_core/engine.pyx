# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The engine; see engine.pxd."""

from libc.string cimport memcpy, memset

from phx._core.acceptor cimport acknowledge, carry_over, promise, replay
from phx._core.ballot cimport ballot_hostile
from phx._core.barrier cimport (
    CHANGE_UNSOUND, barrier_tick, barrier_turn, change_known, change_members,
)
from phx._core.codec cimport (
    RECORD_ACCEPT, RECORD_CHOSEN, RECORD_FLOOR, RECORD_GROUP, RECORD_MEMBERS, RECORD_NODE,
    RECORD_PEER, RECORD_PROMISE, RECORD_SETTLED, RECORD_SUSPECT, RecordHeader,
)
from phx._core.effects cimport (
    LANE_NOW, emit_event, emit_idle_mark, emit_record, hint, random_below, role_timer,
    seal_frames, send,
)
from phx._core.elections cimport refresh_leader, schedule_campaign
from phx._core.groups cimport (
    group_add, group_drop, group_gone, groups_in_order, record_of_other, replica_free,
)
from phx._core.learner cimport (
    advance_known, carry_chosen, carry_settled, jump, learn_tick, replay_settled, settled, supply,
    tail_entry,
)
from phx._core.leases cimport GRANT_MARGIN, heartbeats
from phx._core.liveness cimport give_to, hand_over, successor, time_sync, watch, watch_at
from phx._core.membership cimport (
    carry_members, is_ended, members_begin, members_status, replay_members, slots_begin,
)
from phx._core.native cimport *
from phx._core.peers cimport peer_add, peer_drop, peer_lost, peer_met
from phx._core.proposals cimport callers_done, callers_stop, callers_submit, callers_tick
from phx._core.reads cimport read_take, reads_at, reads_free, reads_turn
from phx._core.relaxed cimport durability_set, sync_relaxed
from phx._core.rejoin cimport carry_suspect, replay_suspect, under_ceiling
from phx._core.proposer cimport pump, role_tick, step_down, transfer
from phx._core.routing cimport route
from phx._core.state cimport *
from phx._core.votes cimport votes_durable, votes_written
from phx._core.window cimport ring_at, ring_free, timer_pop
from phx._core.wire cimport FLAG_LACKING, MSG_CONFIRM, ChosenBody, message_check

cdef enum:
    MARK_IDLE_US = 20000         # a busy period has ended after this long without a record


# --- life

cdef Engine* engine_new(const EngineOptions* options) noexcept nogil:
    cdef Engine* e = phx_new[Engine]()
    cdef u32 i
    e.options = options[0]
    slots_begin(e)
    e.random_state = options.seed ^ (<u64>options.node * <u64>0x9E3779B97F4A7C15)
    if e.random_state == 0:
        e.random_state = 1
    e.lease_bound_us = options.lease_us
    e.ceiling = NO_CEILING
    e.claim_version = e.grants_version = e.lease_version = 1
    for i in range(8):
        random_below(e, 2)
    return e


cdef void engine_free(Engine* e) noexcept nogil:
    cdef size_t i
    if e == NULL:
        return
    reads_free(e)
    for i in range(e.replicas.size()):
        if e.replicas[i] != NULL:
            replica_free(e, e.replicas[i])
    ring_free(&e.cached)
    effects_drop(e)
    block_unref(e.records)
    block_unref(e.broadcast_now)
    block_unref(e.broadcast_later)
    for i in range(e.n_slots):
        block_unref(e.peers[i].now)
        block_unref(e.peers[i].later)
    phx_delete[Engine](e)


cdef int engine_add_group(Engine* e, u32 group, u32 generation, u64 settled_through) noexcept nogil:
    return group_add(e, group, generation, settled_through)


cdef void engine_gone(Engine* e, u32 group, u32 generation) noexcept nogil:
    group_gone(e, group, generation)


cdef int engine_replay(Engine* e, const RecordHeader* header, const u8* body,
                       u64 lsn) noexcept nogil:
    cdef Replica* r
    cdef int at
    if header.kind == RECORD_NODE:
        if header.index >> 32 != 0 or header.ballot >> 32 != 0:
            return -1
        e.incarnation = max(e.incarnation, <u32>header.index)
        # Grants that this node gave in its former life may still run.
        e.quiet_until_us = max(e.quiet_until_us, header.ballot)
        return 0
    if header.kind == RECORD_PEER:
        at = slot_of(e, header.group)
        if header.body_bytes != 16:
            return -1
        if at >= 0:
            e.peers[at].known = True
            memcpy(e.peers[at].store_id, body, 16)
        return 0
    if (header.kind != RECORD_PROMISE and header.kind != RECORD_ACCEPT
            and header.kind != RECORD_CHOSEN and header.kind != RECORD_SETTLED
            and header.kind != RECORD_SUSPECT and header.kind != RECORD_GROUP
            and header.kind != RECORD_MEMBERS):
        return 0
    r = find_group(e, header.group)
    at = record_of_other(e, r, header)
    if at != 0:
        return min(at, 0)
    if header.kind == RECORD_SETTLED:
        return replay_settled(e, r, header, lsn)
    if header.kind == RECORD_SUSPECT:
        return replay_suspect(r, header, body, lsn)
    if header.kind == RECORD_GROUP or header.kind == RECORD_MEMBERS:
        return replay_members(e, r, header, body, lsn)
    return replay(e, r, header, body, lsn)


cdef void emit_node_state(Engine* e, u64 lsn) noexcept nogil:
    """What stands in no group: the incarnation, the longest grant, the peers' store ids."""
    cdef u32 i
    if e.node_lsn < lsn:
        e.node_lsn = emit_record(e, RECORD_NODE, 0, e.incarnation, e.lease_bound_us, NULL, 0, NULL)
    for i in range(e.n_slots):
        if e.peers[i].known and e.peers[i].peer_lsn < lsn:
            e.peers[i].peer_lsn = emit_record(e, RECORD_PEER, e.peers[i].node, 0, 0,
                                              e.peers[i].store_id, 16, NULL)


cdef u32 engine_start(Engine* e, u64 next_lsn, u64 now_us, u64 wall_us) noexcept nogil:
    cdef Replica* r
    cdef size_t i
    e.now_us = now_us
    e.wall_us = wall_us
    e.lsn_end = next_lsn
    e.durable = next_lsn
    e.marked = next_lsn
    e.incarnation += 1
    if e.quiet_until_us:
        # The longer of the two bounds stays in the new record until the quiet time is over.
        e.lease_bound_us = max(e.lease_bound_us, e.quiet_until_us)
        e.quiet_until_us += now_us + e.quiet_until_us // GRANT_MARGIN  # as grants are kept
    e.rejoin_above = e.ceiling
    # Before the node's own record: a journal that says of this life says of its losses (a replay
    # gives a prefix).
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r == NULL:
            continue
        if r.suspect and r.suspect_since == 0:
            r.suspect_since = e.incarnation
        carry_suspect(e, r, ~<u64>0)
    # What was replayed may have been page cache that a power failure still takes: it is written
    # again, and nothing leaves before that is durable (docs/design/journal.md).
    emit_node_state(e, ~<u64>0)
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r == NULL:
            continue
        members_begin(e, r)
        carry_over(e, r, ~<u64>0)
        carry_members(e, r, ~<u64>0)
        carry_settled(e, r, ~<u64>0)
        advance_known(e, r)
    if next_lsn:
        emit_record(e, RECORD_FLOOR, 0, next_lsn, 0, NULL, 0, NULL)
        e.effects.floor_lsn = next_lsn
        e.effects.floor_after = e.lsn_end
    e.start_lsn = e.lsn_end
    e.started = True
    e.beat_at_us = now_us
    e.balance_at_us = now_us
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r == NULL:
            continue
        r.announce_due = True
        schedule_campaign(e, r, 0)
        touch(e, r)
    return e.incarnation


# --- inputs

cdef void engine_receive(Engine* e, u32 peer, const u8* data, u64 count) noexcept nogil:
    cdef int at = slot_of(e, peer)
    cdef u64 used = 0
    cdef u32 length
    # Until it is durable which store stands behind this node id, nothing from it counts.
    if at < 0 or not e.started or not e.peers[at].connected or e.peers[at].store_lsn > e.durable:
        return
    while used < count:
        length = message_check(data + used, count - used)
        if length == 0:
            e.counters.hostile_messages += 1
            return
        route(e, &e.peers[at], data + used, length)
        used += length


cdef int engine_submit(Engine* e, u32 group, u64 first_seq, u32 count, Block* block, u64 offset,
                       u64 nbytes, u64 deadline_us) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL:
        return VERDICT_STOPPED_REJECTED
    return callers_submit(e, r, first_seq, count, block, offset, nbytes, deadline_us)


cdef int engine_read(Engine* e, u32 group, u64 ticket, u32 flags, u64 deadline_us) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL:
        return VERDICT_STOPPED_REJECTED
    return read_take(e, r, ticket, flags, deadline_us)


cdef void engine_durable(Engine* e, u64 lsn) noexcept nogil:
    if e.poisoned or lsn <= e.durable:
        return
    e.durable = lsn
    if e.sync_from_lsn and lsn >= e.sync_from_lsn:
        e.sync_done = True
    votes_durable(e, lsn)
    if e.durable >= e.lsn_needed and e.marked < e.lsn_needed:
        e.mark_due_us = e.now_us + MARK_IDLE_US


cdef void engine_written(Engine* e, u64 lsn) noexcept nogil:
    if lsn > e.written and not e.poisoned:
        votes_written(e, lsn)


cdef u64 engine_durability(Engine* e, u32 group, u64 within_us) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    return durability_set(e, r, within_us) if r != NULL else 0


cdef void engine_sync(Engine* e) noexcept nogil:
    sync_relaxed(e)


cdef void run_timers(Engine* e) noexcept nogil:
    cdef Timer timer
    cdef Replica* r
    while not e.timers.empty() and e.timers.front().at_us <= e.now_us:
        timer = timer_pop(&e.timers)
        r = e.replicas[timer.index]
        if r == NULL:
            continue  # it was of a group that is gone
        if timer.kind == TIMER_ROLE and r.role_at_us == timer.at_us:
            r.role_at_us = 0
            if not barrier_tick(e, r):
                role_tick(e, r)
        elif timer.kind == TIMER_CALLERS and r.callers_at_us == timer.at_us:
            r.callers_at_us = 0
            callers_tick(e, r)
            touch(e, r)
        elif timer.kind == TIMER_LEARN and r.learn_at_us == timer.at_us:
            r.learn_at_us = 0
            learn_tick(e, r)


cdef void engine_advance(Engine* e, u64 now_us, u64 wall_us) noexcept nogil:
    time_sync(e, now_us)
    e.now_us = max(e.now_us, now_us)
    e.wall_us = wall_us
    if not e.started:
        return
    watch(e)
    run_timers(e)
    if e.relaxed_due_us and e.now_us >= e.relaxed_due_us:
        sync_relaxed(e)
    if e.mark_due_us and e.now_us >= e.mark_due_us:
        emit_idle_mark(e)


cdef int engine_connected(Engine* e, u32 peer, u32 incarnation, const u8* store_id) noexcept nogil:
    return peer_met(e, peer, incarnation, store_id)


cdef void engine_disconnected(Engine* e, u32 peer) noexcept nogil:
    peer_lost(e, peer)


cdef int engine_add_peer(Engine* e, u32 node, const u8* store_id) noexcept nogil:
    return peer_add(e, node, store_id)


cdef int engine_drop_peer(Engine* e, u32 node) noexcept nogil:
    return peer_drop(e, node)


cdef void engine_supply(Engine* e, u32 group, u32 peer, u64 first, const u8* entries,
                        u64 nbytes) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    cdef int at = slot_of(e, peer)
    if r != NULL and at >= 0:
        supply(e, r, &e.peers[at], first, entries, nbytes)


cdef void engine_applied(Engine* e, u32 group, u64 instance) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r != NULL and instance > r.applied_through:
        r.applied_through = instance


cdef void engine_settled(Engine* e, u32 group, u64 through) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r != NULL:
        settled(e, r, through)


cdef void engine_floor(Engine* e, u32 group, u64 floor) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL or floor <= r.floor:
        return
    if floor - 1 > r.chosen_through:
        # A leader proposes from chosen_through on, and counts from there.
        step_down(e, r)
        jump(e, r, floor - 1)
    settled(e, r, floor - 1)
    r.floor = floor


cdef int engine_install(Engine* e, u32 group, u64 through, u64 ballot) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL or not e.started:
        return -1
    if (ballot > r.promised and not ballot_hostile(ballot, r.highest_seen)
            and not e.poisoned and not r.halted):
        if under_ceiling(e, ballot):
            step_down(e, r)
            promise(e, r, ballot)
            touch(e, r)
        # (Where it may not be promised yet, this node leads above it all the same.)
        r.highest_seen = max(r.highest_seen, ballot)
    engine_floor(e, group, through + 1)
    return 0


cdef int engine_change_members(Engine* e, u32 group, const u8* members, u64 nbytes) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    return change_members(e, r, members, nbytes) if r != NULL else CHANGE_UNSOUND


cdef int engine_change_known(Engine* e, u32 group, u64 version, const u8* members, u64 nbytes,
                             u64 instance, u64 floor, bint active) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL or e.poisoned:
        return -1
    return change_known(e, r, version, members, nbytes, instance, floor, active)


cdef void engine_done(Engine* e, u32 group, u64 first_seq, u32 count) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r != NULL and r.callers != NULL:
        callers_done(r, first_seq, count)


cdef int engine_retire(Engine* e, u64 lsn) noexcept nogil:
    cdef Replica* r
    cdef size_t i
    if e.poisoned or lsn > e.lsn_end:
        return -1
    for i in range(e.replicas.size()):
        if e.replicas[i] != NULL and carry_chosen(e, e.replicas[i], lsn, False) < 0:
            return -1
    emit_node_state(e, lsn)
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r == NULL:
            continue
        carry_chosen(e, r, lsn, True)
        carry_over(e, r, lsn)
        carry_members(e, r, lsn)
        carry_settled(e, r, lsn)
        carry_suspect(e, r, lsn)
    e.floor_lsn = lsn
    emit_record(e, RECORD_FLOOR, 0, lsn, 0, NULL, 0, NULL)
    e.effects.floor_lsn = lsn
    e.effects.floor_after = e.lsn_end
    return 0


cdef void lead_no_more(Engine* e, Replica* r) noexcept nogil:
    """This group has just become one that cannot be led from here."""
    cdef u32 to
    if r.role == ROLE_PREVOTING:
        r.role = ROLE_FOLLOWER
        role_timer(e, r, 0)
    to = successor(e, r) if r.role == ROLE_LEADING else 0
    if to != 0:
        transfer(e, r, to)
    else:
        step_down(e, r)


cdef void engine_stop_group(Engine* e, u32 group) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r != NULL:
        r.stop_ends = False  # also where it is being restored
    if r == NULL or r.stopped:
        return
    r.stopped = True
    e.grants_version += 1
    lead_no_more(e, r)
    callers_stop(e, r)


cdef void engine_restoring(Engine* e, u32 group, bint on) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r != NULL and on:
        r.stop_ends = r.stopped
    if r == NULL or r.restoring == on:
        return
    r.restoring = on
    if on:
        lead_no_more(e, r)
        return
    if r.stop_ends:  # its machine was made anew
        r.stopped = r.stop_ends = False
        e.grants_version += 1
    if e.started:
        schedule_campaign(e, r, 0)


cdef void engine_ceiling(Engine* e, u64 counter) noexcept nogil:
    if counter > e.ceiling or (e.ceiling == NO_CEILING and not e.started):
        e.ceiling = counter
        e.ceiling_asked = False


cdef int engine_suspect(Engine* e, u32 group) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL or e.started:
        return -1
    r.suspect = True
    r.suspect_since = 0
    return 0


cdef void engine_poison(Engine* e) noexcept nogil:
    """Nothing that is not durable now will ever be: no vote, no claim, no grant any more."""
    cdef size_t i
    if e.poisoned:
        return
    e.poisoned = True
    e.votes.clear()
    e.relaxed.clear()
    for i in range(e.replicas.size()):
        if e.replicas[i] != NULL:
            step_down(e, e.replicas[i])
            callers_stop(e, e.replicas[i])
    e.claims.clear()


cdef void engine_drop_group(Engine* e, u32 group) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r != NULL:
        group_drop(e, r)


cdef void engine_pressure(Engine* e, int level) noexcept nogil:
    cdef Replica* r
    cdef size_t i
    cdef int before = e.pressure
    if before == level:
        return
    e.pressure = level
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r == NULL:
            continue
        touch(e, r)
        if level < before:
            refresh_leader(e, r)
            if r.want_through > r.chosen_through:
                learn_tick(e, r)


cdef int engine_transfer(Engine* e, u32 group, u32 to) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    return give_to(e, r, to) if r != NULL else -1


cdef void engine_priority(Engine* e, u32 priority) noexcept nogil:
    e.priorities[e.own_slot] = min(priority, <u32>PRIORITY_MAX)
    e.beat_now = True


cdef void engine_late(Engine* e, u32 late_us) noexcept nogil:
    e.late_us = late_us


cdef void engine_resign(Engine* e) noexcept nogil:
    e.resigned = True
    hand_over(e)


# --- effects

cdef void effects_drop(Engine* e) noexcept nogil:
    """Frames that no turn has handed out."""
    cdef size_t i
    for i in range(e.effects.outgoing.size()):
        block_unref(e.effects.outgoing[i].frame)


cdef void hand_effects(Engine* e) noexcept nogil:
    """What was filled goes out; the vectors of the turn before, drained by now, are filled next."""
    cdef Effects* out = &e.handed
    out.outgoing.clear()
    out.chosen.clear()
    out.fetches.clear()
    out.events.clear()
    out.points.clear()
    out.republish.clear()
    out.outgoing.swap(e.effects.outgoing)
    out.chosen.swap(e.effects.chosen)
    out.fetches.swap(e.effects.fetches)
    out.events.swap(e.effects.events)
    out.points.swap(e.effects.points)
    out.republish.swap(e.effects.republish)
    out.records = e.records
    if e.records != NULL:
        e.records_hint = hint(e.records_hint, e.records.size)
    out.lsn_first = e.effects.lsn_first
    out.lsn_end = e.lsn_end
    out.sync = e.effects.sync
    out.write = e.effects.write
    out.floor_lsn = e.effects.floor_lsn
    out.floor_after = e.effects.floor_after
    out.wake_at_us = wake_at(e)
    e.records = NULL
    e.effects.sync = False
    e.effects.write = False
    e.effects.floor_lsn = 0
    e.effects.floor_after = 0


cdef void flush(Engine* e, Replica* r) noexcept nogil:
    cdef ChosenRange range_
    cdef ChosenBody confirm
    cdef int to
    r.supplied = 0
    if r.members != NULL:
        barrier_turn(e, r)
    pump(e, r)
    if r.ack_due:
        acknowledge(e, r)
    if r.confirm_due:
        # A watermark may come before the heartbeat that says who leads: then this waits for it.
        to = slot_of(e, r.leader)
        r.confirm_due = to < 0 and r.role < ROLE_PREPARING
        if to >= 0 and r.leader != e.options.node and r.claim:
            confirm.through = r.chosen_through
            send(e, &e.peers[to], LANE_NOW, MSG_CONFIRM, FLAG_LACKING if r.suspect else 0, r.group,
                 r.claim, &confirm, sizeof(confirm), NULL, 0)
    if r.reads != NULL:
        reads_line(e, r)
    if r.announce_due and r.chosen_through > r.announced_through:
        range_.group = r.group
        range_.first = r.announced_through + 1
        range_.last = r.chosen_through
        r.announced_through = r.chosen_through
        e.effects.chosen.push_back(range_)
    r.announce_due = False
    republish(e, r)


cdef Effects* engine_turn(Engine* e) noexcept nogil:
    cdef size_t i = 0
    cdef Replica* r
    e.again_bytes = 0
    while i < e.dirty.size():
        r = e.replicas[e.dirty[i]]
        r.dirty = False
        flush(e, r)
        i += 1
    e.dirty.clear()
    reads_turn(e)
    if e.started and not e.poisoned and e.durable >= e.start_lsn:
        heartbeats(e)
    seal_frames(e)
    hand_effects(e)
    return &e.handed


cdef u64 wake_at(Engine* e) noexcept nogil:
    cdef u64 at = watch_at(e)
    if not e.timers.empty():
        at = min(at, e.timers.front().at_us)
    if e.mark_due_us:
        at = min(at, e.mark_due_us)
    if e.relaxed_due_us:
        at = min(at, e.relaxed_due_us)
    return min(at, reads_at(e))


# --- questions

cdef Block* engine_entry(Engine* e, u32 group, u64 instance) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    return tail_entry(r, instance) if r != NULL else NULL


cdef u64 engine_location(Engine* e, u32 group, u64 instance) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL or instance <= r.settled_through or instance > r.chosen_through:
        return 0
    return ring_at(&r.locations, <u32>(instance - r.settled_through - 1))


cdef bint engine_group_status(Engine* e, u32 group, GroupStatus* out) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL:
        return False
    memset(out, 0, sizeof(GroupStatus))
    out.generation = r.generation
    out.leader = r.leader
    out.leading = r.role == ROLE_LEADING
    out.stopped = r.stopped
    out.halted = r.halted
    out.restoring = r.restoring
    out.suspect = r.suspect
    out.ended = is_ended(r)
    out.promised = r.promised
    out.highest_seen = max(r.highest_seen, r.promised)
    out.ballot = r.lead.ballot if r.lead != NULL else 0
    out.chosen_through = r.chosen_through
    out.applied_through = r.applied_through
    out.settled_through = r.settled_through
    out.floor = r.floor
    out.accepted_last = r.accepted_last
    out.sync_within_us = r.sync_within_us
    out.waiting_values = r.callers.values if r.callers != NULL else 0
    return True


cdef bint engine_membership(Engine* e, u32 group, GroupMembers* out) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    if r == NULL:
        return False
    members_status(r, out)
    return True


cdef EngineCounters* engine_counters(Engine* e) noexcept nogil:
    return &e.counters


cdef u32 engine_leading(Engine* e) noexcept nogil:
    cdef u32 count = 0
    cdef size_t i
    for i in range(e.claims.size()):
        count += find_group(e, e.claims[i].group).role == ROLE_LEADING
    return count


cdef void engine_settle_plan(Engine* e, u64 lsn, vector[SettleItem]* out) noexcept nogil:
    cdef size_t i
    cdef u32 k, count
    cdef Replica* r
    cdef SettleItem item
    cdef vector[u64] order
    for i in range(groups_in_order(e, &order)):
        r = e.replicas[<u32>order[i]]
        count = r.locations.size
        while count > 0 and ring_at(&r.locations, count - 1) >= lsn:
            count -= 1
        for k in range(count):
            # (Positions need not ascend: what was accepted again stands in a later record, which
            # may not be written yet. Then the rest is for another time.)
            if ring_at(&r.locations, k) >= e.durable:
                break
            item.group = r.group
            item.pad = 0
            item.instance = r.settled_through + 1 + k
            item.lsn = ring_at(&r.locations, k)
            out.push_back(item)
