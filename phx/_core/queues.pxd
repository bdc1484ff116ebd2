"""The queues between Python's threads and the poll thread.

Inbox    Python → poll thread: values to propose, commands, questions
Outbox   poll thread → event loop: chosen entries, events, log lines
Chores   poll thread → store thread: settling, fetching, loading

Each is bounded, each has one mutex that is held for a few moves of memory and never across a system
call, a call into Python or into the engine. Who waits is woken once per batch: the poll thread only
if it sleeps, Python only if it has cleared its descriptor.
"""

from phx._core.delivery cimport Delivered
from phx._core.native cimport *
from phx._core.port cimport PhxWaker, pthread_cond_t, pthread_mutex_t
from phx._core.state cimport Event, GroupMembers, GroupStatus, ReadPoint, SettleItem

cdef enum:
    MESSAGES_MAX = 256           # log lines that wait for Python
    MESSAGE_BYTES = 256
    SHARED_BLOCK_BYTES = 65536   # payloads of small submissions share blocks of this size
    RUN_BLOCK_BYTES = 262144     # a submission larger than that is cut into several
    CHORES_MAX = 256
    COMMANDS_MAX = 65536

# ------------------------------------------------------------------------ Python → poll thread

cdef struct Submission:          # `count` items (batch.pxd) at block.data[offset:offset+nbytes]
    u32 group
    u32 count
    u64 first_seq
    u64 offset
    u64 nbytes
    u64 deadline_us
    Block* block                 # a reference

cdef enum CommandKind:
    COMMAND_STOP_GROUP = 1       # group
    COMMAND_SETTLED = 2          # the plan up to `first` is in the store
    COMMAND_SETTLE_FAILED = 3    # it is not; try again later
    COMMAND_SETTLE_NOW = 4
    # group, `second`: its generation, peer, first, block (NULL: nothing to be had)
    COMMAND_SUPPLY = 5
    COMMAND_LOADED = 6           # the same, of no peer
    COMMAND_RESIGN = 7
    COMMAND_ADDRESS = 8          # peer, first: PeerWord, block: a PhxAddress
    COMMAND_ASK = 9              # question
    COMMAND_RESUME = 10          # group; its machine holds everything up to `first`
    COMMAND_FLOORED = 11         # group; its row says: kept from `first`, settled through `second`
    COMMAND_INSTALL = 12         # group; its machine holds 1 .. `first`; `second`: ballot
    COMMAND_DONE = 13            # group, first: sequence, second: how many; they are applied
    COMMAND_PAUSE = 14           # group; nothing more of it is delivered until COMMAND_RESUME
    COMMAND_CEILING = 15         # first: counter
    COMMAND_PRIORITY = 16        # first: of this node

cdef struct Command:
    u8 kind
    u32 group
    u32 peer
    u64 first
    u64 second
    Block* block
    Question* question

cdef enum QuestionKind:
    ASK_STATUS = 1               # everything about the node
    ASK_GROUP = 2                # rows: the one of `group`, or none
    ASK_GROUPS = 3               # rows: all
    ASK_READ = 4                 # body, or verdict
    # rows: paused, or without a leader, or accepted and not known to be applied
    ASK_BUSY = 5
    # verdict: a TransferVerdict; instance: the ballot that was given up. peer: to whom, 0: anybody
    ASK_TRANSFER = 7
    # verdict: a PeerVerdict; status: a PeerWanted
    ASK_ADD_PEER = 8
    ASK_DROP_PEER = 9
    ASK_MOVE_PEER = 10           # another address for one that there is
    ASK_MEMBERS = 11             # status: a GroupMembers, its value a reference
    ASK_CHANGE_MEMBERS = 12      # body: the value (the asker's); verdict: a ChangeVerdict
    ASK_CHANGE_KNOWN = 13        # status: a KnownMembers; verdict: 1: it cannot be
    # verdict: 0, or GROUP_NOT (hosting.pxd); status: a GroupWanted
    ASK_ADD_GROUP = 14
    ASK_DROP_GROUP = 15
    ASK_END_GROUP = 16           # verdict: a ChangeVerdict (barrier.pxd)
    ASK_DURABILITY = 17          # instance: within; then the position (engine_durability)

cdef enum ReadVerdict:
    READ_NOT_CHOSEN = 0
    READ_SETTLED = 1
    READ_NO_GROUP = 2
    READ_BODY = 3
    READ_FAILED = 4              # the journal could not be read: see the log lines

