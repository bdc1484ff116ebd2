# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The learner; see learner.pxd."""

from libc.string cimport memcmp, memcpy

from phx._core.ballot cimport ballot_hostile
from phx._core.batch cimport BODY_MEMBERSHIP, body_check
from phx._core.codec cimport RECORD_CHOSEN, RECORD_SETTLED, RecordHeader
from phx._core.effects cimport (
    HALT_BAD_BODY, HALT_CHOSEN_DIFFERS, HALT_CHOSEN_EMPTY, LANE_NOW, answer_room, emit_event,
    emit_record, halt_group, learn_timer, send,
)
from phx._core.members cimport Roster, roster_read
from phx._core.membership cimport (
    PASS_NEXT, PASS_NOT, PASS_PLAIN, floor_of, floor_with, is_change, is_removed,
    members_advanced, members_pass, membership_of, passing, sources,
)
from phx._core.native cimport *
from phx._core.proposals cimport callers_chosen, callers_unsure
from phx._core.relaxed cimport emit_relaxed, is_relaxed
from phx._core.state cimport *
from phx._core.window cimport (
    SLOT_CHOSEN, Slot, ring_at, ring_free, ring_pop, ring_purge, ring_push, window_advance,
    window_find, window_jump, window_slot,
)
from phx._core.wire cimport (
    MSG_LEARN, MSG_LEARN_ASK, LearnAskBody, LearnBody, SuppliedEntry, entry_stride,
)

cdef enum:
    LEARN_BYTES = 524288         # an answer is closed at this size
    LEARN_ENTRIES = 4096
    IN_VAIN = 4                  # questions without progress; who says nothing then counts as dry

cdef u64 INSTANCE_MAX = <u64>1 << 62


cdef void cache_evict(Engine* e) noexcept nogil:
    cdef Replica* r
    cdef Block* body
    while e.cached_bytes > e.options.cache_bytes_max and e.cached.size > 0:
        r = e.replicas[<size_t>ring_pop(&e.cached)]
        if r.tail.size == 0:
            continue
        body = <Block*><size_t>ring_pop(&r.tail)
        e.cached_bytes -= body.size
        block_unref(body)


# Another instance comes next: what was heard of the last one says nothing about it.
cdef inline void progressed(Replica* r) noexcept nogil:
    r.asks = 0
    r.below = 0
    r.dry = 0
    r.below_told = False


cdef void advance_chosen(Engine* e, Replica* r, u64 through) noexcept nogil:
    cdef Slot* slot
    cdef Block* body
    cdef int next
    while r.chosen_through < through:
        slot = window_find(&r.window, r.chosen_through + 1)
        if slot == NULL:
            halt_group(e, r, HALT_CHOSEN_EMPTY)
            return
        body = slot.value
        next = passing(e, r, r.chosen_through + 1, body) if is_change(body) else PASS_PLAIN
        if next == PASS_NOT:
            break
        ring_push(&r.locations, slot.lsn)
        ring_push(&r.tail, <u64><size_t>body)
        ring_push(&e.cached, r.index)
        e.cached_bytes += body.size
        if r.lead != NULL and r.chosen_through + 1 < r.lead.next and r.lead.open_bytes >= body.size:
            r.lead.open_bytes -= body.size
        slot.value = NULL
        window_advance(&r.window)
        r.chosen_through += 1
        callers_chosen(e, r, body)
        if next == PASS_NEXT:
            members_pass(e, r, r.chosen_through, body)
            break  # nothing above it is held any more
    if r.accepted_last < r.chosen_through:
        r.accepted_last = r.chosen_through
    progressed(r)
    r.announce_due = True
    touch(e, r)
    if r.members != NULL:
        members_advanced(e, r)
    cache_evict(e)
    advance_known(e, r)


cdef void advance_known(Engine* e, Replica* r) noexcept nogil:
    cdef u64 through = r.chosen_through
    cdef Slot* slot
    while True:
        slot = window_find(&r.window, through + 1)
        if slot == NULL or not slot.flags & SLOT_CHOSEN:
            break
        through += 1
    if through > r.chosen_through and not r.halted and not (r.members != NULL and r.members.due):
        advance_chosen(e, r, through)


