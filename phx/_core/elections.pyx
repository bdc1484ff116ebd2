# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Who should lead, and when to try; see elections.pxd."""

from phx._core.ballot cimport ballot_node
from phx._core.effects cimport random_below, role_timer, tell_leader
from phx._core.learner cimport stranded
from phx._core.leases cimport hears_leader
from phx._core.membership cimport is_removed, only_ends, votes_in
from phx._core.native cimport *
from phx._core.proposals cimport callers_requeue
from phx._core.rejoin cimport may_rejoin, rejoin_at
from phx._core.reports cimport may_be_told
from phx._core.state cimport *

cdef enum:
    BACKOFF_DOUBLINGS = 5
    GIVEN_US = 1000000           # half of the first pause after a transfer that was not taken
    LOOK_ELECTIONS = 5           # so often a node without a vote looks whether the group goes on


cdef bint can_lead(Engine* e, Replica* r) noexcept nogil:
    # (At its journal's limit a node leads if nobody else does, so that what is open can be
    # finished: it takes no new values.)
    return (e.started and not e.poisoned and not e.resigned and e.pressure < PRESSURE_FULL
            and not r.stopped and not r.halted and not r.restoring and votes_in(e, r)
            and e.now_us >= e.quiet_until_us and (not r.suspect or may_rejoin(e, r))
            # (It would have to learn first, and cannot; unless a quorum may say what it accepted.)
            and (not stranded(e, r) or may_be_told(e, r)))


cdef bint live(Engine* e, u32 slot) noexcept nogil:
    return slot == e.own_slot or (e.peers[slot].connected and e.peers[slot].alive)


cdef void preference(Engine* e, Replica* r, u32* order) noexcept nogil:
    """By priority; equals by the group's permutation of the voters' slots: its id read in the
    factorial number system."""
    cdef u32 left[MEMBERS_MAX]
    cdef u32 n = r.config.n_voters, i, k, at
    cdef u32 code = r.group
    for i in range(n):
        left[i] = r.config.by_id[i]
    for i in range(n):
        at = code % (n - i)
        code //= (n - i)
        k = i
        while k > 0 and wish(e, r, order[k - 1]) < wish(e, r, left[at]):
            order[k] = order[k - 1]
            k -= 1
        order[k] = left[at]
        for k in range(at, n - i - 1):
            left[k] = left[k + 1]


cdef u32 preferred_leader(Engine* e, Replica* r, u32 besides) noexcept nogil:
    cdef u32 order[MEMBERS_MAX]
    cdef u32 i
    preference(e, r, order)
    for i in range(r.config.n_voters):
        if live(e, order[i]) and e.slot_node[order[i]] != besides:
            return e.slot_node[order[i]]
    return 0


# --- transfers

cdef Given* given_to(Replica* r, u32 at) noexcept nogil:
    cdef size_t i
    for i in range(r.given.size()):
        if r.given[i].at == at:
            return &r.given[i]
    return NULL


cdef void note_given(Engine* e, Replica* r, u32 at) noexcept nogil:
    cdef Given none = Given(at, 0, 0, 0)
    cdef Given* one = given_to(r, at)
    if one == NULL:
        r.given.push_back(none)
        one = &r.given.back()
    one.times += 1
    one.ballot = r.lead.ballot
    one.since_us = e.now_us


cdef void taken(Replica* r, int at) noexcept nogil:
    """It is heard to lead."""
    cdef Given* one = given_to(r, <u32>at) if at >= 0 else NULL
    if one != NULL:
        one[0] = r.given.back()
        r.given.pop_back()


cdef bint not_taken(Replica* r, u32 at, u64 ballot) noexcept nogil:
    cdef Given* one = given_to(r, at)
    return one != NULL and one.ballot == ballot and r.promised == ballot


cdef bint put_off(Engine* e, Replica* r, u32 at, u32 doublings) noexcept nogil:
    cdef Given* one = given_to(r, at)
    return one != NULL and e.now_us < one.since_us + (
        <u64>GIVEN_US << min(one.times, doublings))


