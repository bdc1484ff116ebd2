"""What the native half of a node remembers. Structs only; which module may change what:

    poller     the turn: engine, positions, times, what the layers cost
    flow       flows, backlog: chosen entries on their way to the applier; old entries for peers
    hosting    which groups there are, while it runs
    upkeep     floors, settling, pressure
    driver     options, and everything before the threads start and after they have ended
"""

from phx._core.codec cimport RecordHeader
from phx._core.handover cimport Handover
from phx._core.journal cimport Journal, JournalCounters, JournalOptions
from phx._core.lookups cimport Lookups
from phx._core.native cimport *
from phx._core.plan cimport JournalHold
from phx._core.port cimport PhxAddress, PhxFds, pollfd, pthread_t
from phx._core.published cimport Published
from phx._core.queues cimport (
    Chores, Command, Inbox, KnownMembers, Outbox, ReadWanted, Submission,
)
from phx._core.state cimport (
    Engine, EngineCounters, EngineOptions, Fetch, Gone, ReadPoint, Replica, find_group,
)
from phx._core.trace cimport Trace
from phx._core.transport cimport PEERS_MAX, Transport, TransportOptions
from phx._core.writer cimport JournalWriter

cdef struct DriverOptions:
    EngineOptions engine
    TransportOptions transport
    JournalOptions journal
    PhxAddress bind
    u32 n_peers
    u32 peers[PEERS_MAX]
    PhxAddress addresses[PEERS_MAX]
    bint named[PEERS_MAX]        # that is the address of a name
    u64 inbox_bytes_max          # of values handed over and not yet seen by the poll thread
    u64 delivery_bytes_max       # of chosen values that wait for the applier in memory
    u64 settle_bytes             # of live journal: above, entries move to the store
    u64 settle_idle_us           # nothing chosen for so long: everything moves
    u64 journal_queue_bytes_max  # of records that wait for the disk: above, no Accept is taken
    u64 inline_bytes_max         # larger writes are left to the journal thread
    u64 trace_bytes_max          # of a trace, if there is to be one
    u32 incarnation              # this life's is higher; 0: only than what the journal says
    u32 priority                 # how much it wants to lead at first
    # What is known outside the journal (rejoin.pxd); the bound is for a journal that was lost, the
    # store ids are those of peers, for one that does not know them.
    u64 ceiling                  # NO_CEILING: nobody keeps one
    u32 lost_before              # a journal that does not know this life is not whole
    u64 lease_bound_us
    u32 n_known
    u32 known[PEERS_MAX]
    u8 known_ids[PEERS_MAX][16]

cdef struct Opening:             # how a group begins
    u32 generation               # of its id: how often that was used before
    u64 settled_through          # highest instance in the store
    u64 floor                    # lowest one that it keeps, or would keep
    u64 start                    # its machine is to hold everything up to here
    bint paused                  # and does not yet
    bint suspect                 # its votes are lost

cdef struct Flow:                # a group's way to the applier
    u32 group
    bint waiting                 # in DriverState.backlog
    bint loading                 # the store thread has been asked
    bint paused                  # nothing is handed over: the machine is being restored
    u64 next                     # next instance to hand over
    u64 last                     # last one known to be chosen
    u64 retry_us                 # after a failure: not before

cdef struct GroupWanted:         # asked of the poll thread
    Opening opening
    u32 index                    # what it got
    # its members, where they are not those of the options: as engine_change_known; NULL: they are
    const u8* members
    u64 members_bytes
    u64 version
    u64 instance
    u64 floor
    bint active

cdef enum:
    NO_GROUP = 0xFFFFFFFF        # of a flow: nobody has that index

cdef struct Floor:               # nothing below `lsn` is live once `after` is durable
    u64 lsn
    u64 after

cdef struct Settled:
    u32 group
    u64 through

cdef enum Layer:
    LAYER_NETWORK = 0            # sockets, and what the engine does with received frames
    LAYER_SUBMIT = 1             # values and commands of Python
    LAYER_ENGINE = 2
    LAYER_SEND = 3
    LAYER_DELIVER = 4            # to the applier; old entries for peers
    LAYER_JOURNAL = 5            # handing over, or writing and syncing inline
    LAYERS = 6

