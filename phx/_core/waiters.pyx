# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Callers and what they get back. See waiters.pxd."""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.string cimport memset

from phx._core.native cimport *
from phx._core.entries cimport Entries, Entry, Passage, Stretch
from phx._core.gate cimport (
    GATE_FLOOR, Gate, gate_full, gate_left, gate_open, gate_over, gate_room,
)
from phx._core.sessions cimport SEQUENCES_MAX

IN_FLIGHT_MAX = <int>SEQUENCES_MAX


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
        wait_us_max: above which waiting is not to be expected by who is let in (gate.pxd); 0: none.
        partly: partly(results and errors) makes the exception of a run of which a value failed.
    """

    def __cinit__(self, groups, *, u64 group_values_max, u64 group_bytes_max, u64 node_values_max,
                  u64 node_bytes_max, partly, u64 wait_us_max=0):
        self.group_values_max = min(group_values_max, <u64>SEQUENCES_MAX)
        self.group_bytes_max = group_bytes_max
        self.node_values_max = node_values_max
        self.node_bytes_max = node_bytes_max
        self.partly = partly
        self.wait_us_max = wait_us_max
        memset(&self.gate, 0, sizeof(Gate))
        for group in sorted(set(groups)):
            self.add_group(group)

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.rings.size()):
            ring_free(self.rings[i])

    def add_group(self, u32 group):
        """Callers may wait in this group from now on, too; the first of them under sequence 1."""
        cdef WaiterRing* ring
        cdef WaiterRing* at
        cdef size_t i
        for i in range(self.rings.size()):
            if self.rings[i].group == group:
                raise ValueError(f"group {group} is there")
        ring = phx_new[WaiterRing]()
        ring.group = group
        ring.low = ring.next = 1
        if self.wait_us_max:
            ring.gate = phx_new[Gate]()
        self.rings.push_back(ring)
        i = self.rings.size() - 1
        while i > 0 and self.rings[i - 1].group > group:
            at = self.rings[i - 1]
            self.rings[i] = at
            i -= 1
        self.rings[i] = ring

    def drop_group(self, u32 group, make not None):
        """No caller waits in this group any more: whoever does gets an error, make() each.

        On the thread that applies, and not from within anything that this object has called.

        Raises:
            KeyError: no such group here.
        """
        cdef WaiterRing* ring
        cdef size_t i = 0
        self.fail_group(group, make)
        ring = self.find(group)
        while self.rings[i] != ring:
            i += 1
        while i + 1 < self.rings.size():
            self.rings[i] = self.rings[i + 1]
            i += 1
        self.rings.pop_back()
        ring_free(ring)

    cdef WaiterRing* find(self, u32 group) except NULL:
        cdef size_t low = 0
        cdef size_t high = self.rings.size()
        cdef size_t middle
        if group < high and self.rings[group].group == group:  # most nodes host 0, 1, 2 and so on
            return self.rings[group]
        while low < high:
            middle = (low + high) >> 1
            if self.rings[middle].group < group:
                low = middle + 1
            else:
                high = middle
        if low == self.rings.size() or self.rings[low].group != group:
            raise KeyError(group)
        return self.rings[low]

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
        self.came_us = slot.since_us
        self.taken_bytes += slot.bytes
        ring.count -= 1
        if ring.count == 0:
            self.active -= 1
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

    cdef Gate* gate_of(self, WaiterRing* ring) noexcept:
        return ring.gate

    # Whether a gate is shut for one more in this group: the group's, or the node's, which lets in
    # all the same whoever has less waiting than its share of the window.
    cdef bint held_up(self, WaiterRing* ring) except? True:
        cdef Gate* gate = self.gate_of(ring)
        cdef Gate* node = &self.gate
        cdef u64 behind_us = self.later_us()
        self.open_idle(gate, ring.count)
        self.open_idle(node, self.count)
        if gate_full(gate, ring.count, ring.bytes, behind_us):
            gate.refused = True
            return True
        if gate_full(node, self.count, self.held_bytes, behind_us) and (
                ring.count * self.active >= gate_room(node.window, node.rate, behind_us)
                or ring.bytes * self.active > gate_room(node.window_bytes, node.rate_bytes,
                                                        behind_us)):
            node.refused = True
            return True
        return False

    # By how much another node that turns callers away applies later than this one.
    cdef u64 later_us(self) except? 0:
        return self.behind_us() if self.behind_us is not None else 0

    cdef int open_idle(self, Gate* gate, u64 waiting) except -1:
        cdef u64 now_us
        if waiting == 0 and gate.window:
            now_us = self.now_us()
            if gate_over(gate, self.wait_us_max, waiting, now_us):
                gate_open(gate)
                self.shut -= 1
        return 0

    # So many of a group were applied, the youngest last.
    cdef int left(self, WaiterRing* ring, u64 count, u64 nbytes) except -1:
        cdef Gate* gate = self.gate_of(ring)
        cdef u64 came_us = self.came_us
        cdef u64 now_us, stay_us
        if count == 0 or came_us == 0:
            return 0
        now_us = self.now_us()
        stay_us = now_us - min(came_us, now_us)
        self.shut -= (gate.window != 0) + (self.gate.window != 0)
        gate_left(gate, self.wait_us_max, count, nbytes, stay_us, ring.count, now_us)
        gate_left(&self.gate, self.wait_us_max, count, nbytes, stay_us, self.count, now_us)
        self.shut += (gate.window != 0) + (self.gate.window != 0)
        if self.turning_away is not None and self.told_shut != (self.shut != 0):
            self.told_shut = not self.told_shut
            self.turning_away(self.told_shut)
        return 0

    # Nobody waits any more: what was learned of a queue is over.
    cdef void emptied(self, WaiterRing* ring) noexcept:
        cdef Gate* gate = self.gate_of(ring)
        if ring.count == 0 and gate.window:
            gate_open(gate)
            self.shut -= 1
        if self.count == 0 and self.gate.window:
            gate_open(&self.gate)
            self.shut -= 1

    cdef u64 enter(self, WaiterRing* ring, object waiter, u64 nbytes, u64 now_us) except? 0:
        cdef WaiterSlot* slot
        if self.shut and self.held_up(ring):
            return 0
        if (ring.count + 1 > self.group_values_max or ring.bytes + nbytes > self.group_bytes_max
                or self.count + 1 > self.node_values_max
                or self.held_bytes + nbytes > self.node_bytes_max or not self.grow(ring, 1)):
            return 0
        slot = &ring.slots[ring.next & (ring.capacity - 1)]
        Py_INCREF(waiter)
        slot.waiter = <PyObject*>waiter
        slot.bytes = nbytes
        slot.index = 0
        slot.since_us = now_us
        if ring.count == 0:
            self.active += 1
        ring.next += 1
        ring.count += 1
        ring.bytes += nbytes
        self.count += 1
        self.held_bytes += nbytes
        return ring.next - 1

    def add(self, u32 group, waiter not None, u64 nbytes, u64 now_us=0):
        """The sequence under which `waiter` waits from now on; 0 when a limit is reached."""
        return self.enter(self.find(group), waiter, nbytes, now_us)

    def connect(self, submit not None, now_us not None, u64 value_bytes_max, behind_us=None,
                turning_away=None):
        """What propose() and the gates need of the driver, and the largest value that it takes."""
        self.submit = submit
        self.now_us = now_us
        self.value_bytes_max = value_bytes_max
        self.behind_us = behind_us
        self.turning_away = turning_away

    # When a timeout ends, on the driver's clock; 0: it is out of the ordinary.
    cdef u64 due(self, object timeout) except? 0:
        cdef double seconds
        if type(timeout) is not float and type(timeout) is not int:
            return 0
        seconds = timeout
        if not 0 < seconds < 1e9:
            return 0
        self.clock_us = self.now_us()
        return self.clock_us + <u64>(seconds * 1e6)

    # Submits what was entered from `first` on, or takes it back.
    cdef bint send(self, WaiterRing* ring, u64 first, u16 machine, list values,
                   u64 due_us) except -1:
        cdef u32 group = ring.group
        try:
            given = self.submit(group, machine, values, due_us)
        except Exception:
            self.revoke(group, first)
            return False
        if given != first:
            raise AssertionError(f"sequence {given} was given for {first}")
        return True

    def propose(self, u32 group, u16 machine, value, timeout, waiter not None):
        """The short way in: adds `waiter` and submits `value`, which is then on its way: True.

        False: something is out of the ordinary, nothing was done, and the long way (Door.submit)
        says what it is.
        """
        cdef WaiterRing* ring = self.find(group)
        cdef u64 first, due_us
        if type(value) is not bytes or <u64>PyBytes_GET_SIZE(value) > self.value_bytes_max:
            return False
        due_us = self.due(timeout)
        if due_us == 0:
            return False
        first = self.enter(ring, waiter, PyBytes_GET_SIZE(value), self.clock_us)
        return first != 0 and self.send(ring, first, machine, [value], due_us)

    # Judged by what waits before it: a long run has its turn as well.
    cdef u64 enter_run(self, WaiterRing* ring, object future, list values, u64 nbytes,
                       u64 now_us) except? 0:
        cdef WaiterSlot* slot
        cdef u64 count = len(values)
        cdef u64 i
        if self.shut and self.held_up(ring):
            return 0
        if (ring.count + count > self.group_values_max or ring.bytes + nbytes > self.group_bytes_max
                or self.count + count > self.node_values_max
                or self.held_bytes + nbytes > self.node_bytes_max or not self.grow(ring, count)):
            return 0
        many = _Many(future, count)
        for i in range(count):
            slot = &ring.slots[(ring.next + i) & (ring.capacity - 1)]
            Py_INCREF(many)
            slot.waiter = <PyObject*>many
            slot.bytes = PyBytes_GET_SIZE(values[i])
            slot.index = i
            slot.since_us = now_us
        if ring.count == 0 and count:
            self.active += 1
        ring.next += count
        ring.count += count
        ring.bytes += nbytes
        self.count += count
        self.held_bytes += nbytes
        return ring.next - count

    def add_many(self, u32 group, future not None, list values not None, u64 now_us=0):
        """The first of the consecutive sequences for `values`, resolved together; 0 at a limit."""
        cdef u64 nbytes = 0
        for value in values:
            nbytes += len(<bytes?>value)
        return self.enter_run(self.find(group), future, values, nbytes, now_us)

    def propose_many(self, u32 group, u16 machine, list values not None, timeout,
                     future not None):
        """As propose(), for a run of values with one future."""
        cdef WaiterRing* ring = self.find(group)
        cdef u64 nbytes = 0
        cdef u64 first, due_us
        for value in values:
            if type(value) is not bytes or <u64>PyBytes_GET_SIZE(value) > self.value_bytes_max:
                return False
            nbytes += PyBytes_GET_SIZE(value)
        due_us = self.due(timeout)
        if due_us == 0:
            return False
        first = self.enter_run(ring, future, values, nbytes, self.clock_us)
        return first != 0 and self.send(ring, first, machine, values, due_us)

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

    def complete(self, u32 group, entries not None, list results not None, Py_ssize_t start=0):
        """Resolves the callers of entries[start:start + len(results)]; how many values waited."""
        cdef WaiterRing* ring = self.find(group)
        cdef Py_ssize_t k
        cdef Py_ssize_t n_resolved = 0
        cdef u64 taken_bytes = self.taken_bytes
        cdef Entry entry
        if start < 0 or start + len(results) > len(entries):
            raise ValueError("more results than entries")
        if type(entries) is Entries:
            n_resolved = self.complete_passage(ring, entries, results, start)
        else:
            for k in range(len(results)):
                entry = <Entry?>entries[start + k]
                n_resolved += self.resolve(ring, entry.sequence, entry.instance, results[k])
        if self.wait_us_max:
            self.left(ring, n_resolved, self.taken_bytes - taken_bytes)
        return n_resolved

    # Looks at the stretches instead of making the entries again.
    cdef Py_ssize_t complete_passage(self, WaiterRing* ring, Entries entries, list results,
                                     Py_ssize_t start) except -1:
        cdef Passage passage = entries.passage
        cdef const Stretch* stretch
        cdef size_t base = entries.start + start
        cdef size_t at = base
        cdef size_t end = base + len(results)
        cdef size_t n = passage.stretch_of(at)
        cdef size_t stop
        cdef Py_ssize_t n_resolved = 0
        while at < end:
            stretch = &passage.stretches[n]
            stop = min(end, stretch.first + stretch.count)
            if stretch.sequence:
                while at < stop:
                    n_resolved += self.resolve(ring, stretch.sequence + (at - stretch.first),
                                               stretch.instance, results[at - base])
                    at += 1
            at = stop
            n += 1
        return n_resolved

    # The caller of a sequence gets its result: 1; 0: nobody waits for it (any more).
    cdef int resolve(self, WaiterRing* ring, u64 sequence, u64 instance, object value) except -1:
        cdef u32 index = 0
        waiter = self.take(ring, sequence, &index)
        if waiter is None:
            return 0
        if type(value) is Refusal:
            self.settle(waiter, index, (<Refusal>value).error, True)
        else:
            self.settle(waiter, index, new_result(instance, value), False)
        return 1

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
        if self.shut:
            self.emptied(ring)
        return n_resolved

    def settle_applied(self, u32 group, row not None, make not None):
        """Resolves what an installed session table says to be applied with errors, make() each.

        Guarantee: of the sequences that somebody waits for, those and only those that the row
        counts as done are resolved. They *were* applied: a base passes a sequence by applying it
        or by a low water, and none that still waits is below its own node's low water. (So what
        the driver has given up has to be failed first: take its events before.)

        Args:
            group: the group of the table.
            row: of this node and this incarnation, as ``Sessions.rows`` gives it: (node,
                incarnation, base, sequences above base that are done).

        Returns:
            What was resolved, ascending: (first sequence, how many). The driver is told (`done`).
        """
        cdef WaiterRing* ring = self.find(group)
        cdef u64 base = row[2]
        cdef u64 sequence, first = 0, count = 0
        cdef u32 index = 0
        cdef list found = []
        cdef list done = [one for one in range(ring.low, min(base, ring.next))]
        done += sorted(one for one in row[3] if max(base, ring.low) <= one < ring.next)
        for sequence in done:
            waiter = self.take(ring, sequence, &index)
            if waiter is None:
                continue
            self.settle(waiter, index, make(), True)
            if count and sequence == first + count:
                count += 1
                continue
            if count:
                found.append((first, count))
            first = sequence
            count = 1
        if count:
            found.append((first, count))
        return found

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

    def turn_away(self, u32 group, u64 count):
        """Notes that `count` values are turned away if a gate is shut for the group now.

        Returns:
            None: none is. Else whether it is the group's own, the values and bytes that wait there,
            and how many of them may.
        """
        cdef WaiterRing* ring = self.find(group)
        cdef Gate* gate
        if self.shut == 0 or not self.held_up(ring):
            return None
        ring.turned_away += count
        self.turned_away += count
        gate = self.gate_of(ring)
        behind_us = self.later_us()
        if gate_full(gate, ring.count, ring.bytes, behind_us):
            return True, ring.count, ring.bytes, *room_of(gate, behind_us)
        return False, self.count, self.held_bytes, *room_of(&self.gate, behind_us)

    def gate_of_group(self, u32 group):
        """(values turned away, how many may wait: 0: as many as the limits allow)."""
        cdef WaiterRing* ring = self.find(group)
        if self.shut == 0:
            return ring.turned_away, 0
        self.open_idle(self.gate_of(ring), ring.count)
        return ring.turned_away, self.gate_of(ring).window

    def gates_now(self):
        """What is turned away at this node, as numbers by name."""
        cdef bint shut
        self.open_idle(&self.gate, self.count)
        shut = self.gate.window != 0
        return {
            "turned_away": self.turned_away,
            "window": self.gate.window,
            "rate_per_s": <u64>(self.gate.rate * 1e6) if shut else 0,
            "groups_shut": self.shut - shut,
            "behind_us": self.later_us() if self.shut else 0,
        }


# Values and bytes that may wait while another node is so much later.
cdef tuple room_of(const Gate* gate, u64 behind_us):
    return (max(<u64>GATE_FLOOR, gate_room(gate.window, gate.rate, behind_us)),
            gate_room(gate.window_bytes, gate.rate_bytes, behind_us))


cdef void ring_free(WaiterRing* ring) noexcept:
    cdef u64 k
    for k in range(ring.capacity):
        if ring.slots[k].waiter != NULL:
            Py_DECREF(<object>ring.slots[k].waiter)
    phx_free(ring.slots)
    if ring.gate != NULL:
        phx_delete(ring.gate)
    phx_delete(ring)


cdef inline Result new_result(u64 instance, object value):
    cdef Result result = Result.__new__(Result)
    result.instance = instance
    result.value = value
    return result
