# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Connections that are handed to Python; see handover.pxd."""

from phx._core.native cimport *
from phx._core.port cimport (
    phx_fds_close, phx_fds_forget, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock,
)


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
