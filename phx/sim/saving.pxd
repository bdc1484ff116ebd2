"""Checkpoints of a simulated host: what its threads for taking and for restoring would do.

A checkpoint is due every now and then, of some group that has applied something since its last one.
It is captured at the end of a batch, or as the group stands; then it is written step by step, each
an event. At a start, the groups that have checkpoints are paused until a machine is there.
"""

from phx._core.native cimport *
from phx.sim.host cimport Host, LogFlow

# A life begins: what is there (group to frontier), which stays paused at first; sets h.keep_dead.
cdef dict keep_open(Host h, dict floors)
# And it runs: the paused groups will be restored, the first checkpoint will be due.
cdef void keep_begin(Host h)
cdef void keep_crash(Host h, bint power)
cdef void keep_ask(Host h, u32 group)
cdef void keep_event(Host h, u64 token)       # AT_KEEP
# Is a batch of the flow waited for?
cdef bint keep_wants(Host h, LogFlow* flow) noexcept
# A batch was applied to its end; the table is as of there.
cdef void keep_table(Host h, LogFlow* flow, bytes table)
cdef void restore(Host h, u32 group)          # AT_RESTORE
