"""Links and connections: what TCP, cables and switches do between two hosts.

A connection has two ends, and each end has its own belief about it: one may be closed (a host that
lost its power, silence for three seconds) while the other still sends. A frame leaves over the
connection for which it was made or not at all. Frames keep their order unless the link is told to
let some be late; a frame whose checksum fails closes the connection.
"""

from phx._core.native cimport *
from phx.sim.agenda cimport Happening
from phx.sim.host cimport Held, Host
from phx.sim.world cimport Link, World

cdef void link_set(Link* link, dict values)
cdef int transmit(World w, Host sender, Held* item, u32 dest) except -1
cdef int arrive(World w, Happening* what) except -1      # AT_ARRIVE
cdef void dial(World w, u32 a, u32 b)                    # AT_DIAL
cdef void dial_soon(World w, u32 a, u32 b, u64 after_us)
# A new connection of a pair; what either end still had is over.
cdef void connect(World w, Host a, Host b)
# The host's end of a connection is closed; `told`: the other end hears of it, if it can.
cdef void hang_up(World w, Host host, u32 peer, bint told)
# A connection on which nothing was heard for long is closed.
cdef void silence(World w, Happening* what)              # AT_SILENCE
# What a piece of a stream of its own (`pipes`) meets now; as `World.wire` of world.pyi.
cdef i64 wire_us(World w, Host source, Host dest, u64 nbytes)
