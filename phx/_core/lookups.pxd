"""Names that are to be looked up: poll thread → the Python thread that asks the resolver.

Looking a name up may take half a minute, so the poll thread does not do it, and does not wait for
it either: it dials where the node was last, and asks here at the same time whether it still is
there. One question for each peer waits at most.
"""

from phx._core.native cimport *
from phx._core.port cimport pthread_cond_t, pthread_mutex_t

cdef struct Lookup:
    u32 node
    u32 attempts                 # to connect, that have failed since the last connection

cdef struct Lookups:             # one lock, held for a few moves of memory
    pthread_mutex_t lock
    pthread_cond_t wake
    vector[Lookup] wanted
    bint closed

cdef void lookups_init(Lookups* q) noexcept nogil
# Who waits is woken, and whoever asks is told at once that there is nothing more.
cdef void lookups_close(Lookups* q) noexcept nogil
cdef void lookups_destroy(Lookups* q) noexcept nogil
# Poll thread.
cdef void lookups_want(Lookups* q, u32 node, u32 attempts) noexcept nogil
# Those that wait, or come within `timeout_us`; False: closed.
cdef bint lookups_take(Lookups* q, u64 timeout_us, vector[Lookup]* out) noexcept nogil
