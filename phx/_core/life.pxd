"""Making, opening, starting, stopping and freeing the native half of a node.

Whatever fails, and wherever, life_free gives everything back. Called by one thread at a time.
"""

from phx._core.driver_state cimport DriverOptions, DriverState, Opening
from phx._core.native cimport *
from phx._core.state cimport Gone

cdef enum:
    LIFE_TEXT_BYTES = 400

cdef enum LifeError:             # also codes of DriverError
    LIFE_OK = 0
    LIFE_OPTION = 5
    LIFE_BIND = 6
    LIFE_SYSTEM = 7
    LIFE_START = 10
    LIFE_JOURNAL = 100           # minus the JournalError

# The queues work from here on, and s.known may be filled; everything else is made by life_start.
cdef DriverState* life_new(const DriverOptions* options, vector[u32]* groups) noexcept nogil
# Opens and replays the journal, listens, starts the threads. 0, or a LifeError with `text`.
# `openings`: one for each group. Paused ones are led by others until they are resumed. `gone`: of
# which the journal may still hold records.
# `trace_path`: a new file for the trace of this life, or NULL.
cdef int life_start(DriverState* s, const char* journal_dir, bint create, vector[u32]* groups,
                    vector[Opening]* openings, const vector[Gone]* gone, const char* trace_path,
                    char* text) noexcept nogil
# Ask the poll thread to end and wait until it has done its last work. False: not in time.
cdef bint life_stop(DriverState* s, u64 timeout_us) noexcept nogil
# After life_stop said True, or if no thread runs: everything but the queues' locks. Idempotent.
cdef void life_release(DriverState* s) noexcept nogil
# And the rest.
cdef void life_free(DriverState* s) noexcept nogil
