# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The index of the store in memory: see chunk_index.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.string cimport memcpy, memmove

from phx._core.chunk cimport (
    CHUNK_BAD_GROUPS, CHUNK_BAD_ID, CHUNK_GAP, CHUNK_LARGE, CHUNK_MIDDLE, CHUNK_OK,
    CHUNK_PAGE_HEADER, CHUNK_SMALL, ChunkRow, ChunkView, ChunkWriter, chunk_open_tail,
    chunk_value_bytes, raise_damage,
)
from phx._core.codec cimport phx_crc32c
from phx._core.native cimport *

ctypedef const u8[::1] Bytes

cdef enum:
    GROUPS_VERSION = 1
    NO_SLOT = 0xFFFFFFFF
    THIN_SHARE = 4            # less than one in so many bytes is kept

cdef packed struct GroupsHeader:
    u32 crc
    u32 version
    u64 groups

cdef packed struct GroupsRow:
    u32 group
    u32 flags
    u64 kept_from
    u64 settled_through

cdef extern from "<algorithm>" namespace "std" nogil:
    void sort(StretchRow* begin, StretchRow* end,
              bint (*before)(const StretchRow&, const StretchRow&) noexcept nogil)


cdef bint stretch_before(const StretchRow& a, const StretchRow& b) noexcept nogil:
    return a.group < b.group or (a.group == b.group and a.first < b.first)


cdef void append_stretches(vector[StretchRow]* out, const ChunkRow* rows, u32 count,
                           u32 slot) noexcept nogil:
    """The rows of one chunk, neighbours of one group joined."""
    cdef u32 n
    cdef StretchRow made
    cdef StretchRow* last = NULL
    for n in range(count):
        if (last != NULL and last.group == rows[n].group
                and last.first + last.count == rows[n].first):
            last.count += rows[n].count
            last.bytes += rows[n].bytes + sizeof(ChunkRow)
            continue
        made.group = rows[n].group
        made.slot = slot
        made.row = n
        made.first = rows[n].first
        made.count = rows[n].count
        made.bytes = rows[n].bytes + sizeof(ChunkRow)
        out.push_back(made)
        last = &out.back()


cdef size_t row_at(const IndexGroup* g, u64 instance) noexcept nogil:
    """Number of rows that begin at or before `instance`."""
    cdef size_t low = 0, high = g.rows.size(), middle
    while low < high:
        middle = low + (high - low) // 2
        if g.rows[middle].first <= instance:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline bint follows(const IndexGroup* g, const StretchRow* row) noexcept nogil:
    """Is it the next of its group? The first may begin below what is kept."""
    return row.first == g.settled_through + 1 or (g.rows.empty() and row.first < g.kept_from)


