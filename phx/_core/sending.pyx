# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Queues of frames; see sending.pxd."""

from phx._core.native cimport *
from phx._core.port cimport iovec
from phx._core.transport cimport Link, Queued, Transport, transport_link


# What a frame counts in a queue: what it keeps from being used, which may be more than its bytes.
cdef inline u64 held_bytes(const Block* frame) noexcept nogil:
    return sizeof(Block) + frame.capacity


cdef void queue_drop(Link* link) noexcept nogil:
    cdef size_t i
    for i in range(link.ready.size()):
        block_unref(link.ready[i].frame)
    for i in range(link.held.size()):
        block_unref(link.held[i].frame)
    link.ready.clear()
    link.held.clear()
    link.queued_bytes = 0
    link.sent = 0


cdef void transport_send(Transport* t, u32 peer, u64 after, Block* frame) noexcept nogil:
    cdef size_t i
    if peer == 0:
        for i in range(t.links.size()):
            if t.links[i].connection != NULL:
                transport_send(t, t.links[i].node, after, block_ref(frame))
        block_unref(frame)
        return
    cdef Link* link = transport_link(t, peer)
    cdef Queued item
    if link == NULL or link.connection == NULL or (link.queued_bytes and
            link.queued_bytes + held_bytes(frame) > t.options.peer_queue_bytes_max):
        if link != NULL:
            link.frames_dropped += 1
        block_unref(frame)
        return
    item.after = after
    item.frame = frame
    link.queued_bytes += held_bytes(frame)
    if after <= t.durable:
        link.ready.push_back(item)
        return
    link.held.push_back(item)
    cdef size_t at = link.held.size() - 1
    while at > 0 and link.held[at - 1].after > after:
        link.held[at] = link.held[at - 1]
        at -= 1
    link.held[at] = item


cdef void transport_release(Transport* t, u64 lsn) noexcept nogil:
    cdef size_t i
    cdef Link* link
    if lsn <= t.durable:
        return
    t.durable = lsn
    for i in range(t.links.size()):
        link = t.links[i]
        while not link.held.empty() and link.held.front().after <= lsn:
            link.ready.push_back(link.held.front())
            link.held.pop_front()


cdef int queue_gather(Transport* t, Link* link, iovec* parts, int n) noexcept nogil:
    cdef size_t i
    cdef Queued* item
    for i in range(min(<size_t>(GATHER_MAX - n), link.ready.size())):
        item = &link.ready[i]
        if item.after > t.durable:
            phx_fatal("a frame was about to leave before its record is durable")
        parts[n].iov_base = item.frame.data + (link.sent if i == 0 else 0)
        parts[n].iov_len = item.frame.size - (link.sent if i == 0 else 0)
        n += 1
    return n


cdef void queue_sent(Link* link, u64 count) noexcept nogil:
    cdef u64 left
    link.bytes_sent += count
    while count:
        left = link.ready.front().frame.size - link.sent
        if count < left:
            link.sent += count
            return
        count -= left
        link.queued_bytes -= held_bytes(link.ready.front().frame)
        block_unref(link.ready.front().frame)
        link.ready.pop_front()
        link.frames_sent += 1
        link.sent = 0
