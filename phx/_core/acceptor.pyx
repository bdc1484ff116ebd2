# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The acceptor; see acceptor.pxd."""

from libc.string cimport memcpy, memset

from phx._core.ballot cimport ballot_node
from phx._core.batch cimport body_check
from phx._core.codec cimport RECORD_ACCEPT, RECORD_CHOSEN, RECORD_PROMISE, RecordHeader
from phx._core.effects cimport LANE_LATER, LANE_NOW, answer_room, emit_record, send
from phx._core.learner cimport want
from phx._core.membership cimport floor_of, floor_with, is_change, membership_of
from phx._core.native cimport *
from phx._core.relaxed cimport (
    emit_relaxed, is_relaxed, note_hard, sync_relaxed, wait_written,
)
from phx._core.state cimport *
from phx._core.window cimport SLOT_CHOSEN, Slot, window_find, window_slot
from phx._core.wire cimport (
    ENTRY_CHOSEN, ENTRY_ELIDED, FLAG_LAST, FLAG_MORE, MSG_ACCEPTED, MSG_PROMISE, MSG_REFUSE,
    AcceptBody, AcceptedBody, HoldRange, PrepareBody, PromiseBody, RefuseBody, ReportedEntry,
)

cdef enum:
    PAGE_BYTES = 262144          # a page of a Promise is closed at this size
    REPLY_BYTES = 8388608        # a reply stops here, and the asker asks for the rest
    REPLAY_AHEAD_MAX = 33554432  # unsettled instances of a group that a journal can hold


cdef void promise(Engine* e, Replica* r, u64 ballot) noexcept nogil:
    r.promised = ballot
    e.grants_version += 1
    if ballot > r.highest_seen:
        r.highest_seen = ballot
    r.promise_lsn = emit_record(e, RECORD_PROMISE, r.group, 0, ballot, NULL, 0, NULL)
    note_hard(e, r)


cdef void refuse(Engine* e, Replica* r, Peer* p, u64 ballot, u32 reason, u32 leader) noexcept nogil:
    cdef RefuseBody body
    body.promised = max(r.promised, floor_of(r))
    body.reason = reason
    body.leader = leader
    e.counters.refused_messages += 1
    # `promised` is exposed, so this waits for it too.
    send(e, p, LANE_LATER, MSG_REFUSE, 0, r.group, ballot, &body, sizeof(body), NULL, 0)


cdef bint held(const PrepareBody* ask, const u8* holds, u64 instance, u64 ballot) noexcept nogil:
    cdef HoldRange hold
    cdef u32 i
    for i in range(ask.holds):
        memcpy(&hold, holds + i * sizeof(hold), sizeof(hold))
        if hold.ballot >= ballot and hold.first <= instance <= hold.last:
            return True
    return False


cdef void send_page(Engine* e, Replica* r, Peer* p, u64 ballot, PromiseBody* head, Block* page,
                    u8 flags) noexcept nogil:
    p.answer_bytes += page.size
    send(e, p, LANE_LATER, MSG_PROMISE, flags, r.group, ballot,
         head, sizeof(PromiseBody), page.data, page.size)
    head.page += 1
    head.entries = 0
    page.size = 0


