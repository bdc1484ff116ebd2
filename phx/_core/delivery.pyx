# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The native loops between the log and Python. See delivery.pxd."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.string cimport memcpy, memset

from phx._core.native cimport *
from phx._core.batch cimport (
    BODY_HEADER_BYTES, ITEM_HEADER_BYTES, BodyHeader, ItemHeader, RunHeader, RunIterator,
    body_check, run_begin, run_next,
)
from phx._core.codec cimport phx_crc32c
from phx._core.sessions cimport (
    ADMIT_APPLY, ADMIT_BEYOND, ADMIT_DUPLICATE, ADMIT_STALE, SEQUENCES_MAX, SessionRow,
    SessionTable, session_admit, session_done, session_enter, sessions_free,
)

DUPLICATE = <int>ADMIT_DUPLICATE
STALE = <int>ADMIT_STALE
BEYOND = <int>ADMIT_BEYOND
IN_FLIGHT_MAX = <int>SEQUENCES_MAX


cdef void delivered_free(Delivered* taken) noexcept nogil:
    cdef u32 i
    for i in range(taken.count):
        block_unref(taken.bodies[i])
    phx_free(taken.bodies)
    taken.bodies = NULL
    taken.count = 0


# --- the tables of a node

cdef class Sessions:
    """The de-duplication tables of the groups of one node, and the door from bodies to Batches.

    Guarantee: an (origin node, incarnation, sequence) is admitted at most once for the whole life
    of a group, and which admissions happen depends on the order of the log alone. Memory: at most
    8 KiB for each node and group, and none where values arrive in order.

    Args:
        node: this node's id.
        groups: the groups it hosts.
    """

    def __cinit__(self, u32 node, groups):
        cdef SessionTable* table
        self.node = node
        self.incarnation = 0
        for group in sorted(set(groups)):
            table = phx_new[SessionTable]()
            table.group = group
            table.digest = 0
            table.next = 1
            self.tables.push_back(table)

    def __dealloc__(self):
        cdef SessionTable* table
        cdef size_t i
        for i in range(self.tables.size()):
            table = self.tables[i]
            sessions_free(table)
            phx_delete(table)

    cdef SessionTable* find(self, u32 group) noexcept:
        cdef size_t low = 0
        cdef size_t high = self.tables.size()
        cdef size_t middle
        while low < high:
            middle = (low + high) >> 1
            if self.tables[middle].group < group:
                low = middle + 1
            else:
                high = middle
        if low < self.tables.size() and self.tables[low].group == group:
            return self.tables[low]
        return NULL

    cdef list batches(self, vector[Delivered]* taken):
        cdef list out = []
        cdef size_t i = 0
        try:
            while i < taken.size():
                out.append(self._batch(&taken.data()[i]))
                i += 1
        finally:
            for i in range(taken.size()):
                delivered_free(&taken.data()[i])
            taken.clear()
        return out

    cdef Batch _batch(self, Delivered* taken):
        cdef Batch batch = Batch.__new__(Batch)
        cdef SessionTable* table = self.find(taken.group)
        cdef Block* body
        cdef u32 i
        batch.group = taken.group
        batch.first = taken.first
        batch.last = taken.first - 1
        batch.entries = []
        batch.dropped = []
        batch.machine = -2
        if table == NULL:
            batch.error = "a group that this node does not host"
            return batch
        for i in range(taken.count):
            body = taken.bodies[i]
            if taken.first + i != table.next:
                batch.error = f"the log went on at {taken.first + i} instead of {table.next}"
                break
            if body == NULL or not body_check(body.data, body.size):
                batch.error = "a chosen value that is not the body of an instance"
                break
            admit_body(self, table, batch, body)
            batch.last = table.next
            table.next += 1
        batch.digest = table.digest
        if batch.machine == -2:
            batch.machine = -1
        return batch

    def offer(self, u32 group, u64 first, bodies not None):
        """A Batch of these bodies, bytes each, as if the driver had handed them over."""
        cdef vector[Delivered] taken
        cdef Delivered one
        cdef u32 i
        cdef list kept = [bytes(body) for body in bodies]
        one.group = group
        one.first = first
        one.count = len(kept)
        one.bodies = <Block**>phx_malloc((one.count + 1) * sizeof(Block*))
        if one.bodies == NULL:
            raise MemoryError
        for i in range(one.count):
            one.bodies[i] = block_copy(<const char*>(<bytes>kept[i]), PyBytes_GET_SIZE(kept[i]))
        taken.push_back(one)
        return self.batches(&taken)[0]

    def rows(self, u32 group):
        """What the table holds, by node: (node, incarnation, base, sequences done above base)."""
        cdef SessionTable* table = self.find(group)
        cdef SessionRow* row
        cdef size_t i
        if table == NULL:
            raise KeyError(group)
        out = []
        for i in range(table.rows.size()):
            row = &table.rows[i]
            ahead = range(row.base + 1, row.base + row.capacity)
            done = [sequence for sequence in ahead if session_done(row, sequence)]
            out.append((row.node, row.incarnation, row.base, done))
        return out

    def table_bytes(self, u32 group):
        """Bytes of bitmaps held for a group."""
        cdef SessionTable* table = self.find(group)
        cdef size_t i
        cdef u64 total = 0
        if table == NULL:
            raise KeyError(group)
        for i in range(table.rows.size()):
            total += table.rows[i].capacity >> 3
        return total

    def next_instance(self, u32 group):
        """The instance expected next, and the group's chained checksum before it."""
        cdef SessionTable* table = self.find(group)
        if table == NULL:
            raise KeyError(group)
        return table.next, table.digest


