# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Phase 2 at the leader; see phase2.pxd."""

from libc.string cimport memcpy, memset

from phx._core.acceptor cimport accept
from phx._core.batch cimport (
    BODY_BATCH, BODY_HEADER_BYTES, BODY_VERSION, RUN_HEADER_BYTES, BodyHeader, RunHeader,
    body_check, body_noop,
    items_fit,
)
from phx._core.effects cimport HALT_BAD_BODY, LANE_NOW, cast, halt_group, role_timer, send
from phx._core.learner cimport advance_chosen, tail_entry
from phx._core.membership cimport (
    by_slot, change_dropped, is_change, membership_of, sources,
)
from phx._core.native cimport *
from phx._core.proposals cimport callers_entered, callers_low_water, pending_pop
from phx._core.relaxed cimport is_relaxed
from phx._core.state cimport *
from phx._core.window cimport Slot, window_find
from phx._core.wire cimport FLAG_AGAIN, MSG_ACCEPT, MSG_CHOSEN, AcceptBody, ChosenBody

cdef enum:
    RESEND_BYTES = 1048576       # sent again to one member per tick
    RUNS_MAX = 4096              # runs in one body
    AGAIN_BATCHES = 4            # so many batches are proposed again in one turn, over all groups
    AGAIN_US = 500


cdef Lead* lead_new(u32 width) noexcept nogil:
    cdef Lead* lead = phx_new[Lead]()
    lead.progress = <Progress*>by_slot(width, sizeof(Progress))
    return lead


cdef Phase1* phase1_new(u32 width) noexcept nogil:
    cdef Phase1* phase1 = phx_new[Phase1]()
    phase1.promised = <Promised*>by_slot(width, sizeof(Promised))
    return phase1


cdef void phase1_free(Lead* lead) noexcept nogil:
    cdef size_t i
    if lead.phase1 == NULL:
        return
    phx_free(lead.phase1.promised)
    for i in range(lead.phase1.reported.size()):
        block_unref(lead.phase1.reported[i].value)
    phx_delete[Phase1](lead.phase1)
    lead.phase1 = NULL


cdef void lead_free(Replica* r) noexcept nogil:
    """Whatever is pending must have been dropped."""
    if r.lead == NULL:
        return
    change_dropped(r)
    phase1_free(r.lead)
    while not pending_empty(r.lead):
        block_unref(pending_first(r.lead).block)
        pending_pop(r.lead)
    phx_free(r.lead.progress)
    phx_delete[Lead](r.lead)
    r.lead = NULL


cdef bint room(Engine* e, Replica* r) noexcept nogil:
    return (r.lead.next <= r.chosen_through + e.options.window
            and (r.lead.open_bytes < e.options.window_bytes or r.lead.next == r.chosen_through + 1))


cdef void send_accept(Engine* e, Replica* r, Peer* only, u64 instance, Block* body) noexcept nogil:
    cdef AcceptBody a
    cdef u8 flags = FLAG_AGAIN if instance <= r.lead.recover_through else 0
    a.instance = instance
    a.first = r.lead.first
    a.watermark = r.chosen_through
    a.body_bytes = <u32>body.size
    a.pad = 0
    # `now`: nothing of ours is exposed, since this ballot's promise is durable, and a restarted
    # node never uses an old ballot (docs/design/protocol.md).
    if only != NULL:
        send(e, only, LANE_NOW, MSG_ACCEPT, flags, r.group, r.lead.ballot, &a, sizeof(a),
             body.data, body.size)
    else:
        r.lead.watermark_sent = r.chosen_through
        cast(e, r.config.voters, LANE_NOW, MSG_ACCEPT, flags, r.group, r.lead.ballot, &a,
             sizeof(a), body.data, body.size)


cdef void propose(Engine* e, Replica* r, Block* body) noexcept nogil:
    cdef Vote vote
    if not body_check(body.data, body.size):
        halt_group(e, r, HALT_BAD_BODY)
        return
    if is_change(body):
        membership_of(r).change = r.lead.next
        republish(e, r)
    vote.lsn_end = accept(e, r, r.lead.ballot, r.lead.next, body)
    vote.ballot = r.lead.ballot
    vote.instance = r.lead.next
    vote.index = r.index
    if r.sync_within_us and is_relaxed(e, r):
        e.relaxed.push_back(vote)
    else:
        e.votes.push_back(vote)
    send_accept(e, r, NULL, r.lead.next, body)
    r.lead.open_bytes += body.size
    r.lead.next += 1
    e.counters.proposed_instances += 1
    if r.role_at_us == 0:
        role_timer(e, r, e.now_us + e.options.resend_us)


