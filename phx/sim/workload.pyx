# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Clients of a simulated cluster; see workload.pyi."""

from heapq import heappop, heappush
from random import Random

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdio cimport snprintf

from phx._core.native cimport *
from phx.sim.history cimport Operation
from phx.sim.machine cimport encode_append, encode_cas, encode_delete, encode_get, encode_put

from phx.sim import client_kinds, handing
from phx.sim.client_kinds import ClientKind
from phx.sim.history import UNSEEN

TOKEN_BYTES = 8
EPOCH_US = 4_000_000
REGISTERS = 4
LISTS = 2
cdef i64 TOKEN = TOKEN_BYTES
cdef i64 EPOCH = EPOCH_US
cdef i64 SLOTS = REGISTERS
cdef i64 N_LISTS = LISTS
cdef u64 BURST = 1 << 23
cdef double HOME = 0.6
cdef int TRIES_MAX = 6
cdef i64 SECOND = 1_000_000
cdef double TICK_US_MAX = 40_000
cdef i64 GOAL = 5                    # values of a group in a second; else clients hurry
cdef Py_ssize_t SUBMIT_BYTES = 16_000
cdef i64 ENVELOPE_BYTES = 96         # of a value of the largest size: what is added to it

cdef object unseen = UNSEEN
cdef object outcome_unknown = handing.UNKNOWN


cpdef u64 key_of(u64 group, u64 epoch, u64 slot):
    """The key in histories and machines: slots 0 .. REGISTERS - 1, then lists."""
    return group << 24 | epoch << 4 | slot


cpdef u64 burst_key(u64 group, u64 number, u64 serial):
    """A key of its own for each value of a burst: their order matters to nobody."""
    return group << 24 | BURST | (number & 0x7FF) << 12 | (serial & 0xFFF)


cpdef bint is_list(u64 key):
    return not key & BURST and <i64>(key & 15) >= SLOTS


cdef class Operations:
    """See workload.pyi."""

    def __init__(self):
        self.history = []
        self.open = {}

    def submitted(self, Client client not None, node, list calls not None):
        cdef Call call
        client.open += len(calls)
        for call in calls:
            self.open[<size_t><void*>call] = call
            call.node = node


cdef class Call(Operation):
    """See workload.pyi."""

    def __init__(self, Client asker not None, key, str kind not None, argument,
                 bytes command not None, i64 now_us):
        fill(self, asker, key, kind, argument, command, now_us)

    def done(self, i64 now_us, result):
        self.result = result
        self.returned_us = now_us
        self.asker.heard(self, now_us)

    def lost(self, i64 now_us):
        self.result = unseen
        self.returned_us = now_us
        self.asker.heard(self, now_us)

    def failed(self, i64 now_us, verdict):
        if verdict in outcome_unknown:
            self.asker.unknown(self, now_us)
        else:
            self.asker.rejected(self, now_us)

    def died(self, i64 now_us):
        self.asker.unknown(self, now_us)


cdef void fill(Call call, Client asker, key, str kind, argument, bytes command,
               i64 now_us) noexcept:
    call.asker = asker
    call.client = asker.number
    call.key = key
    call.kind = kind
    call.argument = argument
    call.called_us = now_us
    call.command = command
    call.node = 0


cdef Call call_of(Client asker, u64 key, str kind, argument, bytes command, i64 now_us):
    cdef Call call = Call.__new__(Call)
    fill(call, asker, key, kind, argument, command, now_us)
    return call