# Walks the body of instance table.next: what is admitted goes into `batch` and into the digest,
# which covers instance, body header and admitted items: what apply sees, and nothing else.
cdef int admit_body(Sessions sessions, SessionTable* table, Batch batch, Block* body) except -1:
    cdef RunIterator it
    cdef BodyHeader header
    cdef SessionRow* row
    cdef u32 index = 0
    cdef int why = ADMIT_APPLY
    cdef bint own
    memcpy(&header, body.data, BODY_HEADER_BYTES)
    table.digest = phx_crc32c(table.digest, &table.next, 8)
    table.digest = phx_crc32c(table.digest, &header, BODY_HEADER_BYTES)
    run_begin(&it, body.data, body.size)
    while run_next(&it):
        own = it.run.node == sessions.node and it.run.incarnation == sessions.incarnation
        row = session_enter(table, it.run.node, it.run.incarnation, it.run.low_water, &why)
        if row == NULL:
            if own:
                drop_run(batch, &it.run, why)
        else:
            admit_run(table, row, batch, &header, &it, index, own)
        index += it.run.count
    return 0


cdef int drop_run(Batch batch, const RunHeader* run, int why) except -1:
    cdef u32 i
    for i in range(run.count):
        batch.dropped.append((run.first_seq + i, why))
    return 0


cdef int admit_run(SessionTable* table, SessionRow* row, Batch batch, const BodyHeader* header,
                   const RunIterator* it, u32 index, bint own) except -1:
    cdef const u8* item = it.items
    cdef const u8* stretch = it.items          # first admitted item not yet in the digest
    cdef ItemHeader head
    cdef u64 sequence = it.run.first_seq
    cdef u32 i
    cdef int verdict = ADMIT_APPLY
    cdef bint in_order = row.n_set == 0 and row.base == sequence
    if in_order:
        row.base += it.run.count
    for i in range(it.run.count):
        memcpy(&head, item, ITEM_HEADER_BYTES)
        if not in_order:
            verdict = session_admit(row, sequence)
        if verdict == ADMIT_APPLY:
            append_entry(table, batch, header, it, item, &head, index + i,
                         sequence if own else 0)
        else:
            table.digest = phx_crc32c(table.digest, stretch, item - stretch)
            stretch = item + ITEM_HEADER_BYTES + head.bytes
            if own:
                batch.dropped.append((sequence, verdict))
        item += ITEM_HEADER_BYTES + head.bytes
        sequence += 1
    table.digest = phx_crc32c(table.digest, stretch, item - stretch)
    return 0


