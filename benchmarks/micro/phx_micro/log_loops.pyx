# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The journal, chunks, and the way from one to the other."""

import os

from libc.string cimport memset

from phx._core.chunk cimport (
    CHUNK_OK, ChunkSpan, ChunkView, ChunkWriter, chunk_add, chunk_begin, chunk_copy, chunk_end,
    chunk_open, chunk_span, chunk_stride, chunk_verify)
from phx._core.chunk_index import ChunkIndex
from phx._core.codec cimport RECORD_ACCEPT, RecordHeader, record_append
from phx._core.disk cimport DiskApi, disk_folder_open
from phx._core.journal cimport (
    JOURNAL_FIRST_LSN, JOURNAL_OK, Journal, JournalOptions, journal_append, journal_close,
    journal_new, journal_next_lsn, journal_open, journal_read_span, journal_replay, journal_sync)
from phx._core.journal_door import Journal as JournalDoor
from phx._core.memdisk cimport MemoryDisk, memory_disk_api
from phx._core.memdisk import MemoryDisk as NewDisk
from phx._core.native cimport *
from phx._core.settler import Settler, plan_over
from phx_micro.measure cimport Loop

cdef enum:
    SEGMENT_BYTES = 32 << 20
    CHUNK_BYTES = (8 << 20) - 16


cdef int count_record(void* arg, const RecordHeader* header, const u8* body,
                      u64 lsn) noexcept nogil:
    (<u64*>arg)[0] += 1 + <u64>header.body_bytes
    return 0


cdef class Journals(Loop):
    """`count` records of `size` bytes, `per_block` in a block; `folder` None: a disk in memory."""
    cdef Journal* j
    cdef object disk
    cdef object folder
    cdef u32 size
    cdef u32 per_block
    cdef u64 segment_bytes
    cdef bint failed
    cdef Block* body

    def __init__(self, u64 count, u32 size, folder=None, u64 segment_bytes=SEGMENT_BYTES,
                 u32 per_block=100):
        if count % per_block:
            raise ValueError("only whole blocks")
        super().__init__(count)
        self.size = size
        self.per_block = per_block
        self.segment_bytes = segment_bytes
        self.body = block_new(size)
        memset(self.body.data, 0x5A, size)
        self.folder = folder
        self.disk = NewDisk() if folder is None else None
        self.open(True)

    def __dealloc__(self):
        if self.j != NULL:
            journal_close(self.j)
        block_unref(self.body)

    cdef int make(self) except -1:
        cdef DiskApi api
        cdef JournalOptions options
        memset(&options, 0, sizeof(options))
        options.cluster = options.node = 1
        options.segment_bytes = self.segment_bytes
        options.journal_bytes_max = <u64>1 << 40
        options.body_bytes_max = self.size
        if self.folder is None:
            memory_disk_api((<MemoryDisk>self.disk).state, &api)
        elif (code := disk_folder_open(&api, os.fsencode(self.folder), True)) < 0:
            raise OSError(-code, os.strerror(-code))
        self.j = journal_new(&api, &options)
        return 0

    def open(self, bint create):
        cdef u64 found = 0
        self.make()
        if journal_open(self.j, create) != JOURNAL_OK \
                or journal_replay(self.j, count_record, &found) != JOURNAL_OK:
            raise AssertionError(self.j.text.decode())

    # Records as an engine's turn makes them. The journal may change the block.
    cdef Block* block(self, u64 first) noexcept:
        cdef Block* made = block_new(self.per_block * (<u64>self.size + 40))
        cdef u32 i
        for i in range(self.per_block):
            made = record_append(made, RECORD_ACCEPT, i, first + i, 1, self.body.data, self.size)
        return made


