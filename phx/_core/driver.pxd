"""Python's door to a node's native half: queues, commands and questions; see driver.pyi.

Nothing here touches the engine, a socket or the journal: that is the poll thread's, and this side
only queues, wakes and asks.
"""

from phx._core.delivery cimport Sessions
from phx._core.driver_state cimport DriverOptions, DriverState, Opening
from phx._core.native cimport *
from phx._core.published cimport ReadPoints
from phx._core.queues cimport Command, Question, Submission
from phx._core.state cimport Gone

cdef class Driver:
    cdef DriverState* s
    cdef DriverOptions options
    cdef vector[u32] groups              # from birth on; ascending
    cdef vector[Opening] openings        # by index
    cdef vector[u64] next_seq            # by index
    cdef vector[Gone] gone               # hosted no more, and perhaps still in the journal
    cdef dict index_of                   # group: its index (Replica.index)
    cdef dict paused                     # group: where it was to begin
    cdef dict floors                     # group: lowest instance kept, where that is not 1
    cdef bytes journal_dir
    cdef bytes trace_path                # or None
    cdef bint create
    cdef bint started                    # start() has been called
    cdef bint starting                   # inside start()
    cdef bint stopped
    cdef bint forked
    cdef u32 chore_generation            # store thread: of the group that it is at
    cdef u64 taken_us                    # when the last of what was taken had been handed over
    cdef Block* shared                   # block of small submissions, or NULL
    cdef readonly Sessions sessions
    cdef readonly ReadPoints points
    cdef readonly int port
    cdef readonly u32 incarnation
    cdef readonly bint clean             # it was stopped, and all that it wrote is durable

    cdef int check(self) except -1
    cdef object hosted(self, group)
    cdef object start_of(self, group, start, u64 settled_through)
    cdef int raised(self, group, floor, u64 settled) except -1
    cdef Block* room(self, u64 need, u64 remaining) noexcept
    cdef void pack(self, list values, u16 machine, u64 total, vector[Submission]* runs) noexcept
    cdef int command(self, Command* command, bint wake) except -1
    cdef int tell(self, u8 kind, u32 group, u64 first) except -1
    cdef int ask(self, Question* question) except -1
    cdef int entries_command(self, u8 kind, u32 group, u32 peer, u64 first, bytes entries) except -1