cdef inline int append_entry(SessionTable* table, Batch batch, const BodyHeader* header,
                             const RunIterator* it, const u8* item, const ItemHeader* head,
                             u32 index, u64 sequence) except -1:
    cdef Entry entry = Entry.__new__(Entry)
    entry.group = table.group
    entry.instance = table.next
    entry.index = index
    entry.machine = head.machine
    entry.node = it.run.node
    entry.epoch = header.epoch
    entry.time_us = header.time_us
    entry.sequence = sequence
    entry.value = PyBytes_FromStringAndSize(<const char*>item + ITEM_HEADER_BYTES, head.bytes)
    batch.entries.append(entry)
    batch.own += sequence != 0
    if batch.machine != head.machine:
        batch.machine = head.machine if batch.machine == -2 else -1
    return 0


def entries_of(u32 group, u64 instance, bytes body not None):
    """Every value of one instance, duplicates included. ValueError if the body is unsound."""
    cdef Batch batch = Batch.__new__(Batch)
    cdef const u8* data = <const u8*>PyBytes_AS_STRING(body)
    cdef SessionTable table
    cdef BodyHeader header
    cdef ItemHeader head
    cdef RunIterator it
    cdef const u8* item
    cdef u32 index = 0
    cdef u32 i
    if not body_check(data, PyBytes_GET_SIZE(body)):
        raise ValueError("not the body of an instance")
    table.group = group
    table.next = instance
    batch.entries = []
    memcpy(&header, data, BODY_HEADER_BYTES)
    run_begin(&it, data, PyBytes_GET_SIZE(body))
    while run_next(&it):
        item = it.items
        for i in range(it.run.count):
            memcpy(&head, item, ITEM_HEADER_BYTES)
            append_entry(&table, batch, &header, &it, item, &head, index, 0)
            item += ITEM_HEADER_BYTES + head.bytes
            index += 1
    return batch.entries


@cython.final
@cython.freelist(4096)
cdef class Entry:
    """One chosen value, as apply sees it. The same on every replica except ``sequence``.

    Attributes:
        group, instance, index: where it stands in the log; ``index`` counts the values of an
            instance.
        machine: the small id of the machine that it is for.
        value: the bytes that were proposed.
        epoch: grows with every new leader of the group: the fencing token.
        time_us: wall clock of the leader that packed it, microseconds since 1970; may go backwards.
        node: the node that took the proposal.
        sequence: for the library: nonzero where a caller of this node waits.
    """

    def __init__(self, u32 group=0, u64 instance=0, bytes value not None=b"", *, u32 index=0,
                 u32 machine=0, u64 epoch=0, u64 time_us=0, u32 node=0, u64 sequence=0):
        self.group = group
        self.instance = instance
        self.index = index
        self.machine = machine
        self.epoch = epoch
        self.time_us = time_us
        self.node = node
        self.sequence = sequence
        self.value = value

    def __repr__(self):
        return (f"Entry(group={self.group}, instance={self.instance}, index={self.index}, "
                f"machine={self.machine}, node={self.node}, value={self.value!r})")


@cython.final
cdef class Batch:
    """A contiguous stretch of one group's log, duplicates left out. Its fields: delivery.pxd."""

    def __repr__(self):
        return f"Batch(group={self.group}, {self.first}..{self.last}, {len(self.entries)} entries)"