cdef class JournalAppend(Journals):
    """Blocks are made before they are measured; nothing is synced while it is."""
    cdef Block* current

    cdef void go(self) noexcept:
        self.failed |= journal_append(self.j, self.current, journal_next_lsn(self.j), False) \
            != JOURNAL_OK

    def run(self):
        cdef u64 i
        for i in range(self.count // self.per_block):
            self.current = self.block(i * self.per_block)
            Loop.run(self)
            block_unref(self.current)
            # The simulated disk remembers what is not synced.
            if i % 64 == 63 and journal_sync(self.j) < 0:
                raise AssertionError("not synced")
        return self.ns

    def check(self):
        cdef u64 found = 0
        assert not self.failed
        assert journal_sync(self.j) == journal_next_lsn(self.j)
        journal_close(self.j)
        self.j = NULL
        self.make()
        assert journal_open(self.j, False) == JOURNAL_OK
        assert journal_replay(self.j, count_record, &found) == JOURNAL_OK
        assert found == self.count * (1 + self.size)


cdef class JournalReplay(Journals):
    """Open is not measured, replay is; it checks every record. The segment is full of them."""
    def __init__(self, u64 count, u32 size, folder=None, u64 segment_bytes=0):
        cdef Block* block
        cdef u64 i
        if segment_bytes == 0:
            segment_bytes = ((count * (40 + <u64>size) >> 12) + 2) << 12
        super().__init__(count, size, folder, segment_bytes)
        for i in range(count // self.per_block):
            block = self.block(i * self.per_block)
            self.failed |= journal_append(self.j, block, journal_next_lsn(self.j), False) != 0
            block_unref(block)
        self.failed |= journal_sync(self.j) < 0
        journal_close(self.j)
        self.j = NULL
        self.make()
        self.failed |= journal_open(self.j, False) != JOURNAL_OK

    cdef void go(self) noexcept:
        self.failed |= journal_replay(self.j, count_record, &self.seen) != JOURNAL_OK

    def check(self):
        assert not self.failed
        assert self.seen == self.count * (1 + self.size)


cdef class JournalTail(Loop):
    """Replay of `count` MiB of a segment that was never written to."""
    cdef JournalReplay replay

    def __init__(self, u64 count, folder=None):
        super().__init__(count)
        self.replay = JournalReplay(100, 100, folder, count << 20)

    def run(self):
        return self.replay.run()

    def check(self):
        self.replay.check()


cdef class JournalRead(JournalReplay):
    """Spans of 1 MiB, as the settler reads them."""
    def __init__(self, u64 count, u32 size, folder=None):
        super().__init__(count, size, folder)
        self.failed |= journal_replay(self.j, count_record, &self.seen) != JOURNAL_OK
        self.seen = 0

    cdef void go(self) noexcept:
        cdef u64 lsn = JOURNAL_FIRST_LSN
        cdef u64 stride = (32 + <u64>self.size + 7) & ~<u64>7
        cdef Block* span
        while self.seen < self.count * stride and not self.failed:
            span = NULL
            if journal_read_span(self.j, lsn, 1 << 20, &span) != JOURNAL_OK:
                self.failed = True
                break
            self.seen += span.size
            lsn += span.size
            block_unref(span)

    def check(self):
        assert not self.failed
        assert self.seen == self.count * ((32 + self.size + 7) & ~7)


cdef class Chunks(Loop):
    """Chunks of 100 groups with as many entries of `size` bytes as there are to be."""
    cdef ChunkWriter* writer
    cdef u8[16] store_id
    cdef u8* room
    cdef Block* body
    cdef u32 size
    cdef u64 per_group
    cdef bint failed

    def __init__(self, u64 count, u32 size):
        if count % 100:
            raise ValueError("as many entries in each of a hundred groups")
        super().__init__(count)
        if count * (chunk_stride(size) + 32) > CHUNK_BYTES - 65536:
            raise ValueError("more than a chunk")
        self.size = size
        self.per_group = count // 100
        memset(self.store_id, 7, 16)
        self.body = block_new(size)
        memset(self.body.data, 0x5A, size)
        self.room = <u8*>phx_calloc(CHUNK_BYTES, 1)
        self.writer = phx_new[ChunkWriter]()
        self.fill()

    def __dealloc__(self):
        phx_free(self.room)
        phx_delete(self.writer)
        block_unref(self.body)

    cdef void fill(self) noexcept:
        cdef u32 group
        cdef u64 k
        self.writer.rows.clear()
        chunk_begin(self.writer, self.room, CHUNK_BYTES, 1)
        for group in range(100):
            for k in range(self.per_group):
                self.failed |= not chunk_add(self.writer, group, k + 1, self.body.data, self.size)
        chunk_end(self.writer, self.store_id)

    def check(self):
        cdef ChunkView view
        cdef u32 group = 0
        cdef u64 instance = 0
        assert not self.failed
        assert chunk_open(&view, self.room, CHUNK_BYTES, 1, self.store_id) == CHUNK_OK
        assert view.footer.entries == self.count
        assert chunk_verify(&view, &group, &instance) == CHUNK_OK


cdef class ChunkEncode(Chunks):
    cdef void go(self) noexcept:
        self.fill()


cdef class ChunkDecode(Chunks):
    """What is served to a peer: the entries of each group are found, copied and checked."""
    cdef Block* out

    def __init__(self, u64 count, u32 size):
        super().__init__(count, size)
        self.out = block_new(CHUNK_BYTES)

    def __dealloc__(self):
        block_unref(self.out)

    cdef void go(self) noexcept:
        cdef ChunkView view
        cdef ChunkSpan span
        cdef u32 group
        self.failed |= chunk_open(&view, self.room, CHUNK_BYTES, 1, self.store_id) != CHUNK_OK
        for group in range(100):
            if chunk_span(&view, row_of(&view, group), group, 1, self.per_group, CHUNK_BYTES,
                          &span) != CHUNK_OK:
                self.failed = True
                return
            self.failed |= chunk_copy(&span, group, self.out.data) != 0
            self.seen += span.count

    def check(self):
        super().check()
        assert self.seen == self.count
        assert self.out.data[16:16 + self.size] == self.body.data[:self.size]


# The first row of a group. (The store has its own index for that.)
cdef u32 row_of(const ChunkView* view, u32 group) noexcept:
    cdef u32 low = 0, high = view.n_rows, middle
    while low < high:
        middle = (low + high) // 2
        if view.rows[middle].group < group:
            low = middle + 1
        else:
            high = middle
    return low


cdef class Settling(Loop):
    """From a plan over `count` records of 100 groups, through the journal, to chunks."""
    cdef object journal
    cdef object settler
    cdef u32 size

    def __init__(self, u64 count, u32 size):
        cdef Block* block
        cdef u64 i, k
        if count % 100:
            raise ValueError("as many records in each of a hundred groups")
        super().__init__(count)
        self.size = size
        self.journal = JournalDoor(NewDisk(), create=True, segment_bytes=SEGMENT_BYTES,
                                   body_bytes_max=1 << 20)
        body = bytes(size)
        items = []
        for i in range(count // 100):
            lsn = self.journal.next_lsn
            block = block_new(100 * (size + 40))
            for k in range(100):
                items.append((k, i + 1, lsn + block.size))
                block = record_append(block, RECORD_ACCEPT, k, i + 1, 1, <const char*>body, size)
            self.journal.append(block.data[:block.size])
            block_unref(block)
        self.journal.sync()
        plan = plan_over(self.journal, sorted(items))
        self.settler = Settler(ChunkIndex(bytes([1]) * 16), plan, 32 << 20)

    cdef void go(self) noexcept:
        try:
            while self.settler.next_chunk() is not None:
                self.settler.stage()
                self.seen += 1
        except Exception:
            self.seen = 0

    def check(self):
        assert self.seen >= 1
        assert self.settler.entries == self.count
        assert self.settler.entry_bytes == self.count * self.size
