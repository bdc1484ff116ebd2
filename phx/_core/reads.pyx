# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Read points that are asked for; see reads.pxd."""

from libc.string cimport memcpy

from phx._core.ballot cimport ballot_node
from phx._core.effects cimport LANE_NOW, send
from phx._core.groups cimport index_purge
from phx._core.learner cimport want
from phx._core.membership cimport is_ended, is_removed, voters_connected
from phx._core.native cimport *
from phx._core.points cimport (
    accepted_through, beat_for_checks, may_vouch, points_asked, points_drop, points_lost,
    points_serve, points_turn, seal_points,
)
from phx._core.read_table cimport pause_us, reads_leave, reads_of
from phx._core.state cimport *
from phx._core.wire cimport (
    FLAG_QUORUM, MSG_READ_ASK, POINT_NOT_LEADER, POINT_OK, READ_GROUPS_MAX, GroupAsked,
    PointAnswer, ReadAskBody, ReadPointBody,
)

cdef enum:
    LOOK_SHARE = 16              # deadlines are kept to this part of a heartbeat

cdef u64 INSTANCE_MAX = <u64>1 << 62


# --- tickets

cdef int read_take(Engine* e, Replica* r, u64 ticket, u32 flags, u64 deadline_us) noexcept nogil:
    cdef Ticket one
    cdef Asking* a
    if e.poisoned:
        return VERDICT_POISONED_REJECTED
    if is_ended(r):
        return VERDICT_ENDED_REJECTED
    if r.halted or is_removed(r):
        return VERDICT_STOPPED_REJECTED
    if e.reads.tickets >= READS_MAX:
        return VERDICT_OVERLOADED
    one.ticket = ticket
    one.deadline_us = deadline_us
    one.first = 0
    one.told_us = 0
    reads_of(e, r)
    a = &r.reads.quorum if flags & READ_QUORUM else &r.reads.leader
    a.tickets.push_back(one)
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


cdef bint has_asked(const Asking* a) noexcept nogil:
    """Some ticket has been in a question: those come first."""
    return not a.tickets.empty() and a.tickets[0].first != 0


cdef bint finish(Engine* e, Replica* r, Asking* a, u64 round, u64 instance) noexcept nogil:
    """An answer to that question: it is good for every ticket that was in it or in one before.
    True: there was one."""
    cdef size_t n = 0, i
    while n < a.tickets.size() and 0 < a.tickets[n].first <= round:
        tell(e, r, &a.tickets[n], 0, instance)
        n += 1
    if n == 0:
        return False
    for i in range(n, a.tickets.size()):
        a.tickets[i - n] = a.tickets[i]
    a.tickets.resize(a.tickets.size() - n)
    reads_line(e, r)
    return True


cdef void fail(Engine* e, Replica* r, Asking* a, u32 verdict) noexcept nogil:
    cdef size_t i
    for i in range(a.tickets.size()):
        tell(e, r, &a.tickets[i], verdict, 0)
    a.tickets.clear()
    a.awaited = False


# --- questions

cdef u64 next_round(Engine* e) noexcept nogil:
    # (An answer to a question of an earlier life is below every question of this one.)
    e.reads.round += 1
    return (<u64>e.incarnation << 32) + e.reads.round


cdef void ask(Asking* a, u64 round, u32 node, u64 now_us) noexcept nogil:
    """Everybody who waits is in this question."""
    cdef size_t i = a.tickets.size()
    while i > 0 and a.tickets[i - 1].first == 0:
        i -= 1
        a.tickets[i].first = round
    a.round = round
    a.awaited = True
    a.counted = False
    a.node = node
    a.sent_us = now_us


cdef bint on_its_way(Engine* e, const Question* q) noexcept nogil:
    """Somebody waits until it is answered by all, or the pause is over."""
    if q.left == 0 or q.sent_us + pause_us(e) <= e.now_us:
        return False
    e.reads.at_us = min(e.reads.at_us, q.sent_us + pause_us(e))
    return True


cdef void count_answer(Question* q, Asking* a) noexcept nogil:
    """Of a group, NULL: nothing of it waits any more. (Such a one may be counted twice.)"""
    if a != NULL and a.round == q.round:
        if a.counted:
            return
        a.counted = True
    if q.left:
        q.left -= 1


