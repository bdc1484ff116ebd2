# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The invariants; see invariants.pxd for what each says."""

from libc.stdio cimport snprintf
from libc.string cimport memcpy, strncpy

from phx._core.ballot cimport ballot_counter, ballot_node
from phx._core.codec cimport (
    FRAME_ENGINE, FRAME_HEADER_BYTES, FrameHeader, RECORD_ACCEPT, RECORD_CHOSEN, RECORD_FLOOR,
    RECORD_HEADER_BYTES, RECORD_MARK, RECORD_PROMISE, RECORD_SETTLED, RECORD_SUSPECT, RecordHeader,
)
from phx._core.leases cimport group_lease_until
from phx._core.membership cimport changing, floor_of
from phx._core.native cimport *
from phx._core.state cimport Engine, ROLE_LEADING, Replica, find_group
from phx._core.window cimport SLOT_CHOSEN, Slot, window_find
from phx._core.wire cimport (
    ENTRY_CHOSEN, ENTRY_ELIDED, MSG_ACCEPT, MSG_ACCEPTED, MSG_CHOSEN, MSG_LEARN, MSG_PREPARE,
    MSG_PREVOTE_REPLY, MSG_PROMISE, MSG_REFUSE, MSG_REJOIN, AcceptBody, AcceptedBody, ChosenBody,
    LearnBody, MESSAGE_HEADER_BYTES, MessageHeader, PrevoteReplyBody, PromiseBody, RefuseBody,
    message_check,
)
from phx.sim.clock cimport Clock, clock_shows
from phx.sim.configurations cimport CREATED_FLOOR
from phx.sim.reference cimport (
    Applied, Cell, Log, Reference, Value, Vote, cell_synced_in, cell_vote, reference_cell,
    reference_chain, reference_decide, reference_free, reference_new, reference_value,
    vote_counted,
)
from phx.sim.watch_frames cimport Ballot, Entries, Entry, ballot_used, next_reported, next_supplied
from phx.sim.watch_lost cimport (
    lost_answers, lost_prevotes, lost_promised, lost_promises, lost_step, lost_takes_part,
    lost_whole,
)
from phx.sim.watch_lives cimport takes_part
from phx.sim.watch_members cimport (
    members_accepted, members_durable, members_emitted, members_proposed, members_sent,
    members_step, members_votes,
)
from phx.sim.watch_relaxed cimport relaxed_emits, relaxed_tells
from phx.sim.watch_records cimport (
    Records, Written, record_at, record_is, record_read, records_next_durable, records_rewind,
)

cdef u64 INSTANCE_MAX = 1 << 22       # no run gets there: a number above is garbage


cdef Watch* watch_new(u32 nodes, u32 groups) noexcept nogil:
    cdef Watch* w = phx_new[Watch]()
    cdef u32 i, k
    w.ref = reference_new(nodes, groups)
    w.nodes, w.groups, w.configured = nodes, groups, groups
    w.node.resize(nodes)
    w.known.resize(groups)
    w.announced.resize(groups)
    for i in range(nodes):
        w.node[i].node = i + 1
        w.node[i].ceiling = ~<u64>0
        w.node[i].seats.resize(groups)
        for k in range(groups):
            w.node[i].seats[k].kept = w.node[i].seats[k].told = 1
        w.node[i].ballots.resize(groups)
    return w


cdef void watch_free(Watch* w) noexcept nogil:
    if w != NULL:
        reference_free(w.ref)
        phx_delete(w)


cdef void watch_fail(Watch* w, const char* kind, const char* text) noexcept nogil:
    if not w.failed:
        w.failed = True
        strncpy(w.kind, kind, WATCH_KIND_BYTES - 1)
        strncpy(w.text, text, WATCH_TEXT_BYTES - 1)


cdef void fail_at(Watch* w, const char* kind, u32 node, u32 group, u64 instance, u64 ballot,
                  const char* text) noexcept nogil:
    if w.failed:
        return
    w.failed = True
    strncpy(w.kind, kind, WATCH_KIND_BYTES - 1)
    snprintf(w.text, WATCH_TEXT_BYTES, b"node %u, group %u, instance %llu, ballot %llu.%u: %s",
             node, group, <unsigned long long>instance,
             <unsigned long long>ballot_counter(ballot), ballot_node(ballot), text)


