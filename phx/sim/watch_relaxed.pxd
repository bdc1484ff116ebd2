"""The claims about relaxed groups (docs/design/durability.md): told is what is written, and whoever
may lack something that was told is suspect.

An acceptance of a group that was relaxed when it was emitted counts for what is decided as soon as
it is written: whoever forgets it is not counted any more (lemma 7). Of everything else only what is
durable counts, and may be told.
"""

from phx._core.codec cimport RecordHeader
from phx._core.native cimport *
from phx.sim.invariants cimport NodeWatch, Watch
from phx.sim.reference cimport Cell
from phx.sim.watch_records cimport Written

# The engine is told whether it may tell what is only written, after the node's turn `turn`.
cdef void watch_relaxed(Watch* w, u32 node, u32 group, bint on, u64 turn) noexcept nogil
# The store has the group as relaxed, in the run of the machine that goes on; or it has it no more,
# so that a start of this run or of a later one takes it for whole.
cdef void watch_row_relaxed(Watch* w, u32 node, u32 group, bint on) noexcept nogil
# Everything up to `lsn` was given to the system.
cdef void watch_written(Watch* w, u32 node, u64 lsn) noexcept nogil
# The power of the machine went, between two lives, and with it anything that was only written.
cdef void watch_power(Watch* w, u32 node) noexcept nogil

# A life begins, and the engine has started.
cdef void relaxed_started(Watch* w, NodeWatch* n) noexcept nogil
# A record is emitted: may what it says be told once it is written?
cdef bint relaxed_emits(Watch* w, NodeWatch* n, const RecordHeader* header,
                        const Written* one) noexcept nogil
# May the node say, in a frame of the turn n.made, that it has accepted in this ballot what is only
# written here, or that it is chosen?
cdef bint relaxed_tells(NodeWatch* n, u32 group, const Cell* cell, u64 ballot) noexcept nogil