cdef void heard_floor(Replica* r, u64 floor) noexcept nogil:
    membership_of(r).heard_floor = max(membership_of(r).heard_floor, floor)


cdef void note_watermark(Engine* e, Replica* r, u64 ballot, u64 through) noexcept nogil:
    cdef u64 known = r.chosen_through
    cdef Slot* slot
    if through <= known:
        return
    while known < through:
        slot = window_find(&r.window, known + 1)
        # Exactly b. With "at least b" two nodes can apply different values: the labeller may have
        # learned i, before its own phase 1 ended, from a ballot above b, and what is held here in
        # between may be another value (docs/design/protocol.md, "Watermarks").
        if slot == NULL or not (slot.ballot == ballot or slot.flags & SLOT_CHOSEN):
            break
        if is_change(slot.value):
            # The leader of this ballot has counted it.
            heard_floor(r, ballot)
        known += 1
    if known > r.chosen_through:
        advance_chosen(e, r, known)
    if through > r.chosen_through:
        want(e, r, through, r.leader)


cdef bint may_learn(Engine* e, Replica* r) noexcept nogil:
    """With a full journal only what may stand in it already. Who ended learns nothing more."""
    if e.poisoned or r.halted or is_removed(r):
        return False
    return e.pressure < PRESSURE_FULL or window_find(&r.window, r.chosen_through + 1) != NULL


cdef void want(Engine* e, Replica* r, u64 through, u32 prefer) noexcept nogil:
    if through > r.want_through:
        r.want_through = through
    if r.want_through <= r.chosen_through or r.asked_us != 0 or not may_learn(e, r):
        return
    ask(e, r, prefer)


# `prefer` if it is there, else the next connected peer after the last asked; one that has said that
# it cannot help only if all have said so. NULL: nobody is there.
cdef Peer* whom(Engine* e, Replica* r, u32 prefer) noexcept nogil:
    cdef u32 i
    cdef u64 useless = r.below | r.dry
    cdef int start = slot_of(e, r.asked_node)
    cdef int at = slot_of(e, prefer) if prefer != 0 else -1
    cdef Peer* found = NULL
    if at >= 0 and e.peers[at].connected and prefer != e.options.node and not useless >> at & 1:
        return &e.peers[at]
    for i in range(e.n_slots):
        at = <int>((start + 1 + <int>i) % <int>e.n_slots)
        if sources(r) >> at & 1 and e.peers[at].connected and e.peers[at].node != e.options.node:
            if not useless >> at & 1:
                return &e.peers[at]
            if found == NULL:
                found = &e.peers[at]
    return found


# One request at a time.
cdef void ask(Engine* e, Replica* r, u32 prefer) noexcept nogil:
    cdef LearnAskBody body
    cdef Peer* p = whom(e, r, prefer)
    # Ever more seldom while nothing comes of it: where answers are only slow, asking again for the
    # same makes them slower.
    learn_timer(e, r, e.now_us + (<u64>e.options.resend_us << min(r.asks, <u32>RESEND_DOUBLINGS)))
    if p == NULL:
        return
    r.asks += 1
    r.asked_us = e.now_us
    r.asked_node = p.node
    r.below_told = False
    body.first = r.chosen_through + 1
    body.last = r.want_through
    send(e, p, LANE_NOW, MSG_LEARN_ASK, 0, r.group, 0, &body, sizeof(body), NULL, 0)


cdef void learn_tick(Engine* e, Replica* r) noexcept nogil:
    """No answer in time: ask somebody else."""
    cdef int at = slot_of(e, r.asked_node)
    if r.asked_us != 0 and at >= 0 and r.below and r.asks >= IN_VAIN:
        # Its group may be halted. If it is only slow, its answer is progress, and all is forgotten.
        r.dry |= <u64>1 << at
    r.asked_us = 0
    if r.want_through > r.chosen_through and may_learn(e, r):
        ask(e, r, 0)


# Somebody is connected, and has not answered that it has nothing of use.
cdef bint hopeful(Engine* e, Replica* r) noexcept nogil:
    cdef u64 useless = r.below | r.dry
    cdef u64 left = sources(r)
    cdef u32 i
    while left:
        i = next_member(&left)
        if i != e.own_slot and e.peers[i].connected and not useless >> i & 1:
            return True
    return False


