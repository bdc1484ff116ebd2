# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Read points that are told; see points.pxd."""

from libc.string cimport memcpy

from phx._core.ballot cimport ballot_node
from phx._core.effects cimport LANE_NOW, answer_room, send
from phx._core.leases cimport group_lease_until
from phx._core.membership cimport changing, votes_in
from phx._core.native cimport *
from phx._core.read_table cimport reads_leave, reads_of
from phx._core.state cimport *
from phx._core.wire cimport (
    FLAG_QUORUM, MSG_READ_POINT, POINT_LATER, POINT_NOT_LEADER, POINT_OK, READ_GROUPS_MAX,
    GroupAsked, HeartbeatAckBody, PointAnswer, ReadAskBody, ReadPointBody,
)

cdef enum Standing:              # what a leader can say of its chosen_through
    NOT_LEADING = 0
    UNFINISHED = 1               # its phase 1 found what is not chosen yet
    CHECKED = 2                  # nothing above its ballot is chosen: its lease runs
    UNCHECKED = 3


# --- answers

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
    one.verdict = <u16>verdict
    one.generation = r.generation
    one.instance = instance
    one.ballot = ballot
    p.reads.points = block_append(p.reads.points, &one, sizeof(one))


cdef void tell_asker(Engine* e, Replica* r, const Asker* asker, u32 verdict, u64 instance,
                     u64 ballot) noexcept nogil:
    if asker.at != e.own_slot:
        answer(e, r, asker.at, asker.round, 0, verdict, instance, ballot)
        return
    r.reads.own.verdict = verdict
    r.reads.own.round = asker.round
    r.reads.own.instance = instance


# --- the leader

cdef Standing standing(Engine* e, Replica* r) noexcept nogil:
    if (r.role != ROLE_LEADING or r.promised != r.lead.ballot or r.halted or r.stopped
            or e.poisoned):
        return NOT_LEADING
    # What was chosen below its ballot is among what its phase 1 found, or was learned before.
    # (A suspect replica has heard of all of it as well; it is not asked before it is whole.)
    # (A membership value that is open ends this leadership.)
    if (r.lead.phase1 != NULL or r.chosen_through < r.lead.recover_through or r.suspect
            or changing(r)):
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


cdef void check_begin(Engine* e, Replica* r, Asker* asker) noexcept nogil:
    # Of what is chosen in this ballot nobody knows before its leader does.
    asker.round = asker.newest
    asker.point = r.chosen_through
    asker.ballot = r.lead.ballot
    asker.beat = e.reads.beats + 1
    e.reads.checks += 1
    e.counters.read_checks += 1


cdef void check_end(Engine* e, Asker* asker) noexcept nogil:
    if asker.beat:
        asker.beat = 0
        e.reads.checks -= 1


cdef bint serve_checked(Engine* e, Replica* r, Asker* asker, bint leased) noexcept nogil:
    """A check that is under way is finished whatever is asked meanwhile: where a round of
    heartbeats takes longer than the pause between questions none would ever end."""
    if asker.beat == 0:
        check_begin(e, r, asker)
    while leased or granted(e, r, asker.beat):
        tell_asker(e, r, asker, POINT_OK, asker.point, r.lead.ballot)
        check_end(e, asker)
        if asker.round == asker.newest:
            return True
        check_begin(e, r, asker)
    return False


cdef bint serve(Engine* e, Replica* r, Asker* asker, bint first) noexcept nogil:
    """What can be said to a member that asked; True: it need not wait any more."""
    cdef Standing at = standing(e, r)
    if asker.beat and at != NOT_LEADING and asker.ballot != r.lead.ballot:
        # What others had chosen between the two ballots is above that point.
        check_end(e, asker)
    if at == UNCHECKED or (at == CHECKED and asker.beat):
        return serve_checked(e, r, asker, at == CHECKED)
    # What is true now answers everything that was asked.
    check_end(e, asker)
    asker.round = asker.newest
    if at == NOT_LEADING:
        tell_asker(e, r, asker, POINT_NOT_LEADER, 0, r.claim)
    elif at == CHECKED:
        tell_asker(e, r, asker, POINT_OK, r.chosen_through, r.lead.ballot)
    elif first and asker.at != e.own_slot:
        answer(e, r, asker.at, asker.round, 0, POINT_LATER, 0, r.lead.ballot)
    return at != UNFINISHED