# --- leases (U11)

# Does this node believe, by its own clock, that it holds the lease? The ballot, or 0.
cdef u64 holds_lease(Watch* w, NodeWatch* n, u32 group) noexcept nogil:
    cdef Replica* r
    if n.engine == NULL or n.engine.poisoned:
        return 0
    r = find_group(n.engine, group)
    if r == NULL or (w.changing and changing(r)):
        return 0                      # it answers no reads (any more)
    if r.role != ROLE_LEADING or r.lead == NULL or r.lead.ballot != r.promised:
        return 0
    if group_lease_until(n.engine, r) <= clock_shows(n.clock, w.now_us):
        return 0
    return r.lead.ballot


cdef inline bint leases_hold(Watch* w) noexcept nogil:
    return not w.leases_void and w.now_us >= w.leases_from_us


# A value was decided in `ballot`: a holder in a lower one would answer reads without it.
cdef void check_holders(Watch* w, u32 group, u64 instance, u64 ballot) noexcept nogil:
    cdef u32 i
    cdef u64 held
    if not leases_hold(w):
        return
    for i in range(w.nodes):
        if w.node[i].node == ballot_node(ballot):
            continue
        held = holds_lease(w, &w.node[i], group)
        if held and held < ballot:
            fail_at(w, b"U11", w.node[i].node, group, instance, ballot,
                    b"decided in this ballot while the node holds the lease in a lower one")


cdef void watch_leases(Watch* w) noexcept nogil:
    cdef u32 group, i, holder
    if not leases_hold(w):
        return
    for group in range(w.groups):
        holder = 0
        for i in range(w.nodes):
            if holds_lease(w, &w.node[i], group):
                if holder:
                    fail_at(w, b"U11", w.node[i].node, group, 0, 0, b"two nodes hold the lease")
                holder = w.node[i].node


# --- acceptances and decisions

cdef void decide(Watch* w, u32 node, u32 group, u64 instance, Cell* cell,
                 Vote* vote) noexcept nogil:
    cdef u64 ballot = vote.ballot
    cdef u32 value = vote.value
    cdef const char* why = reference_decide(w.ref, group, instance, ballot, value)
    cdef size_t i
    if why != NULL:
        fail_at(w, b"U1", node, group, instance, ballot, why)
        return
    cell = reference_cell(w.ref, group, instance)
    for i in range(cell.votes.size()):
        if cell.votes[i].ballot > cell.decided_ballot and cell.votes[i].value != value:
            fail_at(w, b"U1", node, group, instance, cell.votes[i].ballot,
                    b"another value was proposed above a decision")
    check_holders(w, group, instance, ballot)


cdef void accepted(Watch* w, u32 node, u32 group, u64 instance, u64 ballot,
                   bint durably) noexcept nogil:
    cdef Cell* cell = reference_cell(w.ref, group, instance)
    cdef Vote* vote = cell_vote(cell, ballot, 0)
    if durably:
        vote.synced |= <u32>1 << (node - 1)
    else:
        vote.written |= <u32>1 << (node - 1)
    if w.changing:
        members_accepted(w, node, group, instance, ballot)
    elif vote_counted(w.ref, vote, node):
        decide(w, node, group, instance, cell, vote)


# What somebody writes, sends or holds as the value of a ballot: the vote, or NULL (and failed).
cdef Vote* proposal(Watch* w, u32 node, u32 group, u64 instance, u64 ballot, const u8* body,
                    u64 count) noexcept nogil:
    cdef const char* why = NULL
    cdef u32 value
    cdef Cell* cell
    cdef Vote* vote
    if group >= w.groups or instance == 0 or instance > INSTANCE_MAX:
        fail_at(w, b"U2", node, group, instance, ballot, b"no such group or instance")
        return NULL
    value = reference_value(w.ref, group, body, count, &why)
    if value == 0:
        fail_at(w, b"U2", node, group, instance, ballot, why)
        return NULL
    cell = reference_cell(w.ref, group, instance)
    if cell.decided and ballot >= cell.decided_ballot and value != cell.decided:
        fail_at(w, b"U1", node, group, instance, ballot,
                b"another value is proposed above a decision")
        return NULL
    vote = cell_vote(cell, ballot, value)
    if vote.value != value:
        fail_at(w, b"U6", node, group, instance, ballot, b"two values in one ballot")
        return NULL
    if w.changing:
        members_proposed(w, node, group, instance, vote)
    return vote


