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
from phx._core.entries cimport Entries, Passage, Stretch, entries_of_passage
from phx._core.members cimport ROSTER_MAX, Roster, roster_read
from phx._core.session_codec cimport TABLE_OK, table_decode, table_error, table_to_bytes
from phx._core.sessions cimport (
    ADMIT_APPLY, ADMIT_BEYOND, ADMIT_DUPLICATE, ADMIT_STALE, AGREE, AGREED_MAX, WANTED_AGREED,
    WANTED_ANY, WANTED_NOT, SessionRow, SessionTable, session_admit, session_done, session_enter,
    session_members, sessions_agree, sessions_free,
)

DUPLICATE = <int>ADMIT_DUPLICATE
STALE = <int>ADMIT_STALE
BEYOND = <int>ADMIT_BEYOND


cdef enum:
    NO_MACHINE = -2      # of a batch while nothing was admitted


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
        agreed_every: a Batch ends at each multiple of it. The same on every node; the simulator
            alone has another than the default.
    """

    def __cinit__(self, u32 node, groups, u64 agreed_every=AGREE):
        if agreed_every == 0:
            raise ValueError("agreed_every: at least 1")
        self.node = node
        self.agreed_every = agreed_every
        self.incarnation = 0
        for group in sorted(set(groups)):
            self.add_group(group)

    def add_group(self, u32 group):
        """One more group, of which nothing was delivered yet.

        Raises:
            ValueError: it is there.
        """
        cdef SessionTable* table
        cdef SessionTable* other
        cdef size_t i
        if self.find(group) != NULL:
            raise ValueError(f"group {group} is there")
        table = phx_new[SessionTable]()
        table.group = group
        table.digest = 0
        table.next = 1
        self.tables.push_back(table)
        i = self.tables.size() - 1
        while i > 0 and self.tables[i - 1].group > group:
            other = self.tables[i - 1]
            self.tables[i] = other
            i -= 1
        self.tables[i] = table

    def drop_group(self, u32 group):
        """The group is hosted no more; what is still delivered of it is an error.

        Raises:
            KeyError: no such group here.
        """
        cdef SessionTable* table = self._hosted(group)
        cdef SessionTable* other
        cdef size_t i = 0
        while self.tables[i] != table:
            i += 1
        while i + 1 < self.tables.size():
            other = self.tables[i + 1]
            self.tables[i] = other
            i += 1
        self.tables.pop_back()
        sessions_free(table)
        phx_delete(table)

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
                self._cut(&taken.data()[i], out)
                i += 1
        finally:
            for i in range(taken.size()):
                delivered_free(&taken.data()[i])
            taken.clear()
        return out

    cdef int _cut(self, Delivered* taken, list out) except -1:
        cdef SessionTable* table = self.find(taken.group)
        cdef Batch batch
        cdef u32 at = 0
        if table != NULL:
            while at < taken.count and 0 < taken.first + at <= table.covered:
                if self._unknown_to(table, taken.bodies[at]):
                    # The checkpoint is of another log: values would vanish under it one by one.
                    batch = empty_batch(taken.group, taken.first + at)
                    batch.digest = table.digest
                    batch.error = "a new value stands where the checkpoint says that all is applied"
                    out.append(batch)
                    return 0
                at += 1
        while True:
            batch = self._batch(table, taken, &at)
            out.append(batch)
            if at == taken.count or batch.error is not None:
                return 0

    # Whether a body holds a value that a caller of this node proposed since it was opened, and that
    # the table does not count as done. (A checkpoint of another node, installed while this one
    # runs, counts those that it holds.)
    cdef bint _unknown_to(self, SessionTable* table, Block* body) noexcept:
        cdef RunIterator it
        cdef SessionRow* row = NULL
        cdef size_t i
        cdef Roster roster
        if body == NULL or roster_read(&roster, body.data, body.size) \
                or not body_check(body.data, body.size):
            return False
        for i in range(table.rows.size()):
            if table.rows[i].node == self.node and table.rows[i].incarnation == self.incarnation:
                row = &table.rows[i]
        run_begin(&it, body.data, body.size)
        while run_next(&it):
            if it.run.node == self.node and it.run.incarnation == self.incarnation \
                    and (row == NULL or not run_done(row, &it.run)):
                return True
        return False

    cdef Batch _batch(self, SessionTable* table, Delivered* taken, u32* at):
        cdef Batch batch = empty_batch(taken.group, taken.first + at[0])
        cdef Passage passage = batch.entries.passage
        cdef Roster roster
        cdef Block* body
        cdef bint agreed = False
        if table == NULL:
            batch.error = "a group that this node does not host"
            return batch
        while at[0] < taken.count and not agreed:
            body = taken.bodies[at[0]]
            if taken.first + at[0] != table.next:
                batch.error = f"the log went on at {taken.first + at[0]} instead of {table.next}"
                break
            if body != NULL and roster_read(&roster, body.data, body.size):
                admit_roster(table, &roster, body)
            elif body == NULL or not body_check(body.data, body.size):
                batch.error = "a chosen value that is not the body of an instance"
                break
            else:
                passage.hold(body)
                admit_body(self, table, batch, passage, body)
            batch.last = table.next
            batch.log_bytes += body.size
            table.next += 1
            at[0] += 1
            agreed = batch.last % self.agreed_every == 0
        if agreed:
            sessions_agree(table, self.agreed_every)
        batch.entries.stop = passage.items.size()
        batch.digest = table.digest
        if batch.machine == NO_MACHINE:
            batch.machine = -1
        if table.wanted == WANTED_ANY or (table.wanted == WANTED_AGREED and agreed):
            if batch.error is None and batch.last >= batch.first:
                batch.table = table_to_bytes(table)
                table.wanted = WANTED_NOT
        return batch

    cdef SessionTable* _hosted(self, u32 group) except NULL:
        cdef SessionTable* table = self.find(group)
        if table == NULL:
            raise KeyError(group)
        return table

    def want(self, u32 group, bint at_any):
        """The next Batch that ends at an agreed instance carries the group's table as of its end.

        Guarantee: exactly one Batch carries it, one without error and with at least one instance;
        asking again before that changes nothing, but that `at_any` stays.

        Args:
            group: one that this node hosts.
            at_any: the very next such Batch, wherever it ends.

        Raises:
            KeyError: no such group here.
        """
        cdef SessionTable* table = self._hosted(group)
        table.wanted = max(table.wanted, WANTED_ANY if at_any else WANTED_AGREED)

    def table(self, u32 group):
        """The group's table after the last Batch that was made of it; its bytes: session_codec.pxd.

        Guarantee: nodes with the same log give the same bytes at the same instance. It may be ahead
        of what is applied: by the Batches that were made and not yet applied.

        Raises:
            KeyError: no such group here.
        """
        return table_to_bytes(self._hosted(group))

    def load(self, bytes table not None, members=()):
        """The group's table is `table` from now on, whatever it was; the group.

        Guarantee: from here on it admits what that table would admit where it was made. Bodies of
        the instances that it has seen are passed over and are no gap; behind it a gap is one. What
        was known of agreed instances is forgotten, what `want` asked for is still wanted. If it
        raises, nothing has changed. It may go back: the machines of the group have to be those of
        the same instance.

        Args:
            table: as `table` gave it, here or at another node; hostile until checked.
            members: ids of the nodes that are members after its last instance; (): they are those
                of the configuration, and never changed.

        Raises:
            ValueError: no session table, or one of a group that this node does not host; or too
                many members.
        """
        cdef u32[ROSTER_MAX] nodes
        cdef u32 n_nodes = 0
        if len(members) > ROSTER_MAX:
            raise ValueError(f"{len(members)} are more than {ROSTER_MAX} members")
        for node in members:
            nodes[n_nodes] = node
            n_nodes += 1
        cdef SessionTable* made = phx_new[SessionTable]()
        cdef SessionTable* mine
        cdef int verdict
        try:
            verdict = table_decode(<const u8*>PyBytes_AS_STRING(table), PyBytes_GET_SIZE(table),
                                   made)
            if verdict != TABLE_OK:
                raise table_error(verdict)
            mine = self.find(made.group)
            if mine == NULL:
                raise ValueError(f"a session table of group {made.group}, which is not hosted here")
            sessions_free(mine)
            mine.rows.swap(made.rows)
            mine.digest = made.digest
            mine.next = made.next
            mine.epoch = made.epoch
            mine.covered = made.next - 1
            session_members(mine, nodes, n_nodes)
            if mine.covered and mine.covered % self.agreed_every == 0:
                sessions_agree(mine, self.agreed_every)
            return mine.group
        finally:
            sessions_free(made)
            phx_delete(made)

    def begin(self, u32 group, u64 frontier, members):
        """The group's log begins behind `frontier`: its table knows of nothing, and expects what
        follows. As `load` of an empty one.

        Args:
            members: ids of the nodes that are members after that instance.

        Raises:
            KeyError: no such group here.
            ValueError: something was delivered of it; or too many members.
        """
        cdef SessionTable* mine = self._hosted(group)
        cdef u32[ROSTER_MAX] nodes
        cdef u32 n_nodes = 0
        if mine.next != 1 or not mine.rows.empty():
            raise ValueError(f"group {group} has begun")
        if len(members) > ROSTER_MAX:
            raise ValueError(f"{len(members)} are more than {ROSTER_MAX} members")
        for node in members:
            nodes[n_nodes] = node
            n_nodes += 1
        mine.next = frontier + 1
        mine.covered = frontier
        session_members(mine, nodes, n_nodes)

    def agreed(self, u32 group):
        """(instance, chained checksum after it) of the last agreed instances, ascending.

        At most 64, and none from before a table was loaded. They may be ahead of what is applied.

        Raises:
            KeyError: no such group here.
        """
        cdef SessionTable* table = self._hosted(group)
        cdef u64 newest = (table.next - 1) // self.agreed_every
        cdef u64 at
        return [(at * self.agreed_every, table.agreed[at & (AGREED_MAX - 1)])
                for at in range(newest + 1 - table.n_agreed, newest + 1)]

    def offer(self, u32 group, u64 first, bodies not None):
        """The Batches of these bodies, bytes each, as if the driver had handed them over."""
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
        return self.batches(&taken)

    def rows(self, u32 group):
        """What the table holds, by node: (node, incarnation, base, sequences done above base)."""
        cdef SessionTable* table = self._hosted(group)
        cdef SessionRow* row
        cdef u64 offset
        cdef size_t i
        out = []
        for i in range(table.rows.size()):
            row = &table.rows[i]
            done = [row.base + offset for offset in range(1, row.capacity)
                    if session_done(row, row.base + offset)]
            out.append((row.node, row.incarnation, row.base, done))
        return out

    def table_bytes(self, u32 group):
        """Bytes of bitmaps held for a group."""
        cdef SessionTable* table = self._hosted(group)
        cdef size_t i
        cdef u64 total = 0
        for i in range(table.rows.size()):
            total += table.rows[i].capacity >> 3
        return total

    def next_instance(self, u32 group):
        """The instance expected next, and the group's chained checksum before it."""
        cdef SessionTable* table = self._hosted(group)
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
    table.epoch = max(table.epoch, header.epoch)
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