cdef void report(Engine* e, Replica* r, Peer* p, u64 ballot, const PrepareBody* ask,
                 const u8* holds) noexcept nogil:
    cdef PromiseBody head
    cdef ReportedEntry entry
    cdef Block* page
    cdef Slot* slot
    cdef u64 instance = max(ask.start, r.chosen_through + 1)
    cdef u64 sent = 0
    if not answer_room(p):
        return
    if r.sync_within_us:
        # (After a promise that is durable already more may have been accepted in its ballot.)
        sync_relaxed(e)
    page = block_new(1024)
    e.replies += 1
    head.reply = (<u64>e.incarnation << 40) + e.replies
    head.first = ask.first
    head.start = ask.start
    head.chosen_through = r.chosen_through
    # floor - 1 <= chosen_through: what was trimmed is chosen, and both are said. A reader of
    # entries alone would take what is trimmed for open.
    head.floor = r.floor
    head.page = 0
    head.entries = 0
    while instance <= r.accepted_last:
        slot = window_find(&r.window, instance)
        if slot != NULL:
            entry.instance = instance
            entry.ballot = slot.ballot
            entry.flags = ENTRY_CHOSEN if slot.flags & SLOT_CHOSEN else 0
            entry.body_bytes = <u32>slot.value.size
            if entry.flags == 0 and held(ask, holds, instance, slot.ballot):
                # In the same ballot the asker's copy is this value (U6); in a higher one, this
                # value
                # loses against the asker's own (P2c). The body need not travel.
                entry.flags = ENTRY_ELIDED
                entry.body_bytes = 0
            page = block_append(page, &entry, sizeof(entry))
            if entry.body_bytes:
                page = block_append(page, slot.value.data, entry.body_bytes)
                page = block_pad8(page)
            head.entries += 1
            if page.size >= PAGE_BYTES:
                sent += page.size
                if sent >= REPLY_BYTES:
                    send_page(e, r, p, ballot, &head, page, FLAG_MORE)
                    block_unref(page)
                    return
                send_page(e, r, p, ballot, &head, page, 0)
        instance += 1
    send_page(e, r, p, ballot, &head, page, FLAG_LAST)
    block_unref(page)


cdef u64 accept(Engine* e, Replica* r, u64 ballot, u64 instance, Block* body) noexcept nogil:
    cdef Slot* slot = window_slot(&r.window, instance)
    cdef u64 lsn_end
    if slot.value != body:
        block_unref(slot.value)
        slot.value = block_ref(body)
    slot.ballot = ballot
    if r.sync_within_us and is_relaxed(e, r) and not is_change(body):
        slot.lsn = emit_relaxed(e, r, RECORD_ACCEPT, instance, ballot, body.data, <u32>body.size,
                                &lsn_end)
    else:
        slot.lsn = emit_record(e, RECORD_ACCEPT, r.group, instance, ballot, body.data,
                               <u32>body.size, &lsn_end)
        if r.sync_within_us and is_change(body):
            note_hard(e, r)
    if instance > r.accepted_last:
        r.accepted_last = instance
    return lsn_end


cdef void follow(Engine* e, Replica* r, Peer* p, u64 ballot, const AcceptBody* a,
                 const u8* body) noexcept nogil:
    cdef Slot* slot
    cdef Block* value
    if ballot > r.promised:
        promise(e, r, ballot)
    if r.ack_ballot != ballot:
        r.ack_ballot = ballot
        r.ack_first = a.first
        r.ack_through = a.first - 1
    r.ack_due = True
    touch(e, r)
    if a.instance <= r.chosen_through:
        return
    if a.instance > r.chosen_through + e.options.window:
        # Beyond the window: neither accepted nor acknowledged. What lies between is asked for.
        want(e, r, min(a.watermark, a.instance - 1), p.node)
        return
    slot = window_find(&r.window, a.instance)
    if slot != NULL and (slot.ballot == ballot or slot.flags & SLOT_CHOSEN):
        return
    if not body_check(body, a.body_bytes):
        e.counters.hostile_messages += 1
        return
    value = block_copy(body, a.body_bytes)
    accept(e, r, ballot, a.instance, value)
    block_unref(value)


