"""Created groups at a simulated host: what its engine and the rest of it are told as they come and
go. As `phx._core.hosting` and `phx.node.hosting`, for a host without threads; the steps between,
and when they are taken, are in hosting.py.

Flows and seats have a place for every id that may be created; an id is used once in a run.
"""

from phx._core.native cimport *
from phx.sim.host cimport Host, LogFlow

# A life begins: which groups are hosted, by the rows of the store; what was left half done is done.
cdef void groups_begin(Host h)
# Of an engine that has replayed nothing: its groups, and those that are gone.
cdef void groups_open(Host h, dict settled)
# Behind which instance the group's log begins; 0: from its first on.
cdef u64 base_of(Host h, u32 group)
# Nobody has a vote in it any more, by what this node knows; a group that never ends: False.
cdef bint is_over(Host h, u32 group) noexcept
cdef void flow_begin(LogFlow* flow, u32 group, bint hosted, bint paused, u64 last) noexcept
