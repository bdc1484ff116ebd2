# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Chosen entries on their way out of the engine; see flow.pxd."""

from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from phx._core.driver_state cimport (
    DriverState, Flow, NO_GROUP, Opening, find_flow, flow_index,
)
from phx._core.codec cimport RecordHeader, align8
from phx._core.engine cimport engine_entry, engine_group_status, engine_location
from phx._core.inputs cimport input_applied, input_install, input_restoring, input_supply
from phx._core.journal cimport JOURNAL_GONE, JOURNAL_NOT_YET, journal_read
from phx._core.native cimport *
from phx._core.port cimport phx_fence
from phx._core.queues cimport (
    CHORE_FETCH, CHORE_LOAD, READ_BODY, READ_FAILED, READ_NO_GROUP, READ_NOT_CHOSEN, READ_SETTLED,
    Chore, Handed, Question, chores_forget, chores_push, outbox_event, outbox_hand, outbox_log,
)
from phx._core.state cimport (
    EVENT_BELOW, ChosenRange, Event, Fetch, Gone, GroupStatus, Replica, find_group,
)
from phx._core.transport cimport LOG_ERROR, LOG_WARNING
from phx._core.wire cimport SuppliedEntry

cdef enum:
    STRETCH_MAX = 4096           # entries in one piece handed over
    TURN_BYTES = 4194304         # handed over in one turn, so that the engine is not kept waiting
    FETCH_BYTES = 1048576        # in one answer to a peer
    ENTRY_COST = 48              # what an entry counts beside its body
    LOADS_MAX = 4                # asked of the store at once
    LOAD_ENTRIES = 65536
    RETRY_US = 1000000

cdef u64 NEVER = 0xFFFFFFFFFFFFFFFF


# The body of a chosen instance as a reference of the caller's: READ_BODY. Otherwise READ_SETTLED
# (the store has it), READ_NOT_CHOSEN (or its record is not written yet: soon), READ_FAILED.
cdef int entry_body(DriverState* s, u32 group, u64 instance, Block** out) noexcept nogil:
    cdef RecordHeader header
    cdef Block* body = engine_entry(s.engine, group, instance)
    cdef u64 lsn
    cdef int got
    cdef char line[160]
    if body != NULL:
        out[0] = block_ref(body)
        return READ_BODY
    lsn = engine_location(s.engine, group, instance)
    if lsn == 0:
        return READ_SETTLED
    got = journal_read(s.journal, lsn, out, &header)
    if got == 0 and header.group == group and header.index == instance:
        return READ_BODY
    if got == 0:
        block_unref(out[0])
    if got == JOURNAL_GONE:
        return READ_SETTLED
    if got == JOURNAL_NOT_YET:
        return READ_NOT_CHOSEN
    snprintf(line, 160, "group %u, instance %llu: its journal record at %llu cannot be read (%d)",
             group, <unsigned long long>instance, <unsigned long long>lsn, got)
    outbox_log(&s.outbox, LOG_ERROR, line)
    return READ_FAILED


# --- to the applier

# Stands in the backlog if there is something that may be handed over. (`next` may lie beyond
# last + 1: the machine is ahead of what is known to be chosen.)
cdef void wait_in_line(DriverState* s, Flow* flow) noexcept nogil:
    cdef u32 index = flow_index(s, flow)
    if flow.next > flow.last or flow.waiting or flow.loading or flow.paused:
        return
    flow.waiting = True
    s.backlog.push_back(index)


cdef void flow_add(DriverState* s, u32 group, const Opening* opening) noexcept nogil:
    cdef Flow flow, none
    cdef u32 index
    memset(&flow, 0, sizeof(Flow))
    memset(&none, 0, sizeof(Flow))
    flow.group = group
    flow.next = opening.start + 1
    flow.last = opening.settled_through
    flow.paused = opening.paused
    index = find_group(s.engine, group).index
    none.group = NO_GROUP
    while s.flows.size() <= index:
        s.flows.push_back(none)
    s.flows[index] = flow
    wait_in_line(s, &s.flows[index])


cdef bint line_forget(deque[u32]* line, u32 index) noexcept nogil:
    cdef deque[u32] kept
    cdef size_t i
    cdef bint there
    for i in range(line.size()):
        if line[0][i] != index:
            kept.push_back(line[0][i])
    there = kept.size() != line.size()
    line.swap(kept)
    return there


