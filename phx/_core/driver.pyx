# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Python's door to a node's native half; what it guarantees stands in driver.pyi."""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy, memset

from phx._core.batch cimport ITEM_HEADER_BYTES, ItemHeader
from phx._core.delivery cimport Delivered, Sessions
from phx._core.waiters cimport WaiterRing
from phx._core.driver_state cimport *
from phx._core.handover cimport HandedOver, handover_take
from phx._core.journal cimport journal_abandon, journal_prepare_spare
from phx._core.life cimport *
from phx._core.native cimport *
from phx._core.options cimport *
from phx._core.plan cimport JournalHold, SettlePlan, hold_ref, hold_unref
from phx._core.published cimport PublishedGroup, ReadPoints, published_ref
from phx._core.port cimport (
    PhxAddress, phx_close, phx_fds_close_all, phx_fence, phx_now_us, phx_span_ns, phx_thread_cpu_ns,
    phx_thread_name, phx_waker_clear, phx_waker_signal,
)
from phx._core.queues cimport *
from phx._core.driver_status cimport row_of, status_of
from phx._core.sessions cimport SessionTable
from phx._core.writer cimport writer_durable
from phx._core.state cimport (
    MEMBERS_MAX, NO_CEILING, Callers, Claim, Event, Gone, Lead, OwnRun, Progress, Replica,
)

from phx._core.options import DriverError

ERROR_CLOSED = 1
ERROR_OVERLOADED = 2
ERROR_UNKNOWN_GROUP = 3
ERROR_TOO_LARGE = 4
ERROR_OPTION = LIFE_OPTION
ERROR_BIND = LIFE_BIND
ERROR_SYSTEM = LIFE_SYSTEM
ERROR_TIMED_OUT = 8
ERROR_FORKED = 9
ERROR_START = 10
ERROR_MEMBER = 11
ERROR_GRANTED = 12
ERROR_JOURNAL = LIFE_JOURNAL

NO_SYNC = 0xFFFFFFFFFFFFFFFF

# what transfer() says
TRANSFER_UNDER_WAY = 0
TRANSFER_NOT_LEADING = 1
TRANSFER_NOT_READY = 2

EVENT_FAILED = 1
EVENT_LEADER = 2
EVENT_HALTED = 3
EVENT_PEER_REFUSED = 4
EVENT_BELOW = 5
EVENT_CEILING = 6
EVENT_POISONED = 64
EVENT_PRESSED = 65

# What a group takes in native structs, whether anybody uses it or not, and what it takes beyond
# that while it is led here, and from its first value on.
GROUP_BYTES = {
    "replica": sizeof(Replica) + 2 * sizeof(void*),
    "flow": sizeof(Flow), "published": sizeof(PublishedGroup),
    "queues": 2 * sizeof(u64) + 3 * sizeof(u32) + 2 * sizeof(u8),
    "driver": sizeof(Opening) + sizeof(u64) + sizeof(u32),
    "sessions": sizeof(SessionTable) + sizeof(void*),
    "waiters": sizeof(WaiterRing) + sizeof(void*),
    "led": sizeof(Lead) + 2 * sizeof(Claim),
    "led, per member": sizeof(Progress),
    "callers": sizeof(Callers) + sizeof(OwnRun),
}

cdef enum:
    SPARE_RETRY_US = 1000000