# Is this body what was decided there? Else a violation of `kind`.
cdef bint is_decided(Watch* w, const char* kind, u32 node, u32 group, u64 instance, const u8* body,
                     u64 count) noexcept nogil:
    cdef const char* why = NULL
    cdef u32 value = 0
    cdef Cell* cell
    if group < w.groups and instance != 0 and instance <= INSTANCE_MAX:
        value = reference_value(w.ref, group, body, count, &why)
    if value == 0:
        fail_at(w, b"U2", node, group, instance, 0, b"chosen: not a value that was proposed")
        return False
    cell = reference_cell(w.ref, group, instance)
    if cell.decided == 0:
        fail_at(w, b"U3", node, group, instance, 0, b"called chosen: no quorum holds it")
        return False
    if cell.decided != value:
        fail_at(w, kind, node, group, instance, 0, b"called chosen: another value is decided")
        return False
    return True


# --- records

cdef void emitted(Watch* w, NodeWatch* n, const RecordHeader* header, const u8* body,
                  Written* out) noexcept nogil:
    cdef u32 bit = <u32>1 << (n.node - 1)
    cdef Seat* seat
    cdef Vote* vote
    if w.changing:
        members_emitted(w, n, header, body, out)
    if header.kind == RECORD_MARK:
        if header.index > n.durable:
            fail_at(w, b"U5", n.node, 0, header.index, 0, b"a mark says durable what is not")
        return
    if header.kind not in (RECORD_PROMISE, RECORD_ACCEPT, RECORD_CHOSEN, RECORD_SETTLED,
                           RECORD_SUSPECT):
        return
    if header.group >= w.groups:
        fail_at(w, b"U2", n.node, header.group, 0, 0, b"a record of no group")
        return
    seat = &n.seats[header.group]
    if not takes_part(w, n, header.group, n.turn) or find_group(n.engine, header.group) == NULL:
        return                        # (what was made in the turn in which it was dropped)
    if header.kind == RECORD_SUSPECT:
        lost_whole(w, n, header)
    elif header.kind == RECORD_SETTLED:
        if header.index > seat.row or header.ballot > seat.kept:
            fail_at(w, b"U9g", n.node, header.group, header.index, 0,
                    b"a record says settled, or given up, what the store's row does not")
    elif header.kind == RECORD_PROMISE:
        if header.ballot < seat.promised:
            fail_at(w, b"U4", n.node, header.group, 0, header.ballot, b"takes a promise back")
        lost_promises(w, n, header, False)
        seat.promised = header.ballot
    elif header.kind == RECORD_ACCEPT:
        vote = proposal(w, n.node, header.group, header.index, header.ballot, body,
                        header.body_bytes)
        if vote == NULL:
            return
        if vote.held & bit == 0:
            if header.ballot < seat.promised:
                fail_at(w, b"U4", n.node, header.group, header.index, header.ballot,
                        b"accepts below its promise")
            if header.index > find_group(n.engine, header.group).chosen_through \
                    + n.engine.options.window:
                fail_at(w, b"bounded", n.node, header.group, header.index, header.ballot,
                        b"accepts beyond its window")
            if w.changing:
                members_votes(w, n, header)
        lost_promises(w, n, header, vote.held & bit == 0)
        vote.held |= bit
        seat.promised = max(seat.promised, header.ballot)
        out.value = vote.value
    elif is_decided(w, b"U1", n.node, header.group, header.index, body, header.body_bytes):
        out.value = reference_cell(w.ref, header.group, header.index).decided


cdef void watch_emitted(Watch* w, u32 node, const u8* data, u64 count, u64 lsn) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef RecordHeader header
    cdef Written written
    cdef u64 at = 0
    # Positions of a life whose last bytes never reached the medium are used again.
    if records_rewind(&n.records, lsn, n.durable):
        fail_at(w, b"U3", node, 0, lsn, 0, b"a durable position is written again")
    while at < count:
        written = record_read(data + at, lsn + at, &header)
        emitted(w, n, &header, data + at + RECORD_HEADER_BYTES, &written)
        written.relaxed = n.relaxes and relaxed_emits(w, n, &header, &written)
        n.records.written.push_back(written)
        at = written.end - lsn