cdef Block* asked_append(Block* out, Replica* r, u64 ballot) noexcept nogil:
    cdef GroupAsked one
    one.group = r.group
    one.generation = r.generation
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


cdef void put_next(Engine* e, Replica* r, Question* q, Asking* a, u32 node) noexcept nogil:
    if a.queued != node:
        a.queued = node
        q.next.push_back(r.index)


# --- of leaders

cdef void ask_leaders(Engine* e, Peer* p) noexcept nogil:
    """One question for all groups that this peer leads, as far as is known here."""
    cdef Question* q = &p.reads.question
    cdef Asking* a
    cdef Replica* r
    cdef Block* out
    cdef size_t i
    if q.next.empty() or not p.connected or on_its_way(e, q):
        return
    out = block_new(256)
    q.round = next_round(e)
    q.sent_us = e.now_us
    q.left = 0
    for i in range(q.next.size()):
        r = e.replicas[q.next[i]]
        if r.reads == NULL or r.reads.leader.queued != p.node:
            continue
        a = &r.reads.leader
        a.queued = 0
        if r.leader != p.node or a.awaited or a.tickets.empty():
            continue
        ask(a, q.round, p.node, e.now_us)
        out = asked_append(out, r, r.claim if ballot_node(r.claim) == p.node else 0)
        q.left += 1
    q.next.clear()
    send_question(e, p, 0, q.round, out)


cdef void heard_leader(Engine* e, Replica* r, Peer* p, u64 round,
                       const PointAnswer* one) noexcept nogil:
    cdef Question* q = &p.reads.question
    cdef Asking* a = &r.reads.leader if r.reads != NULL else NULL
    if round > q.round:
        e.counters.hostile_messages += 1
        return
    if round == q.round:
        count_answer(q, a)
    if a == NULL:
        return
    if one.verdict == POINT_OK:
        if ballot_node(one.ballot) != p.node:
            e.counters.hostile_messages += 1
            return
        if finish(e, r, a, round, one.instance):
            want(e, r, one.instance, p.node)
    if a.node != p.node or a.round != round:
        return
    if one.verdict == POINT_OK:
        a.awaited = False
        reads_line(e, r)
    elif one.verdict == POINT_NOT_LEADER:
        # It is asked again when another one is heard to lead, or after the pause.
        a.awaited = False


cdef void hear_self(Engine* e, Replica* r) noexcept nogil:
    """What this node has told itself, as the leader that it took itself for."""
    cdef OwnPoint own = r.reads.own
    cdef Asking* a = &r.reads.leader
    if own.round == 0:
        return
    r.reads.own.round = 0
    if a.node == e.options.node and a.round == own.round:
        a.awaited = False
    if own.verdict == POINT_OK:
        finish(e, r, a, own.round, own.instance)


cdef void ask_leader(Engine* e, Replica* r) noexcept nogil:
    cdef Asking* a = &r.reads.leader
    cdef int at = slot_of(e, r.leader) if r.leader else -1
    if a.awaited and a.node != r.leader:
        points_drop(e, r, e.own_slot)
        a.awaited = False
    if a.awaited or a.tickets.empty() or at < 0 or not config_has(r, at):
        return
    if r.leader == e.options.node:
        ask(a, next_round(e), e.options.node, e.now_us)
        points_asked(e, r, e.own_slot, a.round)
        hear_self(e, r)
    elif e.peers[at].connected:
        put_next(e, r, &e.peers[at].reads.question, a, r.leader)


# --- of a majority

cdef u64 members_since(Replica* r) noexcept nogil:
    """The instance of the value that made its members; 0: they are the first ones."""
    return r.members.instance if r.members != NULL else 0


cdef u32 told_by(Replica* r, u64 round, u64* point) noexcept nogil:
    """How many voters have answered that question or a later one. If they are a majority, `point`
    is one: of any majority that answered the largest will do, so the least of these largest."""
    cdef GroupReads* g = r.reads
    cdef u64 points[MEMBERS_MAX]
    cdef u32 n = 0, j
    cdef size_t i
    for i in range(g.told.size()):
        if not has_vote(r, g.told[i].at) or g.told[i].round < round:
            continue
        j = n
        n += 1
        while j > 0 and points[j - 1] > g.told[i].point:
            points[j] = points[j - 1]
            j -= 1
        points[j] = g.told[i].point
    if n >= r.config.quorum:
        # A voter that has not passed the value that made it one need not have accepted what the
        # members before have chosen. (Who has accepted above that value has passed it: M4.)
        point[0] = max(points[r.config.quorum - 1], members_since(r))
    return n


