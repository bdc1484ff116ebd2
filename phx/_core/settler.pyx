# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Settling and merging: see settler.pxd."""

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromMemory

from phx._core.chunk cimport (
    CHUNK_BAD_ENTRY, CHUNK_BAD_FOOTER, CHUNK_OK, ChunkEntry, ChunkRow, ChunkView,
    ChunkWriter, chunk_add, chunk_add_record, chunk_begin, chunk_end, chunk_entry, chunk_next_seen,
    chunk_open, chunk_open_tail, chunk_stride, chunk_tail_bytes, chunk_value_bytes, raise_damage,
)
from phx._core.chunk_index cimport ChunkIndex, IndexGroup
from phx._core.codec cimport (
    RECORD_ACCEPT, RECORD_CHOSEN, RECORD_HEADER_BYTES, RecordHeader, record_append, record_stride,
)
from phx._core.journal cimport (
    JOURNAL_DAMAGED, JOURNAL_GONE, JOURNAL_OK, journal_read_span,
)
from phx._core.journal_door cimport Journal as NativeDoor
from phx._core.members cimport Roster, roster_read
from phx._core.native cimport *
from phx._core.plan cimport SettlePlan, hold_new
from phx._core.state cimport SettleItem

ctypedef const u8[::1] Bytes

cdef enum:
    # So much more of journal than of what is wanted of it, for each entry, and they are read one by
    # one: a call of the system costs as much as reading on.
    SPARSE_BYTES = 8192
    SPARSE_TIMES = 4
    STRETCH_BYTES = 4 << 20   # read at once; blocks of this size are used again (native.h)
    AHEAD = 12                # entries between asking for a record's memory and looking at it

cdef u64 REACH_SKIP = 0xFFFFFFFFFFFFFFFF


cdef object chunk_views(const ChunkWriter* w):
    cdef u64 tail_bytes = chunk_tail_bytes(w)
    return (w.id, PyMemoryView_FromMemory(<char*>w.data, w.value_bytes, PyBUF_READ),
            PyMemoryView_FromMemory(<char*>w.data + w.value_bytes - tail_bytes, tail_bytes,
                                    PyBUF_READ))


