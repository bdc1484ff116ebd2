"""The engine for Python: the same compiled code, driven by hand (tests, simulator)."""

from phx._core.state cimport Engine as NativeEngine


cdef class Engine:
    cdef NativeEngine* e
    cdef readonly unsigned int incarnation
