"""Clients of a simulated cluster; see workload.pyi."""

from phx._core.native cimport i64, u64
from phx.sim.history cimport Operation

cdef class Client
cdef class Workload

cdef class Operations:
    cdef public list history
    cdef public dict open
    cdef public i64 rejections
    cdef public i64 unknown
    cdef public i64 abandoned

cdef class Call(Operation):
    cdef public Client asker
    cdef public bytes command
    cdef public object node
    cdef public u64 op
    cdef public int tries

cdef class Client:
    cdef public Workload load
    cdef public u64 number
    cdef public u64 group
    cdef public object kind
    cdef public object chance
    cdef public u64 home
    cdef public u64 serial
    cdef public i64 open
    cdef public list retry
    cdef public object verify
    cdef public dict seen
    cdef Operations operations
    cdef object random           # of `chance`
    # of `kind`
    cdef double lists
    cdef double reads
    cdef double large
    cdef double huge
    cdef i64 batch
    cdef i64 timeout_us[2]
    cdef i64 think_us[2]
    cdef bint verifies
    cdef i64 below(self, i64 most) except -1
    cdef i64 between(self, const i64* bounds) except -1
    cdef u64 asked_at(self) except 0
    cpdef list new_calls(self, now_us)
    cpdef bytes token(self)
    cdef Call list_call(self, u64 key, i64 now_us)
    cdef Call register_call(self, u64 key, i64 now_us)
    cdef bytes value(self)
    cdef int settled(self, i64 now_us) except -1

cdef class Workload:
    cdef public object world
    cdef public object plan
    cdef public object chance
    cdef public Operations operations
    cdef public i64 end_us
    cdef public i64 value_bytes_max
    cdef public bint behind
    cdef public list clients
    cdef public u64 bursts
    cdef list sleeping               # a heap of (when, number, client)
    cdef public bint plain           # `hand_in` is that of this class
    cdef i64 duration_us
    cdef i64 nodes
    cdef i64 groups
    cdef int wake(self, Client client, i64 at_us) except -1
    cpdef submit(self, Client client, node, list calls, i64 timeout_us)
    cpdef hand_in(self, Client client, node, list calls, i64 timeout_us)
    cdef int pass_on(self, Client client, node, list calls, i64 timeout_us) except -1
