"""Relaxed groups of a host: what the poll thread, the journal thread and the machine do about them.

In which order store and engine are told is the production code's (`relaxing`, over
`phx.durability`); what the poller and the writer of a node do besides is done here, for a host
without threads. Nothing of it happens to hosts whose groups cannot be relaxed (limit `relaxed` 0).
"""

from phx._core.native cimport *
from phx.sim.host cimport Host

# The engine has started, and with it a life. `doubtful`: groups that may lack something.
cdef void relaxed_begin(Host h)
# Those that the store has as relaxed in another run of the machine, or in none that is known.
cdef object doubtful(Host h)
# At the end of a turn, and when the journal thread has written: the engine hears of it if it waits.
cdef void written_news(Host h)
# The journal thread has written what nobody syncs: a new segment may have synced what was before.
cdef void rolled(Host h)
# Before the engine hears what time it is.
cdef void interval_passes(Host h)
# Before a settle plan of everything: False: some of it is only written, and will be synced.
cdef bint all_durable(Host h)
# The journal is poisoned: what was only written is doubtful.
cdef void doubt(Host h)
# The power of its machine went, between two lives.
cdef void power_lost(Host h)
# As engine_durability, for `relaxing`.
cdef u64 tell_durability(Host h, u32 group, u64 within_us)
# What the store knows of them was `before`, and is `after`: facts.
cdef void row_changed(Host h, before, after)