# All that are connected have nothing of use, and one of them has trimmed it.
cdef bint stranded(Engine* e, Replica* r) noexcept nogil:
    cdef u64 left = sources(r)
    cdef u32 i
    if r.below == 0 or hopeful(e, r):
        return False
    while left:
        i = next_member(&left)
        if i != e.own_slot and e.peers[i].connected and r.below >> i & 1:
            return True
    return False


cdef void peer_renewed(Engine* e, Replica* r, Peer* p) noexcept nogil:
    if r.below == 0 and r.dry == 0:
        return
    r.below = 0
    r.dry = 0
    r.asked_us = 0
    want(e, r, r.want_through, p.node)


cdef void told_nothing(Engine* e, Replica* r, Peer* p, const LearnBody* learn) noexcept nogil:
    """Whoever was asked for what comes next here has answered without it. One that has trimmed it
    is not believed alone: another one may have the log, and that is less work than a checkpoint.
    """
    cdef u64 bit = <u64>1 << p.slot
    if learn.floor > r.chosen_through + 1:
        if learn.floor - 1 > learn.chosen_through:
            e.counters.hostile_messages += 1
            return
        if r.below == 0 or p.node == r.below_node or learn.floor < r.below_floor:
            r.below_node = p.node
            r.below_floor = learn.floor
        r.below |= bit
    elif r.asks >= IN_VAIN or (r.below and learn.chosen_through <= r.chosen_through):
        r.dry |= bit
    else:
        # It has it, and could not say so: somebody else is asked when the timer runs out. One that
        # never can (its store is damaged) must not hide that the others have trimmed it; as leader
        # it would be asked at every watermark.
        if learn.entries == 0 and learn.first == r.chosen_through + 1 <= learn.chosen_through:
            r.asked_us = max(e.now_us, <u64>1)
        return
    if hopeful(e, r):
        if may_learn(e, r):
            ask(e, r, 0)
        return
    # Nobody is asked again before the timer, whatever watermarks say.
    r.asked_us = max(e.now_us, <u64>1)
    touch(e, r)
    if stranded(e, r) and not r.below_told:
        r.below_told = True
        emit_event(e, EVENT_BELOW, 0, r.group, r.below_floor, 0, r.below_node)


cdef Block* tail_entry(Replica* r, u64 instance) noexcept nogil:
    cdef u64 first = r.chosen_through + 1 - r.tail.size
    if instance < first or instance > r.chosen_through:
        return NULL
    return <Block*><size_t>ring_at(&r.tail, <u32>(instance - first))


cdef Block* entries_append(Block* out, u64 instance, const u8* body, u32 nbytes) noexcept nogil:
    cdef SuppliedEntry entry
    entry.instance = instance
    entry.body_bytes = nbytes
    entry.pad = 0
    out = block_append(out, &entry, sizeof(entry))
    out = block_append(out, body, nbytes)
    return block_pad8(out)


cdef void on_learn_ask(Engine* e, Replica* r, Peer* p, const LearnAskBody* ask) noexcept nogil:
    """Answer from memory; what is older is fetched from the journal or the store."""
    cdef Block* out
    cdef Block* body
    cdef Fetch fetch
    cdef u64 instance = ask.first
    cdef u64 last = min(min(ask.last, r.chosen_through), ask.first + LEARN_ENTRIES)
    cdef u64 bit = <u64>1 << p.slot
    # One answer in a turn: nobody asks again before the last one is there.
    if r.supplied & bit:
        return
    r.supplied |= bit
    touch(e, r)
    if ask.first < r.floor or ask.first > r.chosen_through:
        # Not from the floor on instead: whoever asked takes nothing that leaves a gap, or it would
        # pass instances over (U7).
        supply(e, r, p, ask.first, NULL, 0)
        return
    if tail_entry(r, instance) == NULL:
        fetch.group = r.group
        fetch.peer = p.node
        fetch.first = instance
        fetch.last = last
        e.effects.fetches.push_back(fetch)
        return
    out = block_new(4096)
    while instance <= last and out.size < LEARN_BYTES:
        body = tail_entry(r, instance)
        out = entries_append(out, instance, body.data, <u32>body.size)
        instance += 1
    supply(e, r, p, ask.first, out.data, out.size)
    block_unref(out)


