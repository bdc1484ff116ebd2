# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The proposer: phase 1 and the course of a leadership; see proposer.pxd. Phase 2 is in phase2."""

from libc.string cimport memcpy, memset

from phx._core.acceptor cimport follow, promise, refuse, report
from phx._core.ballot cimport ballot_hostile, ballot_node
from phx._core.batch cimport body_check
from phx._core.effects cimport (
    HALT_NEXT_BALLOT, LANE_LATER, LANE_NOW, cast, halt_group, role_timer, send, tell_leader,
)
from phx._core.elections cimport (
    backoff_us, can_lead, not_taken, note_given, preferred_taker, refresh_leader,
    schedule_campaign, step_us,
)
from phx._core.leases cimport claim_add, claim_drop, grant_runs, group_lease_until, hears_leader
from phx._core.learner cimport note_watermark, tail_entry, want
from phx._core.membership cimport floor_of, is_change
from phx._core.native cimport *
from phx._core.phase2 cimport (
    compute_chosen, lead_free, lead_new, phase1_free, phase1_new, propose_what_can_be,
    resend_what_is_missing, tell_watermark,
)
from phx._core.rejoin cimport (
    answers_needed, asked_ballot, may_prepare, own_ballot, rejoin_answered, rejoin_ask,
    rejoin_done, under_ceiling,
)
from phx._core.proposals cimport (
    callers_flush, callers_requeue, callers_stop, pending_drop, pending_drop_own,
)
from phx._core.reports cimport (
    AFTER_LEAD, AFTER_WAIT, AfterPhase1, after_phase1, reported_at, weigh,
)
from phx._core.state cimport *
from phx._core.window cimport SLOT_CHOSEN, Slot, window_find
from phx._core.wire cimport (
    ENTRY_CHOSEN, ENTRY_ELIDED, FLAG_AGAIN, FLAG_KEPT, FLAG_LACKING, FLAG_LAST, FLAG_LOW,
    FLAG_MORE, HOLDS_MAX, MSG_PREPARE, MSG_PREVOTE, MSG_PREVOTE_REPLY, MSG_TRANSFER, PREVOTE_BEHIND,
    PREVOTE_HEARS_LEADER, PREVOTE_OK, REFUSE_BALLOT, REFUSE_LEASED, REFUSE_STOPPED,
    AcceptBody, AcceptedBody, HoldRange, PrepareBody, PrevoteBody, PrevoteReplyBody, PromiseBody,
    RefuseBody, ReportedEntry, entry_stride,
)

cdef enum:
    # Whoever is ahead may be unable to lead, and to tell what it knows: from so many failures on it
    # is no longer waited for. (Phase 1 learns what is chosen all the same.)
    BEHIND_MAX = 4
    PREPARE_TRIES = 4            # an unanswered Prepare is repeated this often before starting over
    REPORTED_MAX = 33554432      # instances that a phase 1 may tell of


# --- pre-vote

cdef void campaign(Engine* e, Replica* r) noexcept nogil:
    """Ask without durable effect whether this node could lead: one that cannot disturbs nobody."""
    cdef PrevoteBody ask
    if not can_lead(e, r) or hears_leader(e, r):
        if r.suspect and can_lead(e, r) and not e.pressure:
            rejoin_ask(e, r)
        schedule_campaign(e, r, e.options.election_us)
        return
    r.role = ROLE_PREVOTING
    r.votes = <u64>1 << e.own_slot
    e.counters.prevotes += 1
    if quorum_of(r, r.votes):
        prepare(e, r, 0)
        return
    ask.chosen_through = r.chosen_through
    cast(e, r.config.voters, LANE_NOW, MSG_PREVOTE, 0, r.group, asked_ballot(e, r), &ask,
         sizeof(ask), NULL, 0)
    role_timer(e, r, e.now_us + 2 * e.options.election_us)


cdef bint far_behind(Engine* e, Replica* r, u64 chosen_through) noexcept nogil:
    """It would have to learn more than a window, or what is no longer in memory here, before it
    could propose: others would take its attempt for a failed one, again and again."""
    return r.chosen_through > chosen_through and (
        r.chosen_through > chosen_through + e.options.window
        or tail_entry(r, chosen_through + 1) == NULL)


