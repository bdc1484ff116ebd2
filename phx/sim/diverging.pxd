"""Replicas of a simulated host that diverge, and what it does about them.

A machine, or the session table, makes something else of a value than was decided; from then on its
answers are nobody's (`watch_answers`). Whether and when that is found, `comparing` says, in Python.
"""

from libcpp.vector cimport vector

from phx._core.delivery cimport Batch, Delivered
from phx._core.native cimport *
from phx.sim.host cimport Host, LogFlow

# These are about to be looked up in the tables.
cdef void stray_tables(Host h, vector[Delivered]* taken)
# The machine has applied these; and all of the batch is applied.
cdef void stray_machine(Host h, LogFlow* flow, list entries)
cdef void note_agreed(Host h, LogFlow* flow, Batch batch)
# What Python asks; see host.pyi.
cdef void halt_odd(Host h, u32 group, u64 equal, u64 differs, str why)
cdef void pause_anew(Host h, u32 group)
