"""What a node's life begins with; and the claims about groups that come and go (U15).

    U15  who takes part in a created group has a row of its store that says so, written before; who
         dropped it never takes part again, in no life
         a start begins with exactly the groups that the store's rows say are hosted
         what the directory calls over has its last value decided; nobody lets go before

That nothing is decided behind a last value is U10's: it leaves members among whom nobody votes.
Groups up to `Watch.configured` are always there. Of a created id there is one generation in a run:
what tells generations apart is attacked in tests/engine/group_chaos.py.
"""

from phx._core.native cimport *
from phx._core.state cimport Engine
from phx.sim.invariants cimport NodeWatch, Watch

# `settled`: by group, what the store holds; everything replayed is durable.
cdef void watch_started(Watch* w, u32 node, Engine* engine, u32 incarnation,
                        const u64* settled) noexcept nogil
cdef void watch_died(Watch* w, u32 node) noexcept nogil

# The directory says that there is a group, of these members; and that it is over, told by a node.
cdef void watch_created(Watch* w, u32 group, const u8* roster, u64 count) noexcept nogil
cdef void watch_over(Watch* w, u32 node, u32 group) noexcept nogil
# A node's store says, durably, that it hosts the group; or no more.
cdef void watch_hosts(Watch* w, u32 node, u32 group, bint hosts) noexcept nogil
# Its engine has it from now on; or no more, but for frames that were made by now.
cdef void watch_hosted(Watch* w, u32 node, u32 group, u64 settled) noexcept nogil
cdef void watch_unhosted(Watch* w, u32 node, u32 group) noexcept nogil
# Its machine begins with nothing, behind `base`.
cdef void watch_begun(Watch* w, u32 node, u32 group, u64 base) noexcept nogil
# What the node writes or sends is of a group that it may take part in: made in this turn.
cdef bint takes_part(Watch* w, NodeWatch* n, u32 group, u64 made) noexcept nogil
