# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The native half of a node from birth to death; see life.pxd."""

from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset, strerror

from phx._core.codec cimport (
    RECORD_HEADER_BYTES, RECORD_NODE, RECORD_PEER, RecordHeader, record_append,
)
from phx._core.disk cimport DiskApi, disk_folder_open, pthread_t as journal_thread_t
from phx._core.driver_state cimport DriverOptions, DriverState, Opening
from phx._core.engine cimport engine_free, engine_new
from phx._core.handover cimport handover_close, handover_destroy, handover_init
from phx._core.hosting cimport hosting_begin
from phx._core.inputs cimport (
    input_add_peer, input_ceiling, input_change_known, input_gone, input_priority, input_replay,
    input_start, input_suspect,
)
from phx._core.journal cimport (
    JOURNAL_DAMAGED, JOURNAL_IO, JOURNAL_MISSING, Journal, journal_new, journal_next_lsn,
    journal_open,
    journal_replay,
)
from phx._core.lookups cimport lookups_close, lookups_destroy, lookups_init
from phx._core.native cimport *
from phx._core.plan cimport hold_new, hold_unref
from phx._core.poller cimport poller_durable, poller_hooks, poller_run
from phx._core.port cimport *
from phx._core.published cimport published_unref
from phx._core.queues cimport (
    KnownMembers, chores_close, chores_destroy, chores_init, inbox_close, inbox_destroy, inbox_init,
    inbox_wake, outbox_destroy, outbox_drop, outbox_init,
)
from phx._core.state cimport NO_CEILING, PRIORITY_USUAL, Gone, slot_of
from phx._core.trace cimport trace_disk, trace_end, trace_open, trace_unref
from phx._core.transport cimport (
    PEER_NAMED, TransportHooks, transport_free, transport_listen, transport_new, transport_set_peer,
)
from phx._core.writer cimport writer_free, writer_new, writer_start

cdef extern from "port.h" nogil:
    void phx_thread_name_of(journal_thread_t thread, const char* name)


cdef DriverState* life_new(const DriverOptions* options, vector[u32]* groups) noexcept nogil:
    cdef DriverState* s = phx_new[DriverState]()
    s.options = options[0]
    inbox_init(&s.inbox, <u32>groups.size(), options.inbox_bytes_max)
    outbox_init(&s.outbox, groups)
    handover_init(&s.handover)
    chores_init(&s.chores)
    lookups_init(&s.lookups)
    return s


# --- start, step by step

cdef int replay_record(void* arg, const RecordHeader* header, const u8* body,
                       u64 lsn) noexcept nogil:
    return input_replay(<DriverState*>arg, header, body, lsn)


cdef int journal_failed(DriverState* s, int code, char* text) noexcept nogil:
    if s.journal.text[0]:
        snprintf(text, LIFE_TEXT_BYTES, "%s", s.journal.text)
    else:
        snprintf(text, LIFE_TEXT_BYTES, "journal error %d, errno %d", code,
                 <int>s.journal.errno_seen)
    return LIFE_JOURNAL - code


cdef int open_journal(DriverState* s, const char* folder, bint create, char* text) noexcept nogil:
    cdef DiskApi disk
    cdef const char* why
    cdef int code
    memset(&disk, 0, sizeof(DiskApi))
    code = disk_folder_open(&disk, folder, create)
    if code < 0:
        why = strerror(-code)
        if code == -EWOULDBLOCK:
            why = "in use by another node"
        snprintf(text, LIFE_TEXT_BYTES, "journal folder %s: %s", folder, why)
        return LIFE_JOURNAL - (JOURNAL_MISSING if code == -ENOENT else JOURNAL_IO)
    if s.trace != NULL:
        trace_disk(s.trace, &disk)
    s.journal = journal_new(&disk, &s.options.journal)
    s.hold = hold_new(s.journal, True)
    code = journal_open(s.journal, create)
    if code == 0:
        code = journal_replay(s.journal, replay_record, s)
    if code != 0 and s.engine.stray:
        snprintf(text, LIFE_TEXT_BYTES, "the journal holds votes of group %u, which the "
                 "configuration does not host: a group cannot be left out", s.engine.stray_group)
        return LIFE_OPTION
    if code == 0 and s.engine.incarnation < s.options.lost_before:
        # One was lost before, and of its successor the first records never became durable: those
        # say which groups may not vote.
        snprintf(text, LIFE_TEXT_BYTES, "the journal that was made after a loss, in life %u, was "
                 "never whole", s.options.lost_before)
        return LIFE_JOURNAL - JOURNAL_DAMAGED
    return journal_failed(s, code, text) if code != 0 else LIFE_OK