cdef void record_durable(Watch* w, NodeWatch* n, const Written* one) noexcept nogil:
    cdef Seat* seat
    if one.version:
        members_durable(n, one)
    if one.kind not in (RECORD_PROMISE, RECORD_ACCEPT, RECORD_CHOSEN, RECORD_SUSPECT):
        return
    if one.group >= w.groups:
        return
    seat = &n.seats[one.group]
    if one.kind == RECORD_SUSPECT:
        if one.instance > seat.lost_in:
            seat.said = True
            seat.lost = seat.lost and one.ballot == 0
        return
    if one.kind == RECORD_CHOSEN:
        reference_cell(w.ref, one.group, one.instance).known |= <u32>1 << (n.node - 1)
        return
    seat.durable = max(seat.durable, one.ballot)
    if one.kind == RECORD_ACCEPT:
        accepted(w, n.node, one.group, one.instance, one.ballot, True)


cdef void watch_durable(Watch* w, u32 node, u64 lsn) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef const Written* one
    n.durable = max(n.durable, lsn)
    while True:
        one = records_next_durable(&n.records, lsn)
        if one == NULL:
            return
        record_durable(w, n, one)


cdef void watch_replayed(Watch* w, u32 node, const RecordHeader* header, const u8* body,
                         u64 lsn) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef const Written* one = record_at(&n.records, lsn)
    cdef const char* why = NULL
    cdef u32 value = 0
    if one != NULL and one.value:
        value = reference_value(w.ref, one.group, body, header.body_bytes, &why)
    if one == NULL or not record_is(one, header, value):
        fail_at(w, b"U3", node, header.group, header.index, header.ballot,
                b"replay hands on a record that was never written there")
        return
    if one.kind == RECORD_ACCEPT and one.value:
        cell_vote(reference_cell(w.ref, one.group, one.instance), one.ballot,
                  one.value).held |= <u32>1 << (node - 1)
    record_durable(w, n, one)


# --- frames (U5, U6, and every claim that something is chosen)

cdef void claims_through(Watch* w, NodeWatch* n, const MessageHeader* m,
                         u64 through) noexcept nogil:
    if through > w.ref.logs[m.group].end:
        fail_at(w, b"U3", n.node, m.group, through, m.ballot,
                b"told as chosen up to here: no quorum holds all of it")


# The node says that it has promised this ballot.
cdef void exposes(Watch* w, NodeWatch* n, const MessageHeader* m, u64 ballot) noexcept nogil:
    cdef Seat* seat = &n.seats[m.group]
    if ballot > seat.durable:
        fail_at(w, b"U5", n.node, m.group, 0, ballot,
                b"a message tells of a promise that is not durable")
    seat.exposed = max(seat.exposed, ballot)


# It is no promise but the floor of members that it knows durably: up to there nothing is followed,
# promised or not. (Where the ceiling is in the way, it is not.)
cdef bint floor_says(Watch* w, NodeWatch* n, const MessageHeader* m, u64 ballot) noexcept nogil:
    cdef Replica* r = find_group(n.engine, m.group)
    cdef Seat* seat = &n.seats[m.group]
    if not w.changing or r == NULL or ballot <= seat.durable or m.config > seat.version:
        return False
    # (It may have come to other members since, whose floor is above.)
    return ballot == floor_of(r) if m.config == r.version else ballot < floor_of(r)


# The node uses this ballot for its own leadership.
cdef void owns(Watch* w, NodeWatch* n, const MessageHeader* m) noexcept nogil:
    if ballot_node(m.ballot) != n.node:
        fail_at(w, b"U6", n.node, m.group, 0, m.ballot, b"proposes in somebody else's ballot")
    if ballot_used(&n.ballots[m.group], m.ballot, n.life).life != n.life:
        fail_at(w, b"U6", n.node, m.group, 0, m.ballot,
                b"a ballot of an earlier life is used again")


