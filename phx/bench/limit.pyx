# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""A bare node: takes values, journals, sends, syncs, acknowledges."""

from libc.string cimport memcpy, memmove, memset

from phx._core.native cimport *
from phx._core.port cimport *

cdef extern from "crc32c.h" nogil:
    u32 phx_crc32c(u32 crc, const void* data, size_t count)

cdef extern from *:
    """
    #include <sys/resource.h>

    static uint64_t phx_process_cpu_ns(void) {
        struct rusage used;
        getrusage(RUSAGE_SELF, &used);
        return ((uint64_t)used.ru_utime.tv_sec + (uint64_t)used.ru_stime.tv_sec) * 1000000000u +
               ((uint64_t)used.ru_utime.tv_usec + (uint64_t)used.ru_stime.tv_usec) * 1000u;
    }

    static inline int phx_histogram_bucket(uint64_t ns) {
        if (ns < 64) return (int)ns;
        int shift = 57 - __builtin_clzll(ns);
        return (shift + 1) * 64 + (int)((ns >> shift) - 64);
    }
    """
    u64 phx_process_cpu_ns() nogil
    int phx_histogram_bucket(u64 ns) nogil

cdef extern from "<errno.h>" nogil:
    int ECONNRESET
    int EPROTO


# ---------------------------------------------------------------------------------------- memory


cdef void arena_turn(Arena* a, u64 nbytes) noexcept nogil:
    """Make `current` a block that nobody else refers to, with room for `nbytes`."""
    cdef size_t i
    cdef Block* fresh
    for i in range(a.blocks.size()):
        if phx_load(&a.blocks[i].refs) == 1 and a.blocks[i] != a.current:
            a.blocks[i].size = 0
            a.current = a.blocks[i]
            return
    fresh = block_new(max(nbytes, <u64>ARENA_BYTES))
    a.blocks.push_back(fresh)
    a.current = fresh


cdef void arena_room(Arena* a, u64 nbytes) noexcept nogil:
    # Others may read what the block already has; only this thread writes, and only behind it.
    if a.current == NULL or a.current.capacity - a.current.size < nbytes:
        arena_turn(a, nbytes)


cdef void arena_free(Arena* a) noexcept nogil:
    cdef size_t i
    for i in range(a.blocks.size()):
        block_unref(a.blocks[i])
    a.blocks.clear()


# --------------------------------------------------------------------------------------- journal


cdef void failed(Limit* n, i64 error) noexcept nogil:
    """Ends the node; the first error counts."""
    if phx_load(&n.error) == 0:
        phx_store(&n.error, -error if error < 0 else error)
    phx_waker_signal(&n.waker)
    phx_waker_signal(&n.told)


cdef bint journal_write(Limit* n, u8* data, u64 nbytes) noexcept nogil:
    cdef Journal* j = &n.journal
    cdef i64 wrote
    if j.at + nbytes > j.nbytes:
        j.at = 0
        phx_add(&j.wraps, 1)
    wrote = j.disk.write(j.disk.context, j.file, data, nbytes, j.at)
    if wrote < 0:
        failed(n, wrote)
        return False
    j.at += nbytes
    phx_add(&j.written_bytes, wrote)
    return True


cdef u64 journal_write_of(Limit* n, int peer) noexcept nogil:
    """Everything of one sender, what lies together in one go; the last frame's number, or 0."""
    cdef Journal* j = &n.journal
    cdef u8* begin = NULL
    cdef u64 nbytes = 0
    cdef u64 upto = 0
    cdef size_t i
    cdef Write* w
    for i in range(j.batch.size()):
        w = &j.batch[i]
        if w.peer != peer:
            continue
        upto = w.upto
        if begin != NULL and begin + nbytes == w.bytes.block.data + w.bytes.offset \
                and nbytes + w.bytes.nbytes <= ARENA_BYTES:
            nbytes += w.bytes.nbytes
            continue
        if begin != NULL and not journal_write(n, begin, nbytes):
            return 0
        begin = w.bytes.block.data + w.bytes.offset
        nbytes = w.bytes.nbytes
    if begin != NULL and not journal_write(n, begin, nbytes):
        return 0
    return upto


