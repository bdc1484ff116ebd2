# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Values of this node's callers; see proposals.pxd."""

from libc.stdlib cimport free
from libc.string cimport memcpy

from phx._core.batch cimport (
    ITEM_HEADER_BYTES, RunIterator, items_check, items_fit, items_prefix, run_begin, run_next,
)
from phx._core.effects cimport LANE_NOW, callers_timer, emit_event, send
from phx._core.membership cimport by_slot, is_ended, is_removed, knows_below
from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport (
    MSG_FORWARD, MSG_FORWARD_REPLY, ForwardBody, ForwardReplyBody,
)

cdef enum:
    FORWARD_BYTES = 262144       # a forwarded run is cut at this size
    RETRY_US = 1000000           # a forward without news is repeated after this
    PENDING_KEPT_MAX = 256       # room that an empty queue of waiting values keeps
    PENDING_GONE_MIN = 64        # places of values gone that are given back together


cdef u64 callers_low_water(Replica* r) noexcept nogil:
    if r.callers == NULL:
        return 1
    if r.callers.head < r.callers.runs.size():
        return r.callers.runs[r.callers.head].first_seq
    return r.callers.next_seq


cdef void compact(Callers* c) noexcept nogil:
    cdef size_t i, left
    if c.head == c.runs.size():
        c.runs.clear()
        c.head = 0
    elif c.head > 64 and c.head * 2 > c.runs.size():
        left = c.runs.size() - c.head
        for i in range(left):
            c.runs[i] = c.runs[c.head + i]
        c.runs.resize(left)
        c.head = 0


# Index of the first run that ends after `seq`.
cdef size_t find_run(Callers* c, u64 seq) noexcept nogil:
    cdef size_t low = c.head, high = c.runs.size(), middle
    while low < high:
        middle = (low + high) // 2
        if c.runs[middle].first_seq + c.runs[middle].count <= seq:
            low = middle + 1
        else:
            high = middle
    return low


# Cut run i in two, the first part `count` values long.
cdef void split_run(Callers* c, size_t i, u32 count) noexcept nogil:
    cdef OwnRun rest = c.runs[i]
    cdef u64 cut = items_prefix(rest.block.data + rest.offset, rest.nbytes, count)
    cdef size_t at
    block_ref(rest.block)
    rest.offset += cut
    rest.nbytes -= cut
    rest.first_seq += count
    rest.count -= count
    c.runs[i].nbytes = cut
    c.runs[i].count = count
    c.runs.push_back(rest)
    at = c.runs.size() - 1
    while at > i + 1:
        c.runs[at] = c.runs[at - 1]
        at -= 1
    c.runs[i + 1] = rest


# Take run i out.
cdef void remove_run(Callers* c, size_t i) noexcept nogil:
    block_unref(c.runs[i].block)
    c.values -= c.runs[i].count
    if i == c.head:
        c.head += 1
        return
    while i + 1 < c.runs.size():
        c.runs[i] = c.runs[i + 1]
        i += 1
    c.runs.pop_back()


cdef void callers_no_later(Engine* e, Replica* r, u64 at_us) noexcept nogil:
    """The callers' timer may be brought forward, never put off: deadlines hang on it."""
    if r.callers_at_us == 0 or at_us < r.callers_at_us:
        callers_timer(e, r, at_us)


cdef int callers_submit(Engine* e, Replica* r, u64 first_seq, u32 count, Block* block, u64 offset,
                        u64 nbytes, u64 deadline_us) noexcept nogil:
    cdef Callers* c
    cdef OwnRun run
    if r.callers == NULL:
        r.callers = phx_new[Callers]()
        r.callers.next_seq = 1
    c = r.callers
    # Rejected sequences are skipped: a gap is as good as a value given up.
    if first_seq < c.next_seq or count == 0:
        return VERDICT_OVERLOADED
    c.next_seq = first_seq + count
    if e.poisoned:
        return VERDICT_POISONED_REJECTED
    if is_ended(r):
        return VERDICT_ENDED_REJECTED
    if r.stopped or r.halted or e.resigned or is_removed(r):
        return VERDICT_STOPPED_REJECTED
    run.block = block_ref(block)
    run.offset = offset
    run.nbytes = nbytes
    run.first_seq = first_seq
    run.count = count
    run.deadline_us = deadline_us
    run.sent_us = 0
    run.sent = False
    run.refused = False
    run.attempt = 0
    run.sent_to = 0
    run.maybe = False
    c.runs.push_back(run)
    c.values += count
    c.unsent = True
    callers_no_later(e, r, min(deadline_us, e.now_us + RETRY_US))
    touch(e, r)
    return 0