# The value at table.next changes the members: it has no entries, and ends the sessions of those who
# are none any more. The digest covers all of it.
cdef void admit_roster(SessionTable* table, const Roster* roster, const Block* body) noexcept:
    cdef u32[ROSTER_MAX] nodes
    cdef u32 i
    for i in range(roster.count):
        nodes[i] = roster.members[i].node
    session_members(table, nodes, roster.count)
    table.digest = phx_crc32c(table.digest, &table.next, 8)
    table.digest = phx_crc32c(table.digest, body.data, body.size)
    table.epoch = max(table.epoch, roster.ballot)


# Every sequence of the run is done.
cdef bint run_done(const SessionRow* row, const RunHeader* run) noexcept:
    cdef u64 sequence = max(run.first_seq, row.base)
    while sequence < run.first_seq + run.count:
        if sequence == row.base or sequence >= row.base + row.capacity \
                or not session_done(row, sequence):
            return False
        sequence += 1
    return True


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
                batch.machine = head.machine if batch.machine == NO_MACHINE else -1
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


cdef Entries no_entries(u32 group):
    cdef Passage passage = Passage.__new__(Passage)
    passage.group = group
    return entries_of_passage(passage, 0, 0)


cdef Batch empty_batch(u32 group, u64 first):
    cdef Batch batch = Batch.__new__(Batch)
    batch.group = group
    batch.first = first
    batch.last = first - 1
    batch.entries = no_entries(group)
    batch.dropped = []
    batch.machine = NO_MACHINE
    return batch


@cython.final
cdef class Batch:
    """A contiguous stretch of one group's log, duplicates left out. Its fields: delivery.pxd."""

    def drop(self):
        """Gives the entries back: there are none afterwards."""
        self.entries = no_entries(self.group)

    def __repr__(self):
        return f"Batch(group={self.group}, {self.first}..{self.last}, {len(self.entries)} entries)"
