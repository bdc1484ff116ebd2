# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Read points; see reads.pxd."""

from libc.string cimport memcpy

from phx._core.ballot cimport ballot_node
from phx._core.effects cimport LANE_NOW, answer_room, send
from phx._core.learner cimport want
from phx._core.leases cimport group_lease_until
from phx._core.membership cimport voters_connected
from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport (
    FLAG_QUORUM, MSG_READ_ASK, MSG_READ_POINT, POINT_LATER, POINT_NOT_LEADER, POINT_OK,
    READ_GROUPS_MAX, GroupAsked, HeartbeatAckBody, PointAnswer, ReadAskBody, ReadPointBody,
)

cdef enum:
    LOOK_SHARE = 16              # deadlines are kept to this part of a heartbeat

cdef u64 INSTANCE_MAX = <u64>1 << 62

cdef enum Standing:              # what a leader can say of its chosen_through
    NOT_LEADING = 0
    UNFINISHED = 1               # its phase 1 found what is not chosen yet
    CHECKED = 2                  # nothing above its ballot is chosen: its lease runs
    UNCHECKED = 3


# --- what waits

cdef GroupReads* reads_of(Engine* e, Replica* r) noexcept nogil:
    if r.reads == NULL:
        r.reads = phx_new[GroupReads]()
        r.reads.place = <u32>e.reads.active.size()
        e.reads.active.push_back(r.index)
        if e.reads.at_us == 0:
            e.reads.at_us = e.now_us + pause_us(e)
    return r.reads


cdef void leave(Engine* e, Replica* r) noexcept nogil:
    """Out of the table of those with reads, if nothing waits any more."""
    cdef GroupReads* g = r.reads
    cdef u32 last
    if g == NULL or g.lined or not (
            g.leader.fresh.empty() and g.leader.asked.empty() and g.quorum.fresh.empty()
            and g.quorum.asked.empty() and g.askers.empty()):
        return
    last = e.reads.active.back()
    e.reads.active[g.place] = last
    e.replicas[last].reads.place = g.place
    e.reads.active.pop_back()
    if e.reads.active.empty():
        e.reads.at_us = 0
    phx_delete[GroupReads](g)
    r.reads = NULL


cdef u64 pause_us(Engine* e) noexcept nogil:  # then a question is asked again
    return e.options.heartbeat_us // 2


cdef void reads_line(Engine* e, Replica* r) noexcept nogil:
    if not r.reads.lined:
        r.reads.lined = True
        e.reads.line.push_back(r.index)


cdef int read_take(Engine* e, Replica* r, u64 ticket, u32 flags, u64 deadline_us) noexcept nogil:
    cdef Ticket one
    cdef Asking* a
    if e.poisoned:
        return VERDICT_POISONED_REJECTED
    if r.halted:
        return VERDICT_STOPPED_REJECTED
    if e.reads.tickets >= READS_MAX:
        return VERDICT_OVERLOADED
    one.ticket = ticket
    one.deadline_us = deadline_us
    reads_of(e, r)
    a = &r.reads.quorum if flags & READ_QUORUM else &r.reads.leader
    a.fresh.push_back(one)
    e.reads.tickets += 1
    e.reads.at_us = min(e.reads.at_us, max(deadline_us, e.reads.looked_us + look_us(e)))
    reads_line(e, r)
    return 0