cdef int open_wakers(DriverState* s, char* text) noexcept nogil:
    cdef int code = phx_waker_open(&s.inbox.waker, &s.fds)
    if code == 0:
        code = phx_waker_open(&s.outbox.waker, &s.fds)
    if code == 0:
        return LIFE_OK
    snprintf(text, LIFE_TEXT_BYTES, "no descriptor for a waker: %s", strerror(-code))
    return LIFE_SYSTEM


cdef int open_transport(DriverState* s, char* text) noexcept nogil:
    cdef TransportHooks hooks
    cdef char where[64]
    cdef u32 i
    poller_hooks(s, &hooks)
    s.options.transport.incarnation = s.incarnation
    s.options.transport.window = s.options.engine.window
    s.transport = transport_new(&s.options.transport, &hooks, &s.fds)
    s.transport.durable = s.durable
    s.transport.trace = s.trace
    for i in range(s.options.n_peers):
        transport_set_peer(s.transport, s.options.peers[i], &s.options.addresses[i],
                           PEER_NAMED if s.options.named[i] else 0, s.now_us)
    s.port = transport_listen(s.transport, &s.options.bind)
    if s.port >= 0:
        return LIFE_OK
    phx_address_text(&s.options.bind, where, 64)
    snprintf(text, LIFE_TEXT_BYTES, "cannot listen at %s: %s", where, strerror(-s.port))
    return LIFE_BIND


cdef int start_threads(DriverState* s, char* text) noexcept nogil:
    cdef int code
    s.writer = writer_new(s.journal, poller_durable, s)
    code = writer_start(s.writer)
    if code == 0:
        phx_thread_name_of(s.writer.thread, "phx-journal")
        code = phx_thread_start(&s.thread, poller_run, s)
        s.running = code == 0
    if code == 0:
        return LIFE_OK
    snprintf(text, LIFE_TEXT_BYTES, "no thread: %s", strerror(-code))
    return LIFE_SYSTEM


cdef int open_trace(DriverState* s, const char* path, char* text) noexcept nogil:
    cdef int error = 0
    if path != NULL:
        s.trace = trace_open(path, s.options.trace_bytes_max, &s.options.engine,
                             s.options.journal.store_id, &error)
    if error == 0:
        return LIFE_OK
    snprintf(text, LIFE_TEXT_BYTES, "trace file %s: %s", path, strerror(-error))
    return LIFE_SYSTEM


cdef int add_groups(DriverState* s, vector[u32]* groups, vector[Opening]* openings,
                    const vector[Gone]* gone, char* text) noexcept nogil:
    cdef size_t i
    for i in range(gone.size()):
        input_gone(s, gone[0][i].group, gone[0][i].generation)
    for i in range(groups.size()):
        if hosting_begin(s, groups[0][i], &openings[0][i]) != 0:
            snprintf(text, LIFE_TEXT_BYTES, "group %u cannot be", groups[0][i])
            return LIFE_OPTION
    return LIFE_OK


cdef void remember(DriverState* s, u8 kind, u32 group, u64 index, u64 ballot, const void* body,
                   u32 nbytes) noexcept nogil:
    cdef RecordHeader header
    cdef Block* record = record_append(block_new(64), kind, group, index, ballot, body, nbytes)
    memcpy(&header, record.data, sizeof(RecordHeader))
    input_replay(s, &header, record.data + RECORD_HEADER_BYTES, 0)
    block_unref(record)


# What is known besides the journal. A checkpoint knows of lives of this node that its journal does
# not: values of a life that is not the newest are not applied (sessions.pxd). So does the store.
cdef void former_lives(DriverState* s, vector[u32]* groups,
                       vector[Opening]* openings) noexcept nogil:
    cdef DriverOptions* o = &s.options
    cdef size_t i
    cdef int at
    if o.incarnation or o.lease_bound_us:
        remember(s, RECORD_NODE, 0, o.incarnation, o.lease_bound_us, NULL, 0)
    for i in range(o.n_known):
        at = slot_of(s.engine, o.known[i])
        if at >= 0 and not s.engine.peers[at].known:
            remember(s, RECORD_PEER, o.known[i], 0, 0, o.known_ids[i], 16)
    if o.ceiling != NO_CEILING:
        input_ceiling(s, o.ceiling)
    for i in range(groups.size()):
        if openings[0][i].suspect:
            input_suspect(s, groups[0][i])