cdef void acknowledge(Limit* n, Peer* p, u64 upto) noexcept nogil:
    cdef iovec part
    cdef pollfd ready
    cdef u64 word = upto
    cdef u64 sent = 0
    cdef i64 count
    while sent < 8:
        part.iov_base = <u8*>&word + sent
        part.iov_len = 8 - sent
        count = phx_send_gather(p.in_fd, &part, 1)
        if count > 0:
            sent += <u64>count
        elif phx_again(count):
            if phx_load(&n.stopping):
                return
            ready.fd = p.in_fd
            ready.events = POLLOUT
            poll(&ready, 1, 100)
        else:
            if not phx_load(&n.drained):
                failed(n, count)
            return


cdef void journal_run(Limit* n) noexcept nogil:
    """Write and sync the batch, acknowledge, publish. By whoever is `busy`."""
    cdef Journal* j = &n.journal
    cdef u64 upto[NODES_MAX]
    cdef int p, bad
    cdef size_t i
    cdef u64 own = journal_write_of(n, -1)
    for p in range(n.n_peers):
        upto[p] = journal_write_of(n, p)
    for i in range(j.batch.size()):
        block_unref(j.batch[i].bytes.block)
    j.batch.clear()
    if phx_load(&n.error):
        return
    bad = j.disk.sync(j.disk.context, j.file)
    if bad < 0:
        failed(n, bad)
        return
    phx_add(&j.syncs, 1)
    for p in range(n.n_peers):
        if upto[p]:
            acknowledge(n, &n.peers[p], upto[p])
    if own:
        phx_store(&j.durable, <i64>own)
        phx_fence()
        # An acknowledgement wakes the poll thread by itself.
        if phx_load(&n.sleeping) and quorum(n) > <u64>phx_load(&n.completed):
            phx_waker_signal(&n.waker)


cdef void* journal_main(void* arg) noexcept nogil:
    cdef Limit* n = <Limit*>arg
    cdef Journal* j = &n.journal
    phx_thread_name("limit-journal")
    pthread_mutex_lock(&j.lock)
    while True:
        while not j.stopping and (j.busy or j.queue.empty()):
            phx_cond_wait_us(&j.wake, &j.lock, 1000000)
        if j.stopping:
            break
        j.batch.swap(j.queue)
        j.busy = True
        pthread_mutex_unlock(&j.lock)
        journal_run(n)
        pthread_mutex_lock(&j.lock)
        j.busy = False
    pthread_mutex_unlock(&j.lock)
    return NULL


cdef bint journal_hand(Limit* n) noexcept nogil:
    """What the turn has for the journal. True: it is already synced."""
    cdef Journal* j = &n.journal
    cdef size_t i
    if n.taken.empty():
        return False
    pthread_mutex_lock(&j.lock)
    if not j.busy and j.queue.empty() and n.taken_bytes <= INLINE_BYTES:
        j.busy = True
        pthread_mutex_unlock(&j.lock)
        j.batch.swap(n.taken)
        n.taken_bytes = 0
        journal_run(n)
        pthread_mutex_lock(&j.lock)
        j.busy = False
        pthread_mutex_unlock(&j.lock)
        return True
    for i in range(n.taken.size()):
        j.queue.push_back(n.taken[i])
    if not j.busy:
        pthread_cond_signal(&j.wake)
    pthread_mutex_unlock(&j.lock)
    n.taken.clear()
    n.taken_bytes = 0
    return False


# ---------------------------------------------------------------------------------------- values