# The node says from where on it supplies values, in a frame of the turn n.made.
cdef void says_floor(Watch* w, NodeWatch* n, const MessageHeader* m, u64 floor,
                     u64 through) noexcept nogil:
    cdef Seat* seat = &n.seats[m.group]
    if floor > seat.told:
        fail_at(w, b"U9b", n.node, m.group, floor, m.ballot,
                b"told as its floor: the store still has what is below")
    elif floor < seat.told and n.made >= seat.told_turn:
        fail_at(w, b"U9b", n.node, m.group, floor, m.ballot,
                b"told as its floor: what is above was given up, too")
    elif floor > through + 1:
        fail_at(w, b"U9b", n.node, m.group, floor, m.ballot,
                b"what is below a floor is chosen, and the message does not say so")


cdef void above_floor(Watch* w, NodeWatch* n, const MessageHeader* m, const Entry* entry,
                      u64 floor) noexcept nogil:
    if entry.instance < floor:
        fail_at(w, b"U9b", n.node, m.group, entry.instance, entry.ballot,
                b"a value below the floor of the same message")


cdef void sent_accept(Watch* w, NodeWatch* n, const MessageHeader* m,
                      const u8* fixed) noexcept nogil:
    cdef AcceptBody body
    memcpy(&body, fixed, sizeof(body))
    owns(w, n, m)
    exposes(w, n, m, m.ballot)
    proposal(w, n.node, m.group, body.instance, m.ballot, fixed + sizeof(body), body.body_bytes)
    claims_through(w, n, m, body.watermark)


cdef void sent_accepted(Watch* w, NodeWatch* n, const MessageHeader* m,
                        const u8* fixed) noexcept nogil:
    cdef AcceptedBody body
    cdef Seat* seat = &n.seats[m.group]
    cdef Cell* cell
    cdef u64 instance, known = 0
    cdef u32 bit = <u32>1 << (n.node - 1)
    memcpy(&body, fixed, sizeof(body))
    lost_answers(w, n, m)
    exposes(w, n, m, m.ballot)
    claims_through(w, n, m, body.chosen_through)
    if body.through > INSTANCE_MAX:
        fail_at(w, b"U2", n.node, m.group, body.through, m.ballot, b"acknowledges garbage")
        return
    if seat.acked_ballot == m.ballot and seat.acked_first == body.first:
        known = seat.acked_through
    instance = max(body.first, known + 1)
    while instance <= body.through:
        cell = reference_cell(w.ref, m.group, instance)
        if not (cell.decided and (instance <= seat.through or cell.known & bit)) \
                and not cell_synced_in(cell, m.ballot, n.node) \
                and not relaxed_tells(n, m.group, cell, m.ballot):
            fail_at(w, b"U5", n.node, m.group, instance, m.ballot,
                    b"acknowledges an instance that it does not hold durably in this ballot")
            return
        instance += 1
    seat.acked_ballot = m.ballot
    seat.acked_first = body.first
    seat.acked_through = max(body.through, known)


cdef void sent_promise(Watch* w, NodeWatch* n, const MessageHeader* m, const u8* fixed,
                       const u8* end) noexcept nogil:
    cdef PromiseBody body
    cdef Entries entries
    cdef Entry entry
    cdef Vote* vote
    memcpy(&body, fixed, sizeof(body))
    lost_answers(w, n, m)
    lost_promised(w, n, m)
    exposes(w, n, m, m.ballot)
    claims_through(w, n, m, body.chosen_through)
    says_floor(w, n, m, body.floor, body.chosen_through)
    entries.at = fixed + sizeof(body)
    entries.end = end
    entries.left = body.entries
    while next_reported(&entries, &entry):
        above_floor(w, n, m, &entry, body.floor)
        if entry.flags & ENTRY_CHOSEN:
            is_decided(w, b"U1", n.node, m.group, entry.instance, entry.body, entry.body_bytes)
        elif not entry.flags & ENTRY_ELIDED:
            vote = proposal(w, n.node, m.group, entry.instance, entry.ballot, entry.body,
                            entry.body_bytes)
            if vote != NULL and vote.synced & (<u32>1 << (n.node - 1)) == 0:
                fail_at(w, b"U5", n.node, m.group, entry.instance, entry.ballot,
                        b"a promise tells of an acceptance that is not durable")