cdef void supply(Engine* e, Replica* r, Peer* p, u64 first, const u8* entries,
                 u64 nbytes) noexcept nogil:
    cdef LearnBody learn
    cdef u64 at = 0, stride
    if not answer_room(p):
        return
    if first < r.floor:
        # Trimmed since it was asked for.
        nbytes = 0
    p.answer_bytes += nbytes
    learn.first = first
    learn.chosen_through = r.chosen_through
    learn.floor = r.floor
    learn.entries = 0
    learn.pad = 0
    while at < nbytes:
        stride = entry_stride(entries + at, nbytes - at, sizeof(SuppliedEntry), 8)
        if stride == 0:
            break
        learn.entries += 1
        at += stride
    send(e, p, LANE_NOW, MSG_LEARN, 0, r.group, floor_of(r), &learn, sizeof(learn), entries, at)


cdef void supply_one(Engine* e, Replica* r, Peer* p, u64 instance, Block* body) noexcept nogil:
    cdef Block* out = entries_append(block_new(64 + body.size), instance, body.data,
                                     <u32>body.size)
    supply(e, r, p, instance, out.data, out.size)
    block_unref(out)


# The value that was accepted here is this very one: its record will do.
cdef bint holds(Replica* r, u64 instance, const u8* body, u32 nbytes) noexcept nogil:
    cdef Slot* slot = window_find(&r.window, instance)
    return slot != NULL and slot.value.size == nbytes and memcmp(slot.value.data, body, nbytes) == 0


cdef void learn_one(Engine* e, Replica* r, u64 instance, const u8* body, u32 nbytes) noexcept nogil:
    """The next chosen value, told by a peer."""
    cdef bint held = holds(r, instance, body, nbytes)
    cdef Slot* slot = window_slot(&r.window, instance)
    if held:
        slot.flags |= SLOT_CHOSEN
    else:
        if slot.value != NULL and slot.flags & SLOT_CHOSEN:
            halt_group(e, r, HALT_CHOSEN_DIFFERS)
            return
        block_unref(slot.value)
        slot.value = block_copy(body, nbytes)
        slot.flags |= SLOT_CHOSEN
        if is_relaxed(e, r) and not is_change(slot.value):
            slot.lsn = emit_relaxed(e, r, RECORD_CHOSEN, instance, 0, body, nbytes, NULL)
        else:
            slot.lsn = emit_record(e, RECORD_CHOSEN, r.group, instance, floor_with(r, slot.value),
                                   body, nbytes, NULL)
    e.counters.learned_values += 1
    advance_chosen(e, r, instance)


cdef bint floor_told(Replica* r, u64 floor, const u8* body, u32 nbytes) noexcept nogil:
    """Whoever tells of a value that changes members says a floor of its members with it."""
    cdef Roster roster
    if body[0] != BODY_MEMBERSHIP:
        return True
    if (not roster_read(&roster, body, nbytes) or floor < roster.ballot
            or ballot_hostile(floor, r.highest_seen)):
        return False
    heard_floor(r, floor)
    return True


