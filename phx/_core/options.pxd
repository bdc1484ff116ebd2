"""The arguments of a Driver, checked and turned into the structs of its layers.

Every function with `except -1` raises DriverError (ERROR_OPTION) for what cannot be; then the
driver was not made. GIL held.
"""

from phx._core.driver_state cimport DriverOptions
from phx._core.native cimport *
from phx._core.port cimport PhxAddress

# A numeric address; "" gives one without bytes: not known yet.
cdef int address_of(PhxAddress* out, host, port) except -1
# The options given, over the defaults; nothing unknown, nothing out of range.
cdef dict option_values(options)
# `ids`: members, ascending.
cdef int engine_options(DriverOptions* o, dict v, list ids) except -1
cdef int driver_options(DriverOptions* o, dict v) except -1
cdef int identity(DriverOptions* o, u64 cluster, u32 node, bytes store_id) except -1
# Where to dial the others and where to listen; `bind` None: at the node's own member address.
# `peers`: beyond the members; `named`: those of both whose address is that of a name.
cdef int peer_addresses(DriverOptions* o, u32 node, members, peers, named, bind) except -1
# What the store knows of earlier lives; the lease only if the journal is `lost`. After the peers.
cdef int former_facts(DriverOptions* o, facts, bint lost) except -1
