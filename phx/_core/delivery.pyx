# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""From chosen bodies to entries that may be applied. See delivery.pxd."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcpy

from phx._core.native cimport *
from phx._core.batch cimport (
    BODY_HEADER_BYTES, ITEM_HEADER_BYTES, BodyHeader, ItemHeader, RunHeader, RunIterator,
    body_check, run_begin, run_next,
)
from phx._core.codec cimport phx_crc32c
from phx._core.entries cimport Passage, Stretch, entries_of_passage
from phx._core.sessions cimport (
    ADMIT_APPLY, ADMIT_BEYOND, ADMIT_DUPLICATE, ADMIT_STALE, SessionRow, SessionTable,
    session_admit, session_done, session_enter, sessions_free,
)

DUPLICATE = <int>ADMIT_DUPLICATE
STALE = <int>ADMIT_STALE
BEYOND = <int>ADMIT_BEYOND


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
        cdef Passage passage = Passage.__new__(Passage)
        cdef Block* body
        cdef u32 i
        passage.group = batch.group = taken.group
        batch.first = taken.first
        batch.last = taken.first - 1
        batch.entries = entries_of_passage(passage, 0, 0)
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
            passage.hold(body)
            admit_body(self, table, batch, passage, body)
            batch.last = table.next
            table.next += 1
        batch.entries.stop = passage.items.size()
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
cdef int admit_body(Sessions sessions, SessionTable* table, Batch batch, Passage passage,
                    Block* body) except -1:
    cdef RunIterator it
    cdef BodyHeader header
    cdef Stretch stretch
    cdef SessionRow* row
    cdef int why = ADMIT_APPLY
    cdef bint own
    memcpy(&header, body.data, BODY_HEADER_BYTES)
    table.digest = phx_crc32c(table.digest, &table.next, 8)
    table.digest = phx_crc32c(table.digest, &header, BODY_HEADER_BYTES)
    stretch.instance = table.next
    stretch.epoch = header.epoch
    stretch.time_us = header.time_us
    stretch.index = 0
    run_begin(&it, body.data, body.size)
    while run_next(&it):
        own = it.run.node == sessions.node and it.run.incarnation == sessions.incarnation
        row = session_enter(table, it.run.node, it.run.incarnation, it.run.low_water, &why)
        if row == NULL:
            if own:
                drop_run(batch, &it.run, why)
        else:
            stretch.node = it.run.node
            admit_run(table, row, batch, passage, stretch, &it, own)
        stretch.index += it.run.count
    return 0


cdef int drop_run(Batch batch, const RunHeader* run, int why) except -1:
    cdef u32 i
    for i in range(run.count):
        batch.dropped.append((run.first_seq + i, why))
    return 0


cdef int admit_run(SessionTable* table, SessionRow* row, Batch batch, Passage passage,
                   Stretch stretch, const RunIterator* it, bint own) except -1:
    cdef const u8* item = it.items
    cdef const u8* covered = it.items          # admitted items from here on are not in the digest
    cdef ItemHeader head
    cdef u64 sequence = it.run.first_seq
    cdef u32 i
    cdef int verdict = ADMIT_APPLY
    cdef bint in_order = row.n_set == 0 and row.base == sequence
    cdef bint begun = False
    if in_order:
        row.base += it.run.count
    for i in range(it.run.count):
        memcpy(&head, item, ITEM_HEADER_BYTES)
        if not in_order:
            verdict = session_admit(row, sequence)
        if verdict == ADMIT_APPLY:
            if not begun:
                stretch.sequence = sequence if own else 0
                passage.begin(&stretch)
                begun = True
            passage.add(item)
            batch.own += own
            if batch.machine != head.machine:
                batch.machine = head.machine if batch.machine == -2 else -1
        else:
            begun = False
            table.digest = phx_crc32c(table.digest, covered, item - covered)
            covered = item + ITEM_HEADER_BYTES + head.bytes
            if own:
                batch.dropped.append((sequence, verdict))
        item += ITEM_HEADER_BYTES + head.bytes
        sequence += 1
        stretch.index += 1
    table.digest = phx_crc32c(table.digest, covered, item - covered)
    return 0


@cython.final
cdef class Batch:
    """A contiguous stretch of one group's log, duplicates left out. Its fields: delivery.pxd."""

    def drop(self):
        """Gives the entries back: there are none afterwards."""
        self.entries = entries_of_passage(Passage.__new__(Passage), 0, 0)

    def __repr__(self):
        return f"Batch(group={self.group}, {self.first}..{self.last}, {len(self.entries)} entries)"