cdef void on_prevote(Engine* e, Replica* r, Peer* p, u64 ballot,
                     const PrevoteBody* ask) noexcept nogil:
    cdef PrevoteReplyBody reply
    cdef u8 flags = 0
    if ballot_hostile(ballot, r.highest_seen):
        e.counters.hostile_messages += 1
        return
    reply.chosen_through = r.chosen_through
    reply.promised = r.highest_seen
    reply.leader = 0
    reply.verdict = PREVOTE_OK
    if r.role == ROLE_LEADING and group_lease_until(e, r) > e.now_us:
        reply.verdict = PREVOTE_HEARS_LEADER
        reply.leader = e.options.node
    elif hears_leader(e, r) and ballot_node(r.claim) != p.node:
        reply.verdict = PREVOTE_HEARS_LEADER
        reply.leader = ballot_node(r.claim)
    elif far_behind(e, r, ask.chosen_through) and can_lead(e, r):
        reply.verdict = PREVOTE_BEHIND
    elif e.now_us < e.quiet_until_us or grant_runs(e, r, p.node, 0):
        reply.verdict = PREVOTE_HEARS_LEADER
    elif r.role >= ROLE_PREPARING or (
            e.now_us < r.busy_until_us and ballot_node(r.promised) != p.node):
        # A phase 1 is under way, ours or another's: two at once would only end each other.
        reply.verdict = PREVOTE_HEARS_LEADER
    if not under_ceiling(e, ballot):
        # Its Prepare would get no answer here, and could bind others for nothing.
        flags = FLAG_LOW
        if reply.verdict == PREVOTE_OK:
            reply.verdict = PREVOTE_HEARS_LEADER
    send(e, p, LANE_NOW, MSG_PREVOTE_REPLY, flags, r.group, ballot, &reply, sizeof(reply), NULL, 0)


cdef void on_prevote_reply(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags,
                           const PrevoteReplyBody* reply) noexcept nogil:
    if r.suspect:
        rejoin_answered(e, r, p, ballot, flags)
    if r.role != ROLE_PREVOTING or ballot_hostile(reply.promised, r.highest_seen):
        return
    if not can_lead(e, r) or hears_leader(e, r):
        r.role = ROLE_FOLLOWER
        schedule_campaign(e, r, e.options.election_us)
        return
    if reply.promised > r.highest_seen:
        r.highest_seen = reply.promised
    # A node that is cut off from the leader still learns from whoever hears it.
    if reply.chosen_through > r.chosen_through:
        want(e, r, reply.chosen_through, p.node)
    if reply.verdict == PREVOTE_BEHIND and r.failures < BEHIND_MAX:
        r.failures += 1
        r.role = ROLE_FOLLOWER
        schedule_campaign(e, r, 5 * <u64>e.options.election_us)
    elif reply.verdict == PREVOTE_OK:
        r.votes |= <u64>1 << p.slot
        if voters_in(r, r.votes) >= answers_needed(r) and may_prepare(e, r):
            prepare(e, r, 0)


# --- phase 1

cdef u32 hold_ranges(Engine* e, Replica* r, HoldRange* out) noexcept nogil:
    """What this node has accepted, and nobody need send: same (instance, ballot), same value."""
    cdef u32 count = 0
    cdef u64 instance = r.chosen_through + 1
    cdef Slot* slot
    while instance <= r.accepted_last:
        slot = window_find(&r.window, instance)
        if slot != NULL and slot.ballot and not slot.flags & SLOT_CHOSEN:
            if (count and out[count - 1].last + 1 == instance
                    and out[count - 1].ballot == slot.ballot):
                out[count - 1].last = instance
            elif count == HOLDS_MAX:
                break
            else:
                out[count].first = instance
                out[count].last = instance
                out[count].ballot = slot.ballot
                count += 1
        instance += 1
    return count