@cython.final
@cython.freelist(4096)
cdef class Result:
    """What a caller gets back: the instance that holds its value, and what apply returned for it.

    Unpacks like the pair (instance, value).
    """

    def __init__(self, u64 instance, value):
        self.instance = instance
        self.value = value

    def __iter__(self):
        yield self.instance
        yield self.value

    def __eq__(self, other):
        if not isinstance(other, Result):
            return NotImplemented
        return self.instance == (<Result>other).instance and self.value == (<Result>other).value

    def __hash__(self):
        return hash((self.instance, self.value))

    def __repr__(self):
        return f"Result(instance={self.instance}, value={self.value!r})"


@cython.final
cdef class Refusal:
    """In the place of a result: the caller's future gets this error instead."""

    def __init__(self, error not None):
        self.error = error


# --- callers

@cython.final
cdef class _Many:
    """The waiter of a run: one future for the results of `count` consecutive sequences."""

    cdef object future
    cdef list results
    cdef u64 left
    cdef bint failed

    def __cinit__(self, future, u64 count):
        self.future = future
        self.results = [None] * count
        self.left = count
        self.failed = False


# Sets what a caller waits for. A cancelled future stays cancelled and disturbs nobody.
cdef int settle_result(object waiter, object value) except -1:
    try:
        waiter.set_result(value)
    except Exception:
        if not waiter.done():
            raise
    return 0


cdef int settle_error(object waiter, object error) except -1:
    try:
        waiter.set_exception(error)
    except Exception:
        if not waiter.done():
            raise
    return 0


