"""The watch driven by hand: hand-made histories, good and bad, for the tests of the invariants."""

from phx._core.native cimport *
from phx._core.published cimport Published
from phx._core.state cimport Engine, EngineOptions
from phx.sim.clock cimport Clock
from phx.sim.invariants cimport Watch

cdef class WatchDoor:
    cdef Watch* watch
    cdef u32 n_nodes
    cdef u32 n_groups
    cdef Engine* engines[15]
    cdef Clock clocks[15]
    cdef Published* published
    cdef void options(self, u32 node, EngineOptions* out) noexcept
    cdef void drop(self, u32 node) noexcept
    cdef Engine* engine_of(self, u32 node) except NULL
    # A created group, at its beginning; and its first members.
    cdef int add_created(self, Engine* e, u32 group) except -1
    cdef int know(self, Engine* e, u32 group, bytes roster) except -1
