"""Floors and installs of a simulated host: what its store, its engine and its watch are told.

Which checkpoint is fetched, and when what is trimmed, is decided in Python (`fetching`,
`trimming`); it reaches the host through these.
"""

from phx._core.native cimport *
from phx._core.state cimport Event
from phx.sim.host cimport Host

# A life begins: the engine is made, and nothing was replayed. What the rows say; and they are told.
cdef dict floors_open(Host h)
cdef void rows_open(Host h, dict settled, dict floors)
# The store's rows of these groups have changed.
cdef void row_changed(Host h, u32 group)
cdef void below(Host h, const Event* event)
cdef void task(Host h, u64 number)            # AT_TASK
cdef void forget_tasks(Host h)
# See host.pyi.
cdef void soon(Host h, u64 after_us, what)
cdef dict facts_of(Host h, u32 group)
cdef list connected_to(Host h)
cdef bint make_busy(Host h, u32 group, bint on)
cdef bint raise_row(Host h, u32 group, u64 kept_from, u64 settled)
cdef void tell_floor_of(Host h, u32 group)
cdef bint swap_in(Host h, u32 group, machine, bytes table, u64 frontier, u64 read, bint odd,
                  bint own, members)
cdef void install_at(Host h, u32 group, u64 through, u64 ballot)
cdef bint trim_once(Host h)
