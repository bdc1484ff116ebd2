# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Three engines in one thread, without disk or network: whole rounds, and each part of a round.

A round: values are submitted at the leader of every group, its turn makes records and Accepts, both
followers take them, their turns make records and Accepteds, the leader takes those, and its turn
announces what is chosen. What a turn has written counts as durable at once. Followers learn with
the next round's Accepts.
"""

from libc.string cimport memset

from phx._core.batch cimport ItemHeader
from phx._core.codec cimport FRAME_HEADER_BYTES
from phx._core.engine cimport (
    engine_advance, engine_applied, engine_durable, engine_entry, engine_group_status,
    engine_receive, engine_settle_plan, engine_settled, engine_submit, engine_turn)
from phx._core.engine_door cimport Engine as Door
from phx._core.native cimport *
from phx._core.state cimport Effects, Engine, GroupStatus, SettleItem
from phx_micro.measure cimport Loop, phx_micro_timed

cdef enum:
    NODES = 3
    LEADER = 0
    STEP_US = 100
    SETTLE_ROUNDS = 256

cdef u64 FAR_US = <u64>1 << 60

cdef enum Part:
    PART_ALL = 0
    PART_SUBMIT = 1              # values at the leader
    PART_PROPOSE = 2             # the leader's turn: bodies, records, one frame of Accepts
    PART_ACCEPTS = 3             # a follower takes that frame
    PART_VOTE = 4                # its turn: records, one frame of Accepteds
    PART_ACCEPTEDS = 5           # the leader takes both frames
    PART_CHOOSE = 6              # its turn: what is chosen
    PART_IDLE = 7                # turns in which nothing happens

PARTS = {"all": PART_ALL, "submit": PART_SUBMIT, "propose": PART_PROPOSE, "accepts": PART_ACCEPTS,
         "vote": PART_VOTE, "accepteds": PART_ACCEPTEDS, "choose": PART_CHOOSE, "idle": PART_IDLE}

cdef struct Mail:
    int to
    u32 source
    Block* frame

cdef struct Trio:
    Engine* engines[NODES]
    Effects* effects[NODES]
    vector[Mail] mail
    vector[u32] groups
    Block* items
    u32 values                   # of each group in each round
    u64 next_seq
    u64 now_us
    u64 chosen[NODES]
    u64 turns
    i64 ns
    int part


# --- the parts of a round

cdef void submit(void* arg) noexcept nogil:
    cdef Trio* t = <Trio*>arg
    cdef size_t g
    for g in range(t.groups.size()):
        if engine_submit(t.engines[LEADER], t.groups[g], t.next_seq, t.values, t.items, 0,
                         t.items.size, FAR_US) != 0:
            phx_fatal("a value was rejected")
    t.next_seq += t.values


cdef void lead(void* arg) noexcept nogil:
    cdef Trio* t = <Trio*>arg
    t.effects[LEADER] = engine_turn(t.engines[LEADER])


cdef void follow(void* arg) noexcept nogil:
    cdef Trio* t = <Trio*>arg
    t.effects[1] = engine_turn(t.engines[1])
    t.effects[2] = engine_turn(t.engines[2])


cdef void deliver(void* arg) noexcept nogil:
    cdef Trio* t = <Trio*>arg
    cdef Mail* mail
    cdef size_t i
    for i in range(t.mail.size()):
        mail = &t.mail[i]
        engine_receive(t.engines[mail.to], mail.source, mail.frame.data + FRAME_HEADER_BYTES,
                       mail.frame.size - FRAME_HEADER_BYTES)


# --- between them

cdef void drop_mail(Trio* t) noexcept nogil:
    cdef size_t i
    for i in range(t.mail.size()):
        block_unref(t.mail[i].frame)
    t.mail.clear()


# What a driver does with the effects of a turn, except that the journal needs no time.
cdef void drain(Trio* t, int node) noexcept nogil:
    cdef Effects* out = t.effects[node]
    cdef Mail mail
    cdef size_t i
    cdef int to
    mail.source = <u32>node + 1
    for i in range(out.outgoing.size()):
        mail.frame = out.outgoing[i].frame
        for to in range(NODES):
            if to != node and (out.outgoing[i].peer == 0
                               or <int>out.outgoing[i].peer == to + 1):
                mail.to = to
                block_ref(mail.frame)
                t.mail.push_back(mail)
        block_unref(mail.frame)
    block_unref(out.records)
    out.records = NULL
    for i in range(out.chosen.size()):
        t.chosen[node] += out.chosen[i].last - out.chosen[i].first + 1
        engine_applied(t.engines[node], out.chosen[i].group, out.chosen[i].last)
    engine_durable(t.engines[node], out.lsn_end)


cdef void drain_followers(Trio* t) noexcept nogil:
    drain(t, 1)
    drain(t, 2)


cdef void advance(Trio* t) noexcept nogil:
    cdef int node
    t.now_us += STEP_US
    for node in range(NODES):
        engine_advance(t.engines[node], t.now_us, t.now_us)


cdef void idle(void* arg) noexcept nogil:
    cdef Trio* t = <Trio*>arg
    cdef int node
    advance(t)
    for node in range(NODES):
        t.effects[node] = engine_turn(t.engines[node])
    t.turns += NODES


cdef void whole_round(void* arg) noexcept nogil:
    cdef Trio* t = <Trio*>arg
    advance(t)
    submit(t)
    lead(t)
    drain(t, LEADER)
    deliver(t)
    drop_mail(t)
    follow(t)
    drain_followers(t)
    deliver(t)
    drop_mail(t)
    lead(t)
    drain(t, LEADER)


# One of its parts is measured. Unlike whole_round it stands still after each.
cdef void partly(Trio* t, int part, void (*does)(void*) noexcept nogil) noexcept:
    if t.part == part:
        t.ns += phx_micro_timed(<void (*)(void*) noexcept>does, t)
    else:
        does(t)


cdef void round_in_parts(Trio* t) noexcept:
    advance(t)
    partly(t, PART_SUBMIT, submit)
    partly(t, PART_PROPOSE, lead)
    drain(t, LEADER)
    partly(t, PART_ACCEPTS, deliver)
    drop_mail(t)
    partly(t, PART_VOTE, follow)
    drain_followers(t)
    partly(t, PART_ACCEPTEDS, deliver)
    drop_mail(t)
    partly(t, PART_CHOOSE, lead)
    drain(t, LEADER)


# Everything that is on its way arrives, over so many turns of everybody.
cdef void pump(Trio* t, int turns) noexcept nogil:
    cdef int turn, node
    for turn in range(turns):
        advance(t)
        deliver(t)
        drop_mail(t)
        for node in range(NODES):
            t.effects[node] = engine_turn(t.engines[node])
            drain(t, node)


# The store has everything: what is remembered of settled instances goes.
cdef void settle(Trio* t) noexcept nogil:
    cdef GroupStatus status
    cdef size_t g
    cdef int node
    for node in range(NODES):
        for g in range(t.groups.size()):
            engine_group_status(t.engines[node], t.groups[g], &status)
            engine_settled(t.engines[node], t.groups[g], status.chosen_through)


cdef class Cluster(Loop):
    """Three engines of which the first leads every group."""
    cdef Trio* t
    cdef list doors

    def __init__(self, u64 count):
        super().__init__(count)
        self.t = phx_new[Trio]()
        self.t.part = -1
        self.t.now_us = 1000000
        self.t.next_seq = 1

    def __dealloc__(self):
        if self.t != NULL:
            drop_mail(self.t)
            block_unref(self.t.items)
            phx_delete(self.t)

    def make_engines(self, ids):
        cdef Door door
        self.doors = []
        for node in range(1, NODES + 1):
            door = Door(node, range(1, NODES + 1), ids, cache_bytes_max=1 << 20)
            door.start(4096, self.t.now_us)
            self.doors.append(door)
            self.t.engines[node - 1] = door.e
        for group in ids:
            self.t.groups.push_back(<u32>group)
        for node, door in enumerate(self.doors, 1):
            for peer in range(1, NODES + 1):
                if peer != node:
                    door.connected(peer, 1, bytes([peer]) * 16)
        for _ in range(200):
            pump(self.t, 100)
            if all(self.doors[LEADER].status(group)["leading"] for group in ids):
                break
        else:
            raise AssertionError("the first node does not lead")


cdef class Rounds(Cluster):
    """`count` instances, `groups` of them in each round; one part of every round is measured."""
    cdef u64 base                # instances chosen before

    def __init__(self, u64 count, u32 groups, u32 values=1, u32 size=100, str part="all"):
        cdef ItemHeader item
        if count % groups:
            raise ValueError("only whole rounds")
        super().__init__(count)
        self.t.values = values
        self.t.items = block_new(64)
        memset(&item, 0, sizeof(item))
        item.bytes = size
        payload = bytes(size)
        for _ in range(values):
            self.t.items = block_append(self.t.items, &item, sizeof(item))
            self.t.items = block_append(self.t.items, <const char*>payload, size)
        # Groups that prefer the same leader.
        self.make_engines([NODES * g for g in range(groups)])
        for _ in range(4):
            round_in_parts(self.t)
        pump(self.t, 4)
        self.t.part = PARTS[part]
        self.base = self.t.chosen[LEADER]

    def run(self):
        cdef u64 rounds = self.count // self.t.groups.size()
        cdef u64 i
        for i in range(rounds):
            if self.t.part == PART_ALL:
                self.t.ns += phx_micro_timed(<void (*)(void*) noexcept>whole_round, self.t)
            elif self.t.part == PART_IDLE:
                self.t.ns += phx_micro_timed(<void (*)(void*) noexcept>idle, self.t)
                drain(self.t, 0)
                drain_followers(self.t)
                deliver(self.t)
                drop_mail(self.t)
            else:
                round_in_parts(self.t)
            if i % SETTLE_ROUNDS == SETTLE_ROUNDS - 1:
                settle(self.t)
        return self.t.ns

    def check(self):
        cdef Block* body
        cdef Block* same
        cdef int node
        if self.t.part == PART_IDLE:
            assert self.t.turns == NODES * self.count // self.t.groups.size()
            assert self.t.chosen[LEADER] == self.base
            return
        assert self.t.chosen[LEADER] == self.base + self.count
        pump(self.t, 4)
        status = self.doors[LEADER].status(0)
        assert status["leading"]
        body = engine_entry(self.t.engines[LEADER], 0, status["chosen_through"])
        assert body != NULL and body.size == 24 + 32 + self.t.items.size
        for node in range(1, NODES):
            assert self.t.chosen[node] == self.base + self.count, "a follower did not learn"
            same = engine_entry(self.t.engines[node], 0, status["chosen_through"])
            assert same.data[:same.size] == body.data[:body.size]


cdef class SettlePlans(Rounds):
    """The plan over `count` chosen instances of a follower, in one piece."""
    cdef vector[SettleItem] items

    def __init__(self, u64 count, u32 groups):
        cdef u64 i
        super().__init__(count, groups)
        for i in range(count // groups):
            round_in_parts(self.t)
        pump(self.t, 4)
        self.t.ns = 0

    cdef void go(self) noexcept:
        engine_settle_plan(self.t.engines[1], <u64>1 << 60, &self.items)

    def run(self):
        return Loop.run(self)

    def check(self):
        assert self.items.size() == self.base + self.count
        assert self.items[0].instance == 1
        assert self.items.back().group == self.t.groups.back()