cdef u64 look_us(Engine* e) noexcept nogil:
    return max(e.options.heartbeat_us // LOOK_SHARE, <u32>1)


cdef void tell(Engine* e, Replica* r, const Ticket* one, u32 verdict, u64 instance) noexcept nogil:
    cdef ReadPoint point
    point.group = r.group
    point.verdict = verdict
    point.ticket = one.ticket
    point.instance = instance
    e.effects.points.push_back(point)
    e.counters.read_points += verdict == 0
    e.reads.tickets -= 1


cdef void finish(Engine* e, Replica* r, Asking* a, u32 verdict, u64 instance) noexcept nogil:
    """Whoever was in the last question has an answer."""
    cdef size_t i
    for i in range(a.asked.size()):
        tell(e, r, &a.asked[i], verdict, instance)
    a.asked.clear()
    again(a)


cdef void again(Asking* a) noexcept nogil:
    """Whoever was in the last question will be in another one, and its answer is not awaited."""
    cdef size_t i
    for i in range(a.asked.size()):
        a.fresh.push_back(a.asked[i])
    a.asked.clear()
    a.round = 0
    a.node = 0


cdef void ask_fresh(Asking* a, u64 round, u32 node, u64 now_us) noexcept nogil:
    """Everybody who waits is in this question."""
    a.fresh.swap(a.asked)
    again(a)
    a.fresh.swap(a.asked)
    a.round = round
    a.last_round = round
    a.node = node
    a.sent_us = now_us
    a.counted = False


cdef void fail(Engine* e, Replica* r, u32 verdict) noexcept nogil:
    again(&r.reads.leader)
    again(&r.reads.quorum)
    r.reads.leader.fresh.swap(r.reads.leader.asked)
    r.reads.quorum.fresh.swap(r.reads.quorum.asked)
    finish(e, r, &r.reads.leader, verdict, 0)
    finish(e, r, &r.reads.quorum, verdict, 0)


# --- the leader

cdef Standing standing(Engine* e, Replica* r) noexcept nogil:
    if (r.role != ROLE_LEADING or r.promised != r.lead.ballot or r.halted or r.stopped
            or e.poisoned):
        return NOT_LEADING
    # What was chosen below its ballot is among what its phase 1 found, or was learned before.
    # (A suspect replica has heard of all of it as well; it is not asked before it is whole.)
    if r.lead.phase1 != NULL or r.chosen_through < r.lead.recover_through or r.suspect:
        return UNFINISHED
    return CHECKED if group_lease_until(e, r) > e.now_us else UNCHECKED


cdef bint granted(Engine* e, Replica* r, u64 beat) noexcept nogil:
    """Has a majority granted this claim, this node among them, in answer to that round of
    heartbeats or a later one? Then nobody had promised more, when the round was sent, to a majority
    that could have chosen anything."""
    cdef u64 left = r.config.voters & ~r.lead.refusing
    cdef u64 found = <u64>1 << e.own_slot
    cdef u32 i
    while left:
        i = next_member(&left)
        if (e.peers[i].reads.acked_beat >= beat
                and e.peers[i].reads.acked_version >= r.lead.claim_version):
            found |= <u64>1 << i
    return quorum_of(r, found)


cdef void seal_points(Engine* e, Peer* p) noexcept nogil:
    cdef ReadPointBody head
    cdef Block* out = p.reads.points
    if out == NULL:
        return
    p.reads.points = NULL
    head.round = p.reads.points_round
    head.points = <u32>(out.size // sizeof(PointAnswer))
    head.pad = 0
    if answer_room(p):
        p.answer_bytes += out.size
        send(e, p, LANE_NOW, MSG_READ_POINT, p.reads.points_flags, 0, 0, &head, sizeof(head),
             out.data, out.size)
    block_unref(out)


cdef void answer(Engine* e, Replica* r, u32 at, u64 round, u8 flags, u32 verdict, u64 instance,
                 u64 ballot) noexcept nogil:
    cdef Peer* p = &e.peers[at]
    cdef PointAnswer one
    if p.reads.points != NULL and (
            p.reads.points_round != round or p.reads.points_flags != flags
            or p.reads.points.size >= READ_GROUPS_MAX * sizeof(PointAnswer)):
        seal_points(e, p)
    if p.reads.points == NULL:
        p.reads.points = block_new(256)
        p.reads.points_round = round
        p.reads.points_flags = flags
    one.group = r.group
    one.verdict = verdict
    one.instance = instance
    one.ballot = ballot
    p.reads.points = block_append(p.reads.points, &one, sizeof(one))


cdef bint serve(Engine* e, Replica* r, Asker* asker, bint first) noexcept nogil:
    """What can be said to a member that asked; True: it need not wait any more."""
    cdef Standing at = standing(e, r)
    cdef bint own = asker.at == e.own_slot
    if at == NOT_LEADING:
        if own:
            again(&r.reads.leader)
        else:
            answer(e, r, asker.at, asker.round, 0, POINT_NOT_LEADER, 0, r.claim)
        return True
    if asker.beat and asker.ballot != r.lead.ballot:
        # What others had chosen between the two ballots is above that point.
        asker.beat = 0
        e.reads.checks -= 1
    if at == UNFINISHED:
        if first and not own:
            answer(e, r, asker.at, asker.round, 0, POINT_LATER, 0, r.lead.ballot)
        return False
    if at == UNCHECKED and asker.beat == 0:
        # Of what is chosen in this ballot nobody knows before its leader does.
        asker.point = r.chosen_through
        asker.ballot = r.lead.ballot
        asker.beat = e.reads.beats + 1
        e.reads.checks += 1
        e.counters.read_checks += 1
    if at == UNCHECKED and not granted(e, r, asker.beat):
        return False
    if asker.beat == 0:
        asker.point = r.chosen_through
    if own:
        finish(e, r, &r.reads.leader, 0, asker.point)
        reads_line(e, r)
    else:
        answer(e, r, asker.at, asker.round, 0, POINT_OK, asker.point, r.lead.ballot)
    return True


cdef void drop_asker(Engine* e, GroupReads* g, size_t i) noexcept nogil:
    if g.askers[i].beat:
        e.reads.checks -= 1
    g.askers[i] = g.askers.back()
    g.askers.pop_back()


cdef void drop_asker_at(Engine* e, GroupReads* g, u32 at) noexcept nogil:
    cdef size_t i
    for i in range(g.askers.size()):
        if g.askers[i].at == at:
            drop_asker(e, g, i)
            return


cdef void serve_all(Engine* e, Replica* r) noexcept nogil:
    cdef size_t i = 0
    while i < r.reads.askers.size():
        if serve(e, r, &r.reads.askers[i], False):
            drop_asker(e, r.reads, i)
        else:
            i += 1


cdef void serve_new(Engine* e, Replica* r, u32 at, u64 round) noexcept nogil:
    """A member asks: it gets its answer, or waits for it. (What it asked before it asks again.)"""
    cdef Asker asker = Asker(at, round, 0, 0, 0)
    if r.reads != NULL:
        drop_asker_at(e, r.reads, at)
    if serve(e, r, &asker, True):
        if asker.beat:
            e.reads.checks -= 1
    else:
        reads_of(e, r).askers.push_back(asker)


cdef void serve_asks(Engine* e) noexcept nogil:
    """What came in this turn, judged by the clock as it is now."""
    cdef size_t i
    cdef ReadAsk* ask
    cdef Replica* r
    for i in range(e.reads.asks.size()):
        ask = &e.reads.asks[i]
        r = e.replicas[ask.index]
        if not ask.flags & FLAG_QUORUM:
            serve_new(e, r, ask.at, ask.round)
            leave(e, r)
        elif may_vouch(e, r):
            answer(e, r, ask.at, ask.round, FLAG_QUORUM, POINT_OK, accepted_through(r), r.promised)
    e.reads.asks.clear()


cdef void on_read_ask(Engine* e, Peer* p, u8 flags, const ReadAskBody* ask,
                      const u8* groups) noexcept nogil:
    cdef GroupAsked one
    cdef ReadAsk note
    cdef Replica* r
    cdef u32 i
    if ask.groups > READ_GROUPS_MAX:
        e.counters.hostile_messages += 1
        return
    note.at = p.slot
    note.flags = flags & FLAG_QUORUM
    note.round = ask.round
    for i in range(ask.groups):
        memcpy(&one, groups + i * sizeof(one), sizeof(one))
        r = find_group(e, one.group)
        if r == NULL or not config_has(r, p.slot) or (
                one.ballot and ballot_node(one.ballot) != e.options.node):
            e.counters.hostile_messages += 1
            continue
        note.index = r.index
        e.reads.asks.push_back(note)


cdef void reads_acked(Engine* e, Peer* p, const HeartbeatAckBody* ack) noexcept nogil:
    if ack.seq + SENT_TIMES <= p.beat_seq:
        return
    p.reads.acked_beat = p.reads.beats[ack.seq % SENT_TIMES]
    p.reads.acked_version = ack.version
    e.reads.acked = True


cdef void beat_for_checks(Engine* e) noexcept nogil:
    """Somebody may wait for a heartbeat that was not sent yet: it goes out at once, unless the last
    one is still on its way to those that count; then soon (leases.heartbeats)."""
    cdef size_t i, k
    cdef Replica* r
    cdef u64 there = <u64>1 << e.own_slot
    cdef u32 j
    if e.reads.checks == 0 or e.beat_must:
        return
    for j in range(e.n_slots):
        if j != e.own_slot and e.peers[j].reads.acked_beat >= e.reads.beats:
            there |= <u64>1 << j
    for i in range(e.reads.active.size()):
        r = e.replicas[e.reads.active[i]]
        for k in range(r.reads.askers.size()):
            if r.reads.askers[k].beat > e.reads.beats:
                if quorum_of(r, there):
                    e.beat_must = True
                    return
                e.beat_now = True
                break


# --- quorum reads

cdef bint may_vouch(Engine* e, Replica* r) noexcept nogil:
    """It counts in majorities, and has forgotten no acceptance."""
    return has_vote(r, e.own_slot) and not r.suspect and not r.halted and not e.poisoned


cdef u64 accepted_through(Replica* r) noexcept nogil:
    return max(r.accepted_last, r.chosen_through)


cdef void weigh_told(Engine* e, Replica* r, bint waited) noexcept nogil:
    """Of any majority that answered the largest will do: so the least of these largest ones."""
    cdef GroupReads* g = r.reads
    cdef u64 points[MEMBERS_MAX]
    cdef u64 point
    cdef u32 n = 0, j
    cdef size_t i
    for i in range(g.told.size()):
        if not has_vote(r, g.told[i].at):
            continue
        j = n
        n += 1
        while j > 0 and points[j - 1] > g.told[i].point:
            points[j] = points[j - 1]
            j -= 1
        points[j] = g.told[i].point
    if n < r.config.quorum or g.quorum.asked.empty():
        return
    point = points[r.config.quorum - 1]
    # Above what is chosen something is open, or was given up: who else answers may know of less.
    if point > r.chosen_through and n <= voters_connected(e, r) and not waited:
        return
    count_answer(&e.reads.question, &g.quorum)
    finish(e, r, &g.quorum, 0, point)
    reads_line(e, r)
    want(e, r, point, r.leader)


cdef void note_told(Engine* e, Replica* r, u32 at, u64 point) noexcept nogil:
    cdef PointTold one
    cdef size_t i
    for i in range(r.reads.told.size()):
        if r.reads.told[i].at == at:
            return
    one.at = at
    one.point = point
    r.reads.told.push_back(one)
    weigh_told(e, r, False)


# --- who asks

cdef void count_answer(Question* q, Asking* a) noexcept nogil:
    if a.counted or a.last_round != q.round:
        return
    a.counted = True
    if q.left:
        q.left -= 1
    if q.left == 0:
        q.asked.clear()


cdef Block* asked_append(Block* out, Replica* r, u64 ballot) noexcept nogil:
    cdef GroupAsked one
    one.group = r.group
    one.pad = 0
    one.ballot = ballot
    return block_append(out, &one, sizeof(one))


cdef void send_question(Engine* e, Peer* p, u8 flags, u64 round, Block* out) noexcept nogil:
    cdef ReadAskBody head
    cdef u64 at = 0, count
    head.round = round
    head.pad = 0
    while at < out.size:
        count = min(out.size - at, <u64>READ_GROUPS_MAX * sizeof(GroupAsked))
        head.groups = <u32>(count // sizeof(GroupAsked))
        e.counters.read_questions += 1
        send(e, p, LANE_NOW, MSG_READ_ASK, flags, 0, 0, &head, sizeof(head), out.data + at, count)
        at += count
    block_unref(out)


cdef u64 next_round(Engine* e) noexcept nogil:
    # (An answer to a question of an earlier life is none to one of this life.)
    e.reads.round += 1
    return (<u64>e.incarnation << 32) + e.reads.round


cdef void ask_leaders(Engine* e, Peer* p) noexcept nogil:
    """One question for all groups that this peer leads, as far as is known here."""
    cdef Question* q = &p.reads.question
    cdef Replica* r
    cdef Block* out
    cdef size_t i
    if q.next.empty() or not q.asked.empty() or not p.connected:
        return
    out = block_new(256)
    q.round = next_round(e)
    q.sent_us = e.now_us
    for i in range(q.next.size()):
        r = e.replicas[q.next[i]]
        if r.reads == NULL or r.reads.leader.queued != p.node:
            continue
        r.reads.leader.queued = 0
        if r.leader != p.node or r.reads.leader.fresh.empty():
            continue
        ask_fresh(&r.reads.leader, q.round, p.node, e.now_us)
        out = asked_append(out, r, r.claim if ballot_node(r.claim) == p.node else 0)
        q.asked.push_back(r.index)
    q.next.clear()
    q.left = q.asked.size()
    send_question(e, p, 0, q.round, out)


cdef void ask_voter(Engine* e, Peer* p, const Question* q) noexcept nogil:
    """Of the groups in the question, those in which this peer votes."""
    cdef Block* out = block_new(256)
    cdef size_t i
    for i in range(q.asked.size()):
        if has_vote(e.replicas[q.asked[i]], p.slot):
            out = asked_append(out, e.replicas[q.asked[i]], 0)
    send_question(e, p, FLAG_QUORUM, q.round, out)


cdef void ask_quorums(Engine* e) noexcept nogil:
    cdef Question* q = &e.reads.question
    cdef Replica* r
    cdef size_t i
    cdef vector[u32] these
    if q.next.empty() or not q.asked.empty():
        return
    q.round = next_round(e)
    q.sent_us = e.now_us
    these.swap(q.next)
    for i in range(these.size()):
        r = e.replicas[these[i]]
        if r.reads == NULL or r.reads.quorum.queued == 0:
            continue
        r.reads.quorum.queued = 0
        if r.reads.quorum.fresh.empty():
            continue
        ask_fresh(&r.reads.quorum, q.round, e.options.node, e.now_us)
        r.reads.told.clear()
        q.asked.push_back(r.index)
    q.left = q.asked.size()
    for i in range(e.n_slots):
        if e.peers[i].connected:
            ask_voter(e, &e.peers[i], q)
    these = q.asked
    for i in range(these.size()):
        r = e.replicas[these[i]]
        if may_vouch(e, r):
            note_told(e, r, e.own_slot, accepted_through(r))


cdef void heard_leader(Engine* e, Replica* r, Peer* p, u64 round,
                       const PointAnswer* one) noexcept nogil:
    cdef Asking* a = &r.reads.leader
    if p.reads.question.round == round:
        count_answer(&p.reads.question, a)
    if a.round != round or a.node != p.node:
        return
    if one.verdict == POINT_OK:
        if ballot_node(one.ballot) != p.node:
            e.counters.hostile_messages += 1
            return
        finish(e, r, a, 0, one.instance)
        want(e, r, one.instance, p.node)
        reads_line(e, r)
    elif one.verdict == POINT_NOT_LEADER:
        # It is asked again when another one is heard to lead, or after the pause.
        again(a)


cdef void on_read_point(Engine* e, Peer* p, u8 flags, const ReadPointBody* told,
                        const u8* points) noexcept nogil:
    cdef PointAnswer one
    cdef Replica* r
    cdef u32 i
    if told.points > READ_GROUPS_MAX:
        e.counters.hostile_messages += 1
        return
    for i in range(told.points):
        memcpy(&one, points + i * sizeof(one), sizeof(one))
        r = find_group(e, one.group)
        if r == NULL or not config_has(r, p.slot) or one.instance > INSTANCE_MAX:
            e.counters.hostile_messages += 1
        elif r.reads == NULL:
            pass
        elif not flags & FLAG_QUORUM:
            heard_leader(e, r, p, told.round, &one)
        elif r.reads.quorum.round == told.round and one.verdict == POINT_OK:
            note_told(e, r, p.slot, one.instance)


cdef void put_next(Engine* e, Replica* r, Question* q, Asking* a, u32 node) noexcept nogil:
    if a.queued != node:
        a.queued = node
        q.next.push_back(r.index)


cdef void ask_leader(Engine* e, Replica* r) noexcept nogil:
    cdef Asking* a = &r.reads.leader
    cdef int at = slot_of(e, r.leader) if r.leader else -1
    if not a.asked.empty() and a.node != r.leader:
        drop_asker_at(e, r.reads, e.own_slot)
        again(a)
    if a.fresh.empty() or not a.asked.empty() or at < 0 or not config_has(r, at):
        return
    if r.leader == e.options.node:
        ask_fresh(a, 0, e.options.node, e.now_us)
        serve_new(e, r, e.own_slot, 0)
    elif e.peers[at].connected:
        put_next(e, r, &e.peers[at].reads.question, a, r.leader)


cdef void look(Engine* e, Replica* r) noexcept nogil:
    """Answer who asked, ask for who is not answered."""
    cdef GroupReads* g = r.reads
    if r.halted or e.poisoned:
        fail(e, r, VERDICT_POISONED_REJECTED if e.poisoned else VERDICT_STOPPED_REJECTED)
    serve_all(e, r)
    ask_leader(e, r)
    if not g.quorum.fresh.empty() and g.quorum.asked.empty():
        put_next(e, r, &e.reads.question, &g.quorum, e.options.node)


# --- time

cdef void expire(Engine* e, Replica* r, vector[Ticket]* tickets, u64* next_us) noexcept nogil:
    cdef size_t i, kept = 0
    cdef bint quorum = tickets == &r.reads.quorum.fresh or tickets == &r.reads.quorum.asked
    for i in range(tickets.size()):
        if tickets[0][i].deadline_us <= e.now_us:
            tell(e, r, &tickets[0][i], VERDICT_NO_QUORUM if quorum or r.leader == 0
                 else VERDICT_TIMED_OUT_REJECTED, 0)
        else:
            next_us[0] = min(next_us[0], tickets[0][i].deadline_us)
            tickets[0][kept] = tickets[0][i]
            kept += 1
    tickets.resize(kept)


cdef void ask_again(Engine* e, Replica* r) noexcept nogil:
    """What was asked too long ago is asked again. (This node itself does not lose questions.)"""
    cdef GroupReads* g = r.reads
    cdef u64 before_us = e.now_us - min(pause_us(e), e.now_us)
    if g.leader.sent_us <= before_us and g.leader.node != e.options.node:
        again(&g.leader)
    if not g.quorum.asked.empty() and g.quorum.sent_us <= before_us:
        weigh_told(e, r, True)
        again(&g.quorum)


cdef void over(Engine* e, Question* q) noexcept nogil:
    if not q.asked.empty() and q.sent_us + pause_us(e) <= e.now_us:
        q.asked.clear()


cdef void look_at_all(Engine* e) noexcept nogil:
    cdef size_t i
    cdef u64 next_us = e.now_us + pause_us(e)
    cdef Replica* r
    for i in range(e.n_slots):
        over(e, &e.peers[i].reads.question)
    over(e, &e.reads.question)
    for i in range(e.reads.active.size()):
        r = e.replicas[e.reads.active[i]]
        expire(e, r, &r.reads.leader.fresh, &next_us)
        expire(e, r, &r.reads.leader.asked, &next_us)
        expire(e, r, &r.reads.quorum.fresh, &next_us)
        expire(e, r, &r.reads.quorum.asked, &next_us)
        ask_again(e, r)
        reads_line(e, r)
    e.reads.looked_us = e.now_us
    e.reads.at_us = max(next_us, e.now_us + look_us(e))


cdef void reads_lost(Engine* e, Peer* p) noexcept nogil:
    cdef u32 at = p.slot
    cdef size_t i, kept = 0
    cdef Replica* r
    p.reads.question.asked.clear()
    p.reads.question.next.clear()
    block_unref(p.reads.points)
    p.reads.points = NULL
    for i in range(e.reads.asks.size()):
        if e.reads.asks[i].at != at:
            e.reads.asks[kept] = e.reads.asks[i]
            kept += 1
    e.reads.asks.resize(kept)
    for i in range(e.reads.active.size()):
        r = e.replicas[e.reads.active[i]]
        drop_asker_at(e, r.reads, at)
        if r.reads.leader.queued == p.node:
            r.reads.leader.queued = 0
        if r.reads.leader.node == p.node:
            again(&r.reads.leader)
        reads_line(e, r)


cdef void reads_turn(Engine* e) noexcept nogil:
    cdef size_t i = 0
    cdef u32 k
    cdef Replica* r
    if not e.started or (e.reads.active.empty() and e.reads.asks.empty()):
        return
    if e.now_us >= e.reads.at_us and not e.reads.active.empty():
        look_at_all(e)
    if e.poisoned or (e.reads.acked and e.reads.checks):
        for i in range(e.reads.active.size()):
            reads_line(e, e.replicas[e.reads.active[i]])
    e.reads.acked = False
    serve_asks(e)
    i = 0
    while True:
        while i < e.reads.line.size():
            r = e.replicas[e.reads.line[i]]
            r.reads.lined = False
            look(e, r)
            i += 1
        for k in range(e.n_slots):
            ask_leaders(e, &e.peers[k])
        ask_quorums(e)
        if i == e.reads.line.size():
            break
    for i in range(e.reads.line.size()):
        leave(e, e.replicas[e.reads.line[i]])
    e.reads.line.clear()
    for k in range(e.n_slots):
        seal_points(e, &e.peers[k])
    beat_for_checks(e)


cdef u64 reads_at(Engine* e) noexcept nogil:
    return ~<u64>0 if e.reads.active.empty() else e.reads.at_us


cdef void reads_free(Engine* e) noexcept nogil:
    cdef size_t i
    for i in range(e.reads.active.size()):
        phx_delete[GroupReads](e.replicas[e.reads.active[i]].reads)
    for i in range(e.n_slots):
        block_unref(e.peers[i].reads.points)