cdef void acknowledge(Engine* e, Replica* r) noexcept nogil:
    """Every instance from first to through: accepted in exactly this ballot, or known chosen."""
    cdef AcceptedBody ack
    cdef Slot* slot = NULL
    cdef u64 below = ~<u64>0, through
    cdef bint relaxed = r.sync_within_us != 0 and is_relaxed(e, r)
    cdef int to = slot_of(e, ballot_node(r.ack_ballot))
    r.ack_due = False
    if to < 0 or r.ack_ballot != r.promised or r.halted or e.poisoned:
        return
    if relaxed:
        # What is written may be told, and at once: no frame waits for the journal.
        below = e.written
    through = max(r.ack_through, r.chosen_through)
    while True:
        slot = window_find(&r.window, through + 1)
        if slot == NULL or not (slot.ballot == r.ack_ballot or slot.flags & SLOT_CHOSEN):
            break
        if slot.lsn >= below:
            wait_written(e, r)
            if through == r.ack_through:
                return
            break
        through += 1
    if relaxed or r.sync_within_us == 0:
        # (Else this frame waits for what it says. The next one may be relaxed, and would not.)
        r.ack_through = through
    ack.first = r.ack_first
    ack.through = through
    ack.chosen_through = r.chosen_through
    r.confirm_due = False
    if relaxed:
        send(e, &e.peers[to], LANE_NOW, MSG_ACCEPTED, 0, r.group, r.ack_ballot, &ack, sizeof(ack),
             NULL, 0)
        return
    send(e, &e.peers[to], LANE_LATER, MSG_ACCEPTED, 0, r.group, r.ack_ballot, &ack, sizeof(ack),
         NULL, 0)


cdef int replay(Engine* e, Replica* r, const RecordHeader* header, const u8* body,
                u64 lsn) noexcept nogil:
    """The highest promise and an instance's highest ballot win, whatever the order of records."""
    cdef Slot* slot
    if header.kind == RECORD_PROMISE or header.kind == RECORD_ACCEPT:
        if header.ballot == 0:
            return -1
        if header.ballot > r.promised:
            r.promised = header.ballot
        if r.promised > r.highest_seen:
            r.highest_seen = r.promised
        r.promise_lsn = lsn
    if header.kind == RECORD_PROMISE:
        return 0
    if header.index == 0 or not body_check(body, header.body_bytes):
        return -1
    if header.index <= r.chosen_through:
        return 0
    if header.index - r.chosen_through > REPLAY_AHEAD_MAX:
        return -1
    slot = window_slot(&r.window, header.index)
    if header.kind == RECORD_ACCEPT:
        if slot.value != NULL and (slot.flags & SLOT_CHOSEN or slot.ballot >= header.ballot):
            if slot.ballot <= header.ballot:
                slot.ballot = header.ballot
                slot.lsn = lsn if not slot.flags & SLOT_CHOSEN else slot.lsn
            return 0
        slot.ballot = header.ballot
    else:
        slot.flags |= SLOT_CHOSEN
    block_unref(slot.value)
    slot.value = block_copy(body, header.body_bytes)
    if header.kind == RECORD_CHOSEN and is_change(slot.value):
        membership_of(r).heard_floor = max(membership_of(r).heard_floor, header.ballot)
    slot.lsn = lsn
    if header.index > r.accepted_last:
        r.accepted_last = header.index
    return 0


cdef void carry_over(Engine* e, Replica* r, u64 lsn) noexcept nogil:
    cdef u64 instance
    cdef Slot* slot
    if r.promised and r.promise_lsn < lsn:
        r.promise_lsn = emit_record(e, RECORD_PROMISE, r.group, 0, r.promised, NULL, 0, NULL)
    instance = r.chosen_through + 1
    while instance <= r.accepted_last:
        slot = window_find(&r.window, instance)
        if slot != NULL and slot.lsn < lsn:
            if slot.flags & SLOT_CHOSEN:
                slot.lsn = emit_record(e, RECORD_CHOSEN, r.group, instance,
                                       floor_with(r, slot.value), slot.value.data,
                                       <u32>slot.value.size, NULL)
            else:
                slot.lsn = emit_record(e, RECORD_ACCEPT, r.group, instance, slot.ballot,
                                       slot.value.data,
                                       <u32>slot.value.size, NULL)
        instance += 1
