"""What a host's store knows of its lives, journals that are lost, and how a host lives without one.

It is the order of `phx.node.lives` for a host without threads, over the same facts
(`phx.store_facts`). A host has facts only where `rejoin` is among the limits of its world: without
them a journal that is damaged keeps it down.
"""

from phx._core.native cimport *
from phx.sim.host cimport Host

# A life is about to begin: the store knows it, durably.
cdef void life_begins(Host h)
# What came of opening the journal, and of replaying it: is it lost? A violation if nobody took it.
cdef bint life_lost(Host h, int code)
# It is: the store says so, what is left of it is put aside, and an empty disk is there.
cdef void life_without(Host h)
# All is replayed: the engine is told what is known besides. `lost`: of the life before.
cdef void life_told(Host h, bint lost)
# EVENT_CEILING: the store has a higher one a little later.
cdef void ceiling_wanted(Host h, u64 counter)
# The journal of a host that is down goes, all of it, or (`damaged`) so that a start has to find it.
cdef void lose(Host h, bint damaged, u64 which, u64 bit)
# It has lost its journal, and has not made good for it in every group yet.
cdef bint is_losing(Host h)