cdef void weigh_told(Engine* e, Replica* r) noexcept nogil:
    cdef Asking* a = &r.reads.quorum
    cdef u64 point = 0, first, since_us
    cdef size_t i = 0
    cdef u32 n
    while i < a.tickets.size() and a.tickets[i].first:
        n = told_by(r, a.tickets[i].first, &point)
        if n < r.config.quorum:
            break
        first = a.tickets[i].first
        since_us = a.tickets[i].told_us if a.tickets[i].told_us else e.now_us
        # Above what is chosen something is open, or was given up: who else answers may know of
        # less, and is awaited for a pause.
        if (point > r.chosen_through and n <= voters_connected(e, r)
                and since_us + pause_us(e) > e.now_us):
            while i < a.tickets.size() and a.tickets[i].first == first:
                a.tickets[i].told_us = since_us
                i += 1
            continue
        finish(e, r, a, first, point)
        want(e, r, point, r.leader)
        i = 0
    if a.awaited and not has_asked(a) and told_by(r, a.round, &point) >= r.config.quorum:
        count_answer(&e.reads.question, a)
        a.awaited = False
        reads_line(e, r)


cdef void heard_member(Engine* e, Replica* r, u32 at, u64 round, u64 point) noexcept nogil:
    """Of each member the answer to the latest question counts: for that one, and all before it."""
    cdef PointTold none = PointTold(at, 0, 0)
    cdef size_t i = 0
    while i < r.reads.told.size() and r.reads.told[i].at != at:
        i += 1
    if i == r.reads.told.size():
        r.reads.told.push_back(none)
    if r.reads.told[i].round >= round:
        return
    r.reads.told[i].round = round
    r.reads.told[i].point = point
    weigh_told(e, r)


cdef void ask_voter(Engine* e, Peer* p, u64 round, vector[u32]* asked) noexcept nogil:
    """Of the groups in the question, those in which this peer votes."""
    cdef Block* out = block_new(256)
    cdef size_t i
    for i in range(asked.size()):
        if has_vote(e.replicas[asked[0][i]], p.slot):
            out = asked_append(out, e.replicas[asked[0][i]], 0)
    send_question(e, p, FLAG_QUORUM, round, out)


cdef void ask_quorums(Engine* e) noexcept nogil:
    cdef Question* q = &e.reads.question
    cdef Asking* a
    cdef Replica* r
    cdef size_t i
    cdef vector[u32] next, asked
    if q.next.empty() or on_its_way(e, q):
        return
    q.round = next_round(e)
    q.sent_us = e.now_us
    next.swap(q.next)
    for i in range(next.size()):
        r = e.replicas[next[i]]
        if r.reads == NULL or r.reads.quorum.queued == 0:
            continue
        a = &r.reads.quorum
        a.queued = 0
        if a.awaited or a.tickets.empty():
            continue
        ask(a, q.round, e.options.node, e.now_us)
        asked.push_back(r.index)
    q.left = asked.size()
    for i in range(e.n_slots):
        if e.peers[i].connected:
            ask_voter(e, &e.peers[i], q.round, &asked)
    for i in range(asked.size()):
        r = e.replicas[asked[i]]
        if may_vouch(e, r):
            heard_member(e, r, e.own_slot, q.round, accepted_through(r))


# --- what comes in

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
        if r == NULL or one.generation != r.generation:
            e.counters.refused_messages += 1
        elif not config_has(r, p.slot) or one.instance > INSTANCE_MAX:
            e.counters.hostile_messages += 1
        elif not flags & FLAG_QUORUM:
            heard_leader(e, r, p, told.round, &one)
        elif told.round > e.reads.question.round:
            e.counters.hostile_messages += 1
        elif r.reads != NULL and one.verdict == POINT_OK:
            heard_member(e, r, p.slot, told.round, one.instance)