cdef void send_prepare(Engine* e, Replica* r, Peer* only) noexcept nogil:
    cdef PrepareBody ask
    cdef HoldRange holds[HOLDS_MAX]
    ask.first = r.lead.phase1.first
    ask.start = ask.first
    if only != NULL and r.lead.phase1.promised[slot_of(e, only.node)].start:
        ask.start = r.lead.phase1.promised[slot_of(e, only.node)].start
    ask.released = r.lead.phase1.released
    ask.holds = hold_ranges(e, r, holds)
    ask.pad = 0
    # `later`: a Prepare leaves only after the sender's own promise of this ballot is durable.
    if only != NULL:
        send(e, only, LANE_LATER, MSG_PREPARE, 0, r.group, r.lead.ballot, &ask, sizeof(ask),
             holds, ask.holds * sizeof(HoldRange))
    else:
        cast(e, r.config.voters, LANE_LATER, MSG_PREPARE, 0, r.group, r.lead.ballot, &ask,
             sizeof(ask), holds, ask.holds * sizeof(HoldRange))


cdef void prepare(Engine* e, Replica* r, u64 released) noexcept nogil:
    cdef u64 ballot = own_ballot(e, r)
    cdef Lead* lead
    cdef Vote vote
    if ballot == 0:
        halt_group(e, r, HALT_NEXT_BALLOT)
        return
    if not under_ceiling(e, ballot):
        step_down(e, r)
        r.role = ROLE_FOLLOWER
        schedule_campaign(e, r, e.options.election_us)
        return
    if grant_runs(e, r, e.options.node, released):
        # Our own grant to somebody else binds us as it binds any acceptor.
        r.role = ROLE_FOLLOWER
        schedule_campaign(e, r, e.options.election_us)
        return
    if r.lead == NULL:
        r.lead = lead_new(r.config.width)
    lead = r.lead
    phase1_free(lead)
    lead.phase1 = phase1_new(r.config.width)
    lead.phase1.first = r.chosen_through + 1
    lead.phase1.released = released
    lead.phase1.promised[e.own_slot].chosen_through = r.chosen_through
    lead.ballot = ballot
    lead.claim_version = 0
    lead.first = r.chosen_through + 1
    lead.next = lead.first
    lead.recover_through = 0
    lead.durable_through = r.chosen_through
    lead.watermark_sent = 0
    lead.open_bytes = 0
    if r.members != NULL:
        r.members.change = 0  # phase 1 finds what was open again, or another value
    memset(lead.progress, 0, r.config.width * sizeof(Progress))
    r.role = ROLE_PREPARING
    e.counters.elections += 1
    promise(e, r, ballot)
    republish(e, r)
    vote.lsn_end = e.lsn_end
    vote.ballot = ballot
    vote.instance = 0
    vote.index = r.index
    e.votes.push_back(vote)
    send_prepare(e, r, NULL)
    role_timer(e, r, e.now_us + 4 * step_us(e) + backoff_us(e, r))


cdef bint may_promise(Engine* e, Replica* r, Peer* p, u64 ballot, u64 released) noexcept nogil:
    """This ballot is higher than our promise: may it be followed? If not, says why."""
    if e.now_us < e.quiet_until_us:
        refuse(e, r, p, ballot, REFUSE_LEASED, 0)
        return False
    if grant_runs(e, r, p.node, released):
        refuse(e, r, p, ballot, REFUSE_LEASED, ballot_node(r.promised))
        return False
    if not under_ceiling(e, ballot):
        return False
    if r.lead != NULL:
        step_down(e, r)
    return True


cdef void on_prepare(Engine* e, Replica* r, Peer* p, u64 ballot, const PrepareBody* ask,
                     const u8* holds) noexcept nogil:
    # (More ranges than anybody sends: each accepted instance would be compared with every one.)
    if (ballot_node(ballot) != p.node or ballot_hostile(ballot, r.highest_seen)
            or ask.holds > HOLDS_MAX):
        e.counters.hostile_messages += 1
        return
    if ballot > r.highest_seen:
        r.highest_seen = ballot
    if ballot < r.promised or ballot <= floor_of(r):
        refuse(e, r, p, ballot, REFUSE_BALLOT, r.leader)
        return
    if ballot > r.promised:
        if not may_promise(e, r, p, ballot, ask.released):
            return
        promise(e, r, ballot)
        if r.role <= ROLE_PREVOTING and not hears_leader(e, r):
            # Somebody is at it: give it time.
            r.role = ROLE_FOLLOWER
            r.busy_until_us = e.now_us + 4 * step_us(e)
            schedule_campaign(e, r, 0)
    report(e, r, p, ballot, ask, holds)


