"""The frames that wait for one peer, in the order in which they will leave.

`held` waits for the journal; what is free to go stands in `ready`, or, if it is large, in `bulk`,
from where one frame at a time takes its place in `ready`: when nothing else is there, or when it
has been overtaken by enough.
"""

from phx._core.native cimport *
from phx._core.transport cimport Link, Queued

# Every frame of a link is let go: its connection is gone.
cdef void lanes_drop(Link* link) noexcept nogil
# This frame may leave now: its `after` is durable. The reference goes along.
cdef void lanes_ready(Link* link, const Queued* item) noexcept nogil
# One bulk frame gets its place behind what is ready, if that is nothing or if it is its turn.
cdef void lanes_promote(Link* link) noexcept nogil
# So many bytes of `ready` are with the kernel.
cdef void lanes_sent(Link* link, u64 count) noexcept nogil