cdef struct PeerWanted:          # asked of the poll thread
    PhxAddress address
    u32 how                      # PeerWord
    bint known                   # it was met before:
    u8 store_id[16]

cdef struct PeerStatus:
    u32 node
    u32 incarnation
    bint connected
    u32 refused                  # REFUSED_*: how it answered last; 0: well, or not at all
    u64 since_us                 # that this is so
    u64 heard_us                 # 0: never
    bint known                   # it was met, in this life or before:
    u8 store_id[16]
    u64 queued_bytes
    u64 frames_sent
    u64 bytes_sent
    u64 frames_received
    u64 bytes_received
    u64 frames_dropped
    u64 connects

cdef struct NodeStatus:
    u64 now_us
    EngineCounters engine
    JournalCounters journal
    u32 n_peers
    PeerStatus peers[PEERS_MAX]
    u64 rejected
    u64 connections
    bint poisoned
    int pressure
    u64 durable_lsn
    u64 written_lsn
    u64 floor_lsn
    u64 backlog_groups
    u64 turns
    u64 layers_ns[LAYERS]
    bint settle_wanted
    bint settle_running
    u64 settle_plans
    u64 settle_entries
    u32 leading                  # groups

cdef struct DriverState:
    DriverOptions options
    PhxFds fds
    Inbox inbox
    Outbox outbox
    Handover handover
    Chores chores
    Lookups lookups
    Published* published         # for reads at this node
    i64 late_us                  # how late what was taken last was applied; 0: in time
    i64 turning_away             # callers of this node are turned away: others are told late_us
    vector[KnownMembers] known   # of groups, told before the start; their references
    # --- made by start, freed by stop
    Trace* trace                 # NULL: nobody wants to know
    Engine* engine
    JournalHold* hold
    Journal* journal
    JournalWriter* writer
    Transport* transport
    pthread_t thread
    bint running                 # the poll thread exists and is not joined
    i64 stopping
    i64 exited                   # the poll thread has done its last work
    bint clean                   # and all that it wrote is durable
    u32 incarnation
    int port
    # --- poll thread
    u64 now_us
    u64 late_told_us             # to the engine
    u64 engine_wake_us
    bint again                   # there is more to do at once
    vector[pollfd] watched
    vector[Submission] submissions
    size_t submitted             # so many of them are with the engine
    vector[Command] commands
    vector[u64] applied
    vector[ReadWanted] reads
    vector[ReadPoint] refused    # reads that the engine did not take
    vector[Fetch] fetches
    u64 turns
    u64 layers_ns[LAYERS]
    # positions
    u64 durable
    u64 written                  # told to the engine, where somebody waits for no more
    u64 lsn_end                  # of everything the engine emitted
    i64 syncs_seen
    u64 sync_average_ns          # 0: not measured yet
    bint poisoned
    # flow
    vector[Flow] flows           # by Replica.index
    deque[u32] backlog           # indexes of flows with something to hand over
    u32 loads                    # asked of the store and not answered
    vector[Gone] loads_lost      # of these, those of groups that are hosted no more
    deque[u32] loads_line        # flows that will be asked for next
    # upkeep
    deque[Floor] floors          # announced, and not yet durable
    u64 floor_lsn
    int pressure
    u64 pressure_lsn             # lsn_end when it was last looked at
    u64 chosen_us                # when something was last chosen
    bint unsettled               # something was chosen since everything was settled
    bint settle_wanted
    bint settle_running
    bint settle_asked            # the plan under way was wanted, or is to free segments
    u64 settle_upto
    u64 settle_retry_us
    u64 retire_lsn               # lsn_end when the engine was last told to retire
    u64 retire_bytes             # and how much that frees
    vector[Settled] settling
    u64 settle_plans
    u64 settle_entries
    int pressed_by               # PRESSED_*, as it was told last

# The flow of a group, or NULL.
cdef inline Flow* find_flow(DriverState* s, u32 group) noexcept nogil:
    cdef Replica* r = find_group(s.engine, group)
    return &s.flows[r.index] if r != NULL else NULL

cdef inline u32 flow_index(DriverState* s, Flow* flow) noexcept nogil:
    return <u32>(flow - &s.flows[0])
