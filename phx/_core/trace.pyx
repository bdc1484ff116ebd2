# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Noting what a driver does; see trace.pxd."""

from libc.string cimport memcpy, memset, strlen

from phx._core.codec cimport RECORD_HEADER_BYTES, RecordHeader, align8, phx_crc32c
from phx._core.disk cimport (
    DiskApi, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock)
from phx._core.native cimport *
from phx._core.state cimport Effects, EngineOptions

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <pthread.h>
    #include <unistd.h>

    static int phx_trace_open(const char *path) {
        int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        return fd < 0 ? -errno : fd;
    }

    static int phx_trace_write(int fd, const uint8_t *data, uint64_t count) {
        while (count) {
            ssize_t n = write(fd, data, count);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) return n < 0 ? errno : EIO;
            data += n;
            count -= (uint64_t)n;
        }
        return 0;
    }

    static void phx_trace_close(int fd) { close(fd); }

    static uint32_t phx_trace_thread(void) {
        uint64_t word = 0;
        pthread_t self = pthread_self();
        memcpy(&word, &self, sizeof self < sizeof word ? sizeof self : sizeof word);
        return (uint32_t)(word >> 8);
    }
    """
    int phx_trace_open(const char* path) nogil
    int phx_trace_write(int fd, const u8* data, u64 count) nogil
    void phx_trace_close(int fd) nogil
    u32 phx_trace_thread() nogil
    int EFBIG

cdef enum:
    CHUNK_BYTES = 262144         # written at once

cdef u64 TRACE_MAGIC = 0x4543415254584850


# --- events: begin takes the lock, end lets go of it

cdef void begin(Trace* t, u8 kind) noexcept nogil:
    cdef TraceHeader header
    memset(&header, 0, sizeof(TraceHeader))
    header.kind = kind
    header.thread = phx_trace_thread()
    pthread_mutex_lock(&t.lock)
    t.event = t.buffer.size
    t.buffer = block_append(t.buffer, &header, sizeof(TraceHeader))


cdef void put(Trace* t, const void* data, u64 count) noexcept nogil:
    t.buffer = block_append(t.buffer, data, count)


cdef i64 write_limit(Trace* t) noexcept nogil:
    cdef TraceHeader header
    memset(&header, 0, sizeof(TraceHeader))
    header.kind = TRACE_LIMIT
    header.bytes = sizeof(TraceHeader)
    header.crc = phx_crc32c(0, <u8*>&header + 4, sizeof(TraceHeader) - 4)
    phx_trace_write(t.fd, <u8*>&header, sizeof(TraceHeader))
    return EFBIG


cdef void write_out(Trace* t) noexcept nogil:
    cdef i64 error = t.error
    if error == 0:
        error = phx_trace_write(t.fd, t.buffer.data, t.buffer.size)
        t.written += t.buffer.size
        if error == 0 and t.written >= t.bytes_max:
            error = write_limit(t)
        phx_store(&t.error, error)
    t.buffer.size = 0


cdef void end(Trace* t, bint now) noexcept nogil:
    cdef TraceHeader* header
    t.buffer = block_pad8(t.buffer)
    header = <TraceHeader*>(t.buffer.data + t.event)
    header.bytes = <u32>(t.buffer.size - t.event)
    header.crc = phx_crc32c(0, <u8*>header + 4, header.bytes - 4)
    if now or t.buffer.size >= CHUNK_BYTES or t.error != 0:
        write_out(t)
    pthread_mutex_unlock(&t.lock)


# --- life

cdef void note_options(Trace* t, const EngineOptions* o) noexcept nogil:
    cdef TraceOptions out
    memset(&out, 0, sizeof(TraceOptions))
    out.seed = o.seed
    out.window_bytes = o.window_bytes
    out.pending_bytes_max = o.pending_bytes_max
    out.cache_bytes_max = o.cache_bytes_max
    out.window = o.window
    out.batch_bytes_max = o.batch_bytes_max
    out.heartbeat_us = o.heartbeat_us
    out.lease_us = o.lease_us
    out.election_us = o.election_us
    out.resend_us = o.resend_us
    out.frame_bytes_max = o.frame_bytes_max
    out.value_bytes_max = o.value_bytes_max
    out.balance = o.balance
    out.n_members = o.n_members
    memcpy(out.members, o.members, sizeof(o.members))
    begin(t, TRACE_OPTIONS)
    put(t, &out, sizeof(TraceOptions))
    end(t, True)


cdef Trace* trace_open(const char* path, u64 bytes_max, const EngineOptions* options,
                       const u8* store_id, int* error) noexcept nogil:
    cdef Trace* t
    cdef TraceBegin out
    cdef int fd = phx_trace_open(path)
    if fd < 0:
        error[0] = fd
        return NULL
    t = phx_new[Trace]()
    t.refs = 1
    t.fd = fd
    t.bytes_max = bytes_max
    t.buffer = block_new(CHUNK_BYTES + CHUNK_BYTES // 4)
    pthread_mutex_init(&t.lock, NULL)
    out.magic = TRACE_MAGIC
    out.version = TRACE_VERSION
    out.node = options.node
    out.cluster = options.cluster
    memcpy(out.store_id, store_id, 16)
    begin(t, TRACE_BEGIN)
    put(t, &out, sizeof(TraceBegin))
    end(t, False)
    note_options(t, options)
    return t


cdef void trace_unref(Trace* t) noexcept nogil:
    if t == NULL or phx_add(&t.refs, -1) != 0:
        return
    write_out(t)
    phx_trace_close(t.fd)
    block_unref(t.buffer)
    pthread_mutex_destroy(&t.lock)
    phx_delete(t)


cdef void trace_end(Trace* t) noexcept nogil:
    begin(t, TRACE_END)
    end(t, True)


cdef int trace_failed(Trace* t) noexcept nogil:
    cdef int error = <int>phx_load(&t.error)
    if error == 0 or t.told:
        return 0
    t.told = True
    return error


# --- the engine's inputs and effects

cdef void trace_input(Trace* t, u8 kind, u32 group, u32 peer, u64 first, u64 second, u32 result,
                      const void* body, u64 nbytes) noexcept nogil:
    cdef TraceInput out
    out.group = group
    out.peer = peer
    out.first = first
    out.second = second
    out.result = result
    out.bytes = <u32>nbytes
    begin(t, kind)
    put(t, &out, sizeof(TraceInput))
    put(t, body, nbytes)
    end(t, False)


cdef void trace_replayed(Trace* t, const RecordHeader* header, const u8* body, u64 lsn,
                         u32 result) noexcept nogil:
    cdef TraceInput out
    memset(&out, 0, sizeof(TraceInput))
    out.first = lsn
    out.result = result
    out.bytes = RECORD_HEADER_BYTES + header.body_bytes
    begin(t, TRACE_REPLAYED)
    put(t, &out, sizeof(TraceInput))
    put(t, header, RECORD_HEADER_BYTES)
    put(t, body, header.body_bytes)
    end(t, False)


cdef void put_frames(Trace* t, const Effects* effects) noexcept nogil:
    cdef TraceFrame frame
    cdef size_t i
    for i in range(effects.outgoing.size()):
        frame.peer = effects.outgoing[i].peer
        frame.bytes = <u32>effects.outgoing[i].frame.size
        frame.after = effects.outgoing[i].after
        put(t, &frame, sizeof(TraceFrame))
        put(t, effects.outgoing[i].frame.data, frame.bytes)
        t.buffer = block_pad8(t.buffer)


cdef void put_rest(Trace* t, const Effects* effects) noexcept nogil:
    cdef TraceChosen chosen
    cdef TraceFetch fetch
    cdef TraceEvent event
    cdef TracePoint point
    cdef size_t i
    chosen.pad = 0
    for i in range(effects.chosen.size()):
        chosen.group = effects.chosen[i].group
        chosen.first = effects.chosen[i].first
        chosen.last = effects.chosen[i].last
        put(t, &chosen, sizeof(TraceChosen))
    for i in range(effects.fetches.size()):
        fetch.group = effects.fetches[i].group
        fetch.peer = effects.fetches[i].peer
        fetch.first = effects.fetches[i].first
        fetch.last = effects.fetches[i].last
        put(t, &fetch, sizeof(TraceFetch))
    event.pad = 0
    for i in range(effects.events.size()):
        event.kind = effects.events[i].kind
        event.verdict = effects.events[i].verdict
        event.group = effects.events[i].group
        event.count = effects.events[i].count
        event.leader = effects.events[i].leader
        event.first_seq = effects.events[i].first_seq
        put(t, &event, sizeof(TraceEvent))
    for i in range(effects.points.size()):
        point.group = effects.points[i].group
        point.verdict = effects.points[i].verdict
        point.ticket = effects.points[i].ticket
        point.instance = effects.points[i].instance
        put(t, &point, sizeof(TracePoint))


cdef void trace_turn(Trace* t, const Effects* effects) noexcept nogil:
    cdef TraceTurn turn
    turn.lsn_first = effects.lsn_first
    turn.lsn_end = effects.lsn_end
    turn.wake_at_us = effects.wake_at_us
    turn.floor_lsn = effects.floor_lsn
    turn.floor_after = effects.floor_after
    turn.sync = effects.sync
    turn.record_bytes = <u32>effects.records.size if effects.records != NULL else 0
    turn.frames = <u32>effects.outgoing.size()
    turn.chosen = <u32>effects.chosen.size()
    turn.fetches = <u32>effects.fetches.size()
    turn.events = <u32>effects.events.size()
    turn.points = <u32>effects.points.size()
    turn.pad = 0
    begin(t, TRACE_TURN)
    put(t, &turn, sizeof(TraceTurn))
    if turn.record_bytes:
        put(t, effects.records.data, turn.record_bytes)
    put_frames(t, effects)
    put_rest(t, effects)
    end(t, False)


# --- what leaves

cdef void trace_sending(Trace* t, u32 peer, u32 frames) noexcept nogil:
    cdef TraceSending out
    out.peer = peer
    out.frames = frames
    begin(t, TRACE_SENDING)
    put(t, &out, sizeof(TraceSending))


cdef void trace_frame(Trace* t, const Block* frame, u64 after) noexcept nogil:
    cdef TraceSent sent
    sent.crc = phx_crc32c(0, frame.data, frame.size)
    sent.bytes = <u32>frame.size
    sent.after = after
    put(t, &sent, sizeof(TraceSent))


cdef void trace_sending_end(Trace* t) noexcept nogil:
    end(t, True)


# --- the disk

cdef struct TracedDisk:
    Trace* trace
    DiskApi inner


cdef void note_disk(Trace* t, u8 kind, i64 file, u64 offset, u64 count, i64 result, u32 crc,
                    const void* body, u64 nbytes) noexcept nogil:
    cdef TraceDisk out
    out.file = file
    out.offset = offset
    out.count = count
    out.result = result
    out.crc = crc
    out.bytes = <u32>nbytes
    begin(t, kind)
    put(t, &out, sizeof(TraceDisk))
    put(t, body, nbytes)
    end(t, False)


cdef i64 traced_open(void* context, const char* name, bint create) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    cdef i64 file = d.inner.open(d.inner.context, name, create)
    note_disk(d.trace, TRACE_OPENED, file, 0, 0, file, 0, name, strlen(name))
    return file


# Not noted: also the child of a fork comes here, in which the lock may be held for ever. The number
# of the file means another file from the next OPENED on.
cdef int traced_close(void* context, i64 file) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    return d.inner.close(d.inner.context, file)


cdef i64 traced_write(void* context, i64 file, const u8* data, u64 count,
                      u64 offset) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    cdef u64 head = min(count, <u64>TRACE_HEAD_BYTES) if offset == 0 else 0
    cdef i64 result = d.inner.write(d.inner.context, file, data, count, offset)
    note_disk(d.trace, TRACE_WROTE, file, offset, count, result, phx_crc32c(0, data, count), data,
              head)
    return result


cdef i64 traced_read(void* context, i64 file, u8* data, u64 count, u64 offset) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    return d.inner.read(d.inner.context, file, data, count, offset)


cdef int traced_sync(void* context, i64 file) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    cdef int result
    note_disk(d.trace, TRACE_SYNCING, file, 0, 0, 0, 0, NULL, 0)
    result = d.inner.sync(d.inner.context, file)
    note_disk(d.trace, TRACE_SYNCED, file, 0, 0, result, 0, NULL, 0)
    return result


cdef int traced_sync_folder(void* context) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    return d.inner.sync_folder(d.inner.context)


cdef i64 traced_size(void* context, i64 file) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    return d.inner.size(d.inner.context, file)


cdef int traced_list(void* context, void* arg,
                     void (*each)(void* arg, const char* name) noexcept nogil) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    return d.inner.list(d.inner.context, arg, each)


cdef int traced_remove(void* context, const char* name) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    return d.inner.remove(d.inner.context, name)


# (In the child of a fork the driver's own reference keeps the trace, and nothing is written.)
cdef void traced_release(void* context) noexcept nogil:
    cdef TracedDisk* d = <TracedDisk*>context
    if d.inner.release != NULL:
        d.inner.release(d.inner.context)
    trace_unref(d.trace)
    phx_delete(d)


cdef void trace_disk(Trace* t, DiskApi* disk) noexcept nogil:
    cdef TracedDisk* d = phx_new[TracedDisk]()
    phx_add(&t.refs, 1)
    d.trace = t
    d.inner = disk[0]
    disk.context = d
    disk.open = traced_open
    disk.close = traced_close
    disk.write = traced_write
    disk.read = traced_read
    disk.sync = traced_sync
    disk.sync_folder = traced_sync_folder
    disk.size = traced_size
    disk.list = traced_list
    disk.remove = traced_remove
    disk.release = traced_release
