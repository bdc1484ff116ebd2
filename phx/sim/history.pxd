"""Operations of clients, and whether their history is linearizable; see history.pyi."""

from phx._core.native cimport i64

cdef class Operation:
    cdef public object client
    cdef public object key
    cdef public str kind
    cdef public object argument
    cdef public object result
    cdef public i64 called_us
    cdef public object returned_us