cdef void sent_learn(Watch* w, NodeWatch* n, const MessageHeader* m, const u8* fixed,
                     const u8* end) noexcept nogil:
    cdef LearnBody body
    cdef Entries entries
    cdef Entry entry
    memcpy(&body, fixed, sizeof(body))
    claims_through(w, n, m, body.chosen_through)
    says_floor(w, n, m, body.floor, body.chosen_through)
    entries.at = fixed + sizeof(body)
    entries.end = end
    entries.left = body.entries
    while next_supplied(&entries, &entry):
        above_floor(w, n, m, &entry, body.floor)
        is_decided(w, b"U1", n.node, m.group, entry.instance, entry.body, entry.body_bytes)


cdef void sent(Watch* w, NodeWatch* n, const u8* data, u32 length) noexcept nogil:
    cdef MessageHeader m
    cdef const u8* fixed = data + MESSAGE_HEADER_BYTES
    cdef RefuseBody refuse
    cdef ChosenBody chosen
    cdef PrevoteReplyBody prevote
    memcpy(&m, data, sizeof(m))
    if m.group >= w.groups or not takes_part(w, n, m.group, n.made):
        return
    if w.changing:
        members_sent(w, n, &m)
    if m.kind == MSG_ACCEPT:
        sent_accept(w, n, &m, fixed)
    elif m.kind == MSG_ACCEPTED:
        sent_accepted(w, n, &m, fixed)
    elif m.kind == MSG_PREPARE:
        owns(w, n, &m)
        lost_takes_part(w, n, m.group, m.ballot)
        exposes(w, n, &m, m.ballot)
    elif m.kind == MSG_PROMISE:
        sent_promise(w, n, &m, fixed, data + length)
    elif m.kind == MSG_LEARN:
        sent_learn(w, n, &m, fixed, data + length)
    elif m.kind == MSG_REFUSE:
        memcpy(&refuse, fixed, sizeof(refuse))
        # (A created group's first floor is no ballot of anybody's: its row stands for it.)
        if (refuse.promised != CREATED_FLOOR or m.group < w.configured) \
                and not floor_says(w, n, &m, refuse.promised):
            exposes(w, n, &m, refuse.promised)
    elif m.kind == MSG_CHOSEN:
        memcpy(&chosen, fixed, sizeof(chosen))
        claims_through(w, n, &m, chosen.through)
    elif m.kind == MSG_REJOIN:
        w.rejoin_asks += 1
    elif m.kind == MSG_PREVOTE_REPLY:
        lost_prevotes(w, n, &m)
        memcpy(&prevote, fixed, sizeof(prevote))
        claims_through(w, n, &m, prevote.chosen_through)


cdef void watch_sent(Watch* w, u32 node, const u8* frame, u64 count, u64 made) noexcept nogil:
    cdef u64 at = FRAME_HEADER_BYTES
    cdef u32 length
    of(w, node).made = made
    if (<const FrameHeader*>frame).kind != FRAME_ENGINE:
        return
    while at < count and not w.failed:
        length = message_check(frame + at, count - at)
        if length == 0:
            fail_at(w, b"U2", node, 0, 0, 0, b"sends a frame that cannot be read")
            return
        sent(w, of(w, node), frame + at, length)
        at += length


# --- state

# Everything in the ring: at most the promise, and what was proposed.
cdef void check_slots(Watch* w, NodeWatch* n, Replica* r) noexcept nogil:
    cdef u64 instance
    cdef Slot* slot
    if r == NULL:
        return
    for instance in range(r.window.base, r.accepted_last + 1):
        slot = window_find(&r.window, instance)
        if slot == NULL:
            continue
        if slot.ballot > r.promised:
            fail_at(w, b"U4", n.node, r.group, instance, slot.ballot,
                    b"holds an acceptance above its promise")
        if slot.flags & SLOT_CHOSEN:
            is_decided(w, b"U1", n.node, r.group, instance, slot.value.data, slot.value.size)
        elif slot.ballot:
            proposal(w, n.node, r.group, instance, slot.ballot, slot.value.data, slot.value.size)


