# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Rejoin; see rejoin.pxd."""

from libc.string cimport memcpy

from phx._core.ballot cimport ballot_counter, ballot_make, ballot_next, ballot_node
from phx._core.codec cimport RECORD_SUSPECT, RecordHeader
from phx._core.effects cimport LANE_NOW, cast, emit_event, emit_record, random_below, send
from phx._core.native cimport *
from phx._core.relaxed cimport note_hard
from phx._core.state cimport *
from phx._core.wire cimport FLAG_LOW, MSG_PREVOTE, MSG_REJOIN, PrevoteBody, RejoinBody

cdef enum:
    REJOIN_US = 1000000          # a suspect replica asks its leader so often, about
    REJOIN_GAP_US = 10000        # and the node, over all its groups, no more often than this

cdef u64 COUNTER_MOST = (<u64>1 << 44) - 1


cdef bint under_ceiling(Engine* e, u64 ballot) noexcept nogil:
    cdef u64 counter = ballot_counter(ballot)
    if counter + CEILING_STEP // 2 > e.ceiling and not e.ceiling_asked:
        e.ceiling_asked = True
        emit_event(e, EVENT_CEILING, 0, 0, min(counter + CEILING_STEP, COUNTER_MOST), 0, 0)
    return counter <= e.ceiling


cdef u64 ballot_base(Engine* e, Replica* r) noexcept nogil:
    return ballot_make(e.rejoin_above, 0) if r.suspect else 0


cdef u32 answers_needed(Replica* r) noexcept nogil:
    # Of a majority that this node may have forgotten it was in, majority - 1 others know. So many
    # others that one of those must be among them, and the node itself.
    return r.config.n_voters - r.config.quorum + 2 if r.suspect else r.config.quorum


cdef bint may_rejoin(Engine* e, Replica* r) noexcept nogil:
    return e.rejoin_above != NO_CEILING and r.config.quorum > 1


cdef u64 own_ballot(Engine* e, Replica* r) noexcept nogil:
    return ballot_next(max(max(r.highest_seen, r.promised), ballot_base(e, r)), e.options.node)


cdef u64 rejoin_at(Engine* e, Replica* r) noexcept nogil:
    return e.now_us + REJOIN_US // 2 + random_below(e, REJOIN_US) if r.suspect else 0


cdef u64 asked_ballot(Engine* e, Replica* r) noexcept nogil:
    cdef u64 ballot
    if not r.suspect:
        return r.highest_seen
    ballot = own_ballot(e, r)
    if r.follow_ballot != ballot:
        r.follow_ballot = ballot
        r.followers = <u64>1 << e.own_slot
    return ballot


cdef bint may_prepare(Engine* e, Replica* r) noexcept nogil:
    cdef u64 left = r.config.voters
    cdef u32 i, count = 0
    if not r.suspect:
        return True
    while left:
        i = next_member(&left)
        if r.followers >> i & 1 and (i == e.own_slot or e.peers[i].connected):
            count += 1
    return count >= answers_needed(r) and r.follow_ballot == own_ballot(e, r)


cdef void rejoin_ask(Engine* e, Replica* r) noexcept nogil:
    cdef int at = slot_of(e, ballot_node(r.claim))
    cdef PrevoteBody ask
    # (The leader compares exactly; here it is only not asked in vain.)
    if at < 0 or not e.peers[at].connected or e.now_us < e.rejoin_next_us \
            or r.want_through > r.chosen_through + e.options.window:
        return
    # (The group would be without a leader for nothing. The question has the ceiling raised.)
    if not under_ceiling(e, own_ballot(e, r)):
        return
    e.rejoin_next_us = e.now_us + REJOIN_GAP_US
    r.rejoin_due = True
    ask.chosen_through = r.chosen_through
    cast(e, r.config.voters, LANE_NOW, MSG_PREVOTE, 0, r.group, asked_ballot(e, r), &ask,
         sizeof(ask), NULL, 0)


cdef void rejoin_answered(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags) noexcept nogil:
    cdef RejoinBody ask
    cdef int at
    if ballot != r.follow_ballot:
        return
    if flags & FLAG_LOW:
        r.followers &= ~(<u64>1 << p.slot)
        return
    r.followers |= <u64>1 << p.slot
    at = slot_of(e, ballot_node(r.claim))
    if not r.rejoin_due or r.role != ROLE_FOLLOWER or not may_prepare(e, r) or at < 0 \
            or not e.peers[at].connected:
        return
    r.rejoin_due = False
    ask.chosen_through = r.chosen_through
    send(e, &e.peers[at], LANE_NOW, MSG_REJOIN, 0, r.group, r.claim, &ask, sizeof(ask), NULL, 0)


cdef void rejoin_done(Engine* e, Replica* r) noexcept nogil:
    # (What is known chosen is told as such, whether accepted here or not.)
    if r.lead.phase1 != NULL or max(r.lead.durable_through, r.chosen_through) < \
            r.lead.recover_through:
        return
    r.suspect = False
    e.grants_version += 1
    e.counters.rejoins += 1
    emit_record(e, RECORD_SUSPECT, r.group, r.suspect_since, r.lead.ballot, NULL, 0, NULL)
    note_hard(e, r)


cdef int replay_suspect(Replica* r, const RecordHeader* header, const u8* body,
                        u64 lsn) noexcept nogil:
    """The latest loss counts, and that a replica became whole after it, whatever the order."""
    cdef u64 above = 0
    if (header.index == 0 or header.index >> 32 != 0
            or header.body_bytes != (0 if header.ballot else sizeof(above))):
        return -1
    if header.ballot == 0:
        memcpy(&above, body, sizeof(above))
        if above > COUNTER_MOST:
            return -1
        # Its own ballots are above it, whatever became of the store that kept the ceiling.
        r.highest_seen = max(r.highest_seen, ballot_make(above, 0))
    if header.index > r.suspect_since:
        r.suspect_since = header.index
        r.suspect = header.ballot == 0
        r.suspect_lsn = lsn
    elif header.index == r.suspect_since:
        r.suspect = r.suspect and header.ballot == 0
        r.suspect_lsn = lsn
    return 0


cdef void carry_suspect(Engine* e, Replica* r, u64 lsn) noexcept nogil:
    cdef u64 above = ballot_counter(r.highest_seen)
    # (Once it is whole, nothing need be said: the records before go with the one that said it.)
    if r.suspect and r.suspect_lsn < lsn:
        if e.rejoin_above != NO_CEILING:
            above = max(above, e.rejoin_above)
        r.suspect_lsn = emit_record(e, RECORD_SUSPECT, r.group, r.suspect_since, 0, &above,
                                    sizeof(above), NULL)