cdef bint take_reported(Engine* e, Replica* r, Promised* promised, const ReportedEntry* entry,
                        const u8* body) noexcept nogil:
    """One entry of a Promise. Ascending, and never further apart than a window allows: so what is
    kept here is bounded by the bytes received."""
    cdef Slot* slot
    cdef Block* value
    if (entry.instance < r.lead.phase1.first or entry.instance <= promised.last
            or entry.instance - promised.last > e.options.window
            or entry.instance - r.lead.phase1.first > REPORTED_MAX):
        return False
    promised.last = entry.instance
    if entry.instance <= r.chosen_through:
        return True
    if entry.flags & ENTRY_ELIDED:
        slot = window_find(&r.window, entry.instance)
        # Our own acceptance is weighed when phase 1 ends.
        return slot != NULL and slot.ballot >= entry.ballot
    if not body_check(body, entry.body_bytes):
        return False
    value = block_copy(body, entry.body_bytes)
    weigh(reported_at(r.lead.phase1, entry.instance), entry.ballot, entry.flags & ENTRY_CHOSEN,
          value)
    block_unref(value)
    return True


cdef void on_promise(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags, const PromiseBody* head,
                     const u8* entries, u64 nbytes) noexcept nogil:
    """A Promise counts when all of its pages, of one reply, have come in order."""
    cdef Promised* promised
    cdef ReportedEntry entry
    cdef u64 at = 0, stride
    cdef u32 i
    if head.floor == 0:
        e.counters.hostile_messages += 1
        return
    # (Of one that comes after the quorum, too: it may report what another only knows chosen.)
    if (r.role != ROLE_PREPARING and r.role != ROLE_LEARNING or r.lead.ballot != ballot
            or head.first != r.lead.phase1.first):
        return
    promised = &r.lead.phase1.promised[p.slot]
    if promised.whole or head.start != (promised.start if promised.start else head.first):
        return
    if head.page == 0:
        promised.reply = head.reply
        promised.pages = 0
        promised.last = max(head.start - 1, head.chosen_through)
    if head.page != promised.pages or head.reply != promised.reply:
        return
    for i in range(head.entries):
        stride = entry_stride(entries + at, nbytes - at, sizeof(ReportedEntry), 16)
        if stride == 0:
            return
        memcpy(&entry, entries + at, sizeof(entry))
        if not take_reported(e, r, promised, &entry, entries + at + sizeof(entry)):
            e.counters.hostile_messages += 1
            return
        at += stride
    promised.pages += 1
    # (What a member has trimmed is chosen, even if it did not say so.)
    promised.chosen_through = max(promised.chosen_through, max(head.chosen_through, head.floor - 1))
    if flags & FLAG_LAST:
        promised.whole = True
        count_promises(e, r)
    elif flags & FLAG_MORE and (r.role == ROLE_PREPARING or r.below):
        # Nothing below our ballot is accepted there any more, so the rest can be asked for by
        # itself.
        promised.start = promised.last + 1
        send_prepare(e, r, p)
        if r.role == ROLE_PREPARING:
            role_timer(e, r, e.now_us + 4 * step_us(e) + backoff_us(e, r))


cdef void count_promises(Engine* e, Replica* r) noexcept nogil:
    """A quorum of whole promises ends phase 1; a suspect replica needs more (answers_needed)."""
    cdef Phase1* phase1 = r.lead.phase1
    cdef u64 left = r.config.voters, whole = 0
    cdef u32 i
    if r.role == ROLE_LEARNING:
        touch(e, r)
        return
    while left:
        i = next_member(&left)
        if phase1.promised[i].whole:
            whole |= <u64>1 << i
    if voters_in(r, whole) < answers_needed(r):
        return
    phase1.quorum = True
    left = r.config.voters
    while left:
        i = next_member(&left)
        if phase1.promised[i].whole and phase1.promised[i].chosen_through > phase1.max_chosen:
            phase1.max_chosen = phase1.promised[i].chosen_through
            phase1.max_chosen_node = e.slot_node[i]
    r.role = ROLE_LEARNING
    if phase1.max_chosen > r.chosen_through:
        # What others know chosen is learned before anything is proposed: a floor read as
        # "nothing accepted here" would be filled with no-ops.
        want(e, r, phase1.max_chosen, phase1.max_chosen_node)
        role_timer(e, r, e.now_us + 10 * <u64>e.options.resend_us)
    touch(e, r)


