"""What must hold of checkpoints, floors and installs: the claims U9a, U9c to U9f (invariants.pxd).

U9b and U9g are about records, frames and engines, and stand in invariants with the others that are;
here it is said what the store's rows are, which they compare with.
"""

from phx._core.native cimport *
from phx.sim.invariants cimport Watch

# The store is another one: its rows begin anew.
cdef void watch_store(Watch* w, u32 node) noexcept nogil
# The store's row of a group, durably: before a start, and after each transaction that changed it.
cdef void watch_row(Watch* w, u32 node, u32 group, u64 kept_from, u64 settled) noexcept nogil
# The engine was told a floor, or of an install: frames of its turn `turn` and later ones say it.
cdef void watch_floored(Watch* w, u32 node, u32 group, u64 turn) noexcept nogil
# `cover` is the frontier of what stands for what the store does not keep: of the oldest checkpoint
# that the log goes on from, or the one that machines were built from; 0: the log alone.
cdef void watch_cover(Watch* w, u32 node, u32 group, u64 cover) noexcept nogil
# A checkpoint is captured: the state that the machines are in, with a session table; `state` stands
# for the machine's digest. And: the machines are in it from now on, and nothing was handed to them.
# And: others are in it, made beside those that had been handed less; `anew`: or more.
# (What an odd one has is not looked at.)
cdef void watch_checkpoint(Watch* w, u32 node, u32 group, u64 through, const u8* table, u64 count,
                           u64 state) noexcept nogil
cdef void watch_restored(Watch* w, u32 node, u32 group, u64 through, const u8* table, u64 count,
                         u64 state) noexcept nogil
cdef void watch_swapped(Watch* w, u32 node, u32 group, u64 through, const u8* table, u64 count,
                        u64 state, bint anew) noexcept nogil
# Some machine of the group wrote its state: bytes of this hash. And: one was restored from such.
# This took the place of a damaged entry (U9h).
cdef void watch_mended(Watch* w, u32 node, u32 group, u64 instance, const u8* body,
                       u64 count) noexcept nogil
cdef void watch_wrote(Watch* w, u32 group, u64 hash) noexcept nogil
cdef void watch_loaded(Watch* w, u32 node, u32 group, u64 hash) noexcept nogil
# The engine is about to be told of an install up to `through`; and it was.
cdef void watch_installing(Watch* w, u32 node, u32 group, u64 through) noexcept nogil
cdef void watch_installed(Watch* w, u32 node, u32 group, u64 through) noexcept nogil
