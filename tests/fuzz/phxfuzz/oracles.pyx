# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""What must hold of an engine; see oracles.pxd."""

from phx._core.ballot cimport ballot_node
from phx._core.batch cimport body_check, items_check
from phx._core.codec cimport *
from phx._core.engine cimport engine_turn
from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.window cimport SLOT_CHOSEN, Slot, ring_at, window_find
from phx._core.wire cimport message_check
from phxfuzz.script cimport *

cdef enum:
    TURN_BYTES_MAX = 1 << 21     # of frames that one turn may emit here, whatever came in


# --- the state of a replica

cdef void check_lead(Engine* e, Replica* r) noexcept nogil:
    cdef u64 waiting = 0
    cdef size_t i
    demand((r.role >= ROLE_PREPARING) == (r.lead != NULL), b"a role without its leadership")
    if r.lead == NULL:
        return
    demand(ballot_node(r.lead.ballot) == e.options.node, b"leads in another node's ballot")
    demand(r.lead.ballot <= r.promised, b"leads above its own promise")
    demand(r.role != ROLE_PREPARING or r.lead.phase1 != NULL, b"phase 1 without its table")
    demand(r.role != ROLE_LEADING or r.halted or r.lead.ballot == r.promised,
           b"leads after promising another ballot")
    demand(r.lead.next <= r.chosen_through + e.options.window + 1, b"proposed beyond the window")
    for i in range(r.lead.pending.size()):
        waiting += r.lead.pending[i].nbytes
        demand(items_check(r.lead.pending[i].block.data + r.lead.pending[i].offset,
                           r.lead.pending[i].nbytes, r.lead.pending[i].count),
               b"a value that waits cannot be read")
    demand(waiting == r.lead.pending_bytes, b"the bytes that wait do not add up")
    if r.lead.phase1 != NULL:
        for i in range(r.lead.phase1.reported.size()):
            if r.lead.phase1.reported[i].value != NULL:
                demand(body_check(r.lead.phase1.reported[i].value.data,
                                  r.lead.phase1.reported[i].value.size),
                       b"a reported value that cannot be read")


cdef void check_slots(World* w, Replica* r) noexcept nogil:
    cdef u32 i
    cdef u64 instance
    cdef Slot* slot
    for i in range(r.window.capacity):
        instance = r.window.base + i
        slot = window_find(&r.window, instance)
        if slot == NULL:
            continue
        demand(slot.ballot <= r.promised, b"accepted above the promise (U4)")
        demand(slot.ballot != 0 or slot.flags & SLOT_CHOSEN, b"a value that nobody accepted")
        demand(instance <= r.accepted_last, b"accepted beyond the last acceptance")
        demand(instance <= r.chosen_through + w.e.options.window
               or instance <= w.replayed_last[r.index], b"accepted beyond the window")
        demand(slot.lsn < w.e.lsn_end, b"a record that was never emitted")
        demand(body_check(slot.value.data, slot.value.size), b"accepted what cannot be read")


cdef void check_replica(World* w, Replica* r) noexcept nogil:
    cdef u32 i
    cdef Block* body
    demand(r.promised >= w.promised[r.index], b"a promise fell (U4)")
    demand(r.chosen_through >= w.chosen[r.index], b"what was chosen is not chosen any more (U3)")
    w.promised[r.index] = r.promised
    w.chosen[r.index] = r.chosen_through
    demand(r.highest_seen >= r.promised, b"promised what was never seen")
    demand(r.window.base == r.chosen_through + 1, b"the window does not follow the chosen log")
    demand(r.accepted_last >= r.chosen_through, b"chosen beyond the last acceptance")
    demand(r.settled_through <= r.chosen_through
           and r.locations.size == r.chosen_through - r.settled_through,
           b"chosen entries without a record")
    demand(r.announced_through <= r.chosen_through, b"announced before it was chosen (U3)")
    demand(r.tail.size <= r.chosen_through, b"more entries in memory than chosen ones")
    for i in range(r.tail.size):
        body = <Block*><size_t>ring_at(&r.tail, i)
        demand(body_check(body.data, body.size), b"chosen what cannot be read")
    check_slots(w, r)
    check_lead(w.e, r)