cdef void callers_done(Replica* r, u64 first_seq, u32 count) noexcept nogil:
    cdef Callers* c = r.callers
    cdef u64 last = first_seq + count
    cdef size_t i = find_run(c, first_seq)
    while i < c.runs.size() and c.runs[i].first_seq < last:
        if c.runs[i].first_seq < first_seq:
            split_run(c, i, <u32>(first_seq - c.runs[i].first_seq))
            i += 1
        if c.runs[i].first_seq + c.runs[i].count > last:
            split_run(c, i, <u32>(last - c.runs[i].first_seq))
        if i == c.head:
            remove_run(c, i)
            i = c.head
        else:
            remove_run(c, i)
    compact(c)


cdef void callers_chosen(Engine* e, Replica* r, Block* body) noexcept nogil:
    cdef RunIterator it
    if r.callers == NULL or r.callers.head == r.callers.runs.size():
        return
    run_begin(&it, body.data, body.size)
    while run_next(&it):
        if it.run.node == e.options.node and it.run.incarnation == e.incarnation:
            callers_done(r, it.run.first_seq, it.run.count)


cdef void callers_entered(Replica* r, u64 first_seq, u32 count) noexcept nogil:
    cdef size_t i
    if r.callers == NULL:
        return
    i = find_run(r.callers, first_seq)
    while i < r.callers.runs.size() and r.callers.runs[i].first_seq < first_seq + count:
        r.callers.runs[i].maybe = True
        i += 1


cdef void forward(Engine* e, Replica* r, Peer* p, OwnRun* run) noexcept nogil:
    cdef ForwardBody f
    cdef u64 offset = run.offset, left = run.nbytes, used = 0
    cdef u32 count = run.count, taken
    f.low_water = callers_low_water(r)
    f.first_seq = run.first_seq
    f.incarnation = e.incarnation
    f.attempt = run.attempt
    while count:
        taken = items_fit(run.block.data + offset, left, count, FORWARD_BYTES, &used)
        if taken == 0:
            break
        f.count = taken
        f.items_bytes = <u32>used
        send(e, p, LANE_NOW, MSG_FORWARD, 0, r.group, 0, &f, sizeof(f), run.block.data + offset,
             used)
        f.first_seq += taken
        offset += used
        left -= used
        count -= taken
    e.counters.forwards += 1


cdef void hand_to_proposer(Engine* e, Replica* r, OwnRun* run) noexcept nogil:
    cdef Pending pending
    pending.block = block_ref(run.block)
    pending.offset = run.offset
    pending.nbytes = run.nbytes
    pending.low_water = callers_low_water(r)
    pending.first_seq = run.first_seq
    pending.count = run.count
    pending.node = e.options.node
    pending.incarnation = e.incarnation
    pending.attempt = run.attempt
    r.lead.pending.push_back(pending)
    r.lead.pending_bytes += run.nbytes
    e.pending_bytes += run.nbytes


cdef void callers_flush(Engine* e, Replica* r) noexcept nogil:
    cdef Callers* c = r.callers
    cdef size_t i
    cdef int to
    cdef OwnRun* run
    if c == NULL or not c.unsent or c.head == c.runs.size() or r.leader == 0:
        return
    to = slot_of(e, r.leader)
    if r.leader != e.options.node and (
            to < 0 or not e.peers[to].connected or not e.peers[to].alive):
        return
    if r.leader == e.options.node and (r.lead == NULL or r.role != ROLE_LEADING):
        return
    c.unsent = False
    for i in range(c.head, c.runs.size()):
        run = &c.runs[i]
        if run.sent:
            continue
        if run.refused and run.sent_us + e.options.heartbeat_us // 2 > e.now_us:
            c.unsent = True
            continue
        if r.leader == e.options.node and e.pending_bytes and \
                e.pending_bytes + run.nbytes > e.options.pending_bytes_max:
            # The rest when there is room: the tick comes back to it.
            c.unsent = True
            callers_no_later(e, r, e.now_us + e.options.heartbeat_us)
            break
        run.sent = True
        run.refused = False
        run.sent_us = e.now_us
        run.sent_to = r.leader
        c.attempts += 1
        run.attempt = c.attempts
        if r.leader == e.options.node:
            hand_to_proposer(e, r, run)
        else:
            forward(e, r, &e.peers[to], run)


cdef void callers_requeue(Engine* e, Replica* r) noexcept nogil:
    cdef Callers* c = r.callers
    cdef size_t i
    if c == NULL or c.head == c.runs.size():
        return
    c.unsent = True
    for i in range(c.head, c.runs.size()):
        if c.runs[i].sent:
            c.runs[i].sent = False
            c.runs[i].maybe = True
        c.runs[i].refused = False
    touch(e, r)


