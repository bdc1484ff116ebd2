# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Values as apply sees them. See entries.pxd."""

from collections.abc import Sequence

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcpy

from phx._core.native cimport *
from phx._core.batch cimport (
    BODY_HEADER_BYTES, ITEM_HEADER_BYTES, BodyHeader, ItemHeader, RunIterator, body_check,
    run_begin, run_next,
)


@cython.final
@cython.freelist(4096)
cdef class Entry:
    """One chosen value, as apply sees it. The same on every replica except ``sequence``.

    Attributes:
        group, instance, index: where it stands in the log; ``index`` counts the values of an
            instance.
        machine: the small id of the machine that it is for.
        value: the bytes that were proposed.
        epoch: of the leader that packed it, larger for every later one: the fencing token. It may
            be below that of an entry before (docs/howto/know-the-leader.md).
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
cdef class Passage:
    """The bodies of a stretch of log; only native code makes and reads one."""

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.bodies.size()):
            block_unref(self.bodies[i])

    cdef void hold(self, Block* body) noexcept:
        self.bodies.push_back(block_ref(body))

    cdef void begin(self, const Stretch* stretch) noexcept:
        cdef Stretch* last
        self.stretches.push_back(stretch[0])
        last = &self.stretches.back()
        last.first = self.items.size()
        last.count = 0

    cdef size_t stretch_of(self, size_t at) noexcept:
        cdef size_t low = 0
        cdef size_t high = self.stretches.size()
        cdef size_t middle
        while high - low > 1:
            middle = (low + high) >> 1
            if self.stretches[middle].first <= at:
                low = middle
            else:
                high = middle
        return low

    cdef Entry entry(self, size_t at, const Stretch* stretch):
        cdef Entry entry = Entry.__new__(Entry)
        cdef u32 offset = <u32>(at - stretch.first)
        cdef const u8* item = self.items[at]
        cdef ItemHeader head
        memcpy(&head, item, ITEM_HEADER_BYTES)
        entry.group = self.group
        entry.instance = stretch.instance
        entry.index = stretch.index + offset
        entry.machine = head.machine
        entry.node = stretch.node
        entry.epoch = stretch.epoch
        entry.time_us = stretch.time_us
        entry.sequence = stretch.sequence + offset if stretch.sequence else 0
        entry.value = PyBytes_FromStringAndSize(<const char*>item + ITEM_HEADER_BYTES, head.bytes)
        return entry


@cython.final
cdef class Entries:
    """Consecutive entries of one group: a Sequence of Entry, each made when it is looked at.

    Looking twice at one place gives two equal entries. A slice is an Entries, too. It holds the
    log's own memory: for what is to be kept beyond apply, keep the entries or their values.
    """

    def __len__(self):
        return <Py_ssize_t>(self.stop - self.start)

    def __getitem__(self, index):
        cdef Entries part
        cdef Py_ssize_t at, first, last, step
        cdef Py_ssize_t count = <Py_ssize_t>(self.stop - self.start)
        if isinstance(index, slice):
            first, last, step = index.indices(count)
            if step != 1:
                return [self[at] for at in range(first, last, step)]
            return entries_of_passage(self.passage, self.start + first,
                                      self.start + max(first, last))
        at = index
        if at < 0:
            at += count
        if not 0 <= at < count:
            raise IndexError("no such entry")
        at += self.start
        return self.passage.entry(at, &self.passage.stretches[self.passage.stretch_of(at)])

    def __iter__(self):
        cdef _EntryIterator it = _EntryIterator.__new__(_EntryIterator)
        it.passage = self.passage
        it.at = self.start
        it.stop = self.stop
        it.stretch = self.passage.stretch_of(self.start)
        return it

    def __repr__(self):
        return f"Entries({list(self)!r})"

    index = Sequence.index
    count = Sequence.count


Sequence.register(Entries)


@cython.final
cdef class _EntryIterator:
    cdef Passage passage
    cdef size_t at
    cdef size_t stop
    cdef size_t stretch

    def __iter__(self):
        return self

    def __next__(self):
        cdef const Stretch* stretch
        if self.at >= self.stop:
            raise StopIteration
        stretch = &self.passage.stretches[self.stretch]
        while self.at >= stretch.first + stretch.count:
            self.stretch += 1
            stretch += 1
        self.at += 1
        return self.passage.entry(self.at - 1, stretch)

    def __length_hint__(self):
        return self.stop - self.at


cdef Entries entries_of_passage(Passage passage, size_t start, size_t stop):
    cdef Entries entries = Entries.__new__(Entries)
    entries.passage = passage
    entries.start = start
    entries.stop = stop
    return entries


def entries_of(u32 group, u64 instance, bytes body not None):
    """Every value of one instance, duplicates included. ValueError if the body is unsound."""
    cdef Passage passage = Passage.__new__(Passage)
    cdef Block* block
    cdef Stretch stretch
    cdef BodyHeader header
    cdef ItemHeader head
    cdef RunIterator it
    cdef const u8* item
    cdef u32 i
    if not body_check(<const u8*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body)):
        raise ValueError("not the body of an instance")
    block = block_copy(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    passage.group = group
    passage.hold(block)
    block_unref(block)
    memcpy(&header, block.data, BODY_HEADER_BYTES)
    stretch.instance = instance
    stretch.epoch = header.epoch
    stretch.time_us = header.time_us
    stretch.sequence = 0
    stretch.index = 0
    run_begin(&it, block.data, block.size)
    while run_next(&it):
        stretch.node = it.run.node
        passage.begin(&stretch)
        item = it.items
        for i in range(it.run.count):
            passage.add(item)
            memcpy(&head, item, ITEM_HEADER_BYTES)
            item += ITEM_HEADER_BYTES + head.bytes
        stretch.index += it.run.count
    return list(entries_of_passage(passage, 0, passage.items.size()))