cdef void flow_drop(DriverState* s, u32 group) noexcept nogil:
    cdef Flow* flow = find_flow(s, group)
    cdef u32 index = flow_index(s, flow)
    cdef Gone lost
    cdef bint in_line = line_forget(&s.loads_line, index)
    cdef u32 queued = chores_forget(&s.chores, group)
    line_forget(&s.backlog, index)
    s.loads -= queued
    if queued == 0 and flow.loading and not in_line:
        # The store is at it.
        lost.group = group
        lost.generation = generation_of(s, group)
        s.loads_lost.push_back(lost)
    memset(flow, 0, sizeof(Flow))
    flow.group = NO_GROUP
    loads_next(s)


# What the store gives was asked for by the very group that has the id now.
cdef bint load_awaited(DriverState* s, Flow* flow, u32 group, u32 generation) noexcept nogil:
    cdef size_t i
    for i in range(s.loads_lost.size()):
        if s.loads_lost[i].group == group and s.loads_lost[i].generation == generation:
            s.loads_lost[i] = s.loads_lost.back()
            s.loads_lost.pop_back()
            s.loads -= 1
            loads_next(s)
            return False
    return flow != NULL and flow.loading and generation_of(s, group) == generation


cdef u32 generation_of(DriverState* s, u32 group) noexcept nogil:
    cdef Replica* r = find_group(s.engine, group)
    return r.generation if r != NULL else 0


cdef void flow_pause(DriverState* s, u32 group) noexcept nogil:
    cdef Flow* flow = find_flow(s, group)
    if flow == NULL or flow.paused:
        return
    flow.paused = True
    input_restoring(s, group, True)


cdef void flow_resume(DriverState* s, u32 group, u64 start) noexcept nogil:
    cdef Flow* flow = find_flow(s, group)
    if flow == NULL or not flow.paused:
        return
    flow.paused = False
    flow.next = start + 1
    input_applied(s, group, start)
    input_restoring(s, group, False)
    wait_in_line(s, flow)


cdef void flow_install(DriverState* s, u32 group, u64 through, u64 ballot) noexcept nogil:
    cdef Flow* flow = find_flow(s, group)
    s.again = True
    if flow == NULL or input_install(s, group, through, ballot) != 0 or flow.next > through:
        return
    flow.next = through + 1
    flow.last = max(flow.last, through)
    flow.retry_us = 0
    if not flow.paused:
        input_applied(s, group, through)
    wait_in_line(s, flow)


cdef void flow_chosen(DriverState* s, const ChosenRange* chosen) noexcept nogil:
    cdef Flow* flow = find_flow(s, chosen.group)
    if flow == NULL or chosen.last <= flow.last:
        return
    flow.last = chosen.last
    wait_in_line(s, flow)


cdef u64 room_left(DriverState* s) noexcept nogil:
    cdef u64 used = <u64>phx_load(&s.outbox.handed_bytes)
    if used >= s.options.delivery_bytes_max:
        return 0
    return s.options.delivery_bytes_max - used


cdef void hand(DriverState* s, Flow* flow, Block** bodies, u32 count, u64 nbytes) noexcept nogil:
    cdef Handed item
    item.entries.group = flow.group
    item.entries.first = flow.next
    item.entries.count = count
    item.entries.bodies = bodies
    item.index = flow_index(s, flow)
    item.bytes = nbytes
    item.at_us = s.now_us
    flow.next += count
    outbox_hand(&s.outbox, &item)


cdef bint ask_store(DriverState* s, Flow* flow) noexcept nogil:
    cdef GroupStatus status
    cdef Chore chore
    memset(&chore, 0, sizeof(Chore))
    chore.kind = CHORE_LOAD
    chore.group = flow.group
    chore.generation = generation_of(s, flow.group)
    chore.first = flow.next
    chore.last = flow.last
    if engine_group_status(s.engine, flow.group, &status):
        chore.last = min(chore.last, max(status.settled_through, flow.next))
    chore.last = min(chore.last, flow.next + LOAD_ENTRIES - 1)
    return chores_push(&s.chores, &chore)


# The store is asked for a few flows at a time; the others stand in a line of their own. `loading`:
# in either.
cdef void load(DriverState* s, Flow* flow) noexcept nogil:
    cdef u32 index = flow_index(s, flow)
    if s.loads >= LOADS_MAX:
        flow.loading = True
        s.loads_line.push_back(index)
    elif ask_store(s, flow):
        flow.loading = True
        s.loads += 1
    else:
        flow.loading = False
        flow.retry_us = s.now_us + RETRY_US