cdef void recover(Engine* e, Replica* r) noexcept nogil:
    """Values that phase 1 found are proposed again, byte-identical; gaps become no-ops."""
    cdef Lead* lead = r.lead
    cdef Phase1* phase1 = lead.phase1
    cdef Block* body
    while lead.next <= lead.recover_through and room(e, r) and not r.halted:
        if e.again_bytes > AGAIN_BATCHES * <u64>e.options.batch_bytes_max:
            # All groups may have much to propose again at once: pressure is to be felt in between.
            role_timer(e, r, e.now_us + AGAIN_US)
            return
        while (phase1.again < phase1.reported.size()
                and phase1.reported[phase1.again].instance < lead.next):
            phase1.again += 1
        if (phase1.again < phase1.reported.size()
                and phase1.reported[phase1.again].instance == lead.next
                and phase1.reported[phase1.again].value != NULL):
            e.counters.adopted_values += 1
            e.again_bytes += phase1.reported[phase1.again].value.size
            propose(e, r, phase1.reported[phase1.again].value)
        else:
            e.counters.gap_fills += 1
            body = body_noop(lead.ballot, e.wall_us)
            propose(e, r, body)
            block_unref(body)
    if lead.next > lead.recover_through:
        phase1_free(lead)


cdef bint pack_run(Engine* e, Replica* r, Block** out, RunHeader* run, u64* run_at,
                   BodyHeader* head) noexcept nogil:
    """Move values from the queue into the body: into the open run if they follow it, or a new one.
    False: the next value does not fit any more (a first one always does)."""
    cdef Pending* first = pending_first(r.lead)
    cdef bint follows = (
        head.runs != 0 and run.node == first.node and run.incarnation == first.incarnation
        and run.first_seq + run.count == first.first_seq)
    cdef u64 used = 0, budget = 0
    cdef u64 taken = out[0].size + (0 if follows else RUN_HEADER_BYTES)
    cdef u32 count
    if taken < e.options.batch_bytes_max:
        budget = e.options.batch_bytes_max - taken
    count = items_fit(first.block.data + first.offset, first.nbytes, first.count, budget, &used)
    if head.values and used > budget:
        return False
    if not follows:
        run.node = first.node
        run.incarnation = first.incarnation
        run.low_water = first.low_water
        run.first_seq = first.first_seq
        run.count = 0
        run.bytes = 0
        run_at[0] = out[0].size
        out[0] = block_append(out[0], run, sizeof(RunHeader))
        head.runs += 1
    out[0] = block_append(out[0], first.block.data + first.offset, used)
    run.count += count
    run.bytes += <u32>used
    run.low_water = max(run.low_water, first.low_water)
    memcpy(out[0].data + run_at[0], run, sizeof(RunHeader))
    head.values += count
    if first.node == e.options.node:
        callers_entered(r, first.first_seq, count)
    first.first_seq += count
    first.count -= count
    first.offset += used
    first.nbytes -= used
    r.lead.pending_bytes -= used
    e.pending_bytes -= used
    if first.count == 0:
        block_unref(first.block)
        pending_pop(r.lead)
    return True


cdef Block* pack(Engine* e, Replica* r) noexcept nogil:
    cdef BodyHeader head
    cdef RunHeader run
    cdef u64 run_at = 0
    cdef Block* out = block_new(min(r.lead.pending_bytes, <u64>e.options.batch_bytes_max) + 128)
    memset(&head, 0, sizeof(head))
    memset(&run, 0, sizeof(run))
    head.kind = BODY_BATCH
    head.version = BODY_VERSION
    head.epoch = r.lead.ballot
    head.time_us = e.wall_us
    out = block_append(out, &head, sizeof(head))
    while (not pending_empty(r.lead) and out.size < e.options.batch_bytes_max
            and head.runs < RUNS_MAX):
        if not pack_run(e, r, &out, &run, &run_at, &head):
            break
    memcpy(out.data, &head, sizeof(head))
    e.counters.proposed_values += head.values
    return out


cdef bint may_go_on(Engine* e, Replica* r) noexcept nogil:
    """Values may be proposed, as far as members go: none above one that changes these (M1, M2)."""
    cdef Membership* m = r.members
    cdef Lead* lead = r.lead
    cdef Block* body
    if m.change:
        return False
    if lead.phase1 != NULL or lead.next != r.chosen_through + 1:
        return m.wanted == NULL
    if m.wanted != NULL:
        # All below is chosen, and of above this ballot has neither proposed nor heard anything.
        body = m.wanted
        m.wanted = NULL
        propose(e, r, body)
        block_unref(body)
        return False
    if m.value != NULL and lead.next == m.instance + 1 and pending_empty(lead):
        # The first instance of these members says that they hold all below (M6).
        body = body_noop(lead.ballot, e.wall_us)
        propose(e, r, body)
        block_unref(body)
    return True


