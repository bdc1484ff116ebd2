"""Target for hostile messages: engine_receive, between all other inputs of an engine.

An input is a script: it sets up an engine of three or five members and four groups in one of
several roles (a follower, preparing, leading, replayed from a journal), and then plays messages
with sound headers and any content, time, syncs, turns, and what the driver does. Numbers in
messages are mostly near what the engine holds, so that its checks are passed as often as failed.

What must hold after every turn is said in oracles.pxd; and at the end: the records that the engine
emitted can be replayed, its promises survive that, and all that was allocated is given back.
"""

from phx._core.native cimport *

cdef void run_engine(const u8* data, u64 count) noexcept nogil
# Records, one by one, into engine_replay, and then a start.
cdef void run_replay(const u8* data, u64 count) noexcept nogil
