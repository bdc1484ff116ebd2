# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The window, the queues between threads, sessions, and the way of chosen values into Python."""

from libc.string cimport memset

from phx._core.delivery cimport Batch, Delivered, Sessions, delivered_free
from phx._core.delivery import Sessions as NewSessions
from phx._core.waiters import Waiters
from phx._core.native cimport *
from phx._core.queues cimport (
    CHORE_FETCH, Chore, Chores, Command, Handed, Inbox, Outbox, ReadWanted, Submission,
    chores_close,
    chores_destroy, chores_init, chores_push, chores_take, inbox_applied, inbox_destroy,
    inbox_init, inbox_submit, inbox_swap, outbox_destroy, outbox_hand, outbox_init, outbox_take)
from phx._core.sessions cimport (
    ADMIT_APPLY, SessionRow, SessionTable, session_admit, session_enter,
    sessions_free)
from phx._core.window cimport (
    Ring, Slot, Timer, Window, ring_free, ring_pop, ring_push, timer_pop, timer_push,
    window_advance, window_find, window_free, window_init, window_slot)
from phx_micro.codec_loops cimport Values
from phx_micro.measure cimport Loop

cdef enum:
    OPEN = 1024                  # instances in the window
    GROUPS = 100
    SWAP = 256                   # submissions between two turns of the poll thread


cdef class Windows(Loop):
    """An instance is opened, filled, found again, taken and passed, with 1,024 open behind it."""
    cdef Window w
    cdef Block* value

    def __init__(self, u64 count):
        super().__init__(count)
        self.value = block_new(8)
        window_init(&self.w, 1)
        window_slot(&self.w, OPEN)

    def __dealloc__(self):
        window_free(&self.w)
        block_unref(self.value)

    cdef void go(self) noexcept:
        cdef Slot* slot
        cdef u64 i
        for i in range(1, self.count + 1):
            slot = window_slot(&self.w, i)
            slot.value = self.value
            slot.ballot = i
            slot = window_find(&self.w, i)
            self.seen += slot.ballot
            slot.value = NULL
            window_advance(&self.w)

    def check(self):
        assert self.seen == self.count * (self.count + 1) // 2
        assert self.w.base == self.count + 1


cdef class Rings(Loop):
    """A word in, a word out, 1,024 of them between."""
    cdef Ring r

    def __init__(self, u64 count):
        super().__init__(count)
        for i in range(OPEN):
            ring_push(&self.r, i)

    def __dealloc__(self):
        ring_free(&self.r)

    cdef void go(self) noexcept:
        cdef u64 i
        for i in range(self.count):
            ring_push(&self.r, OPEN + i)
            self.seen += ring_pop(&self.r)

    def check(self):
        assert self.seen == self.count * (self.count - 1) // 2
        assert self.r.size == OPEN


cdef class Timers(Loop):
    """The earliest of 1,024 timers is taken, and one comes in that is due somewhat later."""
    cdef vector[Timer] heap

    def __init__(self, u64 count):
        super().__init__(count)
        for i in range(OPEN):
            timer_push(&self.heap, i, i, 1)

    cdef void go(self) noexcept:
        cdef Timer timer
        cdef u64 i
        for i in range(self.count):
            timer = timer_pop(&self.heap)
            self.seen += timer.at_us == i
            timer_push(&self.heap, timer.at_us + OPEN, timer.index, timer.kind)

    def check(self):
        assert self.seen == self.count


# --- queues