cdef void look(Engine* e, Replica* r) noexcept nogil:
    """Answer who asked, ask for who is not answered."""
    cdef GroupReads* g = r.reads
    cdef u32 verdict = VERDICT_POISONED_REJECTED if e.poisoned else VERDICT_STOPPED_REJECTED
    if is_ended(r) and not e.poisoned:
        verdict = VERDICT_ENDED_REJECTED
    if r.halted or e.poisoned or is_removed(r):
        fail(e, r, &g.leader, verdict)
        fail(e, r, &g.quorum, verdict)
    points_serve(e, r)
    hear_self(e, r)
    ask_leader(e, r)
    if not g.quorum.awaited and not g.quorum.tickets.empty():
        put_next(e, r, &e.reads.question, &g.quorum, e.options.node)


# --- time

cdef void expire(Engine* e, Replica* r, Asking* a, u64* next_us) noexcept nogil:
    cdef size_t i, kept = 0
    cdef Ticket* one
    for i in range(a.tickets.size()):
        one = &a.tickets[i]
        if one.deadline_us <= e.now_us:
            tell(e, r, one, VERDICT_NO_QUORUM if a == &r.reads.quorum or r.leader == 0
                 else VERDICT_TIMED_OUT_REJECTED, 0)
            continue
        next_us[0] = min(next_us[0], one.deadline_us)
        if one.told_us:
            next_us[0] = min(next_us[0], one.told_us + pause_us(e))
        a.tickets[kept] = one[0]
        kept += 1
    a.tickets.resize(kept)


cdef void ask_again(Engine* e, Replica* r) noexcept nogil:
    """What was asked too long ago is asked again. (This node itself does not lose questions.)"""
    cdef GroupReads* g = r.reads
    cdef u64 before_us = e.now_us - min(pause_us(e), e.now_us)
    if g.leader.sent_us <= before_us and g.leader.node != e.options.node:
        g.leader.awaited = False
    weigh_told(e, r)
    if g.quorum.sent_us <= before_us:
        g.quorum.awaited = False


cdef void look_at_all(Engine* e) noexcept nogil:
    cdef size_t i
    cdef u64 next_us = e.now_us + pause_us(e)
    cdef Replica* r
    for i in range(e.reads.active.size()):
        r = e.replicas[e.reads.active[i]]
        expire(e, r, &r.reads.leader, &next_us)
        expire(e, r, &r.reads.quorum, &next_us)
        ask_again(e, r)
        reads_line(e, r)
    e.reads.looked_us = e.now_us
    e.reads.at_us = max(next_us, e.now_us + look_us(e))


cdef void reads_lost(Engine* e, Peer* p) noexcept nogil:
    cdef size_t i
    cdef Asking* a
    p.reads.question.left = 0
    p.reads.question.next.clear()
    points_lost(e, p)
    for i in range(e.reads.active.size()):
        a = &e.replicas[e.reads.active[i]].reads.leader
        if a.queued == p.node:
            a.queued = 0
        if a.node == p.node:
            a.awaited = False
        reads_line(e, e.replicas[e.reads.active[i]])


cdef void waiting_drop(Engine* e, Replica* r) noexcept nogil:
    cdef GroupReads* g = r.reads
    cdef int at = slot_of(e, g.leader.node) if g.leader.awaited else -1
    if at >= 0 and at != <int>e.own_slot:
        count_answer(&e.peers[at].reads.question, &g.leader)
    if g.quorum.awaited:
        count_answer(&e.reads.question, &g.quorum)
    fail(e, r, &g.leader, VERDICT_STOPPED_REJECTED)
    fail(e, r, &g.quorum, VERDICT_STOPPED_REJECTED)
    while not g.askers.empty():
        points_drop(e, r, g.askers[0].at)
    index_purge(&e.reads.line, r.index)
    g.lined = False
    reads_leave(e, r)


cdef void reads_drop(Engine* e, Replica* r) noexcept nogil:
    cdef size_t i, kept = 0
    cdef u32 k
    for i in range(e.reads.asks.size()):
        if e.reads.asks[i].index != r.index:
            e.reads.asks[kept] = e.reads.asks[i]
            kept += 1
    e.reads.asks.resize(kept)
    for k in range(e.n_slots):
        index_purge(&e.peers[k].reads.question.next, r.index)
    index_purge(&e.reads.question.next, r.index)
    if r.reads != NULL:
        waiting_drop(e, r)


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
    points_turn(e)
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
        reads_leave(e, e.replicas[e.reads.line[i]])
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