cdef u64 quorum(Limit* n) noexcept nogil:
    """Number of the newest own frame up to which all are synced here and at a majority."""
    cdef u64 best[NODES_MAX]
    cdef u64 own = <u64>phx_load(&n.journal.durable)
    cdef u64 acked
    cdef int i, at
    if n.others_needed == 0:
        return own
    for i in range(n.n_peers):  # sorted, the highest first
        acked = <u64>phx_load(&n.peers[i].acked)
        at = i
        while at > 0 and best[at - 1] < acked:
            best[at] = best[at - 1]
            at -= 1
        best[at] = acked
    return min(own, best[n.others_needed - 1])


cdef void open_again(Limit* n, u32 group, u32 count) noexcept nogil:
    cdef Entry entry
    if n.slot[group]:
        n.waiting[n.slot[group] - 1].count += count
        return
    memset(&entry, 0, sizeof(Entry))
    entry.group = group
    entry.count = count
    entry.taken_ns = n.now_ns
    n.waiting.push_back(entry)
    n.slot[group] = <u32>n.waiting.size()


cdef void complete(Limit* n) noexcept nogil:
    cdef u64 upto = quorum(n)
    cdef bint measured = n.begin_ns <= n.now_ns < n.end_ns
    cdef Entry* e
    cdef size_t i
    while not n.flights.empty() and n.flights.front().number <= upto:
        for i in range(n.flights.front().entries):
            e = &n.flying.front()
            n.done[e.group] += e.count
            n.done_total += e.count
            if n.python:
                n.finished.push_back(e[0])
            else:
                if measured:
                    n.histogram[phx_histogram_bucket(n.now_ns - e.taken_ns)] += e.count
                if n.now_ns < n.end_ns:
                    open_again(n, e.group, e.count)
            n.flying.pop_front()
        phx_store(&n.completed, <i64>n.flights.front().number)
        n.flights.pop_front()
    if not n.finished.empty():
        pthread_mutex_lock(&n.lock)
        for i in range(n.finished.size()):
            n.outbox.push_back(n.finished[i])
        pthread_mutex_unlock(&n.lock)
        n.finished.clear()
        phx_waker_signal(&n.told)


cdef void pack_record(Limit* n, u8* to, const Entry* e, u32 count) noexcept nogil:
    cdef RecordHeader* head = <RecordHeader*>to
    cdef u8* value = to + RECORD_HEADER_BYTES
    cdef u64 stamp = min(<u64>8, n.value_bytes)
    cdef u64 index = n.next[e.group]
    cdef u32 i
    head.nbytes = count * <u32>n.value_bytes
    head.group = e.group
    head.count = count
    head.first = index
    head.zero = 0
    n.next[e.group] += count
    if e.source != NULL:
        memcpy(value, e.source.data + e.offset, head.nbytes)
    else:
        for i in range(count):
            memcpy(value, n.filler, n.value_bytes)
            memcpy(value, &index, stamp)
            index += 1
            value += n.value_bytes
    head.crc = phx_crc32c(0, to + 4, RECORD_HEADER_BYTES - 4 + head.nbytes)


cdef size_t pack_frame(Limit* n, size_t i) noexcept nogil:
    """A frame of what waits from `i` on; the first place that is not in it, or not all."""
    cdef Block* block
    cdef u8* begin
    cdef u64 at = FRAME_HEADER_BYTES
    cdef u64 fit
    cdef u32 count
    cdef Entry* e
    cdef Entry part
    cdef Flight flight
    arena_room(&n.arena, FRAME_BYTES_MAX)
    block = n.arena.current
    begin = block.data + block.size
    flight.entries = 0
    while i < n.waiting.size() and FRAME_BYTES_MAX - at >= RECORD_HEADER_BYTES + n.value_bytes:
        e = &n.waiting[i]
        fit = (FRAME_BYTES_MAX - at - RECORD_HEADER_BYTES) // n.value_bytes
        count = e.count if e.count <= fit else <u32>fit
        pack_record(n, begin + at, e, count)
        at += RECORD_HEADER_BYTES + count * n.value_bytes
        part = e[0]
        part.count = count
        part.source = NULL
        n.flying.push_back(part)
        flight.entries += 1
        e.count -= count
        e.offset += count * n.value_bytes
        if e.count == 0:
            block_unref(e.source)
            i += 1
    n.number += 1
    flight.number = n.number
    n.flights.push_back(flight)
    (<FrameHeader*>begin).magic = FRAME_MAGIC
    (<FrameHeader*>begin).nbytes = <u32>at
    (<FrameHeader*>begin).number = n.number
    (<FrameHeader*>begin).source = n.me
    (<FrameHeader*>begin).records = <u32>flight.entries
    hand_on(n, block, block.size, at)
    block.size += at
    return i