cdef class ChunkIndex:
    def __cinit__(self, bytes store_id not None):
        if len(store_id) != 16:
            raise ValueError("a store id has 16 bytes")
        self.store_id = store_id
        memcpy(self.sid, PyBytes_AS_STRING(store_id), 16)
        self.next_id = 1

    def __dealloc__(self):
        cdef size_t n
        for n in range(self.groups.size()):
            phx_delete[IndexGroup](self.groups[n])

    # --- groups and slots

    cdef IndexGroup* lookup(self, u32 group) noexcept nogil:
        cdef size_t low = 0, high = self.groups.size(), middle
        while low < high:
            middle = low + (high - low) // 2
            if self.groups[middle].group < group:
                low = middle + 1
            else:
                high = middle
        if low < self.groups.size() and self.groups[low].group == group:
            return self.groups[low]
        return NULL

    cdef IndexGroup* obtain(self, u32 group) noexcept nogil:
        cdef IndexGroup* g = self.lookup(group)
        if g != NULL:
            return g
        g = phx_new[IndexGroup]()
        g.group = group
        g.kept_from = 1
        g.settled_through = 0
        g.staged_from = 1
        g.staged_through = 0
        cdef size_t at = self.groups.size()
        self.groups.push_back(g)
        while at > 0 and self.groups[at - 1].group > group:
            self.groups[at] = self.groups[at - 1]
            at -= 1
        self.groups[at] = g
        return g

    cdef u32 slot_of(self, u64 id) noexcept nogil:
        cdef size_t n
        for n in range(self.chunks.size()):
            if self.chunks[n].id == id:
                return <u32>n
        return NO_SLOT

    cdef u32 take_slot(self, const IndexChunk* chunk) noexcept nogil:
        cdef u32 slot
        if not self.free_slots.empty():
            slot = self.free_slots.back()
            self.free_slots.pop_back()
            self.chunks[slot] = chunk[0]
            return slot
        self.chunks.push_back(chunk[0])
        return <u32>(self.chunks.size() - 1)

    # --- what a transaction changes

    cdef void stage(self, const ChunkWriter* w) noexcept nogil:
        cdef IndexChunk chunk
        cdef size_t n = self.staged.size()
        cdef IndexGroup* g
        cdef u64 through
        chunk.id = w.id
        chunk.value_bytes = w.value_bytes
        chunk.used_bytes = w.at + w.rows.size() * sizeof(ChunkRow)
        chunk.entries = w.entries
        chunk.damaged = False
        chunk.kept = chunk.kept_bytes = 0   # until its rows are in their groups
        cdef u32 slot = self.take_slot(&chunk)
        self.next_id = w.id + 1
        self.staged_slots.push_back(slot)
        append_stretches(&self.staged, w.rows.data(), <u32>w.rows.size(), slot)
        while n < self.staged.size():
            g = self.obtain(self.staged[n].group)
            through = self.staged[n].first + self.staged[n].count - 1
            g.staged_through = max(g.staged_through, through)
            n += 1

    cdef void stage_drop(self, u32 slot) noexcept nogil:
        self.dropped_slots.push_back(slot)

    cdef void put_row(self, const StretchRow* row) noexcept nogil:
        """At the end of its group, or in the place of the rows that held the same instances. What
        it has below kept_from does not count."""
        cdef IndexGroup* g = self.obtain(row.group)
        cdef IndexChunk* chunk = &self.chunks[row.slot]
        cdef IndexRow fresh
        cdef u64 below = 0
        if row.first < g.kept_from:
            below = g.kept_from - row.first
        fresh.first = row.first
        fresh.bytes = row.bytes - row.bytes * below // row.count
        fresh.slot = row.slot
        fresh.row = row.row
        chunk.kept += row.count - below
        chunk.kept_bytes += fresh.bytes
        cdef size_t size = g.rows.size()
        if row.first > g.settled_through or size == 0:
            g.rows.push_back(fresh)
            g.settled_through = row.first + row.count - 1
            return
        cdef size_t begin = row_at(g, row.first) - 1
        cdef size_t end = row_at(g, row.first + row.count - 1)
        # The row it replaces began there, or below what is kept.
        if g.rows[begin].first != row.first and (
                g.rows[begin].first > row.first or row.first != g.kept_from):
            phx_fatal("a chunk replaces part of a stretch")
        g.rows[begin] = fresh
        if end > begin + 1:
            memmove(&g.rows[begin + 1], g.rows.data() + end, (size - end) * sizeof(IndexRow))
            g.rows.resize(size - (end - begin - 1))

    cdef void forget_below(self, IndexGroup* g, u64 floor) noexcept nogil:
        """kept_from becomes `floor`, and settled_through at least the instance below it."""
        cdef size_t n = 0, size = g.rows.size()
        cdef u64 begin, end, lost, lost_bytes
        cdef IndexRow* row
        cdef IndexChunk* chunk
        while n < size:
            row = &g.rows[n]
            begin = max(row.first, g.kept_from)
            end = g.rows[n + 1].first if n + 1 < size else g.settled_through + 1
            if begin >= floor:
                break
            lost = min(end, floor) - begin
            lost_bytes = row.bytes * lost // (end - begin)
            chunk = &self.chunks[row.slot]
            chunk.kept -= lost
            chunk.kept_bytes -= lost_bytes
            row.bytes -= lost_bytes
            if end > floor:
                break
            n += 1
        if n > 0:
            memmove(g.rows.data(), g.rows.data() + n, (size - n) * sizeof(IndexRow))
            g.rows.resize(size - n)
        g.kept_from = floor
        g.settled_through = max(g.settled_through, floor - 1)

    def stage_floor(self, u32 group, u64 kept_from, u64 settled_through):
        """Both become the greater of what they are and this; False: they are that already."""
        cdef IndexGroup* g = self.lookup(group)
        cdef u64 through = g.staged_through if g != NULL else 0
        if kept_from == 0 or kept_from == 0xFFFFFFFFFFFFFFFF or settled_through < kept_from - 1:
            raise ValueError(f"group {group}: what is kept cannot begin with {kept_from} when "
                             f"{settled_through} is the last settled")
        if settled_through > through and settled_through != kept_from - 1:
            raise ValueError(f"group {group}: {settled_through} cannot be settled: the store ends "
                             f"with {through}, and is to keep everything from {kept_from} on")
        if kept_from <= (g.staged_from if g != NULL else 1):
            return False
        g = self.obtain(group)
        g.staged_from = kept_from
        g.staged_through = max(g.staged_through, settled_through)
        self.raised.push_back(group)
        return True

    def stage_drops(self, chunks):
        """These chunks leave with the transaction: nothing of them is kept."""
        cdef u32 slot
        for chunk in chunks:
            slot = self.slot_of(chunk)
            if slot == NO_SLOT or self.chunks[slot].kept != 0:
                raise ValueError(f"chunk {chunk} is not there, or is not dead")
            self.stage_drop(slot)

    def commit(self):
        cdef size_t n
        cdef IndexGroup* g
        with nogil:
            for n in range(self.staged.size()):
                self.put_row(&self.staged[n])
            for n in range(self.dropped_slots.size()):
                self.chunks[self.dropped_slots[n]].id = 0
                self.free_slots.push_back(self.dropped_slots[n])
            for n in range(self.raised.size()):
                g = self.obtain(self.raised[n])
                self.forget_below(g, g.staged_from)
            self.forget_staged()

    def rollback(self):
        cdef size_t n
        cdef IndexGroup* g
        with nogil:
            for n in range(self.staged.size()):
                g = self.obtain(self.staged[n].group)
                g.staged_through = g.settled_through
            for n in range(self.staged_slots.size()):
                self.chunks[self.staged_slots[n]].id = 0
                self.free_slots.push_back(self.staged_slots[n])
            for n in range(self.raised.size()):
                g = self.obtain(self.raised[n])
                g.staged_from = g.kept_from
                g.staged_through = g.settled_through
            self.forget_staged()

    cdef void forget_staged(self) noexcept nogil:
        self.staged.clear()
        self.staged_slots.clear()
        self.dropped_slots.clear()
        self.raised.clear()

    def groups_packed(self):
        """The table of groups as it will be once what is staged is committed."""
        cdef size_t n, count = 0
        for n in range(self.groups.size()):
            if self.groups[n].staged_through > 0:
                count += 1
        cdef u64 total = sizeof(GroupsHeader) + count * sizeof(GroupsRow)
        cdef bytes packed = PyBytes_FromStringAndSize(NULL, total)
        cdef u8* at = <u8*>PyBytes_AS_STRING(packed)
        cdef GroupsHeader* header = <GroupsHeader*>at
        cdef GroupsRow* row = <GroupsRow*>(at + sizeof(GroupsHeader))
        with nogil:
            header.version = GROUPS_VERSION
            header.groups = count
            for n in range(self.groups.size()):
                if self.groups[n].staged_through > 0:
                    row.group = self.groups[n].group
                    row.flags = 0
                    row.kept_from = self.groups[n].staged_from
                    row.settled_through = self.groups[n].staged_through
                    row += 1
            header.crc = phx_crc32c(0, at + 4, total - 4)
        return packed

    # --- open

    def load(self, u64 id, Bytes tail):
        """Take over the packed index of a chunk. In ascending order of ids."""
        cdef ChunkView view
        cdef IndexChunk chunk
        cdef int verdict
        with nogil:
            verdict = chunk_open_tail(&view, &tail[0] if tail.shape[0] else NULL, tail.shape[0],
                                      id, self.sid)
            if verdict == CHUNK_OK and id < self.next_id:
                verdict = CHUNK_BAD_ID
            if verdict == CHUNK_OK:
                chunk.id = id
                chunk.value_bytes = view.footer.value_bytes
                chunk.used_bytes = view.entries_bytes + view.n_rows * sizeof(ChunkRow)
                chunk.entries = view.footer.entries
                chunk.damaged = False
                chunk.kept = chunk.kept_bytes = 0
                append_stretches(&self.staged, view.rows, view.n_rows, self.take_slot(&chunk))
                self.next_id = id + 1
        if verdict != CHUNK_OK:
            raise_damage(verdict, id, 0, 0)

    def seal(self, Bytes groups):
        """All chunks are loaded: they must hold, without gap, what the table of groups says. What
        they have below kept_from a transaction was still to remove."""
        cdef u32 bad_group = 0
        cdef u64 bad_instance = 0, bad_chunk = 0
        cdef int verdict
        cdef size_t n
        cdef StretchRow* row
        cdef IndexGroup* g
        with nogil:
            verdict = self.read_groups(&groups[0] if groups.shape[0] else NULL, groups.shape[0])
            if not self.staged.empty():
                sort(self.staged.data(), self.staged.data() + self.staged.size(), &stretch_before)
            for n in range(self.staged.size()):
                if verdict != CHUNK_OK:
                    break
                row = &self.staged[n]
                g = self.lookup(row.group)
                if g != NULL and row.first + row.count <= g.kept_from:
                    continue
                if g == NULL or not follows(g, row):
                    verdict = CHUNK_GAP if g != NULL else CHUNK_BAD_GROUPS
                    bad_group = row.group
                    bad_instance = row.first
                    bad_chunk = self.chunks[row.slot].id
                else:
                    self.put_row(row)
            for n in range(self.groups.size()):
                g = self.groups[n]
                if verdict == CHUNK_OK and g.settled_through != g.staged_through:
                    verdict = CHUNK_GAP
                    bad_group = g.group
                    bad_instance = g.settled_through + 1
            self.forget_staged()
        if verdict != CHUNK_OK:
            raise_damage(verdict, bad_chunk, bad_group, bad_instance)

    cdef int read_groups(self, const u8* data, u64 count) noexcept nogil:
        """Groups with staged_through as told, and settled_through just below what is kept."""
        cdef const GroupsHeader* header = <const GroupsHeader*>data
        cdef const GroupsRow* row
        cdef IndexGroup* g
        cdef u64 n, before = 0
        if count < sizeof(GroupsHeader) or header.version != GROUPS_VERSION:
            return CHUNK_BAD_GROUPS
        if (header.groups > count
                or count != sizeof(GroupsHeader) + header.groups * sizeof(GroupsRow)):
            return CHUNK_BAD_GROUPS
        if phx_crc32c(0, data + 4, count - 4) != header.crc:
            return CHUNK_BAD_GROUPS
        row = <const GroupsRow*>(data + sizeof(GroupsHeader))
        for n in range(header.groups):
            if (n > 0 and row.group <= before) or row.kept_from == 0 \
                    or row.settled_through < row.kept_from - 1:
                return CHUNK_BAD_GROUPS
            before = row.group
            g = self.obtain(row.group)
            g.kept_from = row.kept_from
            g.settled_through = row.kept_from - 1
            g.staged_from = row.kept_from
            g.staged_through = row.settled_through
            row += 1
        return CHUNK_OK

    # --- damage

    def mark(self, u64 id):
        """The chunk is damaged, or some of its entries are; False: it is not here."""
        cdef u32 slot = self.slot_of(id)
        if slot == NO_SLOT:
            return False
        self.chunks[slot].damaged = True
        return True

    def damaged(self):
        """Ids of marked chunks."""
        cdef size_t n
        return sorted(self.chunks[n].id for n in range(self.chunks.size())
                      if self.chunks[n].id != 0 and self.chunks[n].damaged)

    # --- questions

    def find(self, u32 group, u64 instance):
        """(chunk id, row) that holds the instance, or None."""
        cdef IndexGroup* g = self.lookup(group)
        if g == NULL or instance < g.kept_from or instance > g.settled_through:
            return None
        cdef IndexRow row = g.rows[row_at(g, instance) - 1]
        return self.chunks[row.slot].id, row.row

    def bounds(self, u32 group):
        """(lowest instance kept, settled through)."""
        cdef IndexGroup* g = self.lookup(group)
        if g == NULL:
            return 1, 0
        return g.kept_from, g.settled_through

    def settled(self):
        cdef size_t n
        return {self.groups[n].group: self.groups[n].settled_through
                for n in range(self.groups.size()) if self.groups[n].settled_through > 0}

    def floors(self):
        """{group: (lowest instance kept, settled through)}."""
        cdef size_t n
        return {self.groups[n].group: (self.groups[n].kept_from, self.groups[n].settled_through)
                for n in range(self.groups.size()) if self.groups[n].settled_through > 0}

    def first_within(self, u32 group, u64 through, u64 bytes_max):
        """Lowest instance from which on what is kept up to `through` is at most so many bytes."""
        cdef IndexGroup* g = self.lookup(group)
        cdef u64 first, last, count, each
        cdef size_t n
        if g == NULL or through < g.kept_from:
            return through + 1
        last = min(through, g.settled_through)
        n = row_at(g, last)
        while n > 0:
            n -= 1
            first = max(g.rows[n].first, g.kept_from)
            count = (g.rows[n + 1].first if n + 1 < g.rows.size()
                     else g.settled_through + 1) - first
            # (Of a part of a row it is known how many entries it has, not how long they are.)
            each = g.rows[n].bytes // count + 1
            if each * (last + 1 - first) > bytes_max:
                return last + 1 - bytes_max // each
            bytes_max -= each * (last + 1 - first)
            last = first - 1
        return g.kept_from

    def rows(self):
        """For tests: every (group, first, chunk id, row)."""
        cdef size_t n, k
        cdef IndexRow row
        found = []
        for n in range(self.groups.size()):
            for k in range(self.groups[n].rows.size()):
                row = self.groups[n].rows[k]
                found.append((self.groups[n].group, row.first, self.chunks[row.slot].id, row.row))
        return found

    def chunk_list(self):
        """Every chunk as (id, value bytes, used bytes, entries, kept, kept bytes), by id."""
        cdef size_t n
        cdef IndexChunk chunk
        found = []
        for n in range(self.chunks.size()):
            chunk = self.chunks[n]
            if chunk.id != 0:
                found.append((chunk.id, chunk.value_bytes, chunk.used_bytes, chunk.entries,
                              chunk.kept, chunk.kept_bytes))
        found.sort()
        return found

    def row_count(self):
        cdef size_t n, total = 0
        for n in range(self.groups.size()):
            total += self.groups[n].rows.size()
        return total

    def mergeable(self, u32 chunks_max):
        """Ids of small chunks worth joining, oldest first; [] when there is nothing to gain.

        Worth it: together they fill most of a chunk of the next class, or they are many.
        """
        cdef u64 total, limit, value
        damaged = self.damaged()
        for class_bytes, next_bytes in ((CHUNK_SMALL, CHUNK_MIDDLE), (CHUNK_MIDDLE, CHUNK_LARGE)):
            limit = next_bytes - next_bytes // 16
            total = 0
            ids = []
            value = class_bytes - CHUNK_PAGE_HEADER
            for id, value_bytes, _, _, kept, kept_bytes in self.chunk_list():
                if (value_bytes != value or kept == 0 or len(ids) >= chunks_max
                        or id in damaged):
                    continue
                if total + kept_bytes > limit:
                    break
                ids.append(id)
                total += kept_bytes
            if len(ids) >= 2 and (len(ids) >= chunks_max or total >= next_bytes // 4 * 3):
                return ids
        return []

    def dead_chunks(self, u32 chunks_max):
        """Ids of chunks of which nothing is kept, oldest first."""
        cdef size_t n
        dead = []
        for n in range(self.chunks.size()):
            if self.chunks[n].id != 0 and self.chunks[n].kept == 0:
                dead.append(self.chunks[n].id)
        dead.sort()
        return dead[:chunks_max]

    def thin_chunks(self, u32 chunks_max):
        """Ids of chunks worth writing anew without what is not kept, oldest first; or [].

        Worth it: of each less than a quarter is kept, and what is kept of them all fits in a chunk
        half as large as they are together. A quarter of a large chunk is that of its size, or one
        that is made of others would never be joined again; smaller ones `mergeable` works off.
        """
        cdef size_t n
        cdef u64 smallest = 0, largest, total, value, room
        cdef IndexChunk chunk
        thin = []
        for n in range(self.chunks.size()):
            chunk = self.chunks[n]
            room = chunk.value_bytes if chunk.value_bytes > CHUNK_MIDDLE else chunk.used_bytes
            if (chunk.id != 0 and chunk.kept > 0 and chunk.kept_bytes < room // THIN_SHARE
                    and not chunk.damaged):
                thin.append((chunk.id, chunk.value_bytes, chunk.kept_bytes))
        thin.sort()
        for largest in (CHUNK_SMALL, CHUNK_MIDDLE, 0xFFFFFFFFFFFFFFFF):
            ids = []
            total = value = 0
            for id, value_bytes, kept_bytes in thin:
                if smallest <= value_bytes < largest and len(ids) < chunks_max:
                    if ids and total + kept_bytes > min(largest, <u64>CHUNK_LARGE) // 16 * 15:
                        break
                    ids.append(id)
                    total += kept_bytes
                    value += value_bytes
            if ids and 2 * chunk_value_bytes(total, total) <= value:
                return ids
            smallest = largest
        return []


def floors_of(Bytes groups):
    cdef ChunkIndex index = ChunkIndex(bytes(16))
    cdef size_t n
    cdef int verdict
    with nogil:
        verdict = index.read_groups(&groups[0] if groups.shape[0] else NULL, groups.shape[0])
    if verdict != CHUNK_OK:
        raise_damage(verdict, 0, 0, 0)
    return {index.groups[n].group: (index.groups[n].kept_from, index.groups[n].staged_through)
            for n in range(index.groups.size())}