cdef class Waiters:
    """This node's callers in one incarnation, by group and sequence, within limits.

    Guarantee: every waiter that was added and not revoked is resolved at most once, and from the
    lowest unresolved sequence of a group to the highest are never more than IN_FLIGHT_MAX, which is
    what the replicated table can tell apart. A waiter has set_result, set_exception and done.

    Args:
        groups: the groups of the node.
        group_values_max, group_bytes_max: limits of what waits in one group.
        node_values_max, node_bytes_max: limits over all groups.
        partly: partly(results and errors) makes the exception of a run of which a value failed.
    """

    def __cinit__(self, groups, *, u64 group_values_max, u64 group_bytes_max, u64 node_values_max,
                  u64 node_bytes_max, partly):
        cdef WaiterRing ring
        self.group_values_max = min(group_values_max, <u64>SEQUENCES_MAX)
        self.group_bytes_max = group_bytes_max
        self.node_values_max = node_values_max
        self.node_bytes_max = node_bytes_max
        self.partly = partly
        memset(&ring, 0, sizeof(WaiterRing))
        ring.low = ring.next = 1
        for group in sorted(set(groups)):
            ring.group = group
            self.rings.push_back(ring)

    def __dealloc__(self):
        cdef WaiterRing* ring
        cdef size_t i
        cdef u64 k
        for i in range(self.rings.size()):
            ring = &self.rings[i]
            for k in range(ring.capacity):
                if ring.slots[k].waiter != NULL:
                    Py_DECREF(<object>ring.slots[k].waiter)
            phx_free(ring.slots)

    cdef WaiterRing* find(self, u32 group) except NULL:
        cdef size_t low = 0
        cdef size_t high = self.rings.size()
        cdef size_t middle
        if group < high and self.rings[group].group == group:  # most nodes host 0, 1, 2 and so on
            return &self.rings[group]
        while low < high:
            middle = (low + high) >> 1
            if self.rings[middle].group < group:
                low = middle + 1
            else:
                high = middle
        if low == self.rings.size() or self.rings[low].group != group:
            raise KeyError(group)
        return &self.rings[low]

    # Room for `count` more sequences: 1, or 0 when they would be too far from the lowest one.
    cdef int grow(self, WaiterRing* ring, u64 count) except -1:
        cdef u64 span = ring.next - ring.low + count
        cdef u64 capacity = ring.capacity if ring.capacity else 4
        cdef u64 sequence
        cdef WaiterSlot* slots
        if span > SEQUENCES_MAX:
            return 0
        if span <= ring.capacity:
            return 1
        while capacity < span:
            capacity *= 2
        slots = <WaiterSlot*>phx_calloc(capacity, sizeof(WaiterSlot))
        if slots == NULL:
            raise MemoryError
        for sequence in range(ring.low, ring.next):
            slots[sequence & (capacity - 1)] = ring.slots[sequence & (ring.capacity - 1)]
        phx_free(ring.slots)
        ring.slots = slots
        ring.capacity = capacity
        return 1

    # The waiter of a sequence, which is resolved from now on; None if nobody waits for it.
    cdef object take(self, WaiterRing* ring, u64 sequence, u32* index):
        cdef WaiterSlot* slot
        cdef PyObject* waiter
        if sequence < ring.low or sequence >= ring.next:
            return None
        slot = &ring.slots[sequence & (ring.capacity - 1)]
        waiter = slot.waiter
        if waiter == NULL:
            return None
        slot.waiter = NULL
        index[0] = slot.index
        ring.count -= 1
        ring.bytes -= slot.bytes
        self.count -= 1
        self.held_bytes -= slot.bytes
        if sequence == ring.low:
            ring.low += 1
            while (ring.low < ring.next
                   and ring.slots[ring.low & (ring.capacity - 1)].waiter == NULL):
                ring.low += 1
            if ring.low == ring.next and ring.capacity > 4096:
                phx_free(ring.slots)
                ring.slots = NULL
                ring.capacity = 0
        taken = <object>waiter
        Py_DECREF(taken)              # the ring's reference; `taken` holds its own
        return taken

    cdef u64 enter(self, WaiterRing* ring, object waiter, u64 nbytes) except? 0:
        cdef WaiterSlot* slot
        if (ring.count + 1 > self.group_values_max or ring.bytes + nbytes > self.group_bytes_max
                or self.count + 1 > self.node_values_max
                or self.held_bytes + nbytes > self.node_bytes_max or not self.grow(ring, 1)):
            return 0
        slot = &ring.slots[ring.next & (ring.capacity - 1)]
        Py_INCREF(waiter)
        slot.waiter = <PyObject*>waiter
        slot.bytes = nbytes
        slot.index = 0
        ring.next += 1
        ring.count += 1
        ring.bytes += nbytes
        self.count += 1
        self.held_bytes += nbytes
        return ring.next - 1

    def add(self, u32 group, waiter not None, u64 nbytes):
        """The sequence under which `waiter` waits from now on; 0 when a limit is reached."""
        return self.enter(self.find(group), waiter, nbytes)

    def connect(self, submit not None, now_us not None, u64 value_bytes_max):
        """What propose() needs of the driver, and the largest value that it takes."""
        self.submit = submit
        self.now_us = now_us
        self.value_bytes_max = value_bytes_max

    def propose(self, u32 group, u16 machine, value, timeout, waiter not None):
        """The short way in: adds `waiter` and submits `value`, which is then on its way: True.

        False: something is out of the ordinary, nothing was done, and the long way (Door.submit)
        says what it is.
        """
        cdef WaiterRing* ring = self.find(group)
        cdef double seconds
        cdef u64 first
        if type(value) is not bytes or <u64>PyBytes_GET_SIZE(value) > self.value_bytes_max:
            return False
        if type(timeout) is not float and type(timeout) is not int:
            return False
        seconds = timeout
        if not 0 < seconds < 1e9:
            return False
        first = self.enter(ring, waiter, PyBytes_GET_SIZE(value))
        if first == 0:
            return False
        try:
            given = self.submit(group, machine, [value], self.now_us() + <u64>(seconds * 1e6))
        except Exception:
            self.revoke(group, first)
            return False
        if given != first:
            raise AssertionError(f"sequence {given} was given for {first}")
        return True

    def add_many(self, u32 group, future not None, list values not None):
        """The first of the consecutive sequences for `values`, resolved together; 0 at a limit."""
        cdef WaiterRing* ring = self.find(group)
        cdef WaiterSlot* slot
        cdef u64 count = len(values)
        cdef u64 nbytes = 0
        cdef u64 i
        for value in values:
            nbytes += len(<bytes?>value)
        if (ring.count + count > self.group_values_max or ring.bytes + nbytes > self.group_bytes_max
                or self.count + count > self.node_values_max
                or self.held_bytes + nbytes > self.node_bytes_max):
            return 0
        many = _Many(future, count)
        if not self.grow(ring, count):
            return 0
        for i in range(count):
            slot = &ring.slots[(ring.next + i) & (ring.capacity - 1)]
            Py_INCREF(many)
            slot.waiter = <PyObject*>many
            slot.bytes = PyBytes_GET_SIZE(values[i])
            slot.index = i
        ring.next += count
        ring.count += count
        ring.bytes += nbytes
        self.count += count
        self.held_bytes += nbytes
        return ring.next - count

    def revoke(self, u32 group, u64 first):
        """Takes back the newest sequences, from `first` on, which were never submitted."""
        cdef WaiterRing* ring = self.find(group)
        cdef u32 index
        cdef u64 sequence
        for sequence in range(first, ring.next):
            self.take(ring, sequence, &index)
        ring.next = first
        if ring.low > first:
            ring.low = first

    def complete(self, u32 group, list entries not None, list results not None, Py_ssize_t start=0):
        """Resolves the callers of entries[start:start + len(results)]; how many values waited."""
        cdef WaiterRing* ring = self.find(group)
        cdef Py_ssize_t k
        cdef Py_ssize_t n_resolved = 0
        cdef Entry entry
        cdef u32 index = 0
        if start < 0 or start + len(results) > len(entries):
            raise ValueError("more results than entries")
        for k in range(len(results)):
            entry = <Entry?>entries[start + k]
            if entry.sequence == 0:
                continue
            waiter = self.take(ring, entry.sequence, &index)
            if waiter is None:
                continue
            n_resolved += 1
            value = results[k]
            if type(value) is Refusal:
                self.settle(waiter, index, (<Refusal>value).error, True)
            else:
                self.settle(waiter, index, new_result(entry.instance, value), False)
        return n_resolved

    cdef int settle(self, object waiter, u32 index, object value, bint failed) except -1:
        cdef _Many many
        if type(waiter) is _Many:
            many = <_Many>waiter
            many.results[index] = value
            many.failed |= failed
            many.left -= 1
            if many.left:
                return 0
            results = many.results
            many.results = None
            if many.failed:
                return settle_error(many.future, self.partly(results))
            return settle_result(many.future, results)
        if failed:
            return settle_error(waiter, value)
        return settle_result(waiter, value)

    def fail(self, u32 group, u64 first, u64 count, make not None):
        """Resolves `count` sequences from `first` on with errors, make() each; how many waited."""
        cdef WaiterRing* ring = self.find(group)
        cdef Py_ssize_t n_resolved = 0
        cdef u64 sequence
        cdef u64 end = ring.next
        cdef u32 index = 0
        if count < end - min(first, end):
            end = first + count
        for sequence in range(max(first, ring.low), end):
            waiter = self.take(ring, sequence, &index)
            if waiter is not None:
                n_resolved += 1
                self.settle(waiter, index, make(), True)
        return n_resolved

    def fail_group(self, u32 group, make not None):
        """Resolves everything that waits in a group with errors, make() each."""
        cdef WaiterRing* ring = self.find(group)
        return self.fail(group, ring.low, ring.next - ring.low, make)

    def fail_all(self, make not None):
        """Resolves everything that waits, in every group."""
        cdef Py_ssize_t n_resolved = 0
        cdef size_t i
        for i in range(self.rings.size()):
            n_resolved += self.fail_group(self.rings[i].group, make)
        return n_resolved

    def waiting(self, u32 group):
        """(values, bytes) in flight in a group."""
        cdef WaiterRing* ring = self.find(group)
        return ring.count, ring.bytes


cdef inline Result new_result(u64 instance, object value):
    cdef Result result = Result.__new__(Result)
    result.instance = instance
    result.value = value
    return result