cdef class Submissions(Loop):
    """Submissions go in, `together` at a time, and the poll thread takes them out."""
    cdef Inbox* q
    cdef Block* block
    cdef u32 together
    cdef vector[Submission] runs
    cdef u64 taken

    def __init__(self, u64 count, u32 together):
        cdef Submission run
        if count % SWAP:
            raise ValueError("only whole turns")
        super().__init__(count)
        self.together = together
        self.q = phx_new[Inbox]()
        inbox_init(self.q, GROUPS, <u64>1 << 40)
        self.block = block_new(128)
        memset(&run, 0, sizeof(run))
        run.count = 1
        run.nbytes = 108
        run.block = self.block
        for _ in range(together):
            self.runs.push_back(run)

    def __dealloc__(self):
        if self.q != NULL:
            inbox_destroy(self.q)
            phx_delete(self.q)
        block_unref(self.block)

    cdef void go(self) noexcept:
        cdef vector[Submission] submissions
        cdef vector[Command] commands
        cdef vector[ReadWanted] reads
        cdef vector[u64] applied
        cdef u64 turn
        cdef u32 i, k
        cdef size_t n
        for turn in range(self.count // SWAP):
            for i in range(SWAP // self.together):
                for k in range(self.together):
                    block_ref(self.block)
                self.seen += inbox_submit(self.q, self.runs.data(), self.together) == 0
            inbox_swap(self.q, &submissions, &commands, &reads, &applied)
            for n in range(submissions.size()):
                self.taken += submissions[n].count
                block_unref(submissions[n].block)
            submissions.clear()

    def check(self):
        assert self.seen * self.together == self.count
        assert self.taken == self.count
        assert self.block.refs == 1


cdef class Applied(Loop):
    """The applier says how far it is, group after group; the poll thread hears it."""
    cdef Inbox* q

    def __init__(self, u64 count):
        if count % GROUPS:
            raise ValueError("only whole rounds of groups")
        super().__init__(count)
        self.q = phx_new[Inbox]()
        inbox_init(self.q, GROUPS, 1 << 30)

    def __dealloc__(self):
        if self.q != NULL:
            inbox_destroy(self.q)
            phx_delete(self.q)

    cdef void go(self) noexcept:
        cdef vector[Submission] submissions
        cdef vector[Command] commands
        cdef vector[ReadWanted] reads
        cdef vector[u64] applied
        cdef u64 turn
        cdef u32 group
        for turn in range(self.count // GROUPS):
            for group in range(GROUPS):
                inbox_applied(self.q, group, turn + 1)
            inbox_swap(self.q, &submissions, &commands, &reads, &applied)
            self.seen += applied.size() // 2
            applied.clear()

    def check(self):
        assert self.seen == self.count


cdef class Handing(Loop):
    """Chosen stretches of `groups` groups go to Python, one instance in each; it takes them all.

    With a single group all of what waits is joined.
    """
    cdef Outbox* q
    cdef Block* body
    cdef u32 groups

    def __init__(self, u64 count, u32 groups):
        cdef vector[u32] ids
        if count % GROUPS:
            raise ValueError("only whole rounds")
        super().__init__(count)
        self.groups = groups
        self.body = block_new(128)
        for group in range(groups):
            ids.push_back(<u32>group)
        self.q = phx_new[Outbox]()
        outbox_init(self.q, &ids)

    def __dealloc__(self):
        if self.q != NULL:
            outbox_destroy(self.q)
            phx_delete(self.q)
        block_unref(self.body)

    cdef void go(self) noexcept:
        cdef vector[Delivered] out
        cdef Handed item
        cdef u64 turn
        cdef u32 i
        cdef size_t n
        for turn in range(self.count // GROUPS):
            for i in range(GROUPS):
                item.index = item.entries.group = i % self.groups
                item.entries.first = turn + 1
                item.entries.count = 1
                item.entries.bodies = <Block**>phx_malloc(sizeof(Block*))
                item.entries.bodies[0] = block_ref(self.body)
                item.bytes = 128
                outbox_hand(self.q, &item)
            outbox_take(self.q, 1 << 30, &out)
            for n in range(out.size()):
                self.seen += out[n].count
                delivered_free(&out[n])
            out.clear()

    def check(self):
        assert self.seen == self.count
        assert self.body.refs == 1
        assert self.q.handed_bytes == 0


cdef class ChoreQueue(Loop):
    cdef Chores* q

    def __init__(self, u64 count):
        super().__init__(count)
        self.q = phx_new[Chores]()
        chores_init(self.q)

    def __dealloc__(self):
        if self.q != NULL:
            chores_close(self.q)
            chores_destroy(self.q)
            phx_delete(self.q)

    cdef void go(self) noexcept:
        cdef Chore chore
        cdef u64 i
        memset(&chore, 0, sizeof(chore))
        for i in range(self.count):
            chore.kind = CHORE_FETCH
            chore.first = i
            chores_push(self.q, &chore)
            if chores_take(self.q, 0, &chore):
                self.seen += chore.first

    def check(self):
        assert self.seen == self.count * (self.count - 1) // 2


# --- sessions and delivery

cdef class Admissions(Loop):
    """Runs of one value each; `shuffled`: pairs the wrong way round, so that the ring is needed."""
    cdef SessionTable* table
    cdef bint shuffled

    def __init__(self, u64 count, bint shuffled):
        if count % 2:
            raise ValueError("an even number")
        super().__init__(count)
        self.shuffled = shuffled
        self.table = phx_new[SessionTable]()
        self.table.next = 1

    def __dealloc__(self):
        if self.table != NULL:
            sessions_free(self.table)
            phx_delete(self.table)

    cdef void go(self) noexcept:
        cdef SessionRow* row
        cdef u64 i
        cdef int why = 0
        for i in range(self.count):
            row = session_enter(self.table, 1, 1, (i >> 8 << 8) + 1 if self.shuffled else 1, &why)
            self.seen += session_admit(row, (i ^ 1 if self.shuffled else i) + 1) == ADMIT_APPLY

    def check(self):
        cdef int why = 0
        cdef SessionRow* row = session_enter(self.table, 1, 1, 1, &why)
        assert self.seen == self.count
        assert session_admit(row, self.count) != ADMIT_APPLY


cdef class Deliveries(Values):
    """From chosen bodies to the entries that apply sees: `count` values of one group."""
    cdef Sessions sessions
    cdef vector[Delivered] taken
    cdef list batches

    def __init__(self, u64 count, u32 size, u32 per_body):
        cdef Delivered one
        cdef u64 i
        super().__init__(count, size, per_body)
        self.sessions = NewSessions(2, [1])
        one.group = 1
        one.first = 1
        one.count = <u32>(count // per_body)
        one.bodies = <Block**>phx_malloc(one.count * sizeof(Block*))
        for i in range(one.count):
            one.bodies[i] = block_copy(self.body.data, self.body.size)
            (<u64*>(one.bodies[i].data + 24 + 16))[0] = 1 + i * per_body      # first_seq
        self.taken.push_back(one)

    cdef void go(self) noexcept:
        try:
            self.batches = self.sessions.batches(&self.taken)
        except Exception:
            self.batches = []

    def check(self):
        cdef Batch batch = self.batches[len(self.batches) - 1]
        assert all((<Batch>one).error is None and (<Batch>one).dropped == []
                   for one in self.batches)
        assert sum(len((<Batch>one).entries) for one in self.batches) == self.count
        assert batch.entries[len(batch.entries) - 1].value == bytes(self.size)
        assert batch.last == self.count // self.per_body


class Waiter:
    """The least that a caller can wait on."""

    __slots__ = ("result",)

    def set_result(self, result):
        self.result = result

    def done(self):
        return False


cdef class Completions(Loop):
    """Results reach callers: one run of `count` values, or `count` callers by themselves."""
    cdef object waiters
    cdef list entries
    cdef list results
    cdef list futures
    cdef bint together

    def __init__(self, u64 count, bint together):
        from phx._core.entries import Entry
        if count > 65536:
            raise ValueError("more than may be in flight")
        super().__init__(count)
        self.together = together
        self.waiters = Waiters([1], group_values_max=1 << 16, group_bytes_max=1 << 30,
                               node_values_max=1 << 16, node_bytes_max=1 << 30, partly=list)
        self.futures = [Waiter() for _ in range(1 if together else count)]
        if together:
            assert self.waiters.add_many(1, self.futures[0], [b"value"] * count) == 1
        else:
            for future in self.futures:
                assert self.waiters.add(1, future, 5)
        self.entries = [Entry(1, 1, b"value", sequence=1 + i) for i in range(count)]
        self.results = [b"result"] * count

    cdef void go(self) noexcept:
        try:
            self.seen = self.waiters.complete(1, self.entries, self.results)
        except Exception:
            self.seen = 0

    def check(self):
        assert self.seen == self.count
        for future in self.futures:
            last = future.result
            assert (last[len(last) - 1] if self.together else last).value == b"result"
        assert self.waiters.count == 0