cdef class Driver:
    def __init__(self, *, cluster, node, bytes store_id not None, members, bind, groups, settled,
                 journal_dir, create, options, starts=None, floors=None, u32 incarnation=0,
                 facts=None, suspect=(), peers=(), named=(), trace_path=None,
                 trace_bytes_max=1 << 30, generations=None, gone=None):
        cdef dict values = option_values(options)
        cdef list ids = sorted(member for member, _, _ in members)
        cdef u32 group
        cdef Opening opening
        cdef u64 first = 1
        if self.s != NULL:
            raise TypeError("a driver is made once")
        if node not in ids or len(set(ids)) != len(ids) or not 1 <= len(ids) <= MEMBERS_MAX:
            raise DriverError(ERROR_OPTION, f"the node must be one of 1 to {MEMBERS_MAX} members")
        memset(&self.options, 0, sizeof(DriverOptions))
        identity(&self.options, cluster, node, store_id)
        engine_options(&self.options, values, ids)
        driver_options(&self.options, values)
        peer_addresses(&self.options, node, members, peers, named, bind)
        self.index_of = {}
        self.paused = dict(starts or {})
        self.floors = dict(floors or {})
        for index, one in enumerate(sorted(set(groups))):
            group = one
            opening.generation = (generations or {}).get(one, 0)
            opening.settled_through = settled.get(one, 0)
            opening.start = self.start_of(one, self.paused.get(one, 0), opening.settled_through)
            opening.floor = self.floors.get(one, 1)
            opening.paused = one in self.paused
            opening.suspect = one in suspect
            self.index_of[one] = index
            self.groups.push_back(group)
            self.openings.push_back(opening)
            self.next_seq.push_back(first)
        if unknown := sorted(self.paused.keys() - self.index_of.keys()):
            raise DriverError(ERROR_UNKNOWN_GROUP, f"there is no group {unknown[0]} to start")
        for one, generation in (gone or {}).items():
            self.gone.push_back(Gone(one, generation))
        self.sessions = Sessions(node, sorted(set(groups)))
        self.journal_dir = os.fsencode(journal_dir)
        self.create = create
        self.trace_path = os.fsencode(trace_path) if trace_path else None
        self.options.trace_bytes_max = trace_bytes_max
        self.options.incarnation = incarnation
        self.options.ceiling = NO_CEILING
        if facts is not None:
            former_facts(&self.options, facts, create and bool(suspect))
        self.s = life_new(&self.options, &self.groups)
        self.points = ReadPoints(self.index_of, ids)
        self.s.published = published_ref(self.points.p)

    def __dealloc__(self):
        # A forked child has the memory, but neither the threads nor a right to the locks.
        if self.s != NULL and not self.forked:
            with nogil:
                life_free(self.s)
            block_unref(self.shared)

    @staticmethod
    def now_us():
        return phx_now_us()

    # --- life

    def start(self):
        cdef char text[LIFE_TEXT_BYTES]
        cdef const char* folder = PyBytes_AS_STRING(self.journal_dir)
        cdef const char* trace = NULL
        cdef int code
        if self.forked:
            raise DriverError(ERROR_FORKED, "this process is a fork of the driver's")
        if self.started or self.stopped:
            raise DriverError(ERROR_CLOSED, "a driver is started once")
        self.started = True
        self.starting = True
        text[0] = 0
        if self.trace_path is not None:
            trace = PyBytes_AS_STRING(self.trace_path)
        with nogil:
            code = life_start(self.s, folder, self.create, &self.groups, &self.openings, &self.gone,
                              trace, text)
        self.starting = False
        if code != LIFE_OK:
            self.stopped = True
            with nogil:
                life_release(self.s)
            raise DriverError(code, text.decode("utf-8", "replace"))
        self.port = self.s.port
        self.incarnation = self.s.incarnation
        self.sessions.incarnation = self.incarnation

    def stop(self, u64 timeout_us):
        cdef bint ended = True
        if self.forked:
            return
        if self.starting:
            raise DriverError(ERROR_SYSTEM, "the driver is being started by another thread")
        with nogil:
            ended = life_stop(self.s, timeout_us)
        if not ended:
            raise DriverError(ERROR_TIMED_OUT, "a native thread is stuck in a system call")
        if not self.stopped:
            # The threads have ended: what is left takes no time, and no other thread may come in.
            self.stopped = True
            self.clean = self.s.clean and not self.s.poisoned
            life_release(self.s)
            block_unref(self.shared)
            self.shared = NULL

    def after_fork_in_child(self):
        self.forked = True
        if self.s != NULL:
            phx_fds_close_all(&self.s.fds)
            if self.s.journal != NULL:
                journal_abandon(self.s.journal)

    cdef int check(self) except -1:
        if self.forked:
            raise DriverError(ERROR_FORKED, "this process is a fork of the driver's")
        if not self.started or self.stopped:
            raise DriverError(ERROR_CLOSED, "the driver does not run")
        return 0

    cdef object hosted(self, group):
        """The index of a group of a driver that runs; DriverError for any other."""
        self.check()
        index = self.index_of.get(group)
        if index is None:
            raise DriverError(ERROR_UNKNOWN_GROUP, f"there is no group {group}")
        return index

    # --- values in

    cdef Block* room(self, u64 need, u64 remaining) noexcept:
        """A block with room for `need` bytes; the reference is the caller's."""
        if remaining > SHARED_BLOCK_BYTES // 4:
            return block_new(max(need, min(remaining, <u64>RUN_BLOCK_BYTES)))
        if self.shared == NULL or self.shared.capacity - self.shared.size < need:
            block_unref(self.shared)
            self.shared = block_new(SHARED_BLOCK_BYTES)
        return block_ref(self.shared)

    # Copies each payload once. What stands in the shared block beyond what was queued before
    # belongs to nobody else yet, so it may be written while others read the rest.
    cdef void pack(self, list values, u16 machine, u64 total, vector[Submission]* runs) noexcept:
        cdef Submission run
        cdef ItemHeader item
        cdef Submission* last = NULL
        cdef u64 need
        memset(&run, 0, sizeof(run))
        item.machine = machine
        item.flags = 0
        for value in values:
            item.bytes = <u32>PyBytes_GET_SIZE(value)
            need = ITEM_HEADER_BYTES + <u64>item.bytes
            if last == NULL or last.block.capacity - last.block.size < need:
                run.block = self.room(need, total)
                run.offset = run.block.size
                runs.push_back(run)
                last = &runs.back()
            memcpy(last.block.data + last.block.size, &item, ITEM_HEADER_BYTES)
            memcpy(last.block.data + last.block.size + ITEM_HEADER_BYTES,
                   PyBytes_AS_STRING(value), item.bytes)
            last.block.size += need
            last.nbytes += need
            last.count += 1
            total -= need

    def submit(self, group, u16 machine, values, u64 deadline_us):
        cdef vector[Submission] runs
        cdef list these = values if type(values) is list else list(values)
        cdef u64 total = 0, first, seq, largest = self.options.engine.value_bytes_max
        cdef size_t i
        cdef int verdict
        index = self.hosted(group)
        for value in these:
            if type(value) is not bytes:
                raise TypeError("a value is bytes")
            if <u64>PyBytes_GET_SIZE(value) > largest:
                raise DriverError(ERROR_TOO_LARGE,
                                  f"a value of {len(value)} bytes, above {largest}")
            total += ITEM_HEADER_BYTES + <u64>PyBytes_GET_SIZE(value)
        first = self.next_seq[<size_t>index]
        if not these:
            return first
        self.pack(these, machine, total, &runs)
        seq = first
        for i in range(runs.size()):
            runs[i].group = group
            runs[i].first_seq = seq
            runs[i].deadline_us = deadline_us
            seq += runs[i].count
        verdict = inbox_submit(&self.s.inbox, runs.data(), runs.size())
        if verdict == 0:
            self.next_seq[<size_t>index] = seq
            return first
        for i in range(runs.size()):
            block_unref(runs[i].block)
        if verdict == 1:
            raise DriverError(ERROR_OVERLOADED, "the submission queue is full")
        raise DriverError(ERROR_CLOSED, "the driver does not run")

    # --- what comes back

    def fileno(self):
        self.check()
        return self.s.outbox.waker.read_fd

    def poke(self):
        self.check()
        phx_waker_signal(&self.s.outbox.waker)

    def clear_wake(self):
        self.check()
        phx_waker_clear(&self.s.outbox.waker)

    def take(self, u64 bytes_max):
        cdef vector[Delivered] taken
        cdef u64 now_us = phx_now_us()
        self.check()
        # What was taken the last time is applied by now.
        phx_store(&self.s.late_us, now_us - min(self.taken_us, now_us) if self.taken_us else 0)
        self.taken_us = outbox_take(&self.s.outbox, bytes_max, &taken)
        phx_fence()
        if phx_load(&self.s.outbox.starved) and \
                phx_load(&self.s.outbox.handed_bytes) * 2 < <i64>self.options.delivery_bytes_max:
            inbox_wake(&self.s.inbox)
        return self.sessions.batches(&taken)

    def turning_away(self, bint on):
        self.check()
        phx_store(&self.s.turning_away, on)

    def behind_us(self):
        self.check()
        return max(<i64>0, self.points.late_us() - phx_load(&self.s.late_us))

    def events(self):
        cdef vector[Event] events
        cdef Event* event
        cdef size_t i
        self.check()
        outbox_events(&self.s.outbox, &events)
        found = []
        for i in range(events.size()):
            event = &events[i]
            found.append((event.kind, event.verdict, event.group, event.first_seq, event.count,
                          event.leader))
        return found

    def messages(self):
        cdef vector[Message] messages
        cdef u64 lost = 0
        cdef size_t i
        if self.forked or self.s == NULL:
            return []
        outbox_messages(&self.s.outbox, &messages, &lost)
        found = []
        for i in range(messages.size()):
            text = (<bytes>messages[i].text).decode("utf-8", "replace")
            found.append((messages[i].level, text))
        if lost:
            found.append((30, f"{lost} more messages were lost"))
        return found

    def handed(self):
        cdef vector[HandedOver] taken
        cdef HandedOver* one
        cdef size_t i
        self.check()
        handover_take(&self.s.handover, &self.s.fds, &taken)
        found = []
        try:
            for i in range(taken.size()):
                one = &taken[i]
                found.append((one.fd, one.peer,
                              PyBytes_FromStringAndSize(<char*>one.said.data, one.said.size)))
        except BaseException:  # no memory: nobody will hear of them
            for i in range(taken.size()):
                phx_close(taken[i].fd)
            raise
        finally:
            for i in range(taken.size()):
                block_unref(taken[i].said)
        return found

    # --- commands

    cdef int command(self, Command* command, bint wake) except -1:
        """Queues it; the reference to its block goes along, or is given back here."""
        cdef int verdict
        verdict = 2 if self.stopped or not self.started or self.forked else \
            inbox_command(&self.s.inbox, command, wake)
        if verdict == 0:
            return 0
        block_unref(command.block)
        self.check()
        if verdict == 1:
            raise DriverError(ERROR_OVERLOADED, "the command queue is full")
        raise DriverError(ERROR_CLOSED, "the driver does not run")

    cdef int tell(self, u8 kind, u32 group, u64 first) except -1:
        cdef Command command
        memset(&command, 0, sizeof(Command))
        command.kind = kind
        command.group = group
        command.first = first
        return self.command(&command, True)

    def applied(self, group, u64 instance):
        inbox_applied(&self.s.inbox, self.hosted(group), instance)

    cdef object start_of(self, group, start, u64 settled_through):
        """`start`, if the log of this node can follow a machine that holds so much."""
        floor = self.floors.get(group, 1)
        if type(start) is not int or not 0 <= start < 1 << 62:
            raise DriverError(ERROR_START, f"group {group}: {start!r} is not an instance")
        if type(floor) is not int or not 1 <= floor <= settled_through + 1:
            raise DriverError(ERROR_START, f"group {group}: the store holds instances up to "
                              f"{settled_through}, and says that {floor!r} is its lowest")
        if start + 1 < floor:
            raise DriverError(ERROR_START, f"group {group}: a machine at instance {start} needs "
                              f"{start + 1}, and the log begins at {floor}")
        return start

    def pause(self, group):
        cdef Command command
        self.hosted(group)
        memset(&command, 0, sizeof(Command))
        command.kind = COMMAND_PAUSE
        command.group = group
        self.command(&command, True)
        self.paused.setdefault(group, self.floors.get(group, 1) - 1)

    def resume(self, group, start=None):
        cdef Command command
        index = self.hosted(group)
        # Taken out first: of two that resume it at once one is refused.
        planned = self.paused.pop(group, None)
        if planned is None:
            raise DriverError(ERROR_START, f"group {group} is not paused")
        try:
            start = self.start_of(group, planned if start is None else start,
                                  self.openings[<size_t>index].settled_through)
            expected, _ = self.sessions.next_instance(group)
            if expected != start + 1:
                raise DriverError(ERROR_START, f"group {group}: a machine at instance {start}, and "
                                  f"a session table that expects {expected}")
            memset(&command, 0, sizeof(Command))
            command.kind = COMMAND_RESUME
            command.group = group
            command.first = start
            self.command(&command, True)
        except BaseException:
            self.paused[group] = planned
            raise

    def floored(self, group, floor, settled):
        cdef Command command
        self.hosted(group)
        if (type(floor) is not int or type(settled) is not int
                or not 1 <= floor <= settled + 1 <= 1 << 62):
            raise DriverError(ERROR_START, f"group {group}: {floor!r} and {settled!r} are no floor "
                              "and no settled instance behind which there is no gap")
        memset(&command, 0, sizeof(Command))
        command.kind = COMMAND_FLOORED
        command.group = group
        command.first = floor
        command.second = settled
        self.command(&command, True)
        self.raised(group, floor, settled)

    def install(self, group, frontier, ballot):
        cdef Command command
        self.hosted(group)
        if (type(frontier) is not int or type(ballot) is not int
                or not 1 <= frontier < 1 << 62 or not 0 <= ballot < 1 << 64):
            raise DriverError(ERROR_START, f"group {group}: {frontier!r} is no instance or "
                              f"{ballot!r} no ballot")
        memset(&command, 0, sizeof(Command))
        command.kind = COMMAND_INSTALL
        command.group = group
        command.first = frontier
        command.second = ballot
        self.command(&command, True)
        self.raised(group, frontier + 1, frontier)

    # A start that is told from here on has to be one that the log can follow.
    cdef int raised(self, group, floor, u64 settled) except -1:
        cdef Opening* opening = &self.openings[<size_t>self.index_of[group]]
        self.floors[group] = max(floor, self.floors.get(group, 1))
        opening.settled_through = max(settled, opening.settled_through)
        return 0

    def done(self, group, u64 first, u32 count):
        cdef Command command
        self.hosted(group)
        memset(&command, 0, sizeof(Command))
        command.kind = COMMAND_DONE
        command.group = group
        command.first = first
        command.second = count
        self.command(&command, True)

    def ceiling(self, u64 counter):
        self.tell(COMMAND_CEILING, 0, counter)

    def stop_group(self, u32 group):
        self.tell(COMMAND_STOP_GROUP, group, 0)

    def priority(self, u32 priority):
        self.tell(COMMAND_PRIORITY, 0, priority)

    def resign(self):
        self.tell(COMMAND_RESIGN, 0, 0)

    # --- the store thread

    def store_work(self, u64 timeout_us):
        cdef Chore chore
        cdef JournalHold* hold
        cdef bint found
        cdef SettlePlan plan
        if self.forked:
            return ("closing",)
        phx_thread_name("phx-store")
        hold = hold_ref(self.s.hold) if self.s.hold != NULL else NULL
        with nogil:
            found = wait_for_chore(&self.s.chores, hold, timeout_us, &chore)
            hold_unref(hold)
        if not found:
            return None
        self.chore_generation = chore.generation
        if chore.kind == CHORE_SETTLE:
            plan = SettlePlan()
            plan.items.swap(chore.items[0])
            plan.upto_lsn = chore.first
            plan.hold = hold_ref(self.s.hold) if self.s.hold != NULL else NULL
            phx_delete(chore.items)
            return ("settle", plan, plan.upto_lsn)
        if chore.kind == CHORE_FETCH:
            return ("fetch", chore.group, chore.peer, chore.first, chore.last)
        if chore.kind == CHORE_LOAD:
            return ("load", chore.group, chore.first, chore.last)
        return ("closing",)

    def store_call(self):
        if not self.forked:
            chores_call(&self.s.chores)

    def settled(self, SettlePlan plan not None, u64 upto_lsn):
        self.tell(COMMAND_SETTLED, 0, upto_lsn)

    def settle_failed(self, SettlePlan plan not None):
        self.tell(COMMAND_SETTLE_FAILED, 0, 0)

    def settle_now(self):
        self.tell(COMMAND_SETTLE_NOW, 0, 0)

    cdef int entries_command(self, u8 kind, u32 group, u32 peer, u64 first,
                             bytes entries) except -1:
        cdef Command command
        cdef const char* data = PyBytes_AS_STRING(entries)
        cdef u64 count = PyBytes_GET_SIZE(entries)
        memset(&command, 0, sizeof(Command))
        command.kind = kind
        command.group = group
        command.peer = peer
        command.first = first
        command.second = self.chore_generation
        if count:
            with nogil:
                command.block = block_copy(data, count)
        return self.command(&command, True)

    def supply(self, u32 group, u32 peer, u64 first, bytes entries not None):
        self.entries_command(COMMAND_SUPPLY, group, peer, first, entries)

    def loaded(self, u32 group, u64 first, bytes entries not None):
        self.entries_command(COMMAND_LOADED, group, 0, first, entries)

    # --- questions

    cdef int ask(self, Question* question) except -1:
        cdef int verdict
        self.check()
        with nogil:
            verdict = inbox_ask(&self.s.inbox, question)
        if verdict == 1:
            raise DriverError(ERROR_OVERLOADED, "the command queue is full")
        if verdict != 0:
            raise DriverError(ERROR_CLOSED, "the driver does not run")
        return 0

    def read(self, u32 group, u64 instance):
        cdef Question question
        question.kind = ASK_READ
        question.group = group
        question.instance = instance
        question.body = NULL
        self.ask(&question)
        if question.verdict == READ_BODY:
            body = PyBytes_FromStringAndSize(<char*>question.body.data, question.body.size)
            block_unref(question.body)
            return body
        if question.verdict == READ_FAILED:
            raise DriverError(ERROR_JOURNAL + 1,
                              f"instance {instance} of group {group} is unreadable")
        return question.verdict

    def group_status(self, u32 group):
        cdef Question question
        question.kind = ASK_GROUP
        question.group = group
        self.ask(&question)
        if question.rows.empty():
            raise DriverError(ERROR_UNKNOWN_GROUP, f"there is no group {group}")
        return row_of(&question.rows[0])

    def group_statuses(self):
        cdef Question question
        cdef size_t i
        question.kind = ASK_GROUPS
        self.ask(&question)
        return [row_of(&question.rows[i]) for i in range(question.rows.size())]

    def transfer(self, u32 group, u32 to):
        cdef Question question
        question.kind = ASK_TRANSFER
        question.group = group
        question.peer = to
        question.instance = 0
        self.ask(&question)
        if question.verdict < 0:
            raise DriverError(ERROR_UNKNOWN_GROUP, f"there is no group {group}")
        return question.verdict, question.instance

    def durability(self, u32 group, u64 within_us):
        cdef Question question
        question.kind = ASK_DURABILITY
        question.group = group
        question.instance = within_us
        self.ask(&question)
        if question.instance == 0:
            raise DriverError(ERROR_UNKNOWN_GROUP, f"there is no group {group}")
        return question.instance

    def durable_lsn(self):
        self.check()
        return writer_durable(self.s.writer)

    def busy_groups(self):
        cdef Question question
        cdef GroupRow* row
        cdef size_t i
        cdef list found = []
        question.kind = ASK_BUSY
        self.ask(&question)
        for i in range(question.rows.size()):
            row = &question.rows[i]
            found.append((row.group, row.status.leader, row.status.chosen_through,
                          row.status.accepted_last))
        return found

    def status(self):
        cdef Question question
        cdef NodeStatus status
        question.kind = ASK_STATUS
        question.status = &status
        self.ask(&question)
        self.check()
        return status_of(self.s, &status)


# Makes spare segments by itself, without Python, until there is something for it.
cdef bint wait_for_chore(Chores* chores, JournalHold* hold, u64 timeout_us,
                         Chore* out) noexcept nogil:
    cdef u64 until_us = phx_span_ns() // 1000 + timeout_us
    cdef u64 now_us = 0
    cdef int made
    while True:
        now_us = phx_span_ns() // 1000
        if not chores_take(chores, until_us - now_us if until_us > now_us else 0, out):
            return False
        if out.kind != CHORE_SPARE:
            return True
        made = 0
        if hold != NULL:
            made = journal_prepare_spare(hold.journal)
        now_us = phx_now_us()
        chores_spare_done(chores, now_us + SPARE_RETRY_US if made < 0 else now_us)
