"""Damage on purpose: one bit of a record that the journal itself has marked as durable."""

from phx._core.native cimport *
from phx.sim.host cimport Host
from phx.sim.invariants cimport Watch

# Of the records below a durable mark and above the floor the `which`-th, counted round; in it one
# bit. False: there is no such record. (Damage above the last mark cannot be told from a torn tail:
# docs/design/journal.md.)
cdef bint flip_record(Watch* watch, Host host, u64 which, u64 bit) noexcept
