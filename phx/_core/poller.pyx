# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The turn of a node; see poller.pxd."""

from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, memset, strerror

from phx._core.driver_state cimport *
from phx._core.engine cimport (
    engine_counters, engine_entry, engine_group_status, engine_leading, engine_membership,
)
from phx._core.flow cimport *
from phx._core.handover cimport handover_push
from phx._core.hosting cimport hosting_add, hosting_drop, hosting_end
from phx._core.inputs cimport *
from phx._core.journal cimport journal_counters
from phx._core.lookups cimport lookups_close, lookups_want
from phx._core.members cimport Roster, roster_read
from phx._core.native cimport *
from phx._core.peers cimport PEER_CANNOT, PEER_DONE, PEER_UNKEPT
from phx._core.port cimport *
from phx._core.published cimport publish
from phx._core.queues cimport *
from phx._core.sending cimport transport_release, transport_send
from phx._core.state cimport (
    PRESSURE_FULL,
    ChosenRange, EVENT_FAILED, EVENT_MEMBERS, Effects, Engine, Event, Fetch, GroupMembers,
    GroupStatus, MEMBERS_ACTIVE, Outgoing, ReadPoint, slot_of,
)
from phx._core.trace cimport trace_failed
from phx._core.transport cimport *
from phx._core.upkeep cimport *
from phx._core.writer cimport (
    writer_durable, writer_error, writer_inline, writer_push, writer_stop,
)

cdef enum:
    INLINE_AVERAGE_NS = 1000000  # syncs are this quick on the average, and
    INLINE_LAST_NS = 2000000     # the last one was: the poll thread syncs by itself
    WAIT_MS_MAX = 60000
    LATE_STEP_BITS = 10          # about 1 ms
    CLOCK_OLD_US = 1000          # far below the eighth of a lease by which a granter waits longer

cdef u64 NEVER = 0xFFFFFFFFFFFFFFFF


# --- hooks of the transport

cdef int peer_connected(void* context, u32 peer, u32 incarnation,
                        const u8* store_id) noexcept nogil:
    return input_connected(<DriverState*>context, peer, incarnation, store_id)


cdef void peer_disconnected(void* context, u32 peer) noexcept nogil:
    input_disconnected(<DriverState*>context, peer)


# A grant counts from the time at which its heartbeat came in. If this thread was held up between
# the turn's look at the clock and the reading of the socket, that look is too old: the grant would
# end before the holder, who counts from the sending, stops believing in it (protocol.md, "Leases").
cdef void peer_frame(void* context, u32 peer, const u8* payload, u64 count) noexcept nogil:
    cdef DriverState* s = <DriverState*>context
    cdef u64 now_us = phx_now_us()
    if now_us > s.now_us + CLOCK_OLD_US:
        s.now_us = now_us
        input_advance(s, now_us, phx_wall_us())
    input_receive(s, peer, payload, count)


cdef void peer_log(void* context, int level, const char* text) noexcept nogil:
    outbox_log(&(<DriverState*>context).outbox, level, text)


cdef int peer_known(void* context, u32 peer, u32 incarnation, const u8* store_id) noexcept nogil:
    cdef Engine* e = (<DriverState*>context).engine
    cdef int at = slot_of(e, peer)
    if at < 0 or not e.peers[at].known:
        return 1
    if incarnation < e.peers[at].incarnation:
        return -1
    return 0 if memcmp(e.peers[at].store_id, store_id, 16) == 0 else -1


cdef int peer_handed(void* context, int fd, u32 peer, Block* said) noexcept nogil:
    cdef DriverState* s = <DriverState*>context
    if not handover_push(&s.handover, fd, peer, said):
        return -1
    s.outbox.signal = True
    return 0


cdef void peer_dialing(void* context, u32 peer, u32 attempts) noexcept nogil:
    lookups_want(&(<DriverState*>context).lookups, peer, attempts)


cdef void poller_hooks(DriverState* s, TransportHooks* out) noexcept nogil:
    out.context = s
    out.connected = peer_connected
    out.disconnected = peer_disconnected
    out.frame = peer_frame
    out.log = peer_log
    out.known = peer_known
    out.handed = peer_handed
    out.dialing = peer_dialing