cdef bint not_chosen(Replica* r, const OwnRun* run) noexcept nogil:
    """All that the group has ever chosen went by here, and this was not among it."""
    return knows_below(r) and run.first_seq >= r.callers.unsure


cdef void callers_unsure(Replica* r) noexcept nogil:
    if r.callers != NULL:
        r.callers.unsure = r.callers.next_seq


cdef void give_up(Engine* e, Replica* r, OwnRun* run, bint stopped) noexcept nogil:
    cdef u8 verdict
    if e.poisoned:
        verdict = VERDICT_POISONED_UNKNOWN if run.maybe or run.sent else VERDICT_POISONED_REJECTED
    elif stopped and is_ended(r):
        verdict = VERDICT_ENDED_REJECTED
        if (run.maybe or run.sent) and not not_chosen(r, run):
            verdict = VERDICT_ENDED_UNKNOWN
    elif stopped:
        verdict = VERDICT_STOPPED_UNKNOWN if run.maybe or run.sent else VERDICT_STOPPED_REJECTED
    elif run.maybe or run.sent:
        verdict = VERDICT_TIMED_OUT_UNKNOWN
    else:
        verdict = VERDICT_NO_QUORUM if r.leader == 0 else VERDICT_TIMED_OUT_REJECTED
    emit_event(e, EVENT_FAILED, verdict, r.group, run.first_seq, run.count, r.leader)


cdef void callers_tick(Engine* e, Replica* r) noexcept nogil:
    """Deadlines, and forwards that brought no news."""
    cdef Callers* c = r.callers
    cdef size_t i
    cdef u64 nearest = ~<u64>0
    if c == NULL:
        return
    i = c.head
    while i < c.runs.size():
        if c.runs[i].deadline_us <= e.now_us:
            give_up(e, r, &c.runs[i], False)
            if i == c.head:
                remove_run(c, i)
                i = c.head
            else:
                remove_run(c, i)
            continue
        if (c.runs[i].sent and r.leader != e.options.node
                and c.runs[i].sent_us + RETRY_US <= e.now_us):
            c.runs[i].sent = False
            c.runs[i].maybe = True
            c.unsent = True
            touch(e, r)
        nearest = min(nearest, c.runs[i].deadline_us)
        i += 1
    compact(c)
    if c.runs.size() == 0:
        callers_timer(e, r, 0)
    else:
        callers_timer(e, r, min(nearest, e.now_us + RETRY_US))


cdef void callers_stop(Engine* e, Replica* r) noexcept nogil:
    cdef Callers* c = r.callers
    if c == NULL:
        return
    while c.head < c.runs.size():
        give_up(e, r, &c.runs[c.head], True)
        remove_run(c, c.head)
    compact(c)


cdef void callers_free(Replica* r) noexcept nogil:
    cdef Callers* c = r.callers
    if c == NULL:
        return
    while c.head < c.runs.size():
        remove_run(c, c.head)
    phx_delete[Callers](c)
    r.callers = NULL


cdef void forwards_free(Replica* r) noexcept nogil:
    if r.forwards != NULL:
        phx_free(r.forwards)
    r.forwards = NULL


cdef void answer(Engine* e, Replica* r, Peer* p, const Pending* run, u32 verdict) noexcept nogil:
    cdef ForwardReplyBody reply
    reply.first_seq = run.first_seq
    reply.incarnation = run.incarnation
    reply.count = run.count
    reply.attempt = run.attempt
    reply.pad = 0
    reply.verdict = verdict
    reply.leader = r.leader
    send(e, p, LANE_NOW, MSG_FORWARD_REPLY, 0, r.group, 0, &reply, sizeof(reply), NULL, 0)


cdef bint forward_sound(Engine* e, Peer* p, const ForwardBody* f, const u8* items) noexcept nogil:
    """What enters a body must be readable everywhere, and be of that peer's present session."""
    return (f.count != 0 and f.first_seq != 0 and f.first_seq <= ~<u64>f.count
            and f.incarnation == p.incarnation
            and f.items_bytes <= max(<u64>e.options.value_bytes_max + ITEM_HEADER_BYTES,
                                     <u64>FORWARD_BYTES)
            and items_check(items, f.items_bytes, f.count))


cdef bint forward_again(Engine* e, Replica* r, Peer* p, const ForwardBody* f) noexcept nogil:
    """A copy of what was taken or answered, or overtaken by what was sent later: as good as lost.

    A copy of a value that was taken must not be refused: its origin would call rejected what may be
    chosen. And a copy of one that was refused must not be taken: it has been called rejected.
    Attempts of a session ascend within a group, and the pieces of an attempt by sequence.
    """
    cdef Forwarded* seen
    if r.forwards == NULL:
        r.forwards = <Forwarded*>by_slot(r.config.width, sizeof(Forwarded))
    seen = &r.forwards[p.slot]
    if seen.incarnation == f.incarnation and (
            f.attempt < seen.attempt
            or (f.attempt == seen.attempt and f.first_seq <= seen.first_seq)):
        return True
    seen.incarnation = f.incarnation
    seen.attempt = f.attempt
    seen.first_seq = f.first_seq
    return False