cdef void lead_begin(Engine* e, Replica* r) noexcept nogil:
    cdef Lead* lead = r.lead
    cdef u64 instance = r.chosen_through + 1
    cdef Slot* slot
    cdef size_t i
    cdef bint ends = False
    while instance <= r.accepted_last:
        slot = window_find(&r.window, instance)
        if slot != NULL:
            weigh(reported_at(lead.phase1, instance), slot.ballot, slot.flags & SLOT_CHOSEN,
                  slot.value)
        instance += 1
    for i in range(lead.phase1.reported.size()):
        if (lead.phase1.reported[i].value != NULL and not ends
                and lead.phase1.reported[i].instance > r.chosen_through):
            lead.recover_through = lead.phase1.reported[i].instance
            # Nothing goes above it under these members (M2). What was told above was not chosen.
            ends = is_change(lead.phase1.reported[i].value)
    lead.next = r.chosen_through + 1
    lead.durable_through = r.chosen_through
    lead.since_us = e.now_us
    for i in range(r.config.width):
        lead.progress[i].seen_us = e.now_us
    r.role = ROLE_LEADING
    r.failures = 0
    lead.refusing = lead.lacking = 0
    if ends:
        # Its ballot may be above the floor. If its program heard of it the epoch would fall.
        lead.claim_version = NO_CLAIM
    else:
        claim_add(e, r, lead.ballot)
        lead.claim_version = e.claim_version
        r.leader = e.options.node
        tell_leader(e, r)
    # An adopted slot may hold somebody else's value in place of ours, so our callers' values are
    # handed out again; what is chosen twice is applied once.
    pending_drop_own(e, r)
    callers_requeue(e, r)
    role_timer(e, r, e.now_us + e.options.resend_us)
    touch(e, r)


# --- phase 2, as far as roles change

cdef void on_accept(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags, const AcceptBody* a,
                    const u8* body) noexcept nogil:
    if ballot_node(ballot) != p.node or ballot_hostile(ballot,
                   r.highest_seen) or a.instance == 0 or a.first == 0:
        e.counters.hostile_messages += 1
        return
    if ballot > r.highest_seen:
        r.highest_seen = ballot
    if ballot < r.promised or ballot <= floor_of(r):
        refuse(e, r, p, ballot, REFUSE_BALLOT, r.leader)
        return
    if e.poisoned:
        return
    if ballot > r.promised and not may_promise(e, r, p, ballot, 0):
        return
    # The watermark first: it makes room in the window for what this very message carries.
    note_watermark(e, r, ballot, a.watermark)
    if e.pressure == PRESSURE_FULL or (e.pressure and not flags & FLAG_AGAIN):
        return
    follow(e, r, p, ballot, a, body)


cdef void on_accepted(Engine* e, Replica* r, Peer* p, u64 ballot,
                      const AcceptedBody* a) noexcept nogil:
    """Only the leader of this very ballot counts its acceptances."""
    cdef Progress* progress
    if r.role != ROLE_LEADING or ballot != r.lead.ballot or a.first != r.lead.first:
        return
    progress = &r.lead.progress[p.slot]
    if a.through > progress.through:
        progress.through = a.through
        progress.seen_us = e.now_us
        progress.resends = 0
    if a.chosen_through > progress.confirmed:
        progress.confirmed = a.chosen_through
        progress.resends = 0
    compute_chosen(e, r)


cdef void on_confirm(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags,
                     u64 through) noexcept nogil:
    cdef u64 bit = <u64>1 << p.slot
    if r.role == ROLE_LEADING and ballot == r.lead.ballot:
        r.lead.progress[p.slot].confirmed = min(through, r.chosen_through)
        r.lead.lacking = r.lead.lacking | bit if flags & FLAG_LACKING else r.lead.lacking & ~bit


