"""The machine of the simulator's own workload; see machine.pyx for its commands."""

from phx._core.native cimport u32

cpdef bytes encode_get(u32 key)
cpdef bytes encode_put(u32 key, bytes value)
cpdef bytes encode_append(u32 key, bytes more)
cpdef bytes encode_cas(u32 key, bytes expected, bytes new)
cpdef bytes encode_delete(u32 key)
