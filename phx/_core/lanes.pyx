# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The frames that wait for one peer; see lanes.pxd."""

from phx._core.native cimport *
from phx._core.transport cimport OVERTAKING_BYTES_MAX, Link, Queued


cdef void lanes_drop(Link* link) noexcept nogil:
    cdef size_t i
    for i in range(link.ready.size()):
        block_unref(link.ready[i].frame)
    for i in range(link.bulk.size()):
        block_unref(link.bulk[i].frame)
    for i in range(link.held.size()):
        block_unref(link.held[i].frame)
    link.ready.clear()
    link.bulk.clear()
    link.held.clear()
    link.queued_bytes = 0
    link.overtaken_bytes = 0
    link.sent = 0


cdef void lanes_ready(Link* link, const Queued* item) noexcept nogil:
    if item.bulk:
        link.bulk.push_back(item[0])
        return
    link.ready.push_back(item[0])
    if not link.bulk.empty():
        link.overtaken_bytes += item.frame.size


cdef void lanes_promote(Link* link) noexcept nogil:
    if link.bulk.empty():
        return
    if link.ready.empty() or link.overtaken_bytes >= OVERTAKING_BYTES_MAX:
        link.ready.push_back(link.bulk.front())
        link.bulk.pop_front()
        link.overtaken_bytes = 0


cdef void lanes_sent(Link* link, u64 count) noexcept nogil:
    cdef u64 left
    link.bytes_sent += count
    while count:
        left = link.ready.front().frame.size - link.sent
        if count < left:
            link.sent += count
            return
        count -= left
        link.queued_bytes -= link.ready.front().frame.size
        block_unref(link.ready.front().frame)
        link.ready.pop_front()
        link.frames_sent += 1
        link.sent = 0
