"""Chosen entries on their way to the applier, and old entries for peers and readers.

The applier gets every chosen instance of a group once, in order, from K + 1 on, where K is what its
machine held when the group began: the frontier of a checkpoint, or 0. A paused group gets nothing
until it is resumed. What waits in memory is bounded by delivery_bytes_max; the rest is a range per
group, and is read again from the engine's memory, the journal or the store when the applier has
room.

K says where delivery begins, and nothing else. It may lie above everything that this node knows to
be chosen (a checkpoint that came from a peer, and a crash before the store's row followed). Then
K + 1 waits until the engine has announced it, after phase 1 or learning, like any instance; what
is announced at or below K is passed over. The engine is never told that 1 .. K are chosen, though
the checkpoint proves it, because it does not know *which* values they are. The run that breaks the
shortcut: nodes 1, 2, 3. Node 1 leads in ballot b, accepts v at 5 alone and is cut off. 2 leads
above b, hears of nothing at 5 from 3, and w is chosen there. Much later 1 is sent a checkpoint of 2
with K = 10 (w is in it), and crashes once it is in its folder. It restarts, knowing 4 instances to
be chosen and holding an acceptance of v at 5. With chosen_through = K that acceptance would pass
for the chosen value: it would be settled, and supplied to peers, in place of w (U1). So nothing
here makes an accepted entry a chosen one, at or below K or above.

Poll thread only.
"""

from phx._core.driver_state cimport DriverState, Opening
from phx._core.native cimport *
from phx._core.queues cimport Question
from phx._core.state cimport ChosenRange, Fetch

# The flow of a group that the engine has. What is settled beyond opening.start is to be handed over
# first.
cdef void flow_add(DriverState* s, u32 group, const Opening* opening) noexcept nogil
# The engine has it no longer after this: nothing of it is handed over or loaded any more.
cdef void flow_drop(DriverState* s, u32 group) noexcept nogil
# Nothing more of it is handed over, and it is not led here, until flow_resume.
cdef void flow_pause(DriverState* s, u32 group) noexcept nogil
# The machine of a paused group holds everything up to `start`: the engine is told so, and start + 1
# is handed over next. Nothing happens if the group is not paused.
cdef void flow_resume(DriverState* s, u32 group, u64 start) noexcept nogil
# The machine was replaced by one that holds everything up to `through`, of a checkpoint of another
# node: the engine goes on behind it, and so does delivery, if it was not there yet. What was handed
# over and not yet taken lies below, and is passed over by the session table, which is told first.
cdef void flow_install(DriverState* s, u32 group, u64 through, u64 ballot) noexcept nogil
cdef void flow_chosen(DriverState* s, const ChosenRange* chosen) noexcept nogil
# Hand over as much as there is room for; sets s.again when there is more to do at once.
cdef void flow_feed(DriverState* s) noexcept nogil
# The store's answer to a CHORE_LOAD; `entries` (borrowed) as for engine_supply, NULL for none.
cdef void flow_loaded(DriverState* s, u32 group, u32 generation, u64 first,
                      Block* entries) noexcept nogil
cdef u64 flow_deadline(DriverState* s) noexcept nogil
# Supply a peer from memory or the journal, or ask the store.
cdef void flow_fetch(DriverState* s, const Fetch* fetch) noexcept nogil
# The store's answer to a CHORE_FETCH, as far as it is sound and fits in a frame; NULL for none.
cdef void flow_supply(DriverState* s, u32 group, u32 generation, u32 peer, u64 first,
                      Block* entries) noexcept nogil
# Fills in body and verdict.
cdef void flow_read(DriverState* s, Question* question) noexcept nogil