cdef void poller_durable(void* context) noexcept nogil:
    inbox_wake(&(<DriverState*>context).inbox)


# --- waiting

# (Where no group is relaxed nobody asks.)
cdef inline bint written_news(DriverState* s) noexcept nogil:
    return not s.engine.relaxed.empty() and <u64>phx_load(&s.journal.written_lsn) > s.written


cdef bint journal_news(DriverState* s) noexcept nogil:
    return (writer_durable(s.writer) > s.durable or written_news(s)
            or (writer_error(s.writer) != 0 and not s.poisoned))


cdef int wait_ms(DriverState* s) noexcept nogil:
    cdef u64 now_us = phx_now_us()
    cdef u64 at = min(s.engine_wake_us, transport_deadline(s.transport))
    at = min(at, min(upkeep_deadline(s), flow_deadline(s)))
    if s.again or at <= now_us:
        return 0
    # Rounded up: poll() counts milliseconds, and a turn too early would be one for nothing.
    return <int>min((at - now_us + 999) // 1000, <u64>WAIT_MS_MAX)


cdef void wait_for_work(DriverState* s) noexcept nogil:
    cdef pollfd waker
    cdef int wait = wait_ms(s)
    cdef size_t i
    s.again = False
    if wait and (not inbox_sleep(&s.inbox) or journal_news(s) or phx_load(&s.stopping)):
        wait = 0
    waker.fd = s.inbox.waker.read_fd
    waker.events = POLLIN
    waker.revents = 0
    s.watched.clear()
    s.watched.push_back(waker)
    transport_watch(s.transport, &s.watched, s.now_us)
    if poll(s.watched.data(), s.watched.size(), wait) < 0:
        for i in range(s.watched.size()):
            s.watched[i].revents = 0
    inbox_awake(&s.inbox)
    if s.watched[0].revents:
        phx_waker_clear(&s.inbox.waker)


# --- inputs

cdef void reject(DriverState* s, const Submission* item, int verdict) noexcept nogil:
    cdef Event event
    cdef Flow* flow = find_flow(s, item.group)
    memset(&event, 0, sizeof(Event))
    event.kind = EVENT_FAILED
    event.verdict = <u8>verdict
    event.group = item.group
    event.first_seq = item.first_seq
    event.count = item.count
    outbox_event(&s.outbox, flow_index(s, flow) if flow != NULL else 0, &event)


cdef void do_address(DriverState* s, const Command* command) noexcept nogil:
    cdef PhxAddress address
    memcpy(&address, command.block.data, sizeof(PhxAddress))
    transport_set_peer(s.transport, command.peer, &address, <u32>command.first, s.now_us)


cdef void do_command(DriverState* s, const Command* command) noexcept nogil:
    if command.kind == COMMAND_STOP_GROUP:
        input_stop_group(s, command.group)
    elif command.kind == COMMAND_SETTLED:
        upkeep_settled(s, command.first)
    elif command.kind == COMMAND_SETTLE_FAILED:
        upkeep_settle_failed(s)
    elif command.kind == COMMAND_SETTLE_NOW:
        s.settle_wanted = True
    elif command.kind == COMMAND_SUPPLY:
        flow_supply(s, command.group, <u32>command.second, command.peer, command.first,
                    command.block)
    elif command.kind == COMMAND_LOADED:
        flow_loaded(s, command.group, <u32>command.second, command.first, command.block)
    elif command.kind == COMMAND_FLOORED:
        upkeep_floored(s, command.group, command.first, command.second)
    elif command.kind == COMMAND_INSTALL:
        flow_install(s, command.group, command.first, command.second)
    elif command.kind == COMMAND_DONE:
        input_done(s, command.group, command.first, <u32>command.second)
    elif command.kind == COMMAND_PAUSE:
        flow_pause(s, command.group)
    elif command.kind == COMMAND_RESUME:
        flow_resume(s, command.group, command.first)
    elif command.kind == COMMAND_CEILING:
        input_ceiling(s, command.first)
    elif command.kind == COMMAND_PRIORITY:
        input_priority(s, <u32>command.first)
    elif command.kind == COMMAND_RESIGN:
        input_resign(s)
    elif command.kind == COMMAND_ADDRESS:
        do_address(s, command)
    elif command.kind == COMMAND_ASK:
        answer(s, command.question)
    block_unref(command.block)


# A turn takes no more than a part of a segment, so that pressure is felt before the journal is
# full.
cdef void take_submissions(DriverState* s) noexcept nogil:
    cdef u64 budget = s.options.journal.segment_bytes // 4
    cdef Submission* item
    cdef int verdict
    while s.submitted < s.submissions.size() and budget > 0:
        item = &s.submissions[s.submitted]
        s.submitted += 1
        budget -= min(budget, item.nbytes)
        verdict = input_submit(s, item.group, item.first_seq, item.count, item.block, item.offset,
                               item.nbytes, item.deadline_us)
        if verdict != 0:
            reject(s, item, verdict)
        block_unref(item.block)
    if s.submitted < s.submissions.size():
        s.again = True
    else:
        s.submissions.clear()
        s.submitted = 0


cdef void take_reads(DriverState* s) noexcept nogil:
    cdef ReadPoint point
    cdef ReadWanted* one
    cdef int verdict
    cdef size_t i
    for i in range(s.reads.size()):
        one = &s.reads[i]
        verdict = input_read(s, one.group, one.ticket, one.flags, one.deadline_us)
        if verdict != 0:
            point.group = one.group
            point.verdict = <u32>verdict
            point.ticket = one.ticket
            point.instance = 0
            s.refused.push_back(point)
    outbox_points(&s.outbox, &s.refused)
    s.refused.clear()
    s.reads.clear()


# Whoever reads under a lease has to look at the clock after the read began (reads.md, section 3).
cdef void read_clock_again(DriverState* s) noexcept nogil:
    if not s.engine.reads.line.empty() or not s.engine.reads.asks.empty():
        s.now_us = phx_now_us()
        input_advance(s, s.now_us, phx_wall_us())


cdef void take_inbox(DriverState* s) noexcept nogil:
    cdef size_t i = 0
    if phx_load(&s.inbox.pending):
        inbox_swap(&s.inbox, &s.submissions, &s.commands, &s.reads, &s.applied)
    while i < s.applied.size():
        input_applied(s, s.flows[s.applied[i]].group, s.applied[i + 1])
        i += 2
    take_submissions(s)
    for i in range(s.commands.size()):
        do_command(s, &s.commands[i])
    take_reads(s)
    s.applied.clear()
    s.commands.clear()


cdef void take_durable(DriverState* s) noexcept nogil:
    cdef u64 lsn = writer_durable(s.writer)
    cdef int error = writer_error(s.writer)
    if lsn > s.durable:
        s.durable = lsn
        input_durable(s, lsn)
        transport_release(s.transport, lsn)
    if written_news(s):
        s.written = <u64>phx_load(&s.journal.written_lsn)
        input_written(s, s.written)
    if error != 0:
        upkeep_poison(s, error)


# --- questions

cdef void fill_row(DriverState* s, Flow* flow, vector[GroupRow]* rows) noexcept nogil:
    cdef GroupRow row
    memset(&row, 0, sizeof(GroupRow))
    row.group = flow.group
    row.handed = flow.next - 1
    if engine_group_status(s.engine, flow.group, &row.status):
        rows.push_back(row)


cdef bint busy(DriverState* s, Flow* flow) noexcept nogil:
    cdef GroupStatus status
    return (engine_group_status(s.engine, flow.group, &status)
            and (flow.paused or status.leader == 0
                 or status.applied_through < status.accepted_last))


cdef void fill_peer(DriverState* s, Link* link, PeerStatus* out) noexcept nogil:
    cdef int at
    out.node = link.node
    out.incarnation = link.incarnation
    out.connected = link.connection != NULL
    out.refused = link.refused
    out.since_us = link.since_us
    out.heard_us = link.heard_us
    out.queued_bytes = link.queued_bytes
    out.frames_sent = link.frames_sent
    out.bytes_sent = link.bytes_sent
    out.frames_received = link.frames_received
    out.bytes_received = link.bytes_received
    out.frames_dropped = link.frames_dropped
    out.connects = link.connects
    at = slot_of(s.engine, link.node)
    if at >= 0 and s.engine.peers[at].known:
        out.known = True
        memcpy(out.store_id, s.engine.peers[at].store_id, 16)


cdef void fill_status(DriverState* s, NodeStatus* out) noexcept nogil:
    cdef size_t i
    memset(out, 0, sizeof(NodeStatus))
    out.now_us = s.now_us
    out.engine = engine_counters(s.engine)[0]
    out.leading = engine_leading(s.engine)
    journal_counters(s.journal, &out.journal)
    out.n_peers = <u32>s.transport.links.size()
    for i in range(s.transport.links.size()):
        fill_peer(s, s.transport.links[i], &out.peers[i])
    out.rejected = s.transport.rejected
    out.connections = s.transport.connections.size()
    out.poisoned = s.poisoned
    out.pressure = s.pressure
    out.durable_lsn = s.durable
    out.written_lsn = s.lsn_end
    out.floor_lsn = s.floor_lsn
    out.backlog_groups = s.backlog.size() + s.loads + s.loads_line.size()
    out.turns = s.turns
    memcpy(out.layers_ns, s.layers_ns, sizeof(s.layers_ns))
    out.settle_wanted = s.settle_wanted
    out.settle_running = s.settle_running
    out.settle_plans = s.settle_plans
    out.settle_entries = s.settle_entries


cdef int add_peer(DriverState* s, u32 node, const PeerWanted* wanted) noexcept nogil:
    cdef const u8* store_id = NULL
    cdef int verdict
    if wanted.known:
        store_id = &wanted.store_id[0]
    verdict = input_add_peer(s, node, store_id)
    if verdict == PEER_DONE:
        transport_set_peer(s.transport, node, &wanted.address, wanted.how, s.now_us)
    return verdict


# `kept`: which store is remembered elsewhere. Of one that was met since nobody would know any more.
cdef bint forgets(DriverState* s, u32 node, const PeerWanted* kept) noexcept nogil:
    cdef int at = slot_of(s.engine, node)
    if kept == NULL or at < 0 or not s.engine.peers[at].known:
        return False
    return not kept.known or memcmp(s.engine.peers[at].store_id, kept.store_id, 16) != 0


cdef int drop_peer(DriverState* s, u32 node, const PeerWanted* kept) noexcept nogil:
    cdef int verdict = PEER_UNKEPT if forgets(s, node, kept) else input_drop_peer(s, node)
    if verdict == PEER_DONE:
        transport_drop_peer(s.transport, node)
    return verdict


cdef int move_peer(DriverState* s, u32 node, const PeerWanted* wanted) noexcept nogil:
    if transport_link(s.transport, node) == NULL:
        return PEER_CANNOT
    transport_set_peer(s.transport, node, &wanted.address, wanted.how, s.now_us)
    return PEER_DONE


cdef void members_of(DriverState* s, u32 group, GroupMembers* out) noexcept nogil:
    memset(out, 0, sizeof(GroupMembers))
    if engine_membership(s.engine, group, out) and out.value != NULL:
        block_ref(out.value)


cdef int members_known(DriverState* s, const KnownMembers* told) noexcept nogil:
    return input_change_known(s, told.group, told.version, told.value.data, told.value.size,
                              told.instance, told.floor, told.active) != 0


cdef void answer(DriverState* s, Question* question) noexcept nogil:
    cdef GroupStatus status
    cdef size_t i
    cdef Flow* flow
    if question.kind == ASK_STATUS:
        fill_status(s, <NodeStatus*>question.status)
    elif question.kind == ASK_GROUP:
        flow = find_flow(s, question.group)
        if flow != NULL:
            fill_row(s, flow, &question.rows)
    elif question.kind == ASK_GROUPS:
        for i in range(s.flows.size()):
            fill_row(s, &s.flows[i], &question.rows)
    elif question.kind == ASK_BUSY:
        for i in range(s.flows.size()):
            if busy(s, &s.flows[i]):
                fill_row(s, &s.flows[i], &question.rows)
    elif question.kind == ASK_TRANSFER:
        if engine_group_status(s.engine, question.group, &status):
            question.instance = status.ballot
        question.verdict = input_transfer(s, question.group, question.peer)
    elif question.kind == ASK_ADD_PEER:
        question.verdict = add_peer(s, question.peer, <PeerWanted*>question.status)
    elif question.kind == ASK_DROP_PEER:
        question.verdict = drop_peer(s, question.peer, <PeerWanted*>question.status)
    elif question.kind == ASK_MOVE_PEER:
        question.verdict = move_peer(s, question.peer, <PeerWanted*>question.status)
    elif question.kind == ASK_MEMBERS:
        members_of(s, question.group, <GroupMembers*>question.status)
    elif question.kind == ASK_CHANGE_MEMBERS:
        question.verdict = input_change_members(s, question.group, question.body.data,
                                                question.body.size)
    elif question.kind == ASK_CHANGE_KNOWN:
        question.verdict = members_known(s, <KnownMembers*>question.status)
    elif question.kind == ASK_ADD_GROUP:
        question.verdict = hosting_add(s, question.group, <GroupWanted*>question.status)
    elif question.kind == ASK_DROP_GROUP:
        hosting_drop(s, question.group)
    elif question.kind == ASK_END_GROUP:
        question.verdict = hosting_end(s, question.group)
    elif question.kind == ASK_DURABILITY:
        question.instance = input_durability(s, question.group, question.instance)
        s.again = True
    else:
        flow_read(s, question)
    inbox_answer(&s.inbox, question)


# --- effects

cdef bint sync_inline(DriverState* s, const Effects* effects) noexcept nogil:
    cdef i64 syncs = phx_load(&s.journal.counters.syncs)
    cdef i64 last = phx_load(&s.journal.counters.sync_last_ns)
    if syncs != s.syncs_seen:
        s.syncs_seen = syncs
        if s.sync_average_ns == 0:
            s.sync_average_ns = <u64>last
        s.sync_average_ns = (s.sync_average_ns * 7 + <u64>last) // 8
    if effects.records.size > s.options.inline_bytes_max or s.pressure:
        return False
    return s.sync_average_ns != 0 and s.sync_average_ns < INLINE_AVERAGE_NS \
        and last < INLINE_LAST_NS


# What leaves the node before this does not wait for it; see `after` of the frames.
cdef void write_records(DriverState* s, const Effects* effects) noexcept nogil:
    # Carry-over is what makes room.
    cdef bint urgent = s.pressure == PRESSURE_FULL or effects.floor_lsn != 0
    cdef int done = 0
    if effects.records == NULL:
        return
    if sync_inline(s, effects):
        done = writer_inline(s.writer, effects.records, effects.lsn_first, effects.lsn_end,
                             effects.sync, effects.write, urgent)
    if done == 0:
        writer_push(s.writer, effects.records, effects.lsn_first, effects.lsn_end, effects.sync,
                    effects.write, urgent)
    elif journal_news(s):
        s.again = True


cdef void send_frames(DriverState* s, const Effects* effects) noexcept nogil:
    cdef size_t i
    cdef const Outgoing* out
    for i in range(effects.outgoing.size()):
        out = &effects.outgoing[i]
        transport_send(s.transport, out.peer, out.after, out.frame)
    transport_flush(s.transport, s.now_us)


# Of two changes in one turn the engine only knows the newer. The older one was active before that
# was proposed, and its ballots above that of its packer; the newer says whether this node has left.
cdef bint tell_passed(DriverState* s, const Event* event) noexcept nogil:
    cdef GroupMembers said
    cdef Roster roster
    cdef Block* body = engine_entry(s.engine, event.group, event.first_seq)
    if body == NULL or not roster_read(&roster, body.data, body.size) \
            or roster.version != event.count:
        return False
    memset(&said, 0, sizeof(said))
    said.version = <u32>roster.version
    said.flags = MEMBERS_ACTIVE
    said.instance = event.first_seq
    said.floor = roster.ballot
    said.value = body
    outbox_members(&s.outbox, event.group, &said)
    return True


# Before anything above is handed over: who applies has to know them first.
cdef void tell_members(DriverState* s, const Effects* effects) noexcept nogil:
    cdef GroupMembers said
    cdef size_t i
    for i in range(effects.events.size()):
        if effects.events[i].kind == EVENT_MEMBERS \
                and engine_membership(s.engine, effects.events[i].group, &said) \
                and said.instance != 0:
            if effects.events[i].count < said.version and tell_passed(s, &effects.events[i]):
                continue
            outbox_members(&s.outbox, effects.events[i].group, &said)


cdef void deliver(DriverState* s, const Effects* effects) noexcept nogil:
    cdef size_t i
    cdef Flow* flow
    tell_members(s, effects)
    for i in range(effects.chosen.size()):
        flow_chosen(s, &effects.chosen[i])
    flow_feed(s)
    for i in range(effects.events.size()):
        if effects.events[i].kind == EVENT_MEMBERS:
            continue
        flow = find_flow(s, effects.events[i].group)
        outbox_event(&s.outbox, flow_index(s, flow) if flow != NULL else <u32>s.flows.size(),
                     &effects.events[i])
    outbox_points(&s.outbox, &effects.points)
    outbox_signal(&s.outbox)


# --- the turn

cdef u64 spend(DriverState* s, int layer, u64 since_ns) noexcept nogil:
    cdef u64 now_ns = phx_span_ns()
    s.layers_ns[layer] += now_ns - since_ns
    return now_ns


# A trace that ends early is worth a line: what it lacks did happen.
cdef void say_trace(DriverState* s) noexcept nogil:
    cdef int error = trace_failed(s.trace)
    cdef char line[160]
    if error != 0:
        snprintf(line, 160, "the trace ends here: %s", strerror(error))
        outbox_log(&s.outbox, LOG_WARNING, line)


# Others let in less while callers here wait for what they let in. In steps, for each is traced.
cdef void tell_late(DriverState* s) noexcept nogil:
    cdef u64 late_us = 0
    if phx_load(&s.turning_away):
        late_us = min(<u64>phx_load(&s.late_us), <u64>0xFFFFFFFF)
    if late_us >> LATE_STEP_BITS != s.late_told_us >> LATE_STEP_BITS:
        s.late_told_us = late_us
        input_late(s, <u32>late_us)


cdef void turn(DriverState* s) noexcept nogil:
    cdef Effects* effects
    cdef size_t i
    cdef u64 since
    wait_for_work(s)
    s.turns += 1
    s.now_us = phx_now_us()
    since = phx_span_ns()
    # The engine's clock first: what arrives is judged at the time of its arrival.
    input_advance(s, s.now_us, phx_wall_us())
    transport_turn(s.transport, &s.watched, s.now_us)
    since = spend(s, LAYER_NETWORK, since)
    take_inbox(s)
    tell_late(s)
    since = spend(s, LAYER_SUBMIT, since)
    take_durable(s)
    read_clock_again(s)
    effects = input_turn(s)
    s.engine_wake_us = effects.wake_at_us
    s.lsn_end = effects.lsn_end
    # Before anything of this turn leaves: whoever is told of it may read here next.
    publish(s.published, s.engine, &effects.republish)
    since = spend(s, LAYER_ENGINE, since)
    send_frames(s, effects)
    since = spend(s, LAYER_SEND, since)
    deliver(s, effects)
    since = spend(s, LAYER_DELIVER, since)
    write_records(s, effects)
    since = spend(s, LAYER_JOURNAL, since)
    # From here on the effects are gone as soon as the engine is told anything: fetches are copied.
    s.fetches.clear()
    for i in range(effects.fetches.size()):
        s.fetches.push_back(effects.fetches[i])
    upkeep_turn(s, effects)
    for i in range(s.fetches.size()):
        flow_fetch(s, &s.fetches[i])
    spend(s, LAYER_DELIVER, since)
    if s.trace != NULL:
        say_trace(s)
    outbox_signal(&s.outbox)


cdef void* poller_run(void* arg) noexcept nogil:
    cdef DriverState* s = <DriverState*>arg
    phx_thread_name("phx-poll")
    while not phx_load(&s.stopping):
        turn(s)
    inbox_close(&s.inbox)
    chores_close(&s.chores)
    lookups_close(&s.lookups)
    while s.submitted < s.submissions.size():
        block_unref(s.submissions[s.submitted].block)
        s.submitted += 1
    # What was emitted reaches the disk, so that a restart replays it; nobody is told any more.
    writer_stop(s.writer)
    s.clean = writer_error(s.writer) == 0
    pthread_mutex_lock(&s.inbox.lock)
    phx_store(&s.exited, 1)
    pthread_cond_broadcast(&s.inbox.answered)
    pthread_mutex_unlock(&s.inbox.lock)
    return NULL