cdef void watch_step(Watch* w, u32 node, u32 group) noexcept nogil:
    cdef NodeWatch* n = of(w, node)
    cdef Replica* r = find_group(n.engine, group)
    cdef Seat* seat = &n.seats[group]
    w.checks += 1
    if r == NULL:
        return
    if r.promised < seat.seen or r.promised < seat.promised:
        fail_at(w, b"U4", node, group, 0, r.promised, b"a promise has fallen")
    seat.seen = r.promised
    if r.chosen_through < seat.through:
        fail_at(w, b"U3", node, group, r.chosen_through, 0, b"what was chosen is not any more")
    if r.chosen_through > w.ref.logs[group].end:
        fail_at(w, b"U3", node, group, r.chosen_through, 0,
                b"taken for chosen: no quorum holds all of it")
    seat.through = r.chosen_through
    w.known[group] = max(w.known[group], r.chosen_through)
    if r.settled_through > r.chosen_through:
        fail_at(w, b"U3", node, group, r.settled_through, 0, b"settled before it was chosen")
    if r.settled_through > seat.row:
        fail_at(w, b"U9g", node, group, r.settled_through, 0,
                b"counts as settled, and the store's row does not say so")
    if r.floor > seat.kept or r.floor > r.chosen_through + 1:
        fail_at(w, b"U9b", node, group, r.floor, 0,
                b"a floor that is not the store's, or above what is chosen")
    if r.applied_through > max(r.chosen_through, seat.restored):
        fail_at(w, b"U7", node, group, r.applied_through, 0, b"applied before it was chosen")
    if r.role == ROLE_LEADING:
        if r.lead == NULL or ballot_node(r.lead.ballot) != node or r.lead.ballot > r.promised:
            fail_at(w, b"U4", node, group, 0, r.promised, b"leads in a ballot it did not promise")
    lost_step(w, n, group)
    if w.changing:
        members_step(w, n, r)


cdef void watch_full(Watch* w) noexcept nogil:
    cdef u32 i, group
    cdef NodeWatch* n
    cdef Engine* e
    for i in range(w.nodes):
        n = &w.node[i]
        e = n.engine
        if e == NULL:
            continue
        for group in range(w.groups):
            watch_step(w, n.node, group)
            check_slots(w, n, find_group(e, group))
        if e.cached_bytes > e.options.cache_bytes_max + e.options.batch_bytes_max + \
                2 * e.options.value_bytes_max:
            fail_at(w, b"bounded", n.node, 0, e.cached_bytes, 0, b"the cache is over its limit")
        if e.pending_bytes > e.options.pending_bytes_max + 2 * e.options.value_bytes_max:
            fail_at(w, b"bounded", n.node, 0, e.pending_bytes, 0, b"more waits than the limit")
    watch_leases(w)


cdef void watch_chain(Watch* w, u32 node, u32 group, u64 instance, u32 chain) noexcept nogil:
    if not of(w, node).seats[group].odd and not reference_chain(w.ref, group, instance, chain):
        fail_at(w, b"U7", node, group, instance, 0,
                b"another chained checksum than another replica had")


# --- machines (U7)

cdef void watch_chosen(Watch* w, u32 node, u32 group, u64 instance, const u8* body,
                       u64 count) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    if instance != seat.handed + 1:
        fail_at(w, b"U9e" if seat.restored and seat.handed == seat.restored else b"U7", node, group,
                instance, 0, b"handed to the machine out of order")
    seat.handed = instance
    is_decided(w, b"U1", node, group, instance, body, count)


cdef void watch_applied(Watch* w, u32 node, u32 group, u64 instance, u32 index, u64 op, u64 epoch,
                        u64 time_us) noexcept nogil:
    cdef Seat* seat = &of(w, node).seats[group]
    cdef Log* log = &w.ref.logs[group]
    cdef const Applied* want
    cdef const Value* value
    if seat.applied >= log.applied.size():
        fail_at(w, b"U7", node, group, instance, 0, b"applies more than the log says")
        return
    want = &log.applied[seat.applied]
    seat.applied += 1
    if want.instance != instance or want.index != index or want.op != op:
        fail_at(w, b"U7", node, group, instance, 0,
                b"applies another value than the log says, or one twice, or leaves one out")
        return
    value = &w.ref.values[log.cells[instance].decided]
    if value.epoch != epoch or value.time_us != time_us:
        fail_at(w, b"U7", node, group, instance, epoch,
                b"apply sees another epoch or time than was packed")