cdef void take_back(Engine* e, Replica* r) noexcept nogil:
    """At once, and without a pre-vote: this node has just led, and callers wait."""
    r.busy_until_us = 0
    if can_lead(e, r) and may_prepare(e, r):
        prepare(e, r, 0)
    else:
        schedule_campaign(e, r, 0)


cdef void on_refuse(Engine* e, Replica* r, Peer* p, u64 ballot,
                    const RefuseBody* refusal) noexcept nogil:
    if ballot_hostile(refusal.promised, r.highest_seen):
        e.counters.hostile_messages += 1
        return
    if refusal.promised > r.highest_seen:
        r.highest_seen = refusal.promised
    if refusal.reason == REFUSE_STOPPED:
        if not_taken(r, p.slot, ballot) and r.leader == 0 and r.role <= ROLE_PREVOTING:
            take_back(e, r)
        return
    if r.lead == NULL or r.lead.ballot != ballot:
        return
    if r.role == ROLE_LEADING:
        if refusal.reason != REFUSE_BALLOT or refusal.promised <= ballot:
            return
        if r.claim == refusal.promised and hears_leader(e, r):
            step_down(e, r)
        elif can_lead(e, r):
            # The higher ballot is of somebody who does not lead: a node that comes back must not
            # cost an election. Phase 1 again, above it, with everything that waits kept.
            e.counters.re_prepares += 1
            prepare(e, r, 0)
    elif refusal.reason == REFUSE_LEASED:
        if r.role_at_us == 0 or r.role_at_us > e.now_us + e.options.heartbeat_us // 2:
            role_timer(e, r, e.now_us + e.options.heartbeat_us // 2)
    elif refusal.promised > ballot:
        r.failures += 1
        step_down(e, r)


cdef void vote_durable(Engine* e, const Vote* vote) noexcept nogil:
    cdef Replica* r = e.replicas[vote.index]
    if r.lead == NULL or r.lead.ballot != vote.ballot or r.halted:
        return
    if vote.instance == 0:
        if r.role == ROLE_PREPARING:
            r.lead.phase1.promised[e.own_slot].whole = True
            count_promises(e, r)
    elif vote.instance > r.lead.durable_through:
        r.lead.durable_through = vote.instance
        compute_chosen(e, r)
        touch(e, r)


# --- timers

cdef void prepare_tick(Engine* e, Replica* r) noexcept nogil:
    cdef u64 left = r.config.voters
    cdef u32 i
    r.failures += 1
    if r.failures % PREPARE_TRIES == 0 or not can_lead(e, r):
        step_down(e, r)
        return
    # The same ballot again to whoever has not answered: the answer is the same as the first.
    while left:
        i = next_member(&left)
        if i != e.own_slot and not r.lead.phase1.promised[i].whole:
            send_prepare(e, r, &e.peers[i])
    role_timer(e, r, e.now_us + step_us(e) + backoff_us(e, r))


cdef void role_tick(Engine* e, Replica* r) noexcept nogil:
    if r.halted:
        return
    if r.role == ROLE_FOLLOWER:
        campaign(e, r)
    elif r.role == ROLE_PREVOTING:
        r.role = ROLE_FOLLOWER
        r.failures += 1
        schedule_campaign(e, r, 0)
    elif r.role == ROLE_PREPARING:
        prepare_tick(e, r)
    elif r.role == ROLE_LEARNING:
        # Those who know more do not answer: let somebody else try.
        r.failures += 1
        step_down(e, r)
    else:
        resend_what_is_missing(e, r)


cdef void yield_when_done(Engine* e, Replica* r) noexcept nogil:
    """A leader at its journal's limit takes no new value: somebody else may. Not before what is
    open is chosen, or the next leader would have to write all of it again, and the one after.
    """
    cdef u32 to
    if r.lead.phase1 != NULL or r.lead.next > r.chosen_through + 1:
        return
    to = preferred_taker(e, r)
    if to != 0:
        transfer(e, r, to)


cdef void pump(Engine* e, Replica* r) noexcept nogil:
    cdef AfterPhase1 after
    if r.halted:
        # Here, and not where it broke: whoever found it still holds pointers into the leadership.
        if r.lead != NULL:
            step_down(e, r)
        callers_stop(e, r)
        return
    if r.role == ROLE_LEARNING:
        after = after_phase1(e, r)
        if after == AFTER_LEAD and can_lead(e, r):
            lead_begin(e, r)
        elif after != AFTER_WAIT:
            step_down(e, r)
    callers_flush(e, r)
    if r.role == ROLE_LEADING:
        if r.promised != r.lead.ballot:
            step_down(e, r)
            return
        propose_what_can_be(e, r)
        tell_watermark(e, r)
        if r.suspect:
            rejoin_done(e, r)
        if e.pressure:
            yield_when_done(e, r)


# --- the end of a leadership

cdef void step_down(Engine* e, Replica* r) noexcept nogil:
    if r.lead == NULL:
        return
    if r.role == ROLE_LEADING:
        e.counters.step_downs += 1
    claim_drop(e, r)
    r.role = ROLE_FOLLOWER
    if r.leader == e.options.node:
        r.leader = 0
    pending_drop(e, r)
    lead_free(r)
    callers_requeue(e, r)
    role_timer(e, r, 0)
    refresh_leader(e, r)
    tell_leader(e, r)
    touch(e, r)


cdef void transfer(Engine* e, Replica* r, u32 to) noexcept nogil:
    transfer_as(e, r, to, 0)


cdef void transfer_as(Engine* e, Replica* r, u32 to, u8 flags) noexcept nogil:
    cdef int at = slot_of(e, to)
    cdef u64 ballot
    if at < 0 or r.role != ROLE_LEADING:
        return
    ballot = r.lead.ballot
    note_given(e, r, at)
    e.counters.transfers += 1
    # The lease is given up first (the claim goes in this turn's heartbeat, and step_down forgets
    # the leadership); the member named may then prepare although grants of this ballot run.
    step_down(e, r)
    e.beat_must = True
    r.busy_until_us = e.now_us + 4 * step_us(e)
    schedule_campaign(e, r, 0)
    send(e, &e.peers[at], LANE_NOW, MSG_TRANSFER, flags, r.group, ballot, NULL, 0, NULL, 0)


cdef void on_transfer(Engine* e, Replica* r, Peer* p, u64 ballot, u8 flags) noexcept nogil:
    if ballot_node(ballot) != p.node:
        e.counters.hostile_messages += 1
        return
    if not can_lead(e, r) or e.pressure:
        refuse(e, r, p, ballot, REFUSE_STOPPED, 0)
        return
    # (A suspect replica may have promised a ballot of its own that nobody has heard of: it tells
    # nobody, so that whoever leads stays below.)
    if r.role >= ROLE_PREPARING or (r.claim if r.suspect else r.promised) > ballot:
        return
    if not under_ceiling(e, own_ballot(e, r)) or not may_prepare(e, r):
        refuse(e, r, p, ballot, REFUSE_STOPPED, 0)
        return
    prepare(e, r, ballot)
    if r.lead != NULL:
        r.lead.kept = flags & FLAG_KEPT


cdef void prepare_again(Engine* e, Replica* r, Peer* p) noexcept nogil:
    cdef Progress* progress
    cdef PrepareBody ask
    if r.role != ROLE_LEADING:
        return
    progress = &r.lead.progress[p.slot]
    if progress.prepared_us + e.options.resend_us > e.now_us:
        return
    progress.prepared_us = e.now_us
    ask.first = r.lead.next
    ask.start = r.lead.next
    ask.released = 0
    ask.holds = 0
    ask.pad = 0
    send(e, p, LANE_LATER, MSG_PREPARE, 0, r.group, r.lead.ballot, &ask, sizeof(ask), NULL, 0)


cdef void peer_returned(Engine* e, Replica* r, Peer* p) noexcept nogil:
    cdef Progress* progress
    if r.role == ROLE_LEADING:
        progress = &r.lead.progress[p.slot]
        progress.confirmed = 0
        progress.seen_us = 0
        progress.resends = 0
        resend_what_is_missing(e, r)
    elif r.role == ROLE_PREPARING and not r.lead.phase1.promised[p.slot].whole:
        send_prepare(e, r, p)
