"""Simulated time: what happens next, and when. Events of one time happen in the order of asking."""

from phx._core.native cimport *

cdef enum EventKind:
    AT_TURN = 1        # a host takes its turn
    AT_WAKE = 2        # its engine asked to be woken: `a` is the token of that request
    AT_WRITE = 3       # its journal thread has written what was queued
    AT_SYNC = 4        # and the sync has returned
    AT_RETRY = 5       # a write that found the journal full is tried again
    AT_SPARE = 6       # housekeeping makes a segment
    AT_COMMIT = 7      # the store commits a settle plan
    AT_SETTLED = 8     # and the engine is told
    AT_FETCH = 9       # the store answers for a peer: `a` is the number of the question
    AT_APPLY = 10      # the machines' thread has time
    AT_ARRIVE = 11     # a frame arrives: `a` is the link, `b` its connection
    AT_DIAL = 12       # a pair tries to connect: `a` is the link
    AT_SILENCE = 13    # a connection over which nothing comes is closed: `a`, `b` as above
    AT_CALL = 14       # something of Python's: `a` is its number
    AT_RESET = 15      # the other end has closed: `a`, `b` as of a frame
    AT_KEEP = 16       # a checkpoint is due, or its next step: `a` is the token of that request
    AT_RESTORE = 17    # a group's machine is brought back from a checkpoint: `a` is the group
    AT_TASK = 18       # something of Python's that dies with the host: `a` is its number

cdef struct Happening:
    u64 at_us
    u32 kind
    u32 host           # index; of a link's event: the receiving host
    u64 life           # of the host: an event for another life is void
    u64 a
    u64 b
    Block* block       # a reference, of a frame

cdef enum:
    NEAR = 1024        # spans of time that have a heap of their own
    WORDS = 16         # with a bit for each of them

cdef struct Due:               # an entry of a heap; what it is stands in a slot
    u64 at_us
    u64 order                  # the number of the request above, the slot in the lower 20 bits

cdef class Agenda:
    cdef readonly u64 now_us
    cdef readonly u64 steps
    cdef u64 number
    cdef vector[vector[Due]] near    # by the number of their span of time, modulo NEAR
    cdef u64 some[WORDS]             # bits: those that are not empty
    cdef u64 first_span              # that of the last event: no span below it has anything
    cdef vector[Due] far             # NEAR spans from there, and beyond
    cdef void forget(self, vector[Due]* heap) noexcept
    cdef vector[Happening] slots
    cdef vector[u64] free
    cdef void push(self, u64 at_us, u32 kind, u32 host, u64 life, u64 a, u64 b,
                   Block* block) noexcept
    # The same event later, in the order in which the events came up.
    cdef void postpone(self, const Happening* what, u64 at_us) noexcept
    # The next event up to `until_us` in *out, and time moves there; False: there is none.
    cdef bint pop(self, u64 until_us, Happening* out) noexcept
    cpdef void clear(self)