cdef void hand_on(Limit* n, Block* block, u64 offset, u64 nbytes) noexcept nogil:
    """An own frame to everybody."""
    cdef Write w
    cdef int p
    w.bytes.block = block_ref(block)
    w.bytes.offset = offset
    w.bytes.nbytes = nbytes
    w.peer = -1
    w.upto = n.number
    n.taken.push_back(w)
    n.taken_bytes += nbytes
    for p in range(n.n_peers):
        block_ref(block)
        n.peers[p].sending.push_back(w.bytes)


cdef void pack(Limit* n) noexcept nogil:
    cdef size_t i = 0
    while i < n.waiting.size():
        n.slot[n.waiting[i].group] = 0
        i += 1
    i = 0
    while i < n.waiting.size():
        i = pack_frame(n, i)
    n.waiting.clear()


cdef void take_inbox(Limit* n) noexcept nogil:
    if not phx_load(&n.inbox_full):
        return
    pthread_mutex_lock(&n.lock)
    n.waiting.swap(n.inbox)
    phx_store(&n.inbox_full, 0)
    pthread_mutex_unlock(&n.lock)


# --------------------------------------------------------------------------------------- network


cdef void send(Limit* n, Peer* p) noexcept nogil:
    cdef iovec parts[GATHER_MAX]
    cdef int count
    cdef i64 sent
    cdef size_t i
    cdef Slice* s
    while p.sending_first < p.sending.size():
        count = 0
        i = p.sending_first
        while count < GATHER_MAX and i < p.sending.size():
            parts[count].iov_base = p.sending[i].block.data + p.sending[i].offset
            parts[count].iov_len = p.sending[i].nbytes
            count += 1
            i += 1
        sent = phx_send_gather(p.out_fd, parts, count)
        if sent < 0:
            p.blocked = phx_again(sent)
            if not p.blocked:
                failed(n, sent)
            return
        while sent > 0:
            s = &p.sending[p.sending_first]
            if <u64>sent < s.nbytes:
                s.offset += <u64>sent
                s.nbytes -= <u64>sent
                break
            sent -= <i64>s.nbytes
            block_unref(s.block)
            p.sending_first += 1
    p.blocked = False
    p.sending.clear()
    p.sending_first = 0


cdef bint frame_good(const u8* at, u64 nbytes) noexcept nogil:
    """Do the records fill the frame, each with its checksum?"""
    cdef const FrameHeader* frame = <const FrameHeader*>at
    cdef const RecordHeader* head
    cdef u64 seen = FRAME_HEADER_BYTES
    cdef u32 i
    for i in range(frame.records):
        head = <const RecordHeader*>(at + seen)
        if nbytes - seen < RECORD_HEADER_BYTES \
                or nbytes - seen - RECORD_HEADER_BYTES < head.nbytes:
            return False
        if phx_crc32c(0, at + seen + 4, RECORD_HEADER_BYTES - 4 + head.nbytes) != head.crc:
            return False
        seen += RECORD_HEADER_BYTES + head.nbytes
    return seen == nbytes


