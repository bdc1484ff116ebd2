"""One node of a simulated cluster: engine and journal while it lives, disk and store always.

What the threads of a real node do is done here by events of the agenda: the poll thread's turn,
the journal thread's write and sync (one batch at a time; what comes meanwhile waits), the store
thread's commits, the applier. A crash may come between any two of them, and, through
MemoryDisk.crash_at, inside a write or a sync.

Frames that may leave stand in `ready`; whoever called the host takes them (world.pyx).
"""

from phx._core.delivery cimport Sessions
from phx._core.journal cimport Journal, JournalOptions
from phx._core.memdisk cimport MemoryDisk
from phx._core.native cimport *
from phx._core.published cimport Published
from phx._core.state cimport Effects, Engine, EngineCounters, EngineOptions, Event, Outgoing
from phx.sim.agenda cimport Agenda, Happening
from phx.sim.chance cimport Chance
from phx.sim.clock cimport Clock
from phx.sim.invariants cimport Watch

cdef struct Queued:              # a block on its way to the journal
    Block* block
    u64 lsn_first
    u64 lsn_end
    bint sync
    bint write
    bint urgent

cdef struct Held:                # a frame that waits for the journal, or may leave
    u64 after
    u32 dest                     # index of a host; HELD_ALL: every connected peer
    Block* frame
    u64 connections[16]          # of each peer when the frame was made: it leaves over no other one
    u64 turn                     # in which it was made

cdef struct Floor:
    u64 lsn
    u64 after

cdef enum Stray:                 # what goes wrong with the next value
    STRAY_NOT = 0
    STRAY_STATE = 1              # its machine applies another one
    STRAY_LOG = 2                # its chained checksum becomes another

cdef struct LogFlow:             # a group's chosen entries on their way to the machines
    u32 group
    bint hosted                  # False: a created group that is not here
    bint stopped                 # its machine failed
    bint paused                  # its machine is being restored
    bint lost                    # paused until one is fetched: no checkpoint here will do
    bint refused                 # what comes next is damaged in the store, until that is mended
    bint anew                    # lost, whatever is here: its state is to be made anew
    bint busy                    # its checkpoints are being changed: none is taken
    Stray stray
    u64 stray_how
    u64 next
    u64 last
    u64 applied                  # the machine's state is that after this instance
    u64 covered                  # by an install of this life: what comes up to there is passed over

cdef struct Asked:               # a fetch that the store will answer
    u32 group
    u32 peer
    u64 first
    u64 last

cdef struct Pace:                # how long things take here, in microseconds
    u64 turn_us_max
    u64 write_us_max
    u64 sync_us_min
    u64 sync_us_max
    u64 slow_sync_ppm            # of syncs, that take up to slow_sync_us
    u64 slow_sync_us
    u64 apply_us_max
    u64 commit_us_max
    u64 inline_ppm               # of turns, in which the poll thread writes and syncs by itself
    u64 settle_idle_us
    u64 settle_bytes

cdef struct HostCounts:          # over all lives
    u64 starts
    u64 torn_tails
    u64 refused_starts
    u64 replayed
    u64 settles
    u64 settled_entries
    u64 retires
    u64 rolls
    u64 recycled_segments
    u64 full
    u64 pressures
    u64 poisoned
    u64 syncs
    u64 durables
    u64 dropped_duplicates
    u64 dropped_stale
    u64 supplied
    u64 stopped_groups
    u64 damaged_reads
    u64 applied
    u64 settled_calls
    u64 lost_journals            # starts that found theirs lost
    u64 lost_again               # of those: the one that was begun after a loss
    u64 ceilings                 # of promises, raised
    u64 lost_stores              # lost, or older ones put back
    u64 old_rows                 # rows that the journal knew better
    u64 odd_machines             # machines that made something else of a value
    u64 doubtful_groups          # that may lack something, at starts
    u64 written_acks             # acknowledgements that waited for a write alone
    u64 written_votes            # own votes
    u64 interval_syncs           # because a group's time was over

cdef enum:
    HELD_ALL = 0xFFFF

cdef enum KeepStage:             # of the thread that takes checkpoints
    KEEP_IDLE = 0
    KEEP_WANTED = 1              # waits for a batch of the group to end
    KEEP_WRITING = 2