cdef void on_learn(Engine* e, Replica* r, Peer* p, u64 floor, const LearnBody* learn,
                   const u8* entries, u64 nbytes) noexcept nogil:
    cdef SuppliedEntry entry
    cdef u64 at = 0, stride, before = r.chosen_through, known
    cdef bint asked = r.asked_us != 0 and p.node == r.asked_node
    cdef u32 i
    if is_removed(r):
        return
    if p.node == r.asked_node:
        r.asked_us = 0
        # What was said to be chosen is no more than hearsay: whoever answers knows better. But what
        # somebody has trimmed is chosen.
        known = max(learn.chosen_through, r.chosen_through)
        if r.below:
            known = max(known, r.below_floor - 1)
        if known < r.want_through:
            r.want_through = known
    for i in range(learn.entries):
        stride = entry_stride(entries + at, nbytes - at, sizeof(SuppliedEntry), 8)
        if stride == 0 or e.poisoned or r.halted or (r.members != NULL and r.members.due):
            break
        memcpy(&entry, entries + at, sizeof(entry))
        if entry.instance > r.chosen_through + 1:
            break
        if entry.instance == r.chosen_through + 1:
            if not body_check(entries + at + sizeof(entry), entry.body_bytes) or not floor_told(
                    r, floor, entries + at + sizeof(entry), entry.body_bytes):
                e.counters.hostile_messages += 1
                break
            if e.pressure == PRESSURE_FULL and not holds(r, entry.instance,
                    entries + at + sizeof(entry), entry.body_bytes):
                break
            learn_one(e, r, entry.instance, entries + at + sizeof(entry), entry.body_bytes)
        at += stride
    r.confirm_due = True
    touch(e, r)
    if r.want_through <= r.chosen_through:
        # Nothing is asked for any more, also where somebody else answered in the asked one's place.
        r.asked_us = 0
        learn_timer(e, r, 0)
    elif r.asked_us == 0:
        if r.chosen_through > before:
            want(e, r, r.want_through, p.node)
        elif asked and not r.halted:
            told_nothing(e, r, p, learn)


cdef void settled(Engine* e, Replica* r, u64 through) noexcept nogil:
    while r.settled_through < through and r.locations.size > 0:
        ring_pop(&r.locations)
        r.settled_through += 1


cdef void tail_drop(Engine* e, Replica* r) noexcept nogil:
    """Out of memory with the last chosen instances, and out of the line of what is next to go."""
    cdef Block* body
    if r.tail.size == 0:
        return
    ring_purge(&e.cached, r.index)
    while r.tail.size > 0:
        body = <Block*><size_t>ring_pop(&r.tail)
        e.cached_bytes -= body.size
        block_unref(body)


cdef void jump(Engine* e, Replica* r, u64 through) noexcept nogil:
    tail_drop(e, r)
    callers_unsure(r)
    ring_free(&r.locations)
    window_jump(&r.window, through + 1)
    r.chosen_through = through
    r.announced_through = through
    r.settled_through = through
    if r.accepted_last < through:
        r.accepted_last = through
    progressed(r)
    if not e.started:
        return
    r.asked_us = 0
    learn_timer(e, r, 0)
    r.confirm_due = True
    touch(e, r)
    if r.members != NULL:
        members_advanced(e, r)
    advance_known(e, r)
    want(e, r, r.want_through, r.leader)


cdef int carry_chosen(Engine* e, Replica* r, u64 lsn, bint emit) noexcept nogil:
    cdef u32 i
    cdef u64 instance
    cdef Block* body
    for i in range(r.locations.size):
        if ring_at(&r.locations, i) >= lsn:
            continue
        instance = r.settled_through + 1 + i
        body = tail_entry(r, instance)
        if body == NULL:
            return -1
        if emit:
            r.locations.items[(r.locations.head + i) & (r.locations.capacity - 1)] = emit_record(
                e, RECORD_CHOSEN, r.group, instance, floor_with(r, body), body.data,
                <u32>body.size, NULL)
    return 0


cdef void carry_settled(Engine* e, Replica* r, u64 lsn) noexcept nogil:
    if r.settled_through > r.settled_told or (r.settled_told and r.settled_lsn < lsn):
        r.settled_told = r.settled_through
        r.settled_lsn = emit_record(e, RECORD_SETTLED, r.group, r.settled_through, r.floor, NULL, 0,
                                    NULL)


cdef int replay_settled(Engine* e, Replica* r, const RecordHeader* header, u64 lsn) noexcept nogil:
    if (header.index == 0 or header.index > INSTANCE_MAX or header.ballot == 0
            or header.ballot - 1 > header.index or header.body_bytes):
        return -1
    if header.index >= r.settled_told:
        r.settled_told = header.index
        r.settled_lsn = lsn
    if header.index > r.chosen_through:
        # The store is not the one that it was. What is chosen is said all the same, or somebody
        # would hear that nothing was accepted (docs/design/checkpoints.md, section 6).
        jump(e, r, header.index)
        r.floor = header.index + 1
    return 0