cdef bint parse(Limit* n, int peer) noexcept nogil:
    """Hand on all whole frames that have come in. False: not frames."""
    cdef Peer* p = &n.peers[peer]
    cdef Block* block = p.arena.current
    cdef u64 begin = p.parsed
    cdef const FrameHeader* frame
    cdef Write w
    while block.size - p.parsed >= FRAME_HEADER_BYTES:
        frame = <const FrameHeader*>(block.data + p.parsed)
        if frame.magic != FRAME_MAGIC or frame.nbytes > FRAME_BYTES_MAX \
                or frame.nbytes < FRAME_HEADER_BYTES or frame.number != p.received + 1:
            return False
        if block.size - p.parsed < frame.nbytes:
            break
        if not frame_good(block.data + p.parsed, frame.nbytes):
            return False
        p.received += 1
        p.parsed += frame.nbytes
    if p.parsed > begin:
        w.bytes.block = block_ref(block)
        w.bytes.offset = begin
        w.bytes.nbytes = p.parsed - begin
        w.peer = peer
        w.upto = p.received
        n.taken.push_back(w)
        n.taken_bytes += w.bytes.nbytes
    return True


cdef void receive_frames(Limit* n, int peer) noexcept nogil:
    cdef Peer* p = &n.peers[peer]
    cdef Block* before
    cdef u64 room, rest
    cdef i64 got
    cdef int turn
    for turn in range(4):
        before = p.arena.current
        arena_room(&p.arena, RECEIVE_BYTES_MIN)
        if p.arena.current != before:
            if before != NULL:  # the beginning of a frame moves along
                rest = before.size - p.parsed
                memcpy(p.arena.current.data, before.data + p.parsed, rest)
                p.arena.current.size = rest
            p.parsed = 0
        room = p.arena.current.capacity - p.arena.current.size
        got = phx_receive(p.in_fd, p.arena.current.data + p.arena.current.size, room)
        if got <= 0:
            if not phx_again(got):
                hung_up(n, &p.in_gone, got)
            return
        p.arena.current.size += <u64>got
        if not parse(n, peer):
            failed(n, EPROTO)
            return
        if <u64>got < room:
            return


cdef void receive_acks(Limit* n, Peer* p) noexcept nogil:
    cdef u8 raw[512]
    cdef u64 have = p.ack_bytes
    cdef u64 word, whole
    cdef i64 got
    memcpy(raw, p.ack, have)
    got = phx_receive(p.out_fd, raw + have, 512 - have)
    if got <= 0:
        if not phx_again(got):
            hung_up(n, &p.out_gone, got)
        return
    have += <u64>got
    whole = have // 8 * 8
    if whole:
        memcpy(&word, raw + whole - 8, 8)
        if word < <u64>p.acked or word > n.number:
            failed(n, EPROTO)
            return
        phx_store(&p.acked, <i64>word)
    p.ack_bytes = have - whole
    memmove(p.ack, raw + whole, p.ack_bytes)


cdef void hung_up(Limit* n, bint* gone, i64 error) noexcept nogil:
    """When nothing is in flight any more the others may go first; the caller's sockets stay."""
    if phx_load(&n.drained) or phx_load(&n.stopping):
        gone[0] = True
    else:
        failed(n, error if error else ECONNRESET)