cdef class Host:
    cdef readonly u32 node
    cdef readonly u32 index
    cdef readonly u64 life               # counts starts
    cdef readonly u32 incarnation
    cdef readonly bint refused           # the journal could not be opened: damaged on purpose
    cdef readonly bint poisoned
    cdef bint failing_start              # an operation was to fail on purpose while it started
    cdef readonly str why                # it was refused
    cdef Agenda agenda
    cdef Watch* watch
    cdef Chance chance
    cdef Pace pace
    cdef HostCounts counts
    cdef EngineCounters engine_totals    # of the lives that are over
    cdef u64 idle_turns
    cdef u32 peer_index[1 << 8]          # by node id (ids of a simulated cluster are small)
    cdef public object tracing           # None, or a list that events are appended to
    cdef Clock clock
    cdef EngineOptions engine_options
    cdef JournalOptions journal_options
    cdef readonly MemoryDisk disk
    cdef readonly object store           # storage.SettledStore
    cdef readonly object keeping         # keeping.Keeping
    cdef u64 keep_every_us               # about that often a checkpoint is taken; 0: never
    cdef Chance keep_chance
    cdef bint rejoins                    # its store keeps facts, and it lives without its journal
    cdef readonly object relaxing        # relaxing.Relaxing; None: its groups all sync
    cdef readonly bytes boot             # id of the run of its machine
    cdef object runs                     # so many of them, so far
    cdef u32 first_members               # nodes 1 to so many; 0: members never change
    cdef object joining                  # by group: the members that it was told of beforehand
    cdef bint losing                     # the journal may be lost: on purpose, or it is a new one
    cdef bint store_changed              # its store is another one than the journal knows
    cdef object store_copy               # of an earlier time, or None
    cdef bint taken                      # on purpose, and no start has found that yet
    cdef set keep_excused                # groups whose checkpoints were damaged on purpose
    cdef object machines                 # group id -> StateMachine, called at each start
    cdef list configured                 # groups that are always there
    cdef list groups                     # and those that are hosted in this life, ascending
    cdef u32 slots                       # ids that there may be
    cdef readonly object hosting         # hosting.Hosting; None: no groups are created
    cdef readonly object fetching        # fetching.Fetching
    cdef readonly object mending         # mending.Mending
    cdef readonly object trimming        # trimming.Trimming
    cdef readonly object comparing       # comparing.Comparing
    cdef u64 agreed_every                # agreed instances are its multiples
    cdef public object provider          # providing.Provider; None: it is down
    cdef dict tasks                      # of this life, by number
    cdef u64 task_number
    cdef u64 turns                       # over all lives
    # --- a life
    cdef Engine* engine                  # NULL: it is down
    cdef Journal* journal
    cdef Published* published
    cdef Sessions sessions
    cdef public dict machine             # group -> StateMachine
    cdef public dict waiting             # (group << 48 | sequence) -> Call
    cdef dict next_sequence              # group -> int
    cdef u64 paused_until_us
    cdef u64 blocked_until_us            # the machines' thread does nothing until then
    cdef bint turn_due
    cdef u64 heard_bytes                 # since the last turn
    cdef u64 wake_token
    cdef u64 digest                      # of everything that this host did; see world.pyx
    cdef u64 connections[16]             # of each peer, by index; 0: not connected
    # --- the journal thread
    cdef vector[Queued] queue
    cdef bint writing
    cdef bint sync_wanted
    cdef bint stuck
    cdef u64 durable_lsn
    cdef u64 lsn_end
    cdef vector[Held] held
    cdef vector[Held] ready
    # --- upkeep
    cdef deque[Floor] floors
    cdef u64 floor_lsn
    cdef bint settling
    cdef object plan
    cdef u64 settle_upto_lsn
    cdef u64 settle_after_us
    cdef u64 retire_lsn
    cdef u64 retire_bytes
    cdef u64 chosen_us
    cdef bint unsettled
    cdef bint spare_due
    cdef int pressure
    # --- checkpoints
    cdef KeepStage keep_stage
    cdef size_t keep_flow                # index of the one that is wanted, or written
    cdef u64 keep_token
    cdef bint keep_dead                  # it died within a step; cleared by a crash
    # --- to the machines
    cdef vector[LogFlow] flows
    cdef bint apply_due
    cdef vector[Asked] asked
    cdef list failed                     # (group, first, count, verdict), for the callers
    cdef list halted                     # (group, turn): its callers hear no more after that turn
    cdef vector[u32] touched             # groups, since the last turn
    # --- reads (asking)
    cdef u64 tickets                     # over all lives
    cdef readonly object memberships     # memberships.Memberships
    cdef list changed                    # (group, instance): other members, in this turn
    cdef dict asking                     # by ticket: whoever waits for a read point
    cdef list answering                  # and whoever has one

    # True if it runs now; False: see `why`.
    cdef bint start(self) except -1
    # `power`: what was not synced is lost, torn, or out of order.
    cdef void crash(self, bint power)
    cdef void close(self)
    cdef void refuse(self, int code)
    # The engine, and the journal replayed into it: a JournalError. `create`: a new journal.
    cdef int open(self, dict settled, dict floors, starts, bint create) except? -99
    cdef void begin(self, dict settled, dict starts, bint lost)
    cdef void die_at_start(self, bint power)
    cdef bint disk_failing(self) noexcept   # on purpose, or it is full
    # The counters of this life into the totals, and out of them again.
    cdef void count(self)
    cdef void uncount(self)
    cdef void add_counts(self, bint out)
    cdef u64 shows(self) noexcept                    # its monotonic clock
    cdef u64 wall(self) noexcept
    cdef void note(self, u64 word) noexcept          # into the digest
    cdef void touch(self, u32 group) noexcept
    cdef void poke(self) noexcept
    cdef void apply_soon(self, u64 after_us)
    # poll thread
    cdef int turn(self) except -1
    cdef void wake(self, u64 at_us) noexcept
    cdef int take_records(self, Effects* out) except -1
    cdef int take_event(self, const Event* event) except -1
    cdef void take_frame(self, const Outgoing* out) noexcept
    cdef void release(self) noexcept
    # journal thread
    cdef void write(self, bint inline_)
    cdef void written(self, bint inline_)
    cdef void synced(self)
    cdef void take_durable(self, u64 lsn)
    cdef void write_more(self)
    cdef void retry(self)
    cdef u64 sync_time_us(self)
    cdef void poison(self, int code)

# The flow of a group that is hosted, or NULL.
cdef inline LogFlow* find_flow(Host h, u32 group) noexcept:
    if group >= h.flows.size() or not h.flows[group].hosted:
        return NULL
    return &h.flows[group]