cdef void check_reads(Engine* e) noexcept nogil:
    cdef size_t i, k, tickets = 0, checks = 0, active = 0
    cdef GroupReads* g
    for i in range(e.replicas.size()):
        g = e.replicas[i].reads
        if g == NULL:
            continue
        active += 1
        demand(g.place < e.reads.active.size() and e.reads.active[g.place] == i,
               b"reads of a group that nobody would look at")
        tickets += g.leader.tickets.size() + g.quorum.tickets.size()
        demand(g.askers.size() <= e.n_slots, b"more askers than members")
        demand(g.told.size() <= e.n_slots, b"more answers than members")
        for k in range(g.askers.size()):
            checks += g.askers[k].beat != 0
    demand(active == e.reads.active.size(), b"a group without reads is looked at")
    demand(tickets == e.reads.tickets, b"tickets do not add up")
    demand(checks == e.reads.checks, b"checks do not add up")


cdef void check_engine(World* w) noexcept nogil:
    cdef Engine* e = w.e
    cdef size_t i
    cdef u64 pending = 0
    cdef Replica* r
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        check_replica(w, r)
        if r.lead != NULL:
            pending += r.lead.pending_bytes
    check_reads(e)
    demand(pending == e.pending_bytes, b"the bytes that wait in all groups do not add up")
    demand(e.cached_bytes <= e.options.cache_bytes_max or e.cached.size <= 1,
           b"more in memory than the cache may hold")
    for i in range(e.claims.size()):
        r = find_group(e, e.claims[i].group)
        demand(r != NULL and r.lead != NULL, b"a claim without a leadership")
        demand(i == 0 or e.claims[i - 1].group < e.claims[i].group, b"claims out of order")


# --- effects

cdef void check_records(World* w, Effects* out) noexcept nogil:
    cdef RecordHeader h
    cdef u64 at = 0, stride
    cdef Replica* r
    if out.records == NULL:
        return
    demand(out.lsn_first + out.records.size == out.lsn_end, b"positions with a gap")
    while at < out.records.size:
        stride = record_check(out.records.data + at, out.records.size - at, 0, <u32>0xFFFFFFFF)
        demand(stride != 0, b"a record that no replay would take")
        memcpy(&h, out.records.data + at, RECORD_HEADER_BYTES)
        if h.kind == RECORD_PROMISE or h.kind == RECORD_ACCEPT:
            r = find_group(w.e, h.group)
            demand(r != NULL, b"a record of a group that is not hosted")
            if h.kind == RECORD_PROMISE:
                demand(h.ballot >= w.emitted[r.index], b"a record takes a promise back (U4)")
                w.emitted[r.index] = h.ballot
            else:
                demand(h.ballot <= r.promised, b"a record accepts above the promise (U4)")
        if h.kind == RECORD_ACCEPT or h.kind == RECORD_CHOSEN:
            demand(body_check(out.records.data + at + RECORD_HEADER_BYTES, h.body_bytes),
                   b"a record whose body cannot be read")
        at += stride
    w.log = block_append(w.log, out.records.data, out.records.size)


cdef void check_frame(World* w, Outgoing* out) noexcept nogil:
    cdef u64 at = FRAME_HEADER_BYTES
    cdef u32 length
    cdef u8* data = exact(out.frame.data, out.frame.size)
    demand(frame_check(data, out.frame.size, <u32>0xFFFFFFFF, CLUSTER, out.peer, SELF) == FRAME_OK,
           b"a frame that nobody would take")
    while at < out.frame.size:
        length = message_check(data + at, out.frame.size - at)
        demand(length != 0, b"a message that nobody would take")
        at += length
    free(data)


cdef void drain(World* w) noexcept nogil:
    cdef Effects* out = engine_turn(w.e)
    cdef size_t i
    cdef u64 total = 0
    check_records(w, out)
    block_unref(out.records)
    out.records = NULL
    for i in range(out.outgoing.size()):
        total += out.outgoing[i].frame.size
        check_frame(w, &out.outgoing[i])
        block_unref(out.outgoing[i].frame)
    demand(total <= TURN_BYTES_MAX, b"a turn that answers without bound")
    for i in range(out.chosen.size()):
        demand(out.chosen[i].first <= out.chosen[i].last
               and find_group(w.e, out.chosen[i].group) != NULL, b"a range that cannot be")
    demand(out.fetches.size() <= GROUPS * w.e.n_slots, b"fetches without bound")
    check_engine(w)