cdef void wait_and_receive(Limit* n, bint busy) noexcept nogil:
    cdef pollfd fds[2 * NODES_MAX + 1]
    cdef int p
    cdef int timeout_ms = 0
    cdef int count = 1 + 2 * n.n_peers
    fds[0].fd = n.waker.read_fd
    fds[0].events = POLLIN
    for p in range(n.n_peers):
        fds[1 + 2 * p].fd = -1 if n.peers[p].out_gone else n.peers[p].out_fd
        fds[1 + 2 * p].events = POLLIN | POLLOUT if n.peers[p].blocked else POLLIN
        fds[2 + 2 * p].fd = -1 if n.peers[p].in_gone else n.peers[p].in_fd
        fds[2 + 2 * p].events = POLLIN
    if not busy:
        phx_store(&n.sleeping, 1)
        phx_fence()
        if not (phx_load(&n.inbox_full) or phx_load(&n.stopping)
                or quorum(n) > <u64>phx_load(&n.completed)):
            timeout_ms = 20
    if poll(fds, count, timeout_ms) <= 0:
        phx_store(&n.sleeping, 0)
        return
    phx_store(&n.sleeping, 0)
    if fds[0].revents:
        phx_waker_clear(&n.waker)
    for p in range(n.n_peers):
        if fds[1 + 2 * p].revents & (POLLIN | POLLERR | POLLHUP):
            receive_acks(n, &n.peers[p])
        if fds[1 + 2 * p].revents & POLLOUT:
            n.peers[p].blocked = False
        if fds[2 + 2 * p].revents:
            receive_frames(n, p)


# ------------------------------------------------------------------------------------ poll thread


cdef void look(Limit* n, Sample* s) noexcept nogil:
    if s.at_ns == 0:
        s.at_ns = n.now_ns
        s.cpu_ns = phx_process_cpu_ns()
        s.done = n.done_total
        s.syncs = <u64>phx_load(&n.journal.syncs)
        s.written_bytes = <u64>phx_load(&n.journal.written_bytes)


cdef void* poll_main(void* arg) noexcept nogil:
    cdef Limit* n = <Limit*>arg
    cdef bint busy
    cdef int p
    phx_thread_name("limit-poll")
    n.now_ns = phx_span_ns()
    for p in range(<int>n.waiting.size()):
        n.waiting[p].taken_ns = n.now_ns
    while not phx_load(&n.stopping) and not phx_load(&n.error):
        n.now_ns = phx_span_ns()
        if n.now_ns >= n.begin_ns:
            look(n, &n.begin)
        if n.now_ns >= n.end_ns:
            look(n, &n.end)
        if n.python:
            take_inbox(n)
        complete(n)
        pack(n)
        for p in range(n.n_peers):
            if not n.peers[p].blocked:
                send(n, &n.peers[p])
        busy = journal_hand(n)
        if n.end.at_ns and n.flights.empty() and not n.python:
            phx_store(&n.drained, 1)
        wait_and_receive(n, busy)
    # Callers may have ended right after the measured time, and this thread with them.
    n.now_ns = phx_span_ns()
    look(n, &n.begin)
    look(n, &n.end)
    return NULL


cdef void drop_entries(vector[Entry]* entries) noexcept nogil:
    cdef size_t i
    for i in range(entries.size()):
        block_unref(entries[0][i].source)
    entries.clear()


cdef void limit_free(Limit* n) noexcept nogil:
    """Everything that the node holds; its threads are joined."""
    cdef Peer* p
    cdef int i
    cdef size_t k
    for k in range(n.taken.size()):
        block_unref(n.taken[k].bytes.block)
    for k in range(n.journal.queue.size()):
        block_unref(n.journal.queue[k].bytes.block)
    for i in range(n.n_peers):
        p = &n.peers[i]
        for k in range(p.sending_first, p.sending.size()):
            block_unref(p.sending[k].block)
        arena_free(&p.arena)
    arena_free(&n.arena)
    drop_entries(&n.waiting)
    drop_entries(&n.inbox)
    phx_waker_close(&n.waker, &n.fds)
    phx_waker_close(&n.told, &n.fds)
    pthread_mutex_destroy(&n.lock)
    pthread_mutex_destroy(&n.journal.lock)
    pthread_cond_destroy(&n.journal.wake)
    phx_delete(n)


cdef u64 bucket_ns(int bucket) noexcept nogil:
    if bucket < STEPS:
        return <u64>bucket
    return ((<u64>(STEPS + bucket % STEPS) * 2 + 1) << (bucket // STEPS - 1)) >> 1
