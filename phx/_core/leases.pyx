# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Heartbeats, claims, grants; see leases.pxd."""

from libc.string cimport memcpy

from phx._core.ballot cimport ballot_hostile, ballot_node
from phx._core.effects cimport LANE_NOW, answer_room, send
from phx._core.membership cimport floor_of, votes_in
from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport (
    FLAG_NEED_WHOLE, FLAG_WHOLE, MSG_HEARTBEAT, MSG_HEARTBEAT_ACK, ClaimChange, HeartbeatAckBody,
    HeartbeatBody,
)

cdef enum:
    CLAIM_LOG_MAX = 65536        # changes kept; a peer further behind gets the whole set


# --- sorted claim tables

cdef size_t claim_find(vector[Claim]* claims, u32 group) noexcept nogil:
    cdef size_t low = 0, high = claims.size(), middle
    while low < high:
        middle = (low + high) // 2
        if claims[0][middle].group < group:
            low = middle + 1
        else:
            high = middle
    return low


cdef void claim_set(vector[Claim]* claims, u32 group, u32 generation,
                    u64 ballot) noexcept nogil:
    """ballot 0 takes the claim out."""
    cdef size_t at = claim_find(claims, group)
    cdef size_t i
    cdef bint there = at < claims.size() and claims[0][at].group == group
    cdef Claim claim
    if there and ballot:
        claims[0][at].ballot = ballot
        claims[0][at].generation = generation
    elif there:
        for i in range(at, claims.size() - 1):
            claims[0][i] = claims[0][i + 1]
        claims.pop_back()
    elif ballot:
        claim.group = group
        claim.generation = generation
        claim.ballot = ballot
        claims.push_back(claim)
        i = claims.size() - 1
        while i > at:
            claims[0][i] = claims[0][i - 1]
            i -= 1
        claims[0][at] = claim


# --- our claims

cdef void claim_change(Engine* e, Replica* r, u64 ballot) noexcept nogil:
    cdef ClaimLog log
    claim_set(&e.claims, r.group, r.generation, ballot)
    e.claim_version += 1
    log.members = r.config.members
    log.group = r.group
    log.generation = r.generation
    log.ballot = ballot
    e.claim_log.push_back(log)
    while e.claim_log.size() > CLAIM_LOG_MAX:
        e.claim_log.pop_front()
    e.beat_now = True


cdef bint claimed(Engine* e, Replica* r) noexcept nogil:
    cdef size_t at = claim_find(&e.claims, r.group)
    return at < e.claims.size() and e.claims[at].group == r.group


cdef void claim_add(Engine* e, Replica* r, u64 ballot) noexcept nogil:
    if not claimed(e, r):
        r.config.led += 1
    claim_change(e, r, ballot)


cdef void claim_drop(Engine* e, Replica* r) noexcept nogil:
    if claimed(e, r):
        r.config.led -= 1
        claim_change(e, r, 0)


cdef Block* changes_append(Block* out, u32 group, u32 generation, u64 ballot) noexcept nogil:
    cdef ClaimChange change
    change.group = group
    change.generation = generation
    change.ballot = ballot
    return block_append(out, &change, sizeof(change))


