# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Liveness of nodes; see liveness.pxd."""

from libc.string cimport memcpy

from phx._core.effects cimport role_timer
from phx._core.elections cimport (
    GIVEN_DOUBLINGS, live, may_take, preference, preferred_leader, put_off, refresh_leader,
    schedule_campaign, wish,
)
from phx._core.leases cimport claims_forget, heartbeats, lease_until, on_heartbeat, on_heartbeat_ack
from phx._core.native cimport *
from phx._core.points cimport reads_acked
from phx._core.proposer cimport prepare_again, step_down, transfer, transfer_as
from phx._core.state cimport *
from phx._core.wire cimport (
    FLAG_KEPT, FLAG_NEED_WHOLE, FLAG_WHOLE, ClaimChange, HeartbeatAckBody, HeartbeatBody,
    RejoinBody,
)

cdef enum:
    BALANCE_US = 500000          # how often misplaced leaderships are looked for
    SETTLED_US = 1000000         # a node must have been alive this long before it gets any back
    TRANSFERS_MAX = 128          # in one look
    ASKED_DOUBLINGS = 2          # of the pause after a transfer that somebody asked for
    SYNC_US_MAX = 10000000       # a disk slower than this is taken for one that is as slow


cdef void time_sync(Engine* e, u64 now_us) noexcept nogil:
    if now_us > e.now_us + e.options.heartbeat_us:
        # (Where peers are connected a heartbeat was due meanwhile.) It is this process that stood
        # still, and not the disk.
        e.sync_from_us += now_us - e.now_us - e.options.heartbeat_us
    if e.sync_done:
        e.sync_us = max(max(now_us, e.now_us) - e.sync_from_us, e.sync_us - e.sync_us // 8)
        e.sync_us = min(e.sync_us, <u64>SYNC_US_MAX)
        e.sync_from_lsn = 0
        e.sync_done = False


cdef void refresh_all(Engine* e) noexcept nogil:
    cdef size_t i
    for i in range(e.replicas.size()):
        if e.replicas[i] != NULL:
            refresh_leader(e, e.replicas[i])


cdef void start_afresh(Engine* e) noexcept nogil:
    """More nodes than before, or they want something else: attempts that failed, or whose time was
    set, before that."""
    cdef size_t i
    cdef Replica* r
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r == NULL:
            continue
        r.failures = 0
        if r.role == ROLE_FOLLOWER and r.leader == 0 and r.role_at_us:
            schedule_campaign(e, r, 0)


cdef void on_beat(Engine* e, Peer* p, u8 flags, const HeartbeatBody* beat,
                  const u8* changes) noexcept nogil:
    cdef ClaimChange change
    cdef bint was_alive = p.alive
    cdef u32* wanted = &e.priorities[p.slot]
    cdef u32 before = wanted[0]
    cdef Replica* r
    cdef u32 i
    cdef bint changed = on_heartbeat(e, p, flags, beat, changes)
    if (p.alive and not was_alive) or wanted[0] != before:
        start_afresh(e)
    if not changed:
        return
    if not was_alive or flags & FLAG_WHOLE:
        refresh_all(e)
        return
    for i in range(beat.claims):
        memcpy(&change, changes + i * sizeof(change), sizeof(change))
        r = find_group(e, change.group)
        if r != NULL:
            refresh_leader(e, r)


cdef void on_beat_ack(Engine* e, Peer* p, u8 flags, const HeartbeatAckBody* ack,
                      const u8* refused) noexcept nogil:
    cdef u32 i, group
    cdef size_t k
    cdef Replica* r
    cdef u64 bit = <u64>1 << p.slot
    if ack.incarnation == e.incarnation and ack.seq <= p.ack_seq:
        # What a newer one has refused may have been promised to somebody else since.
        return
    if not on_heartbeat_ack(e, p, flags, ack):
        return
    p.ack_seq = ack.seq
    if flags & FLAG_NEED_WHOLE:
        return
    reads_acked(e, p, ack)
    if p.refused_any:
        for k in range(e.claims.size()):
            r = find_group(e, e.claims[k].group)
            if r.lead != NULL and r.lead.refusing & bit:
                r.lead.refusing &= ~bit
                republish(e, r)
    p.refused_any = ack.refused != 0
    for i in range(ack.refused):
        memcpy(&group, refused + i * 4, 4)
        r = find_group(e, group)
        if r != NULL and r.lead != NULL and has_vote(r, p.slot):
            r.lead.refusing |= bit
            republish(e, r)
            prepare_again(e, r, p)


cdef void watch_peers(Engine* e) noexcept nogil:
    cdef u32 i
    cdef bint lost = False
    for i in range(e.n_slots):
        if e.peers[i].alive and e.peers[i].grant_until_us <= e.now_us:
            e.peers[i].alive = False
            claims_forget(e, &e.peers[i])
            lost = True
    if lost:
        refresh_all(e)


cdef void step_down_all(Engine* e, const Config* config) noexcept nogil:
    """In the groups of these members; not where this node has just begun."""
    cdef size_t i = 0
    cdef Replica* r
    while i < e.claims.size():
        r = find_group(e, e.claims[i].group)
        if r.config != config or (
                r.role == ROLE_LEADING and r.lead.since_us + e.options.lease_us > e.now_us):
            i += 1
            continue
        r.failures += 1
        step_down(e, r)


cdef void watch_lease(Engine* e) noexcept nogil:
    """A leader that cannot reach a quorum steps down."""
    cdef size_t i
    cdef Config* config
    for i in range(e.configs.size()):
        config = e.configs[i]
        if config.led and config.quorum > 1 and lease_until(e, config) <= e.now_us:
            step_down_all(e, config)


cdef bint ready(Engine* e, Replica* r, u32 node, u32 doublings) noexcept nogil:
    """That member could lead at once, as far as this leader knows."""
    cdef int at = slot_of(e, node)
    return (at >= 0 and has_vote(r, at) and e.peers[at].alive and e.peers[at].connected
            and r.lead.progress[at].confirmed + e.options.window // 4 >= r.chosen_through
            and may_take(e, r, at, doublings))


cdef bint caught_up(Engine* e, Replica* r, u32 slot) noexcept nogil:
    """And it has answered a heartbeat with this claim, and so said whether it can."""
    return (ready(e, r, e.slot_node[slot], GIVEN_DOUBLINGS)
            and e.peers[slot].acked_version >= r.lead.claim_version
            and e.peers[slot].alive_since_us + SETTLED_US <= e.now_us)


cdef u32 better_leader(Engine* e, Replica* r) noexcept nogil:
    """The member that should lead instead of this node and can at once; 0: none. Among equals only
    the first that is there counts: a group would otherwise be moved twice while that one catches
    up."""
    cdef u32 order[MEMBERS_MAX]
    cdef u32 i, own = wish(e, r, e.own_slot)
    cdef bint first = True
    preference(e, r, order)
    for i in range(r.config.n_voters):
        # (Nobody asked one of priority 0 to lead, and a node of priority 0 least of all: two that
        # drain are no better than each other.)
        if order[i] == e.own_slot or wish(e, r, order[i]) == 0:
            return 0
        if not live(e, order[i]):
            continue
        if (first or wish(e, r, order[i]) > own) and caught_up(e, r, order[i]):
            return e.slot_node[order[i]]
        first = False
    return 0


cdef void balance(Engine* e) noexcept nogil:
    cdef size_t i = e.claims.size()
    cdef Replica* r
    cdef u32 to, moved = 0
    if not e.options.balance or e.now_us < e.balance_at_us:
        return
    e.balance_at_us = e.now_us + BALANCE_US
    # From the end: a transfer takes its claim out of the table.
    while i > 0 and moved < TRANSFERS_MAX:
        i -= 1
        r = find_group(e, e.claims[i].group)
        if r.role != ROLE_LEADING or r.lead.kept:
            continue
        to = better_leader(e, r)
        if to != 0:
            transfer(e, r, to)
            moved += 1


cdef void on_rejoin(Engine* e, Replica* r, Peer* p, u64 ballot,
                    const RejoinBody* ask) noexcept nogil:
    """A member that lost votes asks for the leadership. It is given when it can succeed: it knows
    what is chosen, and of the others enough are there to answer."""
    cdef u32 i, there = 1
    cdef u64 left = r.config.voters
    if (r.role != ROLE_LEADING or r.lead.ballot != ballot or r.suspect or r.lead.phase1 != NULL
            or put_off(e, r, p.slot, GIVEN_DOUBLINGS)
            or ask.chosen_through + e.options.window // 4 < r.chosen_through):
        return
    while left:
        i = next_member(&left)
        if i != p.slot and e.peers[i].connected and e.peers[i].alive:
            there += 1
    if there >= r.config.n_voters - r.config.quorum + 1:
        transfer(e, r, p.node)


cdef void watch(Engine* e) noexcept nogil:
    watch_peers(e)
    watch_lease(e)
    balance(e)


cdef u64 watch_at(Engine* e) noexcept nogil:
    cdef u64 at = ~<u64>0
    cdef u64 lease
    cdef u32 i
    cdef size_t k
    cdef Config* config
    for i in range(e.n_slots):
        if e.peers[i].alive:
            at = min(at, e.peers[i].grant_until_us)
    if e.connected and not e.poisoned and e.durable >= e.start_lsn:
        at = min(at, e.beat_at_us)
        if e.beat_now:
            at = min(at, e.beat_last_us + e.options.heartbeat_us // 16)
    for k in range(e.configs.size()):
        config = e.configs[k]
        if config.led == 0 or config.quorum == 1:
            continue
        lease = lease_until(e, config)
        at = min(at, lease if lease > e.now_us else e.now_us + e.options.heartbeat_us)
        if e.options.balance:
            at = min(at, e.balance_at_us)
    return at


cdef u32 next_leader(Engine* e, Replica* r, u32 least) noexcept nogil:
    """The member that should have this group next and can lead at once, of those of this priority
    or a higher one; 0: none."""
    cdef u32 order[MEMBERS_MAX]
    cdef u32 i
    preference(e, r, order)
    for i in range(r.config.n_voters):
        if (wish(e, r, order[i]) >= least
                and ready(e, r, e.slot_node[order[i]], ASKED_DOUBLINGS)):
            return e.slot_node[order[i]]
    return 0


cdef u32 successor(Engine* e, Replica* r) noexcept nogil:
    cdef u32 to = next_leader(e, r, 0)
    return to if to != 0 else preferred_leader(e, r, e.options.node)


cdef void hand_over(Engine* e) noexcept nogil:
    cdef size_t i = e.claims.size()
    cdef Replica* r
    cdef u32 to
    while i > 0:
        i -= 1
        r = find_group(e, e.claims[i].group)
        if r.role != ROLE_LEADING:
            continue
        to = successor(e, r)
        if to != 0:
            transfer(e, r, to)
    # Attempts under way are given up; (pump sees to one that has just succeeded).
    for i in range(e.replicas.size()):
        r = e.replicas[i]
        if r != NULL and (r.role == ROLE_PREPARING or r.role == ROLE_LEARNING):
            step_down(e, r)


cdef int give_to(Engine* e, Replica* r, u32 to) noexcept nogil:
    cdef u8 flags = FLAG_KEPT
    if r.role != ROLE_LEADING or r.promised != r.lead.ballot:
        return TRANSFER_NOT_LEADING
    if to == e.options.node:
        r.lead.kept = True
        return TRANSFER_UNDER_WAY
    if to == 0:
        # (Two that drain would pass it to and fro.)
        to = next_leader(e, r, 1)
        # It need not be kept from coming back here; and it does when this node wants it again.
        if e.priorities[e.own_slot] == 0:
            flags = 0
    if not ready(e, r, to, ASKED_DOUBLINGS) or (
            e.priorities[e.own_slot] == 0 and e.priorities[slot_of(e, to)] == 0):
        return TRANSFER_NOT_READY
    transfer_as(e, r, to, flags)
    return TRANSFER_UNDER_WAY