cdef struct GroupRow:
    u32 group
    u64 handed                   # highest instance handed to the applier
    GroupStatus status

# Lives on the asker's stack until `done`; only the poll thread touches it between.
cdef struct Question:
    u8 kind
    u32 group
    u32 peer
    u64 instance
    bint done
    int verdict                  # below 0: nobody answers any more
    Block* body
    vector[GroupRow] rows
    void* status                 # what is asked for, or where the answer goes (driver_state.pxd)

cdef struct KnownMembers:        # of a group, as disk or checkpoint says (engine_change_known)
    u32 group
    bint active
    u64 version
    u64 instance
    u64 floor
    Block* value                 # a reference

cdef struct ReadWanted:          # a read that wants its point (engine_read)
    u32 group
    u32 flags
    u64 ticket
    u64 deadline_us

cdef struct Inbox:
    pthread_mutex_t lock
    pthread_cond_t answered
    vector[Submission] submissions
    vector[Command] commands
    vector[ReadWanted] reads
    i64 reads_open               # of those, and of what the engine has: not yet taken back
    vector[u64] applied          # by group index; 0: nothing new
    vector[u32] applied_dirty    # group indexes
    i64 submitted_bytes          # in `submissions` (read without the lock)
    u64 bytes_max
    bint closed
    i64 pending                  # something is in here (read without the lock)
    i64 sleeping                 # the poll thread is in poll(), or about to be
    PhxWaker waker

cdef void inbox_init(Inbox* q, u32 n_groups, u64 bytes_max) noexcept nogil
# Refuse everything from now on, and drop what is there; questions are answered with `closed`.
cdef void inbox_close(Inbox* q) noexcept nogil
cdef void inbox_destroy(Inbox* q) noexcept nogil
# 0; 1: full, 2: closed. Takes the references of all or of none.
cdef int inbox_submit(Inbox* q, Submission* items, size_t count) noexcept nogil
# As inbox_submit. Takes command.block's reference only with 0.
cdef int inbox_command(Inbox* q, Command* command, bint wake) noexcept nogil
# 0; 1: READS_MAX of them are open, 2: closed.
cdef int inbox_read(Inbox* q, const ReadWanted* wanted) noexcept nogil
# Wakes nobody: there is no hurry.
cdef void inbox_applied(Inbox* q, u32 index, u64 instance) noexcept nogil
# Wait for the poll thread's answer. 0; 1: full, nothing was asked; 2: closed.
cdef int inbox_ask(Inbox* q, Question* question) noexcept nogil
cdef void inbox_answer(Inbox* q, Question* question) noexcept nogil
# Everything queued, the applied instances as pairs of (index, instance). Submissions stay where
# they are unless the vector for them is empty.
cdef void inbox_swap(Inbox* q, vector[Submission]* submissions, vector[Command]* commands,
                     vector[ReadWanted]* reads, vector[u64]* applied) noexcept nogil
# Poll thread: there is a group with that index, or none any more, and nothing queued for it.
# Of `items`, from `first` on, those of the group go.
cdef void submissions_forget(vector[Submission]* items, size_t first, u32 group,
                             i64* nbytes) noexcept nogil
cdef void inbox_blank(Inbox* q, u32 index, u32 group) noexcept nogil
# Wake the poll thread if it sleeps; any thread.
cdef void inbox_wake(Inbox* q) noexcept nogil
# The poll thread is about to sleep: False if it must not.
cdef bint inbox_sleep(Inbox* q) noexcept nogil
cdef void inbox_awake(Inbox* q) noexcept nogil

# ------------------------------------------------------------------------ poll thread → event loop

cdef struct Handed:
    Delivered entries
    u32 index                    # of the group
    u64 bytes
    u64 at_us                    # when it was handed over

cdef struct MembersNote:         # who the members of a group are now
    u32 group
    GroupMembers said            # its value a reference

cdef struct Message:
    int level
    char text[MESSAGE_BYTES]