cdef void loads_next(DriverState* s) noexcept nogil:
    cdef Flow* flow
    while s.loads < LOADS_MAX and not s.loads_line.empty():
        flow = &s.flows[s.loads_line.front()]
        s.loads_line.pop_front()
        flow.loading = False
        if flow.next <= flow.last:
            load(s, flow)
        wait_in_line(s, flow)


# Hand over one piece of a group's range; what it weighs, 0 when nothing could be.
cdef u64 feed(DriverState* s, Flow* flow, u64 budget) noexcept nogil:
    cdef u64 want = min(flow.last - flow.next + 1, <u64>STRETCH_MAX)
    cdef Block** bodies = <Block**>phx_malloc(want * sizeof(Block*))
    cdef u64 nbytes = 0
    cdef u32 count = 0
    cdef int verdict = READ_BODY
    if bodies == NULL:
        phx_fatal("out of memory")
    while count < want and nbytes < budget:
        verdict = entry_body(s, flow.group, flow.next + count, &bodies[count])
        if verdict != READ_BODY:
            break
        nbytes += bodies[count].size + ENTRY_COST
        count += 1
    if count:
        hand(s, flow, bodies, count, nbytes)
    else:
        phx_free(bodies)
    if verdict == READ_SETTLED:
        load(s, flow)
    elif verdict == READ_FAILED:
        flow.retry_us = s.now_us + RETRY_US
    return nbytes


# Flows take turns: each hands over one piece and goes to the end of the line.
cdef void flow_feed(DriverState* s) noexcept nogil:
    cdef u64 room, done, budget = TURN_BYTES
    cdef size_t i, n = s.backlog.size()
    cdef Flow* flow
    cdef bint full = False
    if n == 0:
        return
    phx_store(&s.outbox.starved, 0)
    for i in range(n):
        room = min(room_left(s), budget)
        if room == 0:
            full = budget != 0
            break
        flow = &s.flows[s.backlog.front()]
        s.backlog.pop_front()
        flow.waiting = False
        # (What stood here may have been passed over, or paused, since.)
        if s.now_us >= flow.retry_us and flow.next <= flow.last and not flow.paused:
            done = feed(s, flow, room)
            budget -= min(done, budget)
            if done and flow.next <= flow.last and not flow.loading:
                s.again = True
        wait_in_line(s, flow)
    if full:
        # From here on the taker wakes this thread; what it took before it saw the flag is seen
        # here.
        phx_store(&s.outbox.starved, 1)
        phx_fence()
        if room_left(s) * 2 > s.options.delivery_bytes_max:
            s.again = True
    elif budget == 0 and not s.backlog.empty():
        s.again = True


cdef u64 flow_deadline(DriverState* s) noexcept nogil:
    cdef u64 at = NEVER
    cdef size_t i
    cdef Flow* flow
    for i in range(min(s.backlog.size(), <size_t>64)):
        flow = &s.flows[s.backlog[i]]
        if flow.retry_us > s.now_us:
            at = min(at, flow.retry_us)
    return at


# Bytes of the sound entry for `instance` at data[0:count] with its padding, or 0.
cdef u64 loaded_entry(const u8* data, u64 count, u64 instance, u32* body_bytes) noexcept nogil:
    cdef SuppliedEntry header
    cdef u64 stride
    if count < sizeof(SuppliedEntry):
        return 0
    memcpy(&header, data, sizeof(SuppliedEntry))
    stride = align8(sizeof(SuppliedEntry) + <u64>header.body_bytes)
    if header.instance != instance or stride > count:
        return 0
    body_bytes[0] = header.body_bytes
    return stride


# The store has nothing at flow.next. A floor above it must not be (what is trimmed is in a
# checkpoint that the machine was made of), unless something was lost.
cdef void not_there(DriverState* s, Flow* flow) noexcept nogil:
    cdef GroupStatus status
    cdef Event event
    cdef char line[120]
    flow.retry_us = s.now_us + RETRY_US
    snprintf(line, 120, "group %u: the store gave no entry at instance %llu", flow.group,
             <unsigned long long>flow.next)
    outbox_log(&s.outbox, LOG_WARNING, line)
    if engine_group_status(s.engine, flow.group, &status) and flow.next < status.floor:
        memset(&event, 0, sizeof(Event))
        event.kind = EVENT_BELOW
        event.group = flow.group
        event.first_seq = status.floor
        outbox_event(&s.outbox, flow_index(s, flow), &event)


