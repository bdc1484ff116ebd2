# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Queues between threads; see queues.pxd."""

from libc.string cimport memcpy, memset, strncpy

from phx._core.delivery cimport Delivered, delivered_free
from phx._core.groups cimport event_of_group, index_purge
from phx._core.native cimport *
from phx._core.port cimport (
    phx_cond_init, phx_cond_wait_us, phx_fence, phx_span_ns, phx_waker_signal,
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_signal, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from phx._core.reads cimport READS_MAX
from phx._core.state cimport (
    EVENT_BELOW, EVENT_FAILED, EVENT_LEADER, EVENT_PEER_REFUSED, Event, ReadPoint, SettleItem,
)

cdef enum:
    SUBMISSION_BYTES = 64        # what a submission costs beside its items
    ASK_WAIT_US = 1000000
    NOT_TOLD = 0xFFFFFFFF


# --- inbox

cdef void inbox_init(Inbox* q, u32 n_groups, u64 bytes_max) noexcept nogil:
    cdef u64 none = 0
    cdef u32 i
    pthread_mutex_init(&q.lock, NULL)
    phx_cond_init(&q.answered)
    q.bytes_max = bytes_max
    q.waker.read_fd = -1
    q.waker.write_fd = -1
    for i in range(n_groups):
        q.applied.push_back(none)


cdef void inbox_close(Inbox* q) noexcept nogil:
    cdef size_t i
    pthread_mutex_lock(&q.lock)
    q.closed = True
    for i in range(q.submissions.size()):
        block_unref(q.submissions[i].block)
    for i in range(q.commands.size()):
        block_unref(q.commands[i].block)
        if q.commands[i].question != NULL:
            q.commands[i].question.verdict = -1
            q.commands[i].question.done = True
    q.submissions.clear()
    q.commands.clear()
    q.reads.clear()
    q.applied_dirty.clear()
    phx_store(&q.submitted_bytes, 0)
    pthread_cond_broadcast(&q.answered)
    pthread_mutex_unlock(&q.lock)


cdef void inbox_destroy(Inbox* q) noexcept nogil:
    inbox_close(q)
    pthread_mutex_destroy(&q.lock)
    pthread_cond_destroy(&q.answered)


cdef int inbox_submit(Inbox* q, Submission* items, size_t count) noexcept nogil:
    cdef u64 nbytes = 0
    cdef size_t i
    cdef int verdict = 0
    for i in range(count):
        nbytes += items[i].nbytes + SUBMISSION_BYTES
    pthread_mutex_lock(&q.lock)
    if q.closed:
        verdict = 2
    elif q.submitted_bytes and <u64>q.submitted_bytes + nbytes > q.bytes_max:
        verdict = 1
    else:
        for i in range(count):
            q.submissions.push_back(items[i])
        phx_add(&q.submitted_bytes, <i64>nbytes)
        phx_store(&q.pending, 1)
    pthread_mutex_unlock(&q.lock)
    if verdict == 0:
        inbox_wake(q)
    return verdict


cdef int inbox_command(Inbox* q, Command* command, bint wake) noexcept nogil:
    cdef int verdict = 0
    pthread_mutex_lock(&q.lock)
    if q.closed:
        verdict = 2
    elif q.commands.size() >= COMMANDS_MAX:
        verdict = 1
    else:
        q.commands.push_back(command[0])
        phx_store(&q.pending, 1)
    pthread_mutex_unlock(&q.lock)
    if wake and verdict == 0:
        inbox_wake(q)
    return verdict


cdef int inbox_read(Inbox* q, const ReadWanted* wanted) noexcept nogil:
    cdef ReadWanted copy = wanted[0]
    cdef int verdict = 0
    pthread_mutex_lock(&q.lock)
    if q.closed:
        verdict = 2
    elif q.reads_open >= READS_MAX:
        verdict = 1
    else:
        q.reads_open += 1
        q.reads.push_back(copy)
        phx_store(&q.pending, 1)
    pthread_mutex_unlock(&q.lock)
    if verdict == 0:
        inbox_wake(q)
    return verdict


cdef void inbox_applied(Inbox* q, u32 index, u64 instance) noexcept nogil:
    pthread_mutex_lock(&q.lock)
    if not q.closed and index < q.applied.size() and instance > q.applied[index]:
        if q.applied[index] == 0:
            q.applied_dirty.push_back(index)
        q.applied[index] = instance
        phx_store(&q.pending, 1)
    pthread_mutex_unlock(&q.lock)


cdef int inbox_ask(Inbox* q, Question* question) noexcept nogil:
    cdef Command command
    cdef int verdict
    memset(&command, 0, sizeof(Command))
    command.kind = COMMAND_ASK
    command.question = question
    question.done = False
    question.verdict = 0
    verdict = inbox_command(q, &command, True)
    if verdict != 0:
        return verdict
    pthread_mutex_lock(&q.lock)
    while not question.done:
        phx_cond_wait_us(&q.answered, &q.lock, ASK_WAIT_US)
    pthread_mutex_unlock(&q.lock)
    return 0 if question.verdict >= 0 else 2


cdef void inbox_answer(Inbox* q, Question* question) noexcept nogil:
    pthread_mutex_lock(&q.lock)
    question.done = True
    pthread_cond_broadcast(&q.answered)
    pthread_mutex_unlock(&q.lock)


cdef void inbox_swap(Inbox* q, vector[Submission]* submissions, vector[Command]* commands,
                     vector[ReadWanted]* reads, vector[u64]* applied) noexcept nogil:
    cdef size_t i
    cdef u32 index
    cdef u64 word
    pthread_mutex_lock(&q.lock)
    phx_store(&q.pending, 0)
    if submissions.empty():
        q.submissions.swap(submissions[0])
        phx_store(&q.submitted_bytes, 0)
    elif not q.submissions.empty():
        phx_store(&q.pending, 1)
    q.commands.swap(commands[0])
    q.reads.swap(reads[0])
    for i in range(q.applied_dirty.size()):
        index = q.applied_dirty[i]
        word = index
        applied.push_back(word)
        applied.push_back(q.applied[index])
        q.applied[index] = 0
    q.applied_dirty.clear()
    pthread_mutex_unlock(&q.lock)


cdef void submissions_forget(vector[Submission]* items, size_t first, u32 group,
                             i64* nbytes) noexcept nogil:
    cdef size_t i, kept = first
    for i in range(first, items.size()):
        if items[0][i].group != group:
            items[0][kept] = items[0][i]
            kept += 1
            continue
        nbytes[0] += <i64>(items[0][i].nbytes + SUBMISSION_BYTES)
        block_unref(items[0][i].block)
    items.resize(kept)


cdef void inbox_blank(Inbox* q, u32 index, u32 group) noexcept nogil:
    cdef u64 none = 0
    cdef i64 nbytes = 0
    cdef size_t i, kept = 0
    pthread_mutex_lock(&q.lock)
    while q.applied.size() <= index:
        q.applied.push_back(none)
    q.applied[index] = 0
    for i in range(q.applied_dirty.size()):
        if q.applied_dirty[i] != index:
            q.applied_dirty[kept] = q.applied_dirty[i]
            kept += 1
    q.applied_dirty.resize(kept)
    submissions_forget(&q.submissions, 0, group, &nbytes)
    phx_add(&q.submitted_bytes, -nbytes)
    pthread_mutex_unlock(&q.lock)


# The flag is read after what was queued became visible, and set before the queue is looked at
# for the last time: one of the two sides sees the other.
cdef void inbox_wake(Inbox* q) noexcept nogil:
    phx_fence()
    if phx_load(&q.sleeping) and phx_exchange(&q.sleeping, 0):
        phx_waker_signal(&q.waker)


cdef bint inbox_sleep(Inbox* q) noexcept nogil:
    phx_store(&q.sleeping, 1)
    phx_fence()
    if phx_load(&q.pending):
        phx_store(&q.sleeping, 0)
        return False
    return True


cdef void inbox_awake(Inbox* q) noexcept nogil:
    phx_store(&q.sleeping, 0)


# --- outbox

cdef void outbox_init(Outbox* q, vector[u32]* groups) noexcept nogil:
    cdef u32 not_told = NOT_TOLD
    cdef u64 no_epoch = 0
    cdef u8 clean = 0
    cdef size_t i
    pthread_mutex_init(&q.lock, NULL)
    q.waker.read_fd = -1
    q.waker.write_fd = -1
    for i in range(groups.size()):
        q.groups.push_back(groups[0][i])
        q.leaders.push_back(not_told)
        q.epochs.push_back(no_epoch)
        q.leader_dirty.push_back(clean)
        q.below.push_back(clean)


cdef void handed_forget(Outbox* q, u32 index) noexcept nogil:
    cdef deque[Handed] kept
    cdef i64 nbytes = 0
    cdef size_t i
    for i in range(q.handed.size()):
        if q.handed[i].index != index:
            kept.push_back(q.handed[i])
            continue
        nbytes += <i64>q.handed[i].bytes
        delivered_free(&q.handed[i].entries)
    q.handed.swap(kept)
    phx_add(&q.handed_bytes, -nbytes)


cdef void events_forget(Outbox* q, u32 group) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(q.events.size()):
        if q.events[i].group != group or not event_of_group(q.events[i].kind):
            q.events[kept] = q.events[i]
            kept += 1
    q.events.resize(kept)


cdef void notes_forget(Outbox* q, u32 group) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(q.members.size()):
        if q.members[i].group != group:
            q.members[kept] = q.members[i]
            kept += 1
            continue
        block_unref(q.members[i].said.value)
        phx_add(&q.members_told, -1)
    q.members.resize(kept)


cdef void outbox_blank(Outbox* q, u32 index, u32 group) noexcept nogil:
    cdef u32 not_told = NOT_TOLD
    cdef u64 no_epoch = 0
    cdef u8 clean = 0
    pthread_mutex_lock(&q.lock)
    while q.groups.size() <= index:
        q.groups.push_back(not_told)
        q.leaders.push_back(not_told)
        q.epochs.push_back(no_epoch)
        q.leader_dirty.push_back(clean)
        q.below.push_back(clean)
    handed_forget(q, index)
    events_forget(q, group)
    notes_forget(q, group)
    index_purge(&q.leaders_dirty, index)
    index_purge(&q.belows, index)
    q.groups[index] = group
    q.leaders[index] = NOT_TOLD
    q.epochs[index] = 0
    q.leader_dirty[index] = 0
    q.below[index] = 0
    pthread_mutex_unlock(&q.lock)


cdef void outbox_drop(Outbox* q) noexcept nogil:
    cdef size_t i
    pthread_mutex_lock(&q.lock)
    for i in range(q.handed.size()):
        delivered_free(&q.handed[i].entries)
    q.handed.clear()
    phx_store(&q.handed_bytes, 0)
    for i in range(q.members.size()):
        block_unref(q.members[i].said.value)
    q.members.clear()
    pthread_mutex_unlock(&q.lock)


cdef void outbox_destroy(Outbox* q) noexcept nogil:
    outbox_drop(q)
    pthread_mutex_destroy(&q.lock)


cdef void outbox_hand(Outbox* q, Handed* item) noexcept nogil:
    phx_add(&q.handed_bytes, <i64>item.bytes)
    pthread_mutex_lock(&q.lock)
    q.handed.push_back(item[0])
    pthread_mutex_unlock(&q.lock)
    q.signal = True


cdef bint join_failed(Outbox* q, const Event* event) noexcept nogil:
    cdef Event* last
    if event.kind != EVENT_FAILED or q.events.empty():
        return False
    last = &q.events.back()
    if last.kind != EVENT_FAILED or last.group != event.group or last.verdict != event.verdict \
            or last.first_seq + last.count != event.first_seq:
        return False
    last.count += event.count
    return True


cdef bint refused_before(Outbox* q, u32 node) noexcept nogil:
    cdef size_t i
    for i in range(q.refused_peers.size()):
        if q.refused_peers[i] == node:
            return True
    q.refused_peers.push_back(node)
    return False


cdef bint below_before(Outbox* q, u32 index) noexcept nogil:
    if index >= q.below.size() or q.below[index]:
        return True
    q.below[index] = 1
    q.belows.push_back(index)
    return False


cdef void outbox_event(Outbox* q, u32 index, const Event* event) noexcept nogil:
    cdef Event copy = event[0]
    pthread_mutex_lock(&q.lock)
    if event.kind == EVENT_LEADER and index < q.leaders.size():
        q.leaders[index] = event.leader
        q.epochs[index] = event.first_seq
        if not q.leader_dirty[index]:
            q.leader_dirty[index] = 1
            q.leaders_dirty.push_back(index)
    elif event.kind == EVENT_PEER_REFUSED and refused_before(q, event.group):
        pass
    elif event.kind == EVENT_BELOW and below_before(q, index):
        pass
    elif not join_failed(q, event):
        q.events.push_back(copy)
    pthread_mutex_unlock(&q.lock)
    q.signal = True


cdef void outbox_points(Outbox* q, const vector[ReadPoint]* points) noexcept nogil:
    cdef ReadPoint point
    cdef size_t i
    if points.empty():
        return
    pthread_mutex_lock(&q.lock)
    for i in range(points.size()):
        point = points[0][i]
        q.points.push_back(point)
    pthread_mutex_unlock(&q.lock)
    q.signal = True


cdef void outbox_members(Outbox* q, u32 group, const GroupMembers* said) noexcept nogil:
    cdef MembersNote note
    note.group = group
    note.said = said[0]
    block_ref(note.said.value)
    pthread_mutex_lock(&q.lock)
    q.members.push_back(note)
    pthread_mutex_unlock(&q.lock)
    phx_add(&q.members_told, 1)
    q.signal = True


cdef void outbox_log(Outbox* q, int level, const char* text) noexcept nogil:
    cdef Message message
    pthread_mutex_lock(&q.lock)
    if q.messages.size() >= MESSAGES_MAX:
        q.messages_lost += 1
    else:
        message.level = level
        strncpy(message.text, text, MESSAGE_BYTES - 1)
        message.text[MESSAGE_BYTES - 1] = 0
        q.messages.push_back(message)
    pthread_mutex_unlock(&q.lock)
    q.signal = True


cdef void outbox_signal(Outbox* q) noexcept nogil:
    if q.signal:
        q.signal = False
        phx_waker_signal(&q.waker)


# Add the entries of `more` to those of `into`, whose array has room for *room; `more` is used up.
cdef void join_entries(Delivered* into, u32* room, Delivered* more) noexcept nogil:
    if into.count + more.count > room[0]:
        room[0] = 2 * (into.count + more.count)
        into.bodies = <Block**>phx_realloc(into.bodies, room[0] * sizeof(Block*))
        if into.bodies == NULL:
            phx_fatal("out of memory")
    memcpy(into.bodies + into.count, more.bodies, more.count * sizeof(Block*))
    into.count += more.count
    phx_free(more.bodies)


# Whether `more` goes on where `into` ends. (Behind an install it does not.)
cdef inline bint follows(const Delivered* into, const Delivered* more) noexcept nogil:
    return into.first + into.count == more.first


cdef u64 outbox_take(Outbox* q, u64 bytes_max, vector[Delivered]* out) noexcept nogil:
    cdef vector[Handed] taken
    cdef vector[u32] room
    cdef size_t i
    cdef u64 total = 0
    cdef u32 none = 0
    cdef Handed* item
    cdef bint more
    pthread_mutex_lock(&q.lock)
    while not q.handed.empty() and (total == 0 or total + q.handed.front().bytes <= bytes_max):
        total += q.handed.front().bytes
        taken.push_back(q.handed.front())
        q.handed.pop_front()
    more = not q.handed.empty()
    pthread_mutex_unlock(&q.lock)
    phx_add(&q.handed_bytes, -<i64>total)
    if more and q.waker.read_fd >= 0:
        phx_waker_signal(&q.waker)
    for i in range(taken.size()):
        item = &taken[i]
        while q.slots.size() <= item.index:
            q.slots.push_back(none)
        if q.slots[item.index] and follows(&out[0][q.slots[item.index] - 1], &item.entries):
            join_entries(&out[0][q.slots[item.index] - 1], &room[q.slots[item.index] - 1],
                         &item.entries)
        else:
            out.push_back(item.entries)
            room.push_back(item.entries.count)
            q.slots[item.index] = <u32>out.size()
    for i in range(taken.size()):
        q.slots[taken[i].index] = 0
    return taken.back().at_us if taken.size() else 0


cdef void outbox_events(Outbox* q, vector[Event]* out) noexcept nogil:
    cdef size_t i
    cdef u32 index
    cdef Event event
    memset(&event, 0, sizeof(Event))
    event.kind = EVENT_LEADER
    pthread_mutex_lock(&q.lock)
    q.events.swap(out[0])
    for i in range(q.leaders_dirty.size()):
        index = q.leaders_dirty[i]
        event.group = q.groups[index]
        event.leader = q.leaders[index]
        event.first_seq = q.epochs[index]
        q.leader_dirty[index] = 0
        out.push_back(event)
    q.leaders_dirty.clear()
    for i in range(q.belows.size()):
        q.below[q.belows[i]] = 0
    q.belows.clear()
    q.refused_peers.clear()
    pthread_mutex_unlock(&q.lock)


cdef void outbox_take_points(Outbox* q, Inbox* inbox, vector[ReadPoint]* out) noexcept nogil:
    pthread_mutex_lock(&q.lock)
    q.points.swap(out[0])
    pthread_mutex_unlock(&q.lock)
    if not out.empty():
        pthread_mutex_lock(&inbox.lock)
        inbox.reads_open -= <i64>out.size()
        pthread_mutex_unlock(&inbox.lock)


cdef void outbox_take_members(Outbox* q, vector[MembersNote]* out) noexcept nogil:
    pthread_mutex_lock(&q.lock)
    q.members.swap(out[0])
    pthread_mutex_unlock(&q.lock)


cdef void outbox_messages(Outbox* q, vector[Message]* out, u64* lost) noexcept nogil:
    pthread_mutex_lock(&q.lock)
    q.messages.swap(out[0])
    lost[0] = q.messages_lost
    q.messages_lost = 0
    pthread_mutex_unlock(&q.lock)


# --- chores

cdef void chores_init(Chores* q) noexcept nogil:
    pthread_mutex_init(&q.lock, NULL)
    phx_cond_init(&q.wake)


cdef void chore_free(Chore* chore) noexcept nogil:
    if chore.items != NULL:
        phx_delete(chore.items)
        chore.items = NULL


cdef void chores_close(Chores* q) noexcept nogil:
    cdef size_t i
    pthread_mutex_lock(&q.lock)
    q.closing = True
    for i in range(q.queue.size()):
        chore_free(&q.queue[i])
    q.queue.clear()
    pthread_cond_broadcast(&q.wake)
    pthread_mutex_unlock(&q.lock)


cdef void chores_destroy(Chores* q) noexcept nogil:
    chores_close(q)
    pthread_mutex_destroy(&q.lock)
    pthread_cond_destroy(&q.wake)


cdef bint chores_push(Chores* q, Chore* chore) noexcept nogil:
    cdef bint taken = False
    pthread_mutex_lock(&q.lock)
    if not q.closing and (chore.kind == CHORE_SETTLE or q.queue.size() < CHORES_MAX):
        q.queue.push_back(chore[0])
        pthread_cond_signal(&q.wake)
        taken = True
    pthread_mutex_unlock(&q.lock)
    return taken


cdef void items_forget(vector[SettleItem]* items, u32 group) noexcept nogil:
    cdef size_t i, kept = 0
    for i in range(items.size()):
        if items[0][i].group != group:
            items[0][kept] = items[0][i]
            kept += 1
    items.resize(kept)


cdef u32 chores_forget(Chores* q, u32 group) noexcept nogil:
    cdef deque[Chore] kept
    cdef u32 loads = 0
    cdef size_t i
    pthread_mutex_lock(&q.lock)
    for i in range(q.queue.size()):
        if q.queue[i].kind == CHORE_SETTLE:
            items_forget(q.queue[i].items, group)
        elif q.queue[i].group == group and q.queue[i].kind != CHORE_CLOSING:
            loads += q.queue[i].kind == CHORE_LOAD
            continue
        kept.push_back(q.queue[i])
    q.queue.swap(kept)
    pthread_mutex_unlock(&q.lock)
    return loads


cdef void chores_spare(Chores* q, u64 now_us) noexcept nogil:
    if phx_load(&q.spare):
        return
    pthread_mutex_lock(&q.lock)
    if now_us >= q.spare_after_us:
        phx_store(&q.spare, 1)
        pthread_cond_signal(&q.wake)
    pthread_mutex_unlock(&q.lock)


cdef void chores_spare_done(Chores* q, u64 after_us) noexcept nogil:
    pthread_mutex_lock(&q.lock)
    q.spare_after_us = after_us
    phx_store(&q.spare, 0)
    pthread_mutex_unlock(&q.lock)


cdef void chores_call(Chores* q) noexcept nogil:
    pthread_mutex_lock(&q.lock)
    q.called = True
    pthread_cond_signal(&q.wake)
    pthread_mutex_unlock(&q.lock)


cdef bint chores_take(Chores* q, u64 timeout_us, Chore* out) noexcept nogil:
    cdef u64 until_us = phx_span_ns() // 1000 + timeout_us
    cdef u64 now_us
    cdef bint found = False
    pthread_mutex_lock(&q.lock)
    while q.queue.empty() and not q.closing and not q.called and q.spare != 1:
        now_us = phx_span_ns() // 1000
        if now_us >= until_us:
            break
        phx_cond_wait_us(&q.wake, &q.lock, until_us - now_us)
    memset(out, 0, sizeof(Chore))
    if q.closing:
        out.kind = CHORE_CLOSING
        found = True
    elif q.spare == 1:
        phx_store(&q.spare, 2)
        out.kind = CHORE_SPARE
        found = True
    elif not q.queue.empty():
        out[0] = q.queue.front()
        q.queue.pop_front()
        found = True
    else:
        q.called = False
    pthread_mutex_unlock(&q.lock)
    return found
