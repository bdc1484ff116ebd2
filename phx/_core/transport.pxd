"""One TCP connection per peer for all groups: listening, dialling, handshake, framing, queues.

A frame is sent only once the journal is durable up to the frame's `after`; each peer's queue is
bounded, and what finds it full is dropped (the engine sends again). Whatever arrives is hostile
until checked: nothing is allocated from a length that was not, and a connection that says something
wrong is closed with one log line. The node with the lower id dials the higher.

All of it runs on the poll thread, and learns the time only from its arguments.

Payload of a HELLO frame (40 bytes; more are ignored, for versions to come):

    offset  size  field
    0       2     version_min    protocol versions that the sender speaks
    2       2     version_max
    4       4     incarnation
    8       16    store_id
    24      8     now_us         the sender's clock; for people who read dumps
    32      4     window         open instances per group: the same at every member; 0: not told
    36      4     pad            0

A connection whose first frame is FETCH or JOIN (handover.pxd) leaves the table after the checks of
a HELLO. JOIN has the same payload, and is for who is not known here: it asks who there is.

Payload of a REFUSED frame: reason u32 (REFUSED_*), pad u32, then a text for people.
"""

from phx._core.native cimport *
from phx._core.port cimport PhxAddress, PhxFds, pollfd
from phx._core.trace cimport Trace, trace_frame, trace_sending, trace_sending_end

cdef enum:
    PEERS_MAX = 63               # of a node, itself not among them (state.pxd: SLOTS_MAX)
    HELLO_BYTES = 40
    HELLO_BYTES_MAX = 256        # longest payload that is believed before the handshake
    FETCH_BYTES_MAX = 1024       # and of a FETCH: as in phx/transfer/messages.py
    READ_BYTES = 1048576         # of one connection in one turn, so that none starves the others
    PENDING_MAX = 64             # connections whose handshake is not done
    LOG_INFO = 20                # levels of Python's logging
    LOG_WARNING = 30
    LOG_ERROR = 40

cdef enum RefusedReason:
    REFUSED_VERSION = 1          # no common protocol version
    REFUSED_NODE = 2             # the wrong side dialled, or that is no id of another node
    REFUSED_STORE = 3            # another store id under this node id
    REFUSED_WINDOW = 4           # the window belongs to the group, not to a node's configuration
    REFUSED_BUSY = 5             # as many as may wait for Python do
    REFUSED_UNKNOWN = 6          # it may be of the cluster, but nobody has said so here (yet)
    REFUSED_CLUSTER = 7          # another cluster

cdef enum PeerWord:              # how an address is told
    PEER_NAMED = 1               # it is that of a name: whoever dials has it looked up as well
    PEER_LOOKED_UP = 2           # and this is the answer

cdef packed struct Hello:
    u16 version_min
    u16 version_max
    u32 incarnation
    u8 store_id[16]
    u64 now_us
    u32 window
    u32 pad

cdef struct TransportHooks:
    void* context
    # A good handshake: 0 to take the peer, anything else to refuse it. If it is connected already,
    # the new connection takes the place of the old one, without a disconnect in between.
    int (*connected)(void* context, u32 peer, u32 incarnation, const u8* store_id) noexcept nogil
    void (*disconnected)(void* context, u32 peer) noexcept nogil
    # Payload of an ENGINE frame, borrowed for the call.
    void (*frame)(void* context, u32 peer, const u8* payload, u64 count) noexcept nogil
    void (*log)(void* context, int level, const char* text) noexcept nogil
    # 0: this is the store that is known under this node id, in this life or a later one; 1: nobody
    # was met under this id; -1: another store, or an older life. Changes nothing.
    int (*known)(void* context, u32 peer, u32 incarnation, const u8* store_id) noexcept nogil
    # A connection that leaves the transport, and what was read of it: 0 takes both.
    int (*handed)(void* context, int fd, u32 peer, Block* said) noexcept nogil
    # A peer with a named address is about to be dialled; so many attempts have failed since the
    # last good handshake.
    void (*dialing)(void* context, u32 peer, u32 attempts) noexcept nogil

cdef struct TransportOptions:
    u64 cluster
    u32 node
    u32 incarnation
    u8 store_id[16]
    u32 payload_bytes_max        # of a frame
    u64 peer_queue_bytes_max     # of each peer, frames that wait for the journal included
    u64 handshake_us             # from connect or accept to a good HELLO
    u64 silence_us               # a connection on which nothing was heard for so long is closed
    u64 backoff_min_us
    u64 backoff_max_us
    u64 seed                     # of the jitter
    u32 window                   # told and compared, no more