cdef void flow_loaded(DriverState* s, u32 group, u32 generation, u64 first,
                      Block* entries) noexcept nogil:
    cdef Flow* flow = find_flow(s, group)
    cdef vector[Block*] bodies
    cdef Block** piece
    cdef u64 at = 0, stride, nbytes = 0
    cdef u32 body_bytes = 0
    if not load_awaited(s, flow, group, generation):
        return
    flow.loading = False
    s.loads -= 1
    while entries != NULL and first == flow.next and not flow.paused:
        stride = loaded_entry(entries.data + at, entries.size - at, first + bodies.size(),
                              &body_bytes)
        if stride == 0:
            break
        bodies.push_back(block_copy(entries.data + at + sizeof(SuppliedEntry), body_bytes))
        nbytes += body_bytes + ENTRY_COST
        at += stride
    if first != flow.next or flow.paused:
        # Asked for before an install, or a pause.
        pass
    elif bodies.empty():
        not_there(s, flow)
    else:
        piece = <Block**>phx_malloc(bodies.size() * sizeof(Block*))
        if piece == NULL:
            phx_fatal("out of memory")
        memcpy(piece, bodies.data(), bodies.size() * sizeof(Block*))
        hand(s, flow, piece, <u32>bodies.size(), nbytes)
    wait_in_line(s, flow)
    loads_next(s)


# --- to peers and readers

cdef Block* supply_entry(Block* out, u64 instance, Block* body) noexcept nogil:
    cdef SuppliedEntry header
    header.instance = instance
    header.body_bytes = <u32>body.size
    header.pad = 0
    out = block_append(out, &header, sizeof(SuppliedEntry))
    out = block_append(out, body.data, body.size)
    return block_pad8(out)


# An answer goes in one frame: entries up to a frame's size, and the one that crosses it.
cdef u64 answer_bytes(DriverState* s) noexcept nogil:
    return min(<u64>FETCH_BYTES, <u64>s.options.engine.frame_bytes_max)


cdef void flow_supply(DriverState* s, u32 group, u32 generation, u32 peer, u64 first,
                      Block* entries) noexcept nogil:
    cdef u64 at = 0, stride, instance = first
    cdef u32 body_bytes = 0
    if generation_of(s, group) != generation:
        return
    while entries != NULL and at < answer_bytes(s):
        stride = loaded_entry(entries.data + at, entries.size - at, instance, &body_bytes)
        if stride == 0:
            break
        at += stride
        instance += 1
    input_supply(s, group, peer, first, entries.data if at else NULL, at)
    s.again = True


cdef void flow_fetch(DriverState* s, const Fetch* fetch) noexcept nogil:
    cdef Block* out = block_new(4096)
    cdef Block* body = NULL
    cdef u64 instance = fetch.first
    cdef int verdict = READ_NOT_CHOSEN
    cdef Chore chore
    cdef bint asked = False
    while instance <= fetch.last and out.size < answer_bytes(s):
        verdict = entry_body(s, fetch.group, instance, &body)
        if verdict != READ_BODY:
            break
        out = supply_entry(out, instance, body)
        block_unref(body)
        instance += 1
    if instance == fetch.first and verdict == READ_SETTLED:
        memset(&chore, 0, sizeof(Chore))
        chore.kind = CHORE_FETCH
        chore.group = fetch.group
        chore.generation = generation_of(s, fetch.group)
        chore.peer = fetch.peer
        chore.first = fetch.first
        chore.last = fetch.last
        asked = chores_push(&s.chores, &chore)
    if not asked:
        input_supply(s, fetch.group, fetch.peer, fetch.first, out.data, out.size)
        s.again = True
    block_unref(out)


cdef void flow_read(DriverState* s, Question* question) noexcept nogil:
    cdef GroupStatus status
    cdef Flow* flow = find_flow(s, question.group)
    memset(&status, 0, sizeof(GroupStatus))
    if flow == NULL or not engine_group_status(s.engine, question.group, &status):
        question.verdict = READ_NO_GROUP
    elif question.instance > max(flow.last, status.settled_through):
        # (What became chosen in this very turn is not handed out before it is published.)
        question.verdict = READ_NOT_CHOSEN
    elif question.instance <= status.settled_through:
        question.verdict = READ_SETTLED
    else:
        question.verdict = entry_body(s, question.group, question.instance, &question.body)