cdef class Settler:
    def __cinit__(self, ChunkIndex index not None, SettlePlan plan not None, u64 pass_bytes,
                  dict given=None):
        cdef Given one
        cdef bytes body
        if plan.hold == NULL:
            raise ValueError("a plan without a journal cannot be settled")
        self.index = index
        self.plan = plan
        self.pass_bytes = pass_bytes
        self.journal = plan.hold.journal
        self.items = plan.items.data()
        self.n_items = plan.items.size()
        cdef int verdict
        for group, instance in given or ():
            body = given[group, instance]
            one.group = group
            one.instance = instance
            one.record = record_append(block_new(RECORD_HEADER_BYTES + len(body)), RECORD_ACCEPT,
                                       one.group, one.instance, 1,
                                       <const u8*>PyBytes_AS_STRING(body), <u32>len(body))
            self.given.push_back(one)
        with nogil:
            verdict = self.weigh()
        self.check(verdict)

    def __dealloc__(self):
        cdef size_t n
        for n in range(self.given.size()):
            block_unref(self.given[n].record)
        self.end_pass()
        phx_free(self.room)

    cdef int weigh(self) noexcept nogil:
        """Which items are wanted, and how far into the journal each group must have been read."""
        cdef size_t n
        cdef u32 group = 0
        cdef u64 expected = 0, reach = 0
        cdef IndexGroup* g
        cdef const SettleItem* item
        self.reach.resize(self.n_items)
        for n in range(self.n_items):
            item = &self.items[n]
            if n == 0 or item.group != group:
                if n > 0 and item.group < group:
                    self.bad_item = n
                    return SETTLE_GAP
                group = item.group
                g = self.index.lookup(group)
                expected = g.settled_through + 1 if g != NULL else 1
                reach = 0
            if item.instance < expected:
                self.reach[n] = REACH_SKIP
                self.skipped += 1
                continue
            if item.instance > expected:
                self.bad_item = n
                return SETTLE_GAP
            expected += 1
            reach = max(reach, item.lsn)
            self.reach[n] = reach
        return SETTLE_OK

    # --- a pass

    cdef int next_pass(self) noexcept nogil:
        """Read the next part of the journal, and find what the plan wants of it."""
        cdef size_t n, wanted = 0
        cdef u64 low = REACH_SKIP, high = 0, begin = REACH_SKIP
        cdef int verdict = SETTLE_OK
        self.end_pass()
        for n in range(self.n_items):
            low = min(low, self.reach[n])
        if low == REACH_SKIP:
            return SETTLE_DONE
        cdef u64 limit = low + self.pass_bytes
        for n in range(self.n_items):
            if low <= self.reach[n] < limit:
                wanted += 1
                if self.items[n].lsn >= low:    # others lie before this pass: one by one
                    begin = min(begin, self.items[n].lsn)
                    high = max(high, self.items[n].lsn)
        if begin <= high and not self.sparse(wanted, high - begin):
            self.read_stretches(begin, high)
        self.picked.reserve(wanted)
        for n in range(self.n_items):
            if low <= self.reach[n] < limit:
                verdict = self.pick(n)
                # What lies before this pass may be more than fits: the rest waits for the next one.
                if verdict != SETTLE_OK or self.left_bytes >= self.pass_bytes:
                    break
        return verdict

    cdef bint sparse(self, u64 wanted, u64 span) noexcept nogil:
        """Whether `wanted` entries are little among `span` bytes of journal."""
        return wanted * (SPARSE_BYTES + SPARSE_TIMES * self.typical_bytes()) < span

    cdef u64 typical_bytes(self) noexcept nogil:
        """Of a record that is wanted: the mean so far, at first that of one that is looked at."""
        cdef const u8* record = NULL
        cdef u64 room = 0
        cdef size_t n
        if self.entries:
            return RECORD_HEADER_BYTES + self.entry_bytes // self.entries
        for n in range(self.n_items):
            if self.reach[n] != REACH_SKIP:
                return room if self.locate(n, &record, &room) == SETTLE_OK else 0
        return 0

    cdef void read_stretches(self, u64 begin, u64 end) noexcept nogil:
        """Everything from the record at `begin` to the one that begins at `end`. What cannot be
        read is left out: if it is wanted, it is asked for again by itself, and named then."""
        cdef Stretch stretch
        while begin <= end:
            stretch.lsn = begin
            stretch.block = NULL
            if journal_read_span(self.journal, begin,
                                 min(max(end - begin, <u64>4096), <u64>STRETCH_BYTES),
                                 &stretch.block) != JOURNAL_OK:
                break
            self.stretches.push_back(stretch)
            self.read_bytes += stretch.block.size
            self.reads += 1
            begin += stretch.block.size

    cdef int locate(self, size_t item, const u8** record, u64* room) noexcept nogil:
        """The record of an item, out of what was read or read for it alone; bytes from there on."""
        cdef u64 lsn = self.items[item].lsn
        cdef Block* block = NULL
        cdef size_t n = self.stretches.size()
        while n > 0:
            n -= 1
            if lsn >= self.stretches[n].lsn:
                block = self.stretches[n].block
                if lsn - self.stretches[n].lsn < block.size:
                    record[0] = block.data + (lsn - self.stretches[n].lsn)
                    room[0] = block.size - (lsn - self.stretches[n].lsn)
                    return SETTLE_OK
                break
        block = NULL
        cdef u64 likely = RECORD_HEADER_BYTES
        if self.entries:
            likely = record_stride(self.entry_bytes // self.entries)
        self.journal_error = journal_read_span(self.journal, lsn, likely, &block)
        if self.journal_error != JOURNAL_OK:
            self.bad_item = item
            return SETTLE_UNREADABLE
        self.singles.push_back(block)
        self.read_bytes += block.size
        self.reads += 1
        record[0] = block.data
        room[0] = block.size
        return SETTLE_OK

    cdef bint is_wanted(self, const SettleItem* wanted, const u8* record,
                        u64 room) noexcept nogil:
        """Whether the record that stands there, with so many bytes to come, is that of an item."""
        cdef const RecordHeader* header = <const RecordHeader*>record
        return (room >= RECORD_HEADER_BYTES and record_stride(header.body_bytes) <= room
                and (header.kind == RECORD_ACCEPT or header.kind == RECORD_CHOSEN)
                and header.group == wanted.group and header.index == wanted.instance)

    cdef const u8* given_record(self, const SettleItem* wanted) noexcept nogil:
        cdef size_t n
        for n in range(self.given.size()):
            if (self.given[n].group == wanted.group
                    and self.given[n].instance == wanted.instance):
                return self.given[n].record.data
        return NULL

    cdef int pick(self, size_t item) noexcept nogil:
        cdef const SettleItem* wanted = &self.items[item]
        cdef const u8* record = NULL
        cdef const RecordHeader* header
        cdef u64 room = 0
        cdef Picked picked
        cdef int verdict = self.locate(item, &record, &room)
        if verdict == SETTLE_OK and not self.is_wanted(wanted, record, room):
            self.bad_item = item
            verdict = SETTLE_OTHER
        if verdict != SETTLE_OK:
            record = self.given_record(wanted)
            if record == NULL:
                return verdict
        header = <const RecordHeader*>record
        if self.picked.empty() or self.items[self.picked.back().item].group != wanted.group:
            self.left_bytes += sizeof(ChunkRow)
        picked.item = <u32>item
        picked.bytes = header.body_bytes
        picked.record = header
        self.picked.push_back(picked)
        self.reach[item] = REACH_SKIP
        self.left_bytes += chunk_stride(picked.bytes)
        return SETTLE_OK

    cdef void end_pass(self) noexcept nogil:
        cdef size_t n
        for n in range(self.stretches.size()):
            block_unref(self.stretches[n].block)
        for n in range(self.singles.size()):
            block_unref(self.singles[n])
        self.stretches.clear()
        self.singles.clear()
        self.picked.clear()
        self.at = 0
        self.left_bytes = 0

    # --- a chunk

    cdef int build(self) noexcept nogil:
        cdef int verdict
        cdef Picked* p
        cdef Roster roster
        cdef u64 value_bytes
        self.rosters.clear()
        while self.at >= self.picked.size():
            verdict = self.next_pass()
            if verdict != SETTLE_OK:
                return verdict
        value_bytes = chunk_value_bytes(self.left_bytes, chunk_stride(self.picked[self.at].bytes))
        if value_bytes > self.room_bytes:
            phx_free(self.room)
            self.room = <u8*>phx_malloc(value_bytes)
            if self.room == NULL:
                phx_fatal("out of memory")
            self.room_bytes = value_bytes
        chunk_begin(&self.writer, self.room, value_bytes, self.index.next_id)
        while self.at < self.picked.size():
            if self.at + AHEAD < self.picked.size():
                prefetch(self.picked[self.at + AHEAD].record)
            p = &self.picked[self.at]
            if not chunk_add_record(&self.writer, p.record):
                break
            self.entries += 1
            self.entry_bytes += p.bytes
            self.left_bytes -= min(self.left_bytes, chunk_stride(p.bytes))
            if roster_read(&roster, <const u8*>p.record + RECORD_HEADER_BYTES, p.bytes):
                self.rosters.push_back(self.at)
            self.at += 1
        chunk_end(&self.writer, self.index.sid)
        return SETTLE_OK

    def next_chunk(self):
        """(id, value, tail) of the next chunk, or None at the end; good until the next call."""
        cdef int verdict
        with nogil:
            verdict = self.build()
        if verdict == SETTLE_DONE:
            return None
        self.check(verdict)
        return chunk_views(&self.writer)

    def barriers(self):
        """[(group, instance, body)] of the membership values in the chunk that next_chunk gave."""
        cdef size_t n
        cdef const RecordHeader* header
        found = []
        for n in range(self.rosters.size()):
            header = self.picked[self.rosters[n]].record
            found.append((header.group, header.index, PyBytes_FromStringAndSize(
                <const char*>header + RECORD_HEADER_BYTES, header.body_bytes)))
        return found

    def stage(self):
        """The chunk that next_chunk gave belongs to the open transaction."""
        self.index.stage(&self.writer)

    cdef int check(self, int verdict) except -1:
        cdef SettleItem item
        if verdict == SETTLE_OK:
            return 0
        item.group = 0
        item.instance = item.lsn = 0
        if self.bad_item < self.n_items:
            item = self.items[self.bad_item]
        raise SettleError(verdict, self.journal_error, item.group, item.instance, item.lsn)


class SettleError(Exception):
    def __init__(self, verdict, journal_error, group, instance, lsn):
        super().__init__(verdict, journal_error, group, instance, lsn)
        self.verdict = verdict
        self.journal_error = journal_error
        self.group = group
        self.instance = instance
        self.lsn = lsn
        self.unreadable = verdict == SETTLE_OTHER or verdict == SETTLE_UNREADABLE
        self.damage = verdict == SETTLE_OTHER or (
            verdict == SETTLE_UNREADABLE and journal_error in (JOURNAL_DAMAGED, JOURNAL_GONE))

    def __str__(self):
        where = f"group {self.group} instance {self.instance}" if self.instance else "a stretch"
        if self.verdict == SETTLE_GAP:
            return f"the plan does not go on from what is settled: {where}"
        if self.verdict == SETTLE_UNREADABLE:
            return f"{where} cannot be read from the journal (error {self.journal_error})"
        return f"{where} is not what stands in the journal at position {self.lsn}"


# ---------------------------------------------------------------------------------------- merging

cdef class Merger:
    def __cinit__(self, ChunkIndex index not None):
        self.index = index
        self.held = []

    def __dealloc__(self):
        phx_free(self.room)

    def add(self, u64 chunk, Bytes value, Bytes tail=None):
        cdef ChunkView view
        cdef int verdict
        cdef const u8* data = &value[0] if value.shape[0] else NULL
        cdef u32 slot = self.index.slot_of(chunk)
        if slot == 0xFFFFFFFF:
            raise KeyError(chunk)
        if tail is None:
            with nogil:
                verdict = chunk_open(&view, data, value.shape[0], chunk, self.index.sid)
        else:
            verdict = chunk_open_tail(&view, &tail[0] if tail.shape[0] else NULL, tail.shape[0],
                                      chunk, self.index.sid)
            if verdict == CHUNK_OK and view.footer.value_bytes != <u64>value.shape[0]:
                verdict = CHUNK_BAD_FOOTER
            view.data = data
        if verdict != CHUNK_OK:
            raise_damage(verdict, chunk, 0, 0)
        self.held.append((value, tail))
        self.views.push_back(view)
        self.slots.push_back(slot)

    def patch(self, bodies):
        """Take these bodies, {(group, instance): body}, in the place of what the chunks have."""
        cdef Patch patch
        cdef bytes body
        for group, instance in sorted(bodies):
            body = bodies[group, instance]
            patch.group = group
            patch.instance = instance
            patch.bytes = <u32>len(body)
            patch.body = <const u8*>PyBytes_AS_STRING(body)
            self.patches.push_back(patch)
            self.held.append(body)

    cdef const Patch* patch_of(self, u32 group, u64 instance) noexcept nogil:
        cdef size_t low = 0, high = self.patches.size(), middle
        cdef const Patch* patch
        while low < high:
            middle = low + (high - low) // 2
            patch = &self.patches[middle]
            if patch.group < group or (patch.group == group and patch.instance < instance):
                low = middle + 1
            else:
                high = middle
        if low == self.patches.size():
            return NULL
        patch = &self.patches[low]
        return patch if patch.group == group and patch.instance == instance else NULL

    cdef u64 floor(self, u32 group) noexcept nogil:
        cdef IndexGroup* g = self.index.lookup(group)
        return g.kept_from if g != NULL else 1

    cdef u64 kept_bytes(self) noexcept nogil:
        """Of rows of which anything is kept, and their entries."""
        cdef size_t n
        cdef u32 k
        cdef u64 total = 0
        cdef const ChunkRow* row
        for n in range(self.views.size()):
            for k in range(self.views[n].n_rows):
                row = &self.views[n].rows[k]
                if row.first + row.count > self.floor(row.group):
                    total += row.bytes + sizeof(ChunkRow)
        for n in range(self.patches.size()):   # (more than needed: they have room in their rows)
            total += chunk_stride(self.patches[n].bytes) + sizeof(ChunkRow)
        return total

    cdef int build(self, u32* bad_group, u64* bad_instance, size_t* bad_view) noexcept nogil:
        """Stretch by stretch in order of group and instance: the lowest head of all is next."""
        cdef vector[u32] heads
        cdef size_t n, best
        cdef u64 k, floor, total = self.kept_bytes()
        cdef u32 count = 0
        cdef const ChunkRow* row
        cdef const ChunkRow* lowest
        cdef const u8* at
        cdef const u8* end
        cdef const u8* body
        cdef const Patch* patch
        heads.resize(self.views.size())
        cdef u64 value_bytes = chunk_value_bytes(total, total)
        self.room = <u8*>phx_malloc(value_bytes)
        if self.room == NULL:
            phx_fatal("out of memory")
        chunk_begin(&self.writer, self.room, value_bytes, self.index.next_id)
        while True:
            lowest = NULL
            best = 0
            for n in range(self.views.size()):
                if heads[n] < self.views[n].n_rows:
                    row = &self.views[n].rows[heads[n]]
                    if lowest == NULL or row.group < lowest.group or (
                            row.group == lowest.group and row.first < lowest.first):
                        lowest = row
                        best = n
            if lowest == NULL:
                break
            heads[best] += 1
            floor = self.floor(lowest.group)
            if lowest.first + lowest.count <= floor:
                continue
            bad_group[0] = lowest.group
            bad_view[0] = best
            at = self.views[best].data + lowest.offset
            end = at + lowest.bytes
            for k in range(lowest.count):
                bad_instance[0] = lowest.first + k
                patch = self.patch_of(lowest.group, lowest.first + k)
                if patch != NULL:
                    body = patch.body
                    count = patch.bytes
                else:
                    body = chunk_entry(at, end, lowest.group, lowest.first + k, &count)
                if body == NULL and lowest.first + k >= floor:
                    return CHUNK_BAD_ENTRY
                if body == NULL:   # it goes; and if it hides the others, they are patched, or bad
                    at = end if not chunk_next_seen(lowest, at, end, k) else (
                        at + chunk_stride((<const ChunkEntry*>at).bytes))
                    continue
                if lowest.first + k >= floor and not chunk_add(
                        &self.writer, lowest.group, lowest.first + k, body, count):
                    phx_fatal("merged chunks do not fit the chunk made for them")
                # (A patch may be longer than what stands here.)
                at += min(chunk_stride(count), <u64>(end - at))
        chunk_end(&self.writer, self.index.sid)
        return CHUNK_OK

    def merged(self):
        """(id, value, tail) of the chunk that holds what is kept of those added. Call once."""
        cdef u32 group = 0
        cdef u64 instance = 0
        cdef size_t view = 0
        cdef int verdict
        with nogil:
            verdict = self.build(&group, &instance, &view)
        if verdict != CHUNK_OK:
            raise_damage(verdict, self.views[view].footer.id, group, instance)
        if self.writer.entries == 0:
            raise ValueError("nothing is kept of these chunks")
        return chunk_views(&self.writer)

    def stage(self):
        cdef size_t n
        self.index.stage(&self.writer)
        for n in range(self.slots.size()):
            self.index.stage_drop(self.slots[n])


# ----------------------------------------------------------------------------------- by hand

def plan_over(NativeDoor journal not None, items):
    """For tests: a plan over (group, instance, lsn) items of a journal that outlives it."""
    plan = SettlePlan(items)
    (<SettlePlan>plan).hold = hold_new(journal._open(), False)
    return plan
