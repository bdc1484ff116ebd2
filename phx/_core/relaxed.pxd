"""Relaxed durability: what a group's acceptances wait for before they are told.

A group is *relaxed* while `Replica.sync_within_us` is not 0: what it accepts, and nothing else, is
told once it is written, and not once it is durable. So the only thing that the failure of a machine
takes is acceptances, and a replica that may lack some does not vote (rejoin.pxd). Promises, members
and that a replica is whole again are durable before anything relaxed is told: `Replica.hard_lsn`.

What was not told yet waits in `Engine.relaxed`, in order, for `engine_written`; then it goes into
the lane `now`. So no frame ever waits for anything but a sync, and nodes without such groups have
nothing to do with this. The argument: docs/design/durability.md.
"""

from phx._core.native cimport *
from phx._core.state cimport *

# May an acceptance of this group be told once it is written? Not before all else that it says is
# durable: the promise of its ballot, and who the members are. Nor while the replica is suspect.
cdef inline bint is_relaxed(Engine* e, Replica* r) noexcept nogil:
    return r.sync_within_us != 0 and r.hard_lsn <= e.durable and not r.suspect

# What was emitted last has to be durable before anything relaxed is told of the group.
cdef inline void note_hard(Engine* e, Replica* r) noexcept nogil:
    r.hard_lsn = e.lsn_end

# As emit_record, for a group that is_relaxed: somebody waits for it to be written. It is synced
# with the next record that has to be, or when the group's time is over.
cdef u64 emit_relaxed(Engine* e, Replica* r, u8 kind, u64 index, u64 ballot, const void* body,
                      u32 nbytes, u64* lsn_end) noexcept nogil
# Have everything synced that only had to be written.
cdef void sync_relaxed(Engine* e) noexcept nogil
# The group is acknowledged again when all that was emitted so far is written.
cdef void wait_written(Engine* e, Replica* r) noexcept nogil
# As engine_durability.
cdef u64 durability_set(Engine* e, Replica* r, u64 within_us) noexcept nogil
