"""The trace of a debug run: what a driver told its engine, wrote, synced and sent, in a file.

A checker reads it afterwards (phx/testing/trace.py; what it proves: docs/design/trace.md). Off by
default; then the price is one test of a pointer for each input, turn and send.

Guarantees, for events of one trace, whatever threads they are of:

- The order of the file is the order in which the events were noted, under one lock. An event that
  says *done* (WROTE, SYNCED, DURABLE) is noted after the call has returned, an event that says
  *begins* (SYNCING, SENDING) before the call is made. So SYNCED before SENDING in the file means
  that the sync had returned before the first byte could leave.
- SENDING is with the operating system before the bytes are: what the trace of a killed process does
  not have did not leave. The rest is written in chunks; a torn last event is cut by the reader.

Event: this header (16 bytes), the fixed part of its kind, a body, zeros to a multiple of eight.

    offset  size  field
    0       4     crc       CRC-32C of what follows, to the end of the event
    4       4     bytes     of the whole event
    8       1     kind      TRACE_*
    9       3     pad       0
    12      4     thread    tells threads apart, and no more
"""

from phx._core.codec cimport RecordHeader
from phx._core.disk cimport DiskApi, pthread_mutex_t
from phx._core.native cimport *
from phx._core.state cimport Effects, EngineOptions

cdef enum:
    TRACE_VERSION = 3
    TRACE_HEAD_BYTES = 96        # of a segment's header, kept with a write at offset 0

cdef enum TraceKind:
    TRACE_BEGIN = 1              # TraceBegin
    TRACE_OPTIONS = 2            # TraceOptions
    TRACE_END = 3                # nothing: the driver was closed
    TRACE_LIMIT = 4              # nothing: the trace ends here, the driver goes on
    # inputs of the engine, in order: TraceInput, and a body of `bytes`
    TRACE_GROUP = 16             # group, peer: generation, first: settled through; result
    TRACE_REPLAYED = 17          # first: lsn; body: the record; result
    # first: next lsn, second: now; body: wall clock (u64); result: incarnation
    TRACE_START = 18
    TRACE_RECEIVE = 19           # peer; body: payload
    # group, peer: count, first: sequence, second: deadline; body: items; result
    TRACE_SUBMIT = 20
    TRACE_DURABLE = 21           # first: lsn
    TRACE_ADVANCE = 22           # first: now, second: wall clock
    TRACE_CONNECTED = 23         # peer, first: incarnation; body: store id; result
    TRACE_DISCONNECTED = 24      # peer
    TRACE_SUPPLY = 25            # group, peer, first: instance; body: entries
    TRACE_APPLIED = 26           # group, first: instance
    TRACE_SETTLED = 27           # group, first: through
    TRACE_RETIRE = 28            # first: lsn; result
    TRACE_STOP_GROUP = 29        # group
    TRACE_POISON = 30
    TRACE_PRESSURE = 31          # first: level
    TRACE_RESIGN = 32
    TRACE_RESTORING = 33         # group, first: 1: on, 0: off
    TRACE_FLOOR = 34             # group, first: floor
    TRACE_INSTALL = 35           # group, first: through, second: ballot; result
    TRACE_DONE = 36              # group, peer: count, first: sequence
    TRACE_CEILING = 37           # first: counter
    TRACE_SUSPECT = 38           # group
    TRACE_READ = 39              # group, peer: flags, first: ticket, second: deadline; result
    TRACE_TRANSFER = 40          # group, peer: to (0: anybody); result
    TRACE_PRIORITY = 41          # first: priority of this node
    TRACE_ADD_PEER = 42          # peer; body: its store id, if that is known; result
    TRACE_DROP_PEER = 43         # peer; result
    TRACE_CHANGE_MEMBERS = 44    # group; body: membership value; result
    # group, peer: 1: active, first: instance, second: floor; body: membership value; result
    TRACE_CHANGE_KNOWN = 45
    TRACE_GONE = 46              # group, peer: generation
    TRACE_DROP_GROUP = 47        # group
    TRACE_WRITTEN = 48           # first: lsn
    TRACE_DURABILITY = 49        # group, first: within; second: the position that it gave
    TRACE_SYNC = 50
    TRACE_LATE = 51              # first: how late this node applies
    # effects: TraceTurn; records; frames (TraceFrame, bytes, zeros to 8); chosen; fetches; events;
    # points
    TRACE_TURN = 56
    # the world
    TRACE_SENDING = 64           # TraceSending; frames (TraceSent) that may leave from now on
    TRACE_OPENED = 65            # TraceDisk: file; body: name
    TRACE_WROTE = 66             # TraceDisk: file, offset, count, crc, result; body: see above
    TRACE_SYNCING = 67           # TraceDisk: file
    TRACE_SYNCED = 68            # TraceDisk: file, result