cdef enum ConnectionState:
    CONNECTION_DIALING = 1       # TCP handshake under way
    CONNECTION_HELLO = 2         # the peer's HELLO is awaited
    CONNECTION_UP = 3
    CONNECTION_CLOSED = 4        # descriptor closed, or handed over; freed at the end of the turn

cdef struct Connection:
    int fd
    u8 state
    bint inbound
    bint want_write              # the socket's buffer was full
    bint broken                  # a send failed: closed at the start of the next turn
    u32 peer                     # 0: not known yet
    i64 poll_index               # in the poll set of this turn, or -1
    u64 heard_us
    u64 deadline_us              # of the handshake
    Block* control               # HELLO or REFUSED, goes before the frames
    u64 control_sent
    u8* buffer                   # received bytes are buffer[start:end]
    u64 capacity
    u64 start
    u64 end
    PhxAddress address

cdef struct Queued:
    u64 after
    Block* frame

cdef struct Link:                # everything about one peer
    u32 node
    bint quiet                   # its next failure to connect is not worth a line
    bint named                   # its address is that of a name
    bint looked_up               # the next attempt goes where the look-up for this one has led
    u32 refused                  # REFUSED_*: how it answered last; 0: well, or not at all
    PhxAddress address           # no bytes: not known, and not dialled
    Connection* connection       # up, or NULL
    Connection* dialing          # ours, before it is up, or NULL
    u64 dial_at_us
    u32 attempts                 # since the last good handshake
    u32 incarnation
    u64 heard_us                 # 0: never
    u64 since_us                 # that it is connected, or away, or refuses
    deque[Queued] ready          # free to go; the first `sent` bytes of the first are gone
    u64 sent
    deque[Queued] held           # ascending `after`
    u64 queued_bytes              # of memory that the queue holds
    u64 frames_sent
    u64 bytes_sent
    u64 frames_received
    u64 bytes_received
    u64 frames_dropped
    u64 connects

cdef struct Transport:
    TransportOptions options
    TransportHooks hooks
    PhxFds* fds
    Trace* trace                 # NULL: nobody wants to know; set after transport_new
    int listener                 # -1: none
    u64 listen_at_us             # out of descriptors: accept nothing before
    i64 listener_index
    u64 durable                  # frames with `after` up to here may leave
    u64 random_state
    vector[Link*] links          # ascending nodes
    vector[Connection*] connections
    # log lines about strangers: a bucket of tokens
    u64 log_tokens
    u64 log_refill_us
    u64 log_skipped
    u64 rejected                 # connections closed for what they said

cdef Transport* transport_new(const TransportOptions* options, const TransportHooks* hooks,
                              PhxFds* fds) noexcept nogil
# Closes everything; calls no hook.
cdef void transport_free(Transport* t) noexcept nogil
# From now on this is a peer, and its address (PeerWord `how`); without bytes it is not dialled.
# What was dialled to another address is closed, and dialled anew; but what a look-up says of a peer
# that is connected is for the next time, and of one that is not there for nobody.
cdef void transport_set_peer(Transport* t, u32 node, const PhxAddress* address, u32 how,
                             u64 now_us) noexcept nogil
# It is none any more: its connections are closed, what waits for it is dropped; calls no hook.
cdef void transport_drop_peer(Transport* t, u32 node) noexcept nogil
# The port, or -errno.
cdef int transport_listen(Transport* t, const PhxAddress* address) noexcept nogil
# Append what is to be watched.
cdef void transport_watch(Transport* t, vector[pollfd]* fds, u64 now_us) noexcept nogil
# When transport_turn has something to do without any descriptor being ready.
cdef u64 transport_deadline(Transport* t) noexcept nogil
# Accept, read, dial, time out; calls the hooks. `fds` as filled by transport_watch, after poll().
cdef void transport_turn(Transport* t, vector[pollfd]* fds, u64 now_us) noexcept nogil
# Write what is free to go (sending.pxd), as far as the sockets take it.
cdef void transport_flush(Transport* t, u64 now_us) noexcept nogil

cdef inline Link* transport_link(Transport* t, u32 node) noexcept nogil:
    cdef size_t i
    for i in range(t.links.size()):
        if t.links[i].node == node:
            return t.links[i]
    return NULL

# Into the trace: those among the first `count` frames of the queue of which no byte has left.
cdef inline void note_sending(Transport* t, Link* link, u32 count) noexcept nogil:
    cdef u32 i, first = 1 if link.sent else 0
    if first >= count:
        return
    trace_sending(t.trace, link.node, count - first)
    for i in range(first, count):
        trace_frame(t.trace, link.ready[i].frame, link.ready[i].after)
    trace_sending_end(t.trace)
