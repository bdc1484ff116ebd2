"""The limit that phx is compared with: journal, sync and acknowledge, and no protocol at all.

A node takes values in the groups that it leads, packs all that waits into a frame per turn of its
poll thread, sends the frame to the other nodes and hands it to its journal thread. The others write
the same bytes, sync, and acknowledge how many frames of that sender are durable. A value is done
when its frame is synced here and on enough others to be a majority. There are no elections, no
promises, no log to read and no recovery.

Frame: a header (24 bytes), then records. Record: a header (32 bytes), then `count` values.

    offset  size  frame                              offset  size  record
    0       4     magic, the letters PHXL            0       4     crc, CRC-32C of bytes 4 .. end
    4       4     nbytes, header included            4       4     nbytes of the values
    8       8     number, from 1, per sender         8       4     group
    16      4     source, index of the sender        12      4     count
    20      4     records                            16      8     first, index of the first value
                                                     24      8     0

A value begins with its index in its group (as many bytes of it as fit), then a filler; values that
Python submitted are taken as they are. Acknowledgement: eight bytes, the number of the newest frame
of this sender up to which all are synced. It travels back on the connection of the frames.

Threads: the poll thread owns everything but what is said to be guarded or published. The journal
thread, or the poll thread while the journal is idle, writes, syncs and sends acknowledgements.
"""

from phx._core.disk cimport DiskApi
from phx._core.native cimport *
from phx._core.port cimport *

cdef enum:
    NODES_MAX = 8
    FRAME_MAGIC = 0x4C584850
    FRAME_HEADER_BYTES = 24
    RECORD_HEADER_BYTES = 32
    FRAME_BYTES_MAX = 131072
    ARENA_BYTES = 1048576        # frames and received bytes lie in blocks of that size
    RECEIVE_BYTES_MIN = 65536
    VALUE_BYTES_MAX = 65536
    INLINE_BYTES = 8192          # an idle journal writes up to that much in the poll thread
    GATHER_MAX = 16
    STEPS = 64                   # of the histogram, per factor of two
    BUCKETS = 64 * 40

cdef packed struct FrameHeader:
    u32 magic
    u32 nbytes
    u64 number
    u32 source
    u32 records

cdef packed struct RecordHeader:
    u32 crc
    u32 nbytes
    u32 group
    u32 count
    u64 first
    u64 zero

cdef struct Slice:               # a reference to a run of bytes of a block
    Block* block
    u64 offset
    u64 nbytes

cdef struct Arena:               # blocks used in turn; one that nobody else refers to is free
    vector[Block*] blocks        # a reference each
    Block* current               # one of them, or NULL

cdef struct Write:
    Slice bytes
    int peer                     # -1: this node's own
    u64 upto                     # number of the last frame in it

cdef struct Journal:
    DiskApi* disk
    i64 file
    u64 nbytes                   # of the file; it is written round and round
    u64 at
    pthread_mutex_t lock         # guards queue, busy, stopping
    pthread_cond_t wake
    pthread_t thread
    vector[Write] queue
    vector[Write] batch          # of whoever is `busy`
    bint busy
    bint stopping
    # --- published
    i64 durable                  # number of the newest own frame up to which all are synced
    i64 syncs
    i64 written_bytes
    i64 wraps

cdef struct Peer:
    int out_fd                   # frames go out, acknowledgements come in
    int in_fd                    # and the other way round
    vector[Slice] sending
    size_t sending_first
    bint blocked                 # out_fd takes no more for now
    bint out_gone                # the other end has closed it, with nothing in flight
    bint in_gone
    Arena arena                  # what comes in at in_fd
    u64 parsed                   # bytes of the current block whose frames were handed on
    u64 received                 # number of the last frame
    u8 ack[8]
    u64 ack_bytes
    i64 acked                    # published: frames of ours that it has synced

cdef struct Entry:               # values of a group: taken, waiting for a frame, or in one
    u32 group
    u32 count
    u64 taken_ns
    Block* source                # their bytes, a reference; NULL: made when packed
    u64 offset

cdef struct Flight:              # a frame that is not done
    u64 number
    size_t entries               # so many of `flying`

cdef struct Sample:
    u64 at_ns
    u64 cpu_ns                   # user and system time of the process
    u64 done
    u64 syncs
    u64 written_bytes

cdef struct Limit:
    u32 me
    int n_peers
    int others_needed            # besides this node, for a majority
    u32 n_groups
    u64 value_bytes
    u64 begin_ns
    u64 end_ns
    bint python                  # values come from Python's event loop
    Peer peers[NODES_MAX]
    Journal journal
    Arena arena                  # own frames
    u64 number                   # of the last frame made
    vector[u64] next             # by group: index of the next value
    vector[u64] done             # by group
    vector[u32] slot             # by group: place in `waiting` + 1, if taken_ns is the same
    vector[Entry] waiting
    vector[Write] taken          # what this turn has for the journal
    u64 taken_bytes
    deque[Entry] flying
    deque[Flight] flights
    u8 filler[VALUE_BYTES_MAX]
    u64 now_ns
    Sample begin
    Sample end
    u64 done_total
    u64 histogram[BUCKETS]       # of ns between taken and done, within the measured time
    # --- Python's side
    pthread_mutex_t lock         # guards inbox and outbox
    vector[Entry] inbox
    vector[Entry] outbox         # group and count of values that are done
    vector[Entry] finished       # of this turn
    PhxWaker waker               # of the poll thread
    PhxWaker told                # of the event loop
    PhxFds fds
    pthread_t thread
    # --- published
    i64 sleeping                 # the poll thread is in poll(), or about to be
    i64 inbox_full
    i64 stopping
    i64 completed                # frames that are done
    i64 drained                  # the measured time is over and nothing is in flight
    i64 error                    # 0 or errno, for ever

# The threads; `arg` is the Limit. They end when `stopping` (of both) is set, or on an error.
cdef void* poll_main(void* arg) noexcept nogil
cdef void* journal_main(void* arg) noexcept nogil
# Everything that the node holds, sockets and file excepted; its threads are joined.
cdef void limit_free(Limit* n) noexcept nogil
# The middle of a bucket of the histogram.
cdef u64 bucket_ns(int bucket) noexcept nogil
