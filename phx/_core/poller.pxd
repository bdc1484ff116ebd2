"""The poll thread: the turn of a node.

It owns the engine, the sockets and the timers, and never waits for anything but poll() (and, when
the disk is idle and quick, for one sync of its own). A turn:

    poll → frames into the engine → values and commands of Python → what became durable → time
         → the engine's turn → frames that wait for nothing leave → chosen entries, events → records
         to the journal → fetches of peers → floors, settling → Python is woken

A frame that waits for the journal leaves in the turn that sees its position durable.
"""

from phx._core.driver_state cimport DriverState
from phx._core.native cimport *
from phx._core.transport cimport TransportHooks

# Body of the thread; arg is the DriverState.
cdef void* poller_run(void* arg) noexcept nogil
# Notify of the journal writer; context is the DriverState.
cdef void poller_durable(void* context) noexcept nogil
cdef void poller_hooks(DriverState* s, TransportHooks* out) noexcept nogil