cdef void drop_asker(Engine* e, GroupReads* g, size_t i) noexcept nogil:
    check_end(e, &g.askers[i])
    g.askers[i] = g.askers.back()
    g.askers.pop_back()


cdef void points_drop(Engine* e, Replica* r, u32 at) noexcept nogil:
    cdef size_t i
    for i in range(r.reads.askers.size()):
        if r.reads.askers[i].at == at:
            drop_asker(e, r.reads, i)
            return


cdef void points_serve(Engine* e, Replica* r) noexcept nogil:
    cdef size_t i = 0
    while i < r.reads.askers.size():
        if serve(e, r, &r.reads.askers[i], False):
            drop_asker(e, r.reads, i)
        else:
            i += 1


cdef void points_asked(Engine* e, Replica* r, u32 at, u64 round) noexcept nogil:
    cdef Asker asker = Asker(at, round, round, 0, 0, 0)
    cdef size_t i
    if r.reads != NULL:
        for i in range(r.reads.askers.size()):
            if r.reads.askers[i].at == at:
                r.reads.askers[i].newest = round
                if serve(e, r, &r.reads.askers[i], True):
                    drop_asker(e, r.reads, i)
                return
    if not serve(e, r, &asker, True):
        reads_of(e, r).askers.push_back(asker)


# --- members

cdef bint may_vouch(Engine* e, Replica* r) noexcept nogil:
    return votes_in(e, r) and not r.suspect and not r.halted and not e.poisoned


cdef u64 accepted_through(Replica* r) noexcept nogil:
    return max(r.accepted_last, r.chosen_through)


# --- what comes in

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
        if r == NULL or one.generation != r.generation:
            e.counters.refused_messages += 1
            continue
        if not config_has(r, p.slot) or (
                one.ballot and ballot_node(one.ballot) != e.options.node):
            e.counters.hostile_messages += 1
            continue
        note.index = r.index
        e.reads.asks.push_back(note)


cdef void points_turn(Engine* e) noexcept nogil:
    cdef size_t i
    cdef ReadAsk* ask
    cdef Replica* r
    for i in range(e.reads.asks.size()):
        ask = &e.reads.asks[i]
        r = e.replicas[ask.index]
        if not ask.flags & FLAG_QUORUM:
            points_asked(e, r, ask.at, ask.round)
            reads_leave(e, r)
        elif may_vouch(e, r):
            answer(e, r, ask.at, ask.round, FLAG_QUORUM, POINT_OK, accepted_through(r), r.promised)
    e.reads.asks.clear()


cdef void reads_acked(Engine* e, Peer* p, const HeartbeatAckBody* ack) noexcept nogil:
    if ack.seq + SENT_TIMES <= p.beat_seq:
        return
    p.reads.acked_beat = p.reads.beats[ack.seq % SENT_TIMES]
    p.reads.acked_version = ack.version
    e.reads.acked = True


cdef void beat_for_checks(Engine* e) noexcept nogil:
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


cdef void points_lost(Engine* e, Peer* p) noexcept nogil:
    cdef size_t i, kept = 0
    block_unref(p.reads.points)
    p.reads.points = NULL
    for i in range(e.reads.asks.size()):
        if e.reads.asks[i].at != p.slot:
            e.reads.asks[kept] = e.reads.asks[i]
            kept += 1
    e.reads.asks.resize(kept)
    for i in range(e.reads.active.size()):
        points_drop(e, e.replicas[e.reads.active[i]], p.slot)