# All peers have slots by now; and the replay, which may know newer ones, comes after.
cdef int tell_members(DriverState* s, char* text) noexcept nogil:
    cdef KnownMembers* one
    cdef size_t i
    for i in range(s.known.size()):
        one = &s.known[i]
        if input_change_known(s, one.group, one.version, one.value.data, one.value.size,
                              one.instance, one.floor, one.active) != 0:
            snprintf(text, LIFE_TEXT_BYTES, "group %u: its members of version %llu cannot be",
                     one.group, <unsigned long long>one.version)
            return LIFE_START
    return LIFE_OK


cdef void drop_known(DriverState* s) noexcept nogil:
    cdef size_t i
    for i in range(s.known.size()):
        block_unref(s.known[i].value)
    s.known.clear()


cdef int life_start(DriverState* s, const char* journal_dir, bint create, vector[u32]* groups,
                    vector[Opening]* openings, const vector[Gone]* gone, const char* trace_path,
                    char* text) noexcept nogil:
    cdef int code = open_trace(s, trace_path, text)
    cdef u32 i
    if code != LIFE_OK:
        return code
    s.engine = engine_new(&s.options.engine)
    code = add_groups(s, groups, openings, gone, text)
    for i in range(s.options.n_peers):
        if slot_of(s.engine, s.options.peers[i]) < 0:
            input_add_peer(s, s.options.peers[i], NULL)
    if code == LIFE_OK:
        code = tell_members(s, text)
    drop_known(s)
    if code == LIFE_OK:
        code = open_journal(s, journal_dir, create, text)
    if code == LIFE_OK:
        former_lives(s, groups, openings)
        if s.options.priority != PRIORITY_USUAL:
            input_priority(s, s.options.priority)
        code = open_wakers(s, text)
    if code != LIFE_OK:
        return code
    s.durable = journal_next_lsn(s.journal)
    s.lsn_end = s.durable
    s.now_us = phx_now_us()
    s.chosen_us = s.now_us
    s.incarnation = input_start(s, s.durable, s.now_us, phx_wall_us())
    code = open_transport(s, text)
    if code == LIFE_OK:
        code = start_threads(s, text)
    return code


# --- stop

cdef bint life_stop(DriverState* s, u64 timeout_us) noexcept nogil:
    cdef u64 until_us = phx_span_ns() // 1000 + timeout_us
    cdef u64 now_us
    if not s.running:
        return True
    phx_store(&s.stopping, 1)
    inbox_wake(&s.inbox)
    pthread_mutex_lock(&s.inbox.lock)
    while not phx_load(&s.exited):
        now_us = phx_span_ns() // 1000
        if now_us >= until_us:
            break
        phx_cond_wait_us(&s.inbox.answered, &s.inbox.lock, until_us - now_us)
    pthread_mutex_unlock(&s.inbox.lock)
    return phx_load(&s.exited) != 0


cdef void life_release(DriverState* s) noexcept nogil:
    if s.running:
        pthread_join(s.thread, NULL)
        s.running = False
    drop_known(s)
    inbox_close(&s.inbox)
    chores_close(&s.chores)
    lookups_close(&s.lookups)
    if s.transport != NULL:
        transport_free(s.transport)
        s.transport = NULL
    handover_close(&s.handover, &s.fds)
    if s.writer != NULL:
        writer_free(s.writer)
        s.writer = NULL
    if s.engine != NULL:
        engine_free(s.engine)
        s.engine = NULL
    if s.trace != NULL:
        trace_end(s.trace)
        trace_unref(s.trace)
        s.trace = NULL
    hold_unref(s.hold)
    s.hold = NULL
    s.journal = NULL
    outbox_drop(&s.outbox)
    if s.inbox.waker.read_fd >= 0:
        phx_waker_close(&s.inbox.waker, &s.fds)
    if s.outbox.waker.read_fd >= 0:
        phx_waker_close(&s.outbox.waker, &s.fds)


cdef void life_free(DriverState* s) noexcept nogil:
    if s == NULL:
        return
    if s.running:
        while not life_stop(s, 1000000):
            pass
    life_release(s)
    inbox_destroy(&s.inbox)
    outbox_destroy(&s.outbox)
    handover_destroy(&s.handover)
    chores_destroy(&s.chores)
    lookups_destroy(&s.lookups)
    published_unref(s.published)
    phx_delete(s)