cdef packed struct TraceHeader:
    u32 crc
    u32 bytes
    u8 kind
    u8 pad[3]
    u32 thread

cdef packed struct TraceBegin:
    u64 magic                    # the letters PHXTRACE
    u32 version
    u32 node
    u64 cluster
    u8 store_id[16]

cdef packed struct TraceOptions: # of the engine, by the same names
    u64 seed
    u64 window_bytes
    u64 pending_bytes_max
    u64 cache_bytes_max
    u32 window
    u32 batch_bytes_max
    u32 heartbeat_us
    u32 lease_us
    u32 election_us
    u32 resend_us
    u32 frame_bytes_max
    u32 value_bytes_max
    u32 balance
    u32 n_members
    u32 members[16]

cdef packed struct TraceInput:
    u32 group
    u32 peer
    u64 first
    u64 second
    u32 result
    u32 bytes

cdef packed struct TraceTurn:
    u64 lsn_first
    u64 lsn_end
    u64 wake_at_us
    u64 floor_lsn
    u64 floor_after
    u32 sync
    u32 record_bytes
    u32 frames
    u32 chosen
    u32 fetches
    u32 events
    u32 points
    u32 pad

cdef packed struct TraceFrame:
    u32 peer
    u32 bytes
    u64 after

cdef packed struct TraceChosen:
    u32 group
    u32 pad
    u64 first
    u64 last

cdef packed struct TraceFetch:
    u32 group
    u32 peer
    u64 first
    u64 last

cdef packed struct TraceEvent:
    u32 kind
    u32 verdict
    u32 group
    u32 count
    u32 leader
    u32 pad
    u64 first_seq

cdef packed struct TracePoint:
    u32 group
    u32 verdict
    u64 ticket
    u64 instance

cdef packed struct TraceSending:
    u32 peer
    u32 frames

cdef packed struct TraceSent:
    u32 crc                      # CRC-32C of the bytes that are handed to the socket
    u32 bytes
    u64 after

cdef packed struct TraceDisk:
    i64 file
    u64 offset
    u64 count
    i64 result
    u32 crc
    u32 bytes

cdef struct Trace:
    i64 refs
    pthread_mutex_t lock         # guards what follows; held over write(2): this is for debugging
    int fd
    Block* buffer
    u64 event                    # where in the buffer the event being noted begins
    u64 written
    u64 bytes_max
    i64 error                    # errno, or EFBIG at bytes_max: nothing is noted any more
    bint told

# A new file at `path`, which must not exist; NULL with *error = -errno. At `bytes_max` it ends, and
# so it does when it cannot be written; the node goes on.
cdef Trace* trace_open(const char* path, u64 bytes_max, const EngineOptions* options,
                       const u8* store_id, int* error) noexcept nogil
# The last reference closes the file.
cdef void trace_unref(Trace* t) noexcept nogil
# The driver was closed.
cdef void trace_end(Trace* t) noexcept nogil
# The errno with which it ended early, said once; else 0.
cdef int trace_failed(Trace* t) noexcept nogil

# `kind` below TRACE_TURN. Before the engine is told, except where there is a result.
cdef void trace_input(Trace* t, u8 kind, u32 group, u32 peer, u64 first, u64 second, u32 result,
                      const void* body, u64 nbytes) noexcept nogil
cdef void trace_replayed(Trace* t, const RecordHeader* header, const u8* body, u64 lsn,
                         u32 result) noexcept nogil
cdef void trace_turn(Trace* t, const Effects* effects) noexcept nogil

# One SENDING: begin, a call for each frame, end; the lock is held in between.
cdef void trace_sending(Trace* t, u32 peer, u32 frames) noexcept nogil
cdef void trace_frame(Trace* t, const Block* frame, u64 after) noexcept nogil
cdef void trace_sending_end(Trace* t) noexcept nogil

# From now on what is opened, written and synced through this table is noted. Takes a reference of
# its own, that `release` gives back.
cdef void trace_disk(Trace* t, DiskApi* disk) noexcept nogil