cdef struct Outbox:
    pthread_mutex_t lock
    deque[Handed] handed
    i64 handed_bytes             # of bodies in `handed` (read without the lock)
    i64 starved                  # the poll thread has more as soon as some of it is taken
    vector[Event] events
    vector[ReadPoint] points     # never more than reads are open
    vector[MembersNote] members  # a few per change of a group
    i64 members_told             # of those, ever (read without the lock)
    vector[u32] leaders          # by group index: last leader told, and its epoch
    vector[u64] epochs
    vector[u32] groups           # ids, ascending
    vector[u8] leader_dirty
    vector[u32] leaders_dirty    # group indexes
    vector[u32] refused_peers    # told of as refused and not yet taken
    vector[u8] below             # by group index: an EVENT_BELOW waits
    vector[u32] belows           # group indexes
    vector[u32] slots            # scratch of outbox_take, and its thread's; by group index
    vector[Message] messages
    u64 messages_lost
    bint signal                  # something was added since the last outbox_signal
    PhxWaker waker

cdef void outbox_init(Outbox* q, vector[u32]* groups) noexcept nogil
# Entries that nobody takes any more.
cdef void outbox_drop(Outbox* q) noexcept nogil
cdef void outbox_destroy(Outbox* q) noexcept nogil
# Poll thread: `group` has that index, or had it until now; nothing of it waits for Python.
cdef void outbox_blank(Outbox* q, u32 index, u32 group) noexcept nogil
# Poll thread. Takes the bodies' references and the array.
cdef void outbox_hand(Outbox* q, Handed* item) noexcept nogil
# Leaders are kept as they last were, of refused peers and of groups that no log brings on one each;
# failures that follow each other are joined, and are never more than the values that Python has
# outstanding.
cdef void outbox_event(Outbox* q, u32 index, const Event* event) noexcept nogil
cdef void outbox_points(Outbox* q, const vector[ReadPoint]* points) noexcept nogil
# Before the entries above said.instance are handed over. Takes a reference of its own.
cdef void outbox_members(Outbox* q, u32 group, const GroupMembers* said) noexcept nogil
cdef void outbox_log(Outbox* q, int level, const char* text) noexcept nogil
# Wake Python if anything was added (end of a turn).
cdef void outbox_signal(Outbox* q) noexcept nogil
# Python. At least one, then up to about bytes_max; stretches of one group that follow each other
# are joined. When the last of them was handed over; 0: there is nothing.
cdef u64 outbox_take(Outbox* q, u64 bytes_max, vector[Delivered]* out) noexcept nogil
cdef void outbox_events(Outbox* q, vector[Event]* out) noexcept nogil
cdef void outbox_take_points(Outbox* q, Inbox* inbox, vector[ReadPoint]* out) noexcept nogil
# With their references.
cdef void outbox_take_members(Outbox* q, vector[MembersNote]* out) noexcept nogil
cdef void outbox_messages(Outbox* q, vector[Message]* out, u64* lost) noexcept nogil

# ----------------------------------------------------------------------- poll thread → store thread

cdef enum ChoreKind:
    CHORE_SETTLE = 1
    CHORE_FETCH = 2
    CHORE_LOAD = 3
    CHORE_CLOSING = 4
    CHORE_SPARE = 5              # the journal wants a spare segment made

cdef struct Chore:
    u8 kind
    u32 group
    u32 generation               # its answer is of a group that has the same
    u32 peer
    u64 first                    # CHORE_SETTLE: upto_lsn
    u64 last
    vector[SettleItem]* items    # CHORE_SETTLE; owned

cdef struct Chores:
    pthread_mutex_t lock
    pthread_cond_t wake
    deque[Chore] queue
    bint closing
    i64 spare                    # 1: a spare segment is wanted, 2: it is being made
    u64 spare_after_us           # after a failure: not before
    bint called                  # whoever waits for a chore has something else to do

cdef void chores_init(Chores* q) noexcept nogil
cdef void chores_close(Chores* q) noexcept nogil
cdef void chores_destroy(Chores* q) noexcept nogil
# False: full or closing; then nothing was taken.
cdef bint chores_push(Chores* q, Chore* chore) noexcept nogil
# Nothing of the group is to be done any more, but what is at it. How many loads there were.
cdef u32 chores_forget(Chores* q, u32 group) noexcept nogil
# A spare segment is wanted; said any number of times until it is made.
cdef void chores_spare(Chores* q, u64 now_us) noexcept nogil
# It is, or could not be: then nobody asks again before `after_us`.
cdef void chores_spare_done(Chores* q, u64 after_us) noexcept nogil
# The next chores_take does not wait.
cdef void chores_call(Chores* q) noexcept nogil
# False: nothing came in time. CHORE_CLOSING for ever once closed.
cdef bint chores_take(Chores* q, u64 timeout_us, Chore* out) noexcept nogil