cdef void on_forward(Engine* e, Replica* r, Peer* p, const ForwardBody* f,
                     const u8* items) noexcept nogil:
    cdef Pending pending
    if not forward_sound(e, p, f, items):
        e.counters.hostile_messages += 1
        return
    if forward_again(e, r, p, f):
        return
    pending.offset = 0
    pending.nbytes = f.items_bytes
    pending.low_water = f.low_water
    pending.first_seq = f.first_seq
    pending.count = f.count
    pending.node = p.node
    pending.incarnation = f.incarnation
    pending.attempt = f.attempt
    # A forwarded value is not forwarded again: its origin is told who leads.
    if r.role != ROLE_LEADING or r.stopped:
        answer(e, r, p, &pending, VERDICT_NOT_LEADER)
        return
    if e.pending_bytes + f.items_bytes > e.options.pending_bytes_max:
        answer(e, r, p, &pending, VERDICT_OVERLOADED)
        return
    pending.block = block_copy(items, f.items_bytes)
    r.lead.pending.push_back(pending)
    r.lead.pending_bytes += pending.nbytes
    e.pending_bytes += pending.nbytes
    touch(e, r)


cdef void on_forward_reply(Engine* e, Replica* r, Peer* p,
                           const ForwardReplyBody* f) noexcept nogil:
    """Refused. Only what answers the last attempt counts: anything older may be overtaken."""
    cdef Callers* c = r.callers
    cdef OwnRun* run
    cdef size_t i
    if c == NULL or f.incarnation != e.incarnation:
        return
    i = find_run(c, f.first_seq)
    while i < c.runs.size() and c.runs[i].first_seq < f.first_seq + f.count:
        run = &c.runs[i]
        i += 1
        if not run.sent or run.sent_to != p.node or run.attempt != f.attempt:
            continue
        # Not taken in this attempt. `maybe` says whether an earlier one may have been; a run of
        # which only a part is refused is unknown as a whole.
        run.sent = False
        run.refused = True
        c.unsent = True
        run.sent_us = e.now_us
        if run.first_seq < f.first_seq or run.first_seq + run.count > f.first_seq + f.count:
            run.maybe = True
        elif f.verdict == VERDICT_OVERLOADED and not run.maybe:
            emit_event(e, EVENT_FAILED, VERDICT_OVERLOADED, r.group, run.first_seq, run.count,
                       r.leader)
            i -= 1
            remove_run(c, i)
            i = max(i, c.head)
    compact(c)
    # Not flushed at once: the same leader would be asked again.
    if c.head < c.runs.size():
        callers_no_later(e, r, e.now_us + e.options.heartbeat_us)


cdef void pending_pop(Lead* lead) noexcept nogil:
    cdef vector[Pending] none
    cdef size_t i, left
    lead.pending_head += 1
    if lead.pending_head == lead.pending.size():
        lead.pending_head = 0
        lead.pending.clear()
        if lead.pending.capacity() > PENDING_KEPT_MAX:
            lead.pending.swap(none)
    elif lead.pending_head >= PENDING_GONE_MIN and 2 * lead.pending_head > lead.pending.size():
        left = lead.pending.size() - lead.pending_head
        for i in range(left):
            lead.pending[i] = lead.pending[lead.pending_head + i]
        lead.pending.resize(left)
        lead.pending_head = 0


cdef void pending_drop_own(Engine* e, Replica* r) noexcept nogil:
    cdef size_t count = r.lead.pending.size() - r.lead.pending_head
    cdef Pending first
    while count:
        count -= 1
        first = pending_first(r.lead)[0]
        pending_pop(r.lead)
        if first.node == e.options.node:
            r.lead.pending_bytes -= first.nbytes
            e.pending_bytes -= first.nbytes
            block_unref(first.block)
        else:
            r.lead.pending.push_back(first)


cdef void pending_drop(Engine* e, Replica* r) noexcept nogil:
    cdef Pending* first
    cdef int origin
    while not pending_empty(r.lead):
        first = pending_first(r.lead)
        origin = slot_of(e, first.node)
        if first.node != e.options.node and origin >= 0:
            answer(e, r, &e.peers[origin], first, VERDICT_NOT_LEADER)
        e.pending_bytes -= first.nbytes
        block_unref(first.block)
        pending_pop(r.lead)
    r.lead.pending_bytes = 0
