# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Names that are to be looked up; see lookups.pxd."""

from phx._core.native cimport *
from phx._core.port cimport (
    phx_cond_init, phx_cond_wait_us, phx_span_ns, pthread_cond_broadcast, pthread_cond_destroy,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)


cdef void lookups_init(Lookups* q) noexcept nogil:
    pthread_mutex_init(&q.lock, NULL)
    phx_cond_init(&q.wake)


cdef void lookups_close(Lookups* q) noexcept nogil:
    pthread_mutex_lock(&q.lock)
    q.closed = True
    q.wanted.clear()
    pthread_cond_broadcast(&q.wake)
    pthread_mutex_unlock(&q.lock)


cdef void lookups_destroy(Lookups* q) noexcept nogil:
    pthread_cond_destroy(&q.wake)
    pthread_mutex_destroy(&q.lock)


cdef void lookups_want(Lookups* q, u32 node, u32 attempts) noexcept nogil:
    cdef Lookup one
    cdef size_t i = 0
    one.node = node
    one.attempts = attempts
    pthread_mutex_lock(&q.lock)
    while i < q.wanted.size() and q.wanted[i].node != node:
        i += 1
    if i < q.wanted.size():
        q.wanted[i] = one
    elif not q.closed:
        q.wanted.push_back(one)
        pthread_cond_broadcast(&q.wake)
    pthread_mutex_unlock(&q.lock)


cdef bint lookups_take(Lookups* q, u64 timeout_us, vector[Lookup]* out) noexcept nogil:
    cdef u64 until_us = phx_span_ns() // 1000 + timeout_us
    cdef u64 now_us
    cdef bint closed
    pthread_mutex_lock(&q.lock)
    while q.wanted.empty() and not q.closed:
        now_us = phx_span_ns() // 1000
        if now_us >= until_us:
            break
        phx_cond_wait_us(&q.wake, &q.lock, until_us - now_us)
    out.swap(q.wanted)
    closed = q.closed
    pthread_mutex_unlock(&q.lock)
    return not closed