cdef void propose_what_can_be(Engine* e, Replica* r) noexcept nogil:
    cdef Lead* lead = r.lead
    cdef Block* body
    if e.pressure == PRESSURE_FULL:
        # This node's own vote takes room like anyone's.
        return
    if lead.next <= r.chosen_through:
        # Somebody else's watermark has made chosen what we had not yet proposed again.
        lead.next = r.chosen_through + 1
    if lead.durable_through < r.chosen_through:
        lead.durable_through = r.chosen_through
    if lead.phase1 != NULL:
        recover(e, r)
    if e.pressure or (r.members != NULL and not may_go_on(e, r)):
        return
    while not pending_empty(lead) and lead.next > lead.recover_through and room(e,
                                 r) and not r.halted:
        if (lead.next - 1 > max(lead.durable_through, r.chosen_through)
                and lead.pending_bytes < e.options.batch_bytes_max):
            break
        body = pack(e, r)
        propose(e, r, body)
        block_unref(body)


cdef void compute_chosen(Engine* e, Replica* r) noexcept nogil:
    cdef u64 through[MEMBERS_MAX]
    cdef u64 swapped, chosen
    cdef u64 left = r.config.voters
    cdef u32 n = 0, i, j
    while left:
        i = next_member(&left)
        through[n] = r.lead.durable_through if i == e.own_slot else r.lead.progress[i].through
        j = n
        n += 1
        while j > 0 and through[j - 1] < through[j]:
            swapped = through[j]
            through[j] = through[j - 1]
            through[j - 1] = swapped
            j -= 1
    chosen = min(through[r.config.quorum - 1], r.lead.next - 1)
    if chosen > r.chosen_through:
        advance_chosen(e, r, chosen)


cdef void send_watermark(Engine* e, Replica* r, Peer* only) noexcept nogil:
    cdef ChosenBody body
    body.through = r.chosen_through
    if only != NULL:
        send(e, only, LANE_NOW, MSG_CHOSEN, 0, r.group, r.lead.ballot, &body, sizeof(body), NULL, 0)
    else:
        cast(e, sources(r), LANE_NOW, MSG_CHOSEN, 0, r.group, r.lead.ballot, &body, sizeof(body),
             NULL, 0)


cdef void tell_watermark(Engine* e, Replica* r) noexcept nogil:
    if r.chosen_through > r.lead.watermark_sent:
        r.lead.watermark_sent = r.chosen_through
        send_watermark(e, r, NULL)
        if r.role_at_us == 0:
            role_timer(e, r, e.now_us + e.options.resend_us)


cdef void resend_to(Engine* e, Replica* r, Peer* p, Progress* progress) noexcept nogil:
    cdef u64 instance = max(progress.through, r.chosen_through) + 1
    cdef u64 sent = 0
    cdef Slot* slot
    if progress.confirmed < r.chosen_through:
        send_watermark(e, r, p)
    while instance < r.lead.next and sent < RESEND_BYTES and has_vote(r, p.slot):
        slot = window_find(&r.window, instance)
        if slot == NULL:
            break
        send_accept(e, r, p, instance, slot.value)
        sent += slot.value.size
        instance += 1
    progress.seen_us = e.now_us
    progress.resends += 1
    e.counters.resends += 1


cdef void resend_what_is_missing(Engine* e, Replica* r) noexcept nogil:
    """Members that are connected and behind; a silent, finished group sets no timer."""
    cdef u64 left = r.config.members
    cdef u32 i
    cdef Progress* progress
    cdef u64 pause_us
    cdef bint waiting = False
    while left:
        i = next_member(&left)
        progress = &r.lead.progress[i]
        if i == e.own_slot or not e.peers[i].connected:
            continue
        if progress.confirmed >= r.chosen_through and (
                progress.through >= r.lead.next - 1 or not has_vote(r, i)):
            continue
        if r.lead.next == r.chosen_through + 1 and progress.confirmed >= r.chosen_through:
            continue
        waiting = True
        # Ever more seldom while nothing comes back: on a link that is only slow, what is sent
        # again stands in the way of what was sent first.
        pause_us = <u64>e.options.resend_us << min(progress.resends, <u32>RESEND_DOUBLINGS)
        if progress.seen_us + pause_us <= e.now_us:
            resend_to(e, r, &e.peers[i], progress)
    role_timer(e, r, e.now_us + e.options.resend_us if waiting else 0)
