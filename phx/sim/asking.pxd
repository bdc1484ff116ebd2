"""Reads at a simulated host: tickets of its engine, and who waits for the state that they name."""

from phx._core.state cimport Effects
from phx.sim.host cimport Host

# A life begins, or ends: whoever waits is told that the host died.
cdef void reads_begin(Host h)
cdef void reads_end(Host h)
# What came of tickets in this turn; then whatever may be answered by now, or is too late.
cdef int reads_turn(Host h, Effects* out) except -1
