# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Connections that are handed to Python; see handover.pxd."""

from libc.string cimport memcpy, memset

from phx._core.codec cimport (
    FRAME_HEADER_BYTES, FRAME_HELLO, PROTOCOL_VERSION, FrameHeader, frame_begin, frame_seal,
)
from phx._core.native cimport *
from phx._core.port cimport (
    phx_fds_close, phx_fds_forget, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from phx._core.transport cimport (
    HELLO_BYTES, REFUSED_NODE, REFUSED_VERSION, REFUSED_WINDOW, Hello, Transport, transport_link,
)


# --- the queue

cdef void handover_init(Handover* q) noexcept nogil:
    pthread_mutex_init(&q.lock, NULL)


cdef void handover_close(Handover* q, PhxFds* fds) noexcept nogil:
    cdef size_t i
    pthread_mutex_lock(&q.lock)
    for i in range(q.waiting.size()):
        phx_fds_close(fds, q.waiting[i].fd)
        block_unref(q.waiting[i].said)
    q.waiting.clear()
    pthread_mutex_unlock(&q.lock)


cdef void handover_destroy(Handover* q) noexcept nogil:
    pthread_mutex_destroy(&q.lock)


cdef bint handover_push(Handover* q, int fd, u32 peer, Block* said) noexcept nogil:
    cdef HandedOver item
    cdef bint room
    item.fd = fd
    item.peer = peer
    item.said = said
    pthread_mutex_lock(&q.lock)
    room = q.waiting.size() < HANDED_MAX
    if room:
        q.waiting.push_back(item)
    pthread_mutex_unlock(&q.lock)
    return room


cdef void handover_take(Handover* q, PhxFds* fds, vector[HandedOver]* out) noexcept nogil:
    cdef size_t i
    pthread_mutex_lock(&q.lock)
    for i in range(q.waiting.size()):
        phx_fds_forget(fds, q.waiting[i].fd)
    out.swap(q.waiting)
    pthread_mutex_unlock(&q.lock)


# --- what both kinds of connection begin with

cdef Block* hello_frame(Transport* t, u32 dest, u64 now_us) noexcept nogil:
    cdef Hello hello
    cdef Block* out = frame_begin(block_new(FRAME_HEADER_BYTES + HELLO_BYTES))
    memset(&hello, 0, sizeof(Hello))
    hello.version_min = PROTOCOL_VERSION
    hello.version_max = PROTOCOL_VERSION
    hello.incarnation = t.options.incarnation
    hello.window = t.options.window
    memcpy(hello.store_id, t.options.store_id, 16)
    hello.now_us = now_us
    out = block_append(out, &hello, sizeof(Hello))
    frame_seal(out, 0, FRAME_HELLO, t.options.node, dest, t.options.cluster)
    return out


cdef u32 hello_refused(Transport* t, const FrameHeader* header, const Hello* hello, bint dials,
                       const char** why) noexcept nogil:
    if hello.version_min > PROTOCOL_VERSION or hello.version_max < PROTOCOL_VERSION:
        why[0] = "no common protocol version"
        return REFUSED_VERSION
    if transport_link(t, header.source) == NULL or (dials and header.source > t.options.node):
        why[0] = "not a node that connects here"
        return REFUSED_NODE
    if hello.window and t.options.window and hello.window != t.options.window:
        why[0] = "another limits.window than here"
        return REFUSED_WINDOW
    return 0


cdef const char* verdict_text(int verdict) noexcept nogil:
    if verdict == 2:
        return "not a frame"
    if verdict == 3:
        return "unknown frame version"
    if verdict == 4:
        return "a frame above the limit"
    if verdict == 5:
        return "a frame with a bad checksum"
    if verdict == 6:
        return "another cluster"
    return "a frame from or for another node"