cdef class Client:
    """See workload.pyi."""

    def __init__(self, Workload load not None, u64 number, u64 group, kind):
        self.load = load
        self.operations = load.operations
        self.number = number
        self.group = group
        self.kind = kind
        self.lists, self.reads, self.batch = kind.lists, kind.reads, kind.batch
        self.large, self.huge, self.verifies = kind.large, kind.huge, kind.verify
        self.timeout_us[0], self.timeout_us[1] = kind.timeout_us
        self.think_us[0], self.think_us[1] = kind.think_us
        self.chance = Random(load.plan.seed << 20 | number)
        self.random = self.chance.random
        self.home = 1 + self.below(load.nodes)
        self.retry = []
        self.seen = {}

    cdef i64 below(self, i64 most) except -1:
        return <i64>(<double>self.random() * <double>most)

    cdef i64 between(self, const i64* bounds) except -1:
        return bounds[0] + self.below(bounds[1] - bounds[0])

    # --- asking

    def due(self, i64 now_us):
        cdef list calls
        if self.retry:
            calls, self.retry = self.retry, []
        elif now_us >= self.load.end_us:
            return
        else:
            calls = self.new_calls(now_us)
        node = self.asked_at()
        self.load.submit(self, node, calls, self.between(self.timeout_us))

    # The node that is asked now: mostly that of the time before.
    cdef u64 asked_at(self) except 0:
        if <double>self.random() >= HOME:
            self.home = 1 + self.below(self.load.nodes)
        return self.home

    cpdef list new_calls(self, now_us):
        cdef u64 epoch = <i64>now_us // EPOCH
        cdef i64 count = 1, slot, i
        cdef list calls = []
        if self.verify is not None:
            key, self.verify = self.verify, None
            return [call_of(self, key, "get", None, encode_get(key), now_us)]
        if self.batch > 1:
            count = 1 + self.below(self.batch)
        slot = self.below(SLOTS)
        for i in range(count):
            if <double>self.random() < self.lists:
                calls.append(self.list_call(
                    key_of(self.group, epoch, SLOTS + self.below(N_LISTS)), now_us))
            else:
                slot = (slot + 1) % SLOTS
                calls.append(self.register_call(key_of(self.group, epoch, slot), now_us))
        return calls

    cpdef bytes token(self):
        cdef char text[32]
        self.serial += 1
        return PyBytes_FromStringAndSize(text, snprintf(
            text, sizeof(text), b"%03llx%05llx", <unsigned long long>self.number,
            <unsigned long long>self.serial))

    cdef Call list_call(self, u64 key, i64 now_us):
        cdef bytes token
        if <double>self.random() < self.reads:
            return call_of(self, key, "get", None, encode_get(key), now_us)
        token = self.token()
        return call_of(self, key, "append", token, encode_append(key, token), now_us)

    cdef Call register_call(self, u64 key, i64 now_us):
        cdef double what = self.random()
        cdef bytes value
        if what < self.reads:
            return call_of(self, key, "get", None, encode_get(key), now_us)
        if what > 0.97:
            return call_of(self, key, "delete", None, encode_delete(key), now_us)
        value = self.value()
        if what > 0.75:
            seen = self.seen.get(key)
            if seen is None or PyBytes_GET_SIZE(seen) <= 64:
                return call_of(self, key, "cas", (seen, value), encode_cas(key, seen, value),
                               now_us)
        return call_of(self, key, "put", value, encode_put(key, value), now_us)

    cdef bytes value(self):
        cdef bytes token = self.token()
        cdef i64 most
        if <double>self.random() >= self.large:
            return token
        most = self.load.value_bytes_max
        if <double>self.random() >= self.huge:
            most = min(most, 2048)
            most = TOKEN + self.below(most - TOKEN)
        return (token * (most // TOKEN + 1))[:most]

    # --- hearing

    def heard(self, Call call not None, i64 now_us):
        cdef str kind = call.kind
        del self.operations.open[<size_t><void*>call]
        self.operations.history.append(call)
        if not is_list(call.key):
            if kind == "get":
                self.seen[call.key] = call.result if call.result is not unseen else None
            elif kind == "put":
                self.seen[call.key] = call.argument
        self.settled(now_us)

    def unknown(self, Call call not None, i64 now_us):
        del self.operations.open[<size_t><void*>call]
        self.operations.history.append(call)
        self.operations.unknown += 1
        if self.verifies and call.kind != "get":
            self.verify = call.key
        self.settled(now_us)

    def rejected(self, Call call not None, i64 now_us):
        del self.operations.open[<size_t><void*>call]
        self.operations.rejections += 1
        call.tries += 1
        if call.tries < TRIES_MAX:
            self.retry.append(call)
        else:
            self.operations.abandoned += 1
        self.settled(now_us)

    cdef int settled(self, i64 now_us) except -1:
        cdef i64 think_us
        self.open -= 1
        if self.open:
            return 0
        if self.retry:
            think_us = <i64>(<double>self.random() * 20000.0
                             * <double>(1 << (<Call>self.retry[0]).tries))
        else:
            think_us = self.between(self.think_us)
            if self.load.behind:
                think_us //= 3
        self.load.wake(self, now_us + think_us)
        return 0


cdef class Workload:
    """See workload.pyi."""

    def __init__(self, world, plan, client=Client):
        self.world = world
        self.plan = plan
        self.chance = Random(plan.seed << 20 | 0xFFFFF)
        self.operations = Operations()
        self.end_us = plan.clients_end_us
        self.duration_us = plan.duration_us
        self.nodes = plan.nodes
        self.groups = plan.groups
        self.value_bytes_max = dict(plan.limits)["value_bytes_max"] - ENVELOPE_BYTES
        self.sleeping = []
        self.clients = []
        kinds = list(client_kinds.CLIENTS.values())
        weights = [kind.weight for kind in kinds]
        for group in range(plan.groups + dict(plan.limits).get("created", 0)):
            for _ in range(plan.clients):
                kind = self.chance.choices(kinds, weights)[0]
                self.clients.append(client(self, len(self.clients), group, kind))
        self.bursts = len(self.clients)

    def open(self):
        cdef Client one
        for one in self.clients:
            self.wake(one, one.below(SECOND))
        self.tick()

    cdef int wake(self, Client client, i64 at_us) except -1:
        heappush(self.sleeping, (at_us, client.number, client))
        return 0

    # One call for all clients that are due by now.
    def tick(self):
        cdef i64 now_us = self.world.now_us
        cdef list sleeping = self.sleeping
        self.behind = <i64>self.world.decided_values() < now_us * self.groups * GOAL // SECOND
        while sleeping and <i64>(<tuple>sleeping[0])[0] <= now_us:
            (<Client>(<tuple>heappop(sleeping))[2]).due(now_us)
        if now_us < self.duration_us:
            self.world.call_at(
                now_us + 1 + <i64>(<double>self.chance.random() * TICK_US_MAX), self.tick)

    cpdef submit(self, Client client, node, list calls, i64 timeout_us):
        cdef Call call
        cdef list some = []
        cdef Py_ssize_t size = 0
        self.operations.submitted(client, node, calls)
        if len(calls) == 1:
            self.pass_on(client, node, calls, timeout_us)
            return
        # A submission keeps to the limit of a node's inbox, as those of a driver do.
        for call in calls:
            if some and size + PyBytes_GET_SIZE(call.command) > SUBMIT_BYTES:
                self.pass_on(client, node, some, timeout_us)
                some, size = [], 0
            some.append(call)
            size += PyBytes_GET_SIZE(call.command)
        self.pass_on(client, node, some, timeout_us)

    cdef int pass_on(self, Client client, node, list calls, i64 timeout_us) except -1:
        if self.plain:
            Workload.hand_in(self, client, node, calls, timeout_us)
        else:
            self.hand_in(client, node, calls, timeout_us)
        return 0

    cpdef hand_in(self, Client client, node, list calls, i64 timeout_us):
        cdef Call call
        if self.world.running(node):
            values = [(<Call>one).command for one in calls]
            if not self.world.submit(node, client.group, values, timeout_us, calls):
                return
        for call in calls:
            client.rejected(call, self.world.now_us)

    def unheard(self):
        cdef Call call
        cdef list left = []
        for call in self.operations.open.values():
            if self.world.damaged(call.node):
                self.operations.history.append(call)
            else:
                left.append(call)
        return left

    def burst(self, node, u64 group, u64 values, i64 value_bytes):
        kind = ClientKind(0, lists=0, reads=0, verify=False, timeout_us=(200_000, 2_000_000))
        cdef Client client = Client(self, self.bursts, group, kind)
        cdef i64 now_us = self.world.now_us
        cdef list calls = []
        cdef bytes value, filling = bytes(max(value_bytes - TOKEN, 0))
        cdef u64 serial, key
        self.bursts += 1
        for serial in range(values):
            key = burst_key(group, client.number, serial)
            value = client.token() + filling
            calls.append(call_of(client, key, "put", value, encode_put(key, value), now_us))
        self.submit(client, node, calls, 1_000_000)