cdef bint may_take(Engine* e, Replica* r, u32 at, u32 doublings) noexcept nogil:
    return not r.lead.refusing >> at & 1 and not put_off(e, r, at, doublings)


cdef u32 preferred_taker(Engine* e, Replica* r) noexcept nogil:
    cdef u32 order[MEMBERS_MAX]
    cdef u32 i
    preference(e, r, order)
    for i in range(r.config.n_voters):
        if (order[i] != e.own_slot and live(e, order[i])
                and may_take(e, r, order[i], GIVEN_DOUBLINGS)):
            return e.slot_node[order[i]]
    return 0


cdef bint gave_it_away(Replica* r) noexcept nogil:
    """And nobody was promised the group since."""
    cdef size_t i
    for i in range(r.given.size()):
        if r.given[i].ballot == r.promised:
            return True
    return False


# --- when to try

cdef u64 step_us(Engine* e) noexcept nogil:
    return e.options.election_us + 2 * e.sync_us


cdef u64 backoff_us(Engine* e, Replica* r) noexcept nogil:
    cdef u64 base = <u64>e.options.election_us << min(r.failures, <u32>BACKOFF_DOUBLINGS)
    return base + random_below(e, base)


cdef void schedule_campaign(Engine* e, Replica* r, u64 extra_us) noexcept nogil:
    cdef u32 order[MEMBERS_MAX]
    cdef u32 i, before = 0
    cdef u64 at
    if r.role != ROLE_FOLLOWER:
        return
    if not votes_in(e, r):
        # (Nobody reminds a suspect of its vote, once it knows what is below its members.)
        if is_removed(r) or not (leaves(r) or (
                config_has(r, e.own_slot) and (r.suspect or not hears_leader(e, r)))):
            role_timer(e, r, 0)
        else:
            role_timer(e, r, e.now_us + LOOK_ELECTIONS * <u64>e.options.election_us)
        return
    if hears_leader(e, r) or r.stopped or r.halted or r.restoring or e.poisoned or e.resigned:
        role_timer(e, r, rejoin_at(e, r))
        return
    preference(e, r, order)
    for i in range(r.config.n_voters):
        if order[i] == e.own_slot:
            break
        if live(e, order[i]):
            before += 1
    at = e.now_us + extra_us + <u64>before * e.options.election_us + random_below(e,
            e.options.election_us // 4 + 1)
    if r.failures:
        at += backoff_us(e, r)
    # (What a node of priority 0 gave away, and nobody took, is without a leader because of it.)
    if e.pressure or (wish(e, r, e.own_slot) == 0 and not gave_it_away(r)):
        at += 2 * <u64>e.options.election_us * r.config.n_voters
    if at < r.busy_until_us:
        at = r.busy_until_us + random_below(e, e.options.election_us)
    if at < e.quiet_until_us:
        at = e.quiet_until_us + <u64>before * e.options.election_us
    role_timer(e, r, at)


cdef void refresh_leader(Engine* e, Replica* r) noexcept nogil:
    cdef u32 leader = 0
    if r.role == ROLE_LEADING and not only_ends(r):
        leader = e.options.node
    elif hears_leader(e, r):
        leader = ballot_node(r.claim)
    if leader == r.leader:
        tell_leader(e, r)
        if (leader == 0 or r.suspect) and r.role == ROLE_FOLLOWER and r.role_at_us == 0:
            schedule_campaign(e, r, 0)
        return
    r.leader = leader
    if leader != 0 and leader != e.options.node:
        taken(r, slot_of(e, leader))
    tell_leader(e, r)
    # Whoever had our values may have lost them with its leadership.
    callers_requeue(e, r)
    touch(e, r)
    if leader == 0:
        schedule_campaign(e, r, 0)
    elif r.role == ROLE_FOLLOWER:
        r.failures = 0
        role_timer(e, r, rejoin_at(e, r))
