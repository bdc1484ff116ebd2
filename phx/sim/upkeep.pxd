"""Keeping a simulated host's journal short: floors, recycling, settling, pressure.

phx/_core/upkeep.pyx needs the threads of a driver, and does this for it; what it goes by is shared,
and the journal, the settle plan, the chunks and the index of the store are the production code.
"""

from phx._core.state cimport Effects
from phx.sim.host cimport Host

cdef void note_floor(Host h, const Effects* effects) noexcept
# Floors that have become durable: whole segments below them are free.
cdef int recycle(Host h) except -1
# At the end of each turn.
cdef int upkeep(Host h) except -1
# A settle of everything that is chosen and durable, now.
cdef void settle_all(Host h)
cdef void commit(Host h)         # AT_COMMIT
cdef void settled(Host h)        # AT_SETTLED
cdef void make_spare(Host h)     # AT_SPARE