cdef void heartbeat(Engine* e, Peer* p) noexcept nogil:
    cdef HeartbeatBody beat
    cdef Block* out = block_new(256)
    cdef size_t i, start
    cdef u8 flags = 0
    cdef u64 oldest = e.claim_version + 1 - e.claim_log.size()
    if p.acked_version == 0 or e.claim_log.empty() or p.acked_version + 1 < oldest:
        flags = FLAG_WHOLE
    if p.acked_version == e.claim_version and p.acked_version != 0:
        flags = 0
    if flags & FLAG_WHOLE:
        for i in range(e.claims.size()):
            if config_has(find_group(e, e.claims[i].group), p.slot):
                out = changes_append(out, e.claims[i].group, e.claims[i].generation,
                                     e.claims[i].ballot)
    elif p.acked_version < e.claim_version:
        start = <size_t>(p.acked_version + 1 - oldest)
        for i in range(start, e.claim_log.size()):
            if e.claim_log[i].members >> p.slot & 1:
                out = changes_append(out, e.claim_log[i].group, e.claim_log[i].generation,
                                     e.claim_log[i].ballot)
    p.beat_seq += 1
    p.beat_sent_us[p.beat_seq % SENT_TIMES] = e.now_us
    p.reads.beats[p.beat_seq % SENT_TIMES] = e.reads.beats
    beat.seq = p.beat_seq
    beat.version = e.claim_version
    beat.base_version = p.acked_version
    beat.incarnation = e.incarnation
    beat.lease_us = e.options.lease_us
    beat.claims = <u32>(out.size // sizeof(ClaimChange))
    beat.priority = e.priorities[e.own_slot]
    send(e, p, LANE_NOW, MSG_HEARTBEAT, flags, 0, 0, &beat, sizeof(beat), out.data, out.size)
    block_unref(out)


cdef void heartbeats(Engine* e) noexcept nogil:
    cdef u32 i
    # Changes of the led set go out soon, but not with every turn: more heartbeats in flight than
    # sending times are kept for would lose their acknowledgements.
    if not e.beat_must and e.now_us < e.beat_at_us and not (
            e.beat_now and e.now_us >= e.beat_last_us + e.options.heartbeat_us // 16):
        return
    e.beat_now = False
    e.beat_must = False
    e.reads.beats += 1
    e.beat_last_us = e.now_us
    e.beat_at_us = e.now_us + e.options.heartbeat_us
    for i in range(e.n_slots):
        if e.peers[i].connected:
            heartbeat(e, &e.peers[i])


cdef bint on_heartbeat_ack(Engine* e, Peer* p, u8 flags,
                           const HeartbeatAckBody* ack) noexcept nogil:
    cdef u64 until
    if ack.seq > p.beat_seq or ack.version > e.claim_version or ack.incarnation != e.incarnation:
        e.counters.hostile_messages += 1
        return False
    if flags & FLAG_NEED_WHOLE:
        p.acked_version = 0
        e.beat_now = True
        return True
    p.late_us = ack.late_us
    if ack.version > p.acked_version:
        p.acked_version = ack.version
    if ack.seq + SENT_TIMES <= p.beat_seq:
        return True
    until = p.beat_sent_us[ack.seq % SENT_TIMES] + min(ack.lease_us, e.options.lease_us)
    if until > p.lease_until_us:
        p.lease_until_us = until
        e.lease_version += 1
    return True


cdef u64 quorum_time(Engine* e, const Config* config, u64 leaving_out,
                     u64 version) noexcept nogil:
    """The quorum-th largest of the voters' times; this node's own never ends."""
    cdef u64 times[MEMBERS_MAX]
    cdef u32 n = 0, i, j
    cdef u64 left = config.voters
    cdef u64 swapped
    while left:
        i = next_member(&left)
        if i == e.own_slot:
            times[n] = ~<u64>0
        elif leaving_out & (<u64>1 << i) or e.peers[i].acked_version < version:
            times[n] = 0
        else:
            times[n] = e.peers[i].lease_until_us
        j = n
        n += 1
        while j > 0 and times[j - 1] < times[j]:
            swapped = times[j]
            times[j] = times[j - 1]
            times[j - 1] = swapped
            j -= 1
    return times[config.quorum - 1]


cdef u64 lease_until(Engine* e, Config* config) noexcept nogil:
    if config.lease_version != e.lease_version:
        config.lease_until_us = quorum_time(e, config, 0, 0)
        config.lease_version = e.lease_version
    return config.lease_until_us


cdef u64 group_lease_until(Engine* e, Replica* r) noexcept nogil:
    return quorum_time(e, r.config, r.lead.refusing, r.lead.claim_version)


# --- claims of others, and our grants

cdef void claim_counts(Replica* r, const Peer* p, u64 ballot) noexcept nogil:
    # (It may lead under members that are not known here yet: claims_recount.)
    if not has_vote(r, p.slot):
        return
    if ballot > r.highest_seen:
        r.highest_seen = ballot
    if ballot >= r.claim and ballot > floor_of(r):
        r.claim = ballot


cdef void claim_heard(Engine* e, Peer* p, u32 group, u32 generation, u64 ballot) noexcept nogil:
    cdef Replica* r = find_group(e, group)
    cdef bint hosted = r != NULL and r.generation == generation
    e.grants_version += 1
    if r != NULL and r.claim != 0 and ballot_node(r.claim) == p.node and (
            ballot == 0 or not hosted):
        r.claim = 0
    if ballot == 0:
        claim_set(&p.claims, group, 0, 0)
        return
    if group > GROUP_MAX or ballot_node(ballot) != p.node or (
            hosted and ballot_hostile(ballot, r.highest_seen)):
        e.counters.hostile_messages += 1
        return
    # Of a group that is not hosted here (yet, or any more) it is refused in every acknowledgement:
    # its leader would take silence for a grant.
    claim_set(&p.claims, group, generation, ballot)
    if hosted:
        claim_counts(r, p, ballot)


cdef void claims_begin(Engine* e, Replica* r) noexcept nogil:
    cdef size_t at
    cdef Peer* p
    cdef u32 i
    for i in range(e.n_slots):
        p = &e.peers[i]
        at = claim_find(&p.claims, r.group)
        if at < p.claims.size() and p.claims[at].group == r.group and (
                p.claims[at].generation == r.generation
                and not ballot_hostile(p.claims[at].ballot, r.highest_seen)):
            claim_counts(r, p, p.claims[at].ballot)
    e.grants_version += 1


cdef void claims_recount(Engine* e, Replica* r) noexcept nogil:
    cdef u64 left = r.config.voters
    cdef u32 i
    cdef size_t at
    cdef vector[Claim]* claims
    r.claim = 0
    while left:
        i = next_member(&left)
        claims = &e.peers[i].claims
        at = claim_find(claims, r.group)
        if at < claims.size() and claims[0][at].group == r.group and (
                claims[0][at].generation == r.generation
                and claims[0][at].ballot > max(r.claim, floor_of(r))):
            r.claim = claims[0][at].ballot
    e.grants_version += 1


cdef void claims_forget(Engine* e, Peer* p) noexcept nogil:
    cdef size_t i
    cdef Replica* r
    for i in range(p.claims.size()):
        r = find_group(e, p.claims[i].group)
        if r != NULL and r.claim != 0 and ballot_node(r.claim) == p.node:
            r.claim = 0
    p.claims.clear()
    p.claim_version = 0
    e.grants_version += 1


# Gone through again only when something that counts has changed: a silent group costs nothing here.
cdef void find_refused(Engine* e, Peer* p) noexcept nogil:
    cdef size_t i
    cdef Replica* r
    if p.refused_version == e.grants_version:
        return
    p.refused_version = e.grants_version
    p.refused.clear()
    for i in range(p.claims.size()):
        r = find_group(e, p.claims[i].group)
        if r == NULL or r.generation != p.claims[i].generation \
                or r.halted or r.stopped or r.suspect or not votes_in(e, r) \
                or not has_vote(r, p.slot) or r.promised != p.claims[i].ballot \
                or p.claims[i].ballot <= floor_of(r):
            p.refused.push_back(p.claims[i].group)


cdef void acknowledge(Engine* e, Peer* p, const HeartbeatBody* beat,
                      bint need_whole) noexcept nogil:
    cdef HeartbeatAckBody ack
    if not answer_room(p):
        return
    ack.seq = beat.seq
    ack.incarnation = p.incarnation
    ack.late_us = e.late_us
    ack.version = p.claim_version
    ack.lease_us = <u32>min(<u64>beat.lease_us, e.lease_bound_us)
    if need_whole:
        ack.version = 0
        ack.refused = 0
        send(e, p, LANE_NOW, MSG_HEARTBEAT_ACK, FLAG_NEED_WHOLE, 0, 0, &ack, sizeof(ack), NULL, 0)
    else:
        find_refused(e, p)
        ack.refused = <u32>p.refused.size()
        p.answer_bytes += 4 * p.refused.size()
        # This need not wait for the promise to be durable: a node that forgets it by a crash
        # promises nothing to anybody for the longest lease that it may have granted.
        send(e, p, LANE_NOW, MSG_HEARTBEAT_ACK, 0, 0, 0, &ack, sizeof(ack), p.refused.data(),
             4 * p.refused.size())


cdef bint on_heartbeat(Engine* e, Peer* p, u8 flags, const HeartbeatBody* beat,
                       const u8* changes) noexcept nogil:
    cdef ClaimChange change
    cdef u32 i
    cdef u64 until
    cdef bint changed = False
    if beat.incarnation != p.incarnation or beat.seq <= p.heard_seq:
        # An older heartbeat must not undo a claim that a newer one granted.
        e.counters.hostile_messages += 1
        return False
    p.heard_seq = beat.seq
    p.heard_us = e.now_us
    e.priorities[p.slot] = min(beat.priority, <u32>PRIORITY_MAX)
    if not p.alive:
        p.alive = True
        p.alive_since_us = e.now_us
        changed = True
    # Time was read before the socket was: the margin keeps the granter the later of the two.
    until = e.now_us + min(<u64>beat.lease_us, e.lease_bound_us)
    until += (until - e.now_us) // GRANT_MARGIN
    if until > p.grant_until_us:
        p.grant_until_us = until
    if e.poisoned:
        return changed
    if flags & FLAG_WHOLE:
        claims_forget(e, p)
    elif not (beat.base_version <= p.claim_version <= beat.version):
        # (Changes already known are harmless: each says the whole truth of its group.)
        acknowledge(e, p, beat, True)
        return changed
    if flags & FLAG_WHOLE or beat.version != p.claim_version:
        for i in range(beat.claims):
            memcpy(&change, changes + i * sizeof(change), sizeof(change))
            claim_heard(e, p, change.group, change.generation, change.ballot)
        changed = True
    p.claim_version = beat.version
    if e.pressure < PRESSURE_FULL:
        # With a full journal a node listens, and grants nothing: it could not follow.
        acknowledge(e, p, beat, False)
    return changed


cdef bint grant_runs(Engine* e, Replica* r, u32 candidate, u64 released) noexcept nogil:
    cdef u32 holder = ballot_node(r.promised)
    cdef int at
    if r.promised == 0 or holder == candidate or released == r.promised:
        return False
    if holder == e.options.node:
        return r.role == ROLE_LEADING and r.lead.ballot == r.promised and group_lease_until(e,
                r) > e.now_us
    at = slot_of(e, holder)
    if at < 0:
        return False
    return r.claim == r.promised and e.peers[at].grant_until_us > e.now_us


cdef bint hears_leader(Engine* e, Replica* r) noexcept nogil:
    cdef int at
    if r.claim == 0:
        return False
    at = slot_of(e, ballot_node(r.claim))
    return at >= 0 and e.peers[at].alive and e.peers[at].grant_until_us > e.now_us
