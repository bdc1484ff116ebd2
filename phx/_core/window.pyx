# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The ring of open instances; see window.pxd."""

from libc.string cimport memcpy, memset

from phx._core.native cimport *

cdef enum:
    WINDOW_START = 4             # small: most groups are seldom used, and a busy one soon grows
    RING_START = 4


cdef void* taken(u64 count, u64 size) noexcept nogil:
    cdef void* memory = phx_calloc(count, size)
    if memory == NULL:
        phx_fatal("out of memory")
    return memory


cdef void window_init(Window* w, u64 base) noexcept nogil:
    memset(w, 0, sizeof(Window))
    w.base = base


cdef void window_free(Window* w) noexcept nogil:
    cdef u32 i
    for i in range(w.capacity):
        block_unref(w.slots[i].value)
    phx_free(w.slots)
    w.slots = NULL
    w.capacity = 0


cdef void window_grow(Window* w, u64 wanted) noexcept nogil:
    cdef u64 capacity = w.capacity * 2 if w.capacity else WINDOW_START
    cdef Slot* slots
    cdef u32 i
    while capacity < wanted:
        capacity *= 2
    if capacity > (<u64>1 << 26):
        phx_fatal("a window of open instances grew without bound")
    slots = <Slot*>taken(capacity, sizeof(Slot))
    for i in range(w.capacity):
        slots[i] = w.slots[(w.head + i) & (w.capacity - 1)]
    phx_free(w.slots)
    w.slots = slots
    w.capacity = <u32>capacity
    w.head = 0


cdef Slot* window_slot(Window* w, u64 instance) noexcept nogil:
    cdef u64 offset = instance - w.base
    if offset >= w.capacity:
        window_grow(w, offset + 1)
    return &w.slots[(w.head + <u32>offset) & (w.capacity - 1)]


cdef Slot* window_find(Window* w, u64 instance) noexcept nogil:
    cdef u64 offset = instance - w.base
    cdef Slot* slot
    if instance < w.base or offset >= w.capacity:
        return NULL
    slot = &w.slots[(w.head + <u32>offset) & (w.capacity - 1)]
    return slot if slot.value != NULL else NULL


cdef void window_advance(Window* w) noexcept nogil:
    if w.capacity:
        memset(&w.slots[w.head], 0, sizeof(Slot))
        w.head = (w.head + 1) & (w.capacity - 1)
    w.base += 1


cdef void window_jump(Window* w, u64 base) noexcept nogil:
    cdef u64 count = min(base - w.base, <u64>w.capacity)
    cdef Block* value
    while count:
        value = w.slots[w.head].value
        block_unref(value)
        window_advance(w)
        count -= 1
    w.base = base


cdef u64 window_cut(Window* w, u64 instance, u64 ballot) noexcept nogil:
    cdef u64 last = 0
    cdef u32 i
    cdef Slot* slot
    for i in range(w.capacity):
        slot = &w.slots[(w.head + i) & (w.capacity - 1)]
        if slot.value == NULL:
            continue
        if w.base + i > instance and slot.ballot <= ballot and not slot.flags & SLOT_CHOSEN:
            block_unref(slot.value)
            memset(slot, 0, sizeof(Slot))
        else:
            last = w.base + i
    return last


cdef void ring_push(Ring* r, u64 item) noexcept nogil:
    cdef u64* items
    cdef u32 first
    if r.size == r.capacity:
        items = <u64*>taken(r.capacity * 2 if r.capacity else RING_START, 8)
        if r.capacity:
            first = r.capacity - r.head
            memcpy(items, r.items + r.head, first * 8)
            memcpy(items + first, r.items, r.head * 8)
        phx_free(r.items)
        r.items = items
        r.capacity = r.capacity * 2 if r.capacity else RING_START
        r.head = 0
    r.items[(r.head + r.size) & (r.capacity - 1)] = item
    r.size += 1


cdef u64 ring_pop(Ring* r) noexcept nogil:
    cdef u64 item = r.items[r.head]
    r.head = (r.head + 1) & (r.capacity - 1)
    r.size -= 1
    if r.size == 0 and r.capacity > 1024:
        ring_free(r)
    return item


cdef void ring_free(Ring* r) noexcept nogil:
    phx_free(r.items)
    memset(r, 0, sizeof(Ring))


cdef void ring_purge(Ring* r, u64 item) noexcept nogil:
    cdef u32 i, kept = 0
    for i in range(r.size):
        if ring_at(r, i) != item:
            r.items[(r.head + kept) & (r.capacity - 1)] = ring_at(r, i)
            kept += 1
    r.size = kept


cdef inline bint earlier(Timer* a, Timer* b) noexcept nogil:
    if a.at_us != b.at_us:
        return a.at_us < b.at_us
    if a.index != b.index:
        return a.index < b.index
    return a.kind < b.kind


cdef void timer_push(vector[Timer]* heap, u64 at_us, u32 index, u32 kind) noexcept nogil:
    cdef Timer timer, swapped
    cdef size_t i, parent
    timer.at_us = at_us
    timer.index = index
    timer.kind = kind
    heap.push_back(timer)
    i = heap.size() - 1
    while i > 0:
        parent = (i - 1) // 2
        if not earlier(&heap[0][i], &heap[0][parent]):
            break
        swapped = heap[0][i]
        heap[0][i] = heap[0][parent]
        heap[0][parent] = swapped
        i = parent


cdef Timer timer_pop(vector[Timer]* heap) noexcept nogil:
    cdef Timer top = heap[0][0]
    cdef Timer swapped
    cdef size_t i = 0, child, size
    heap[0][0] = heap.back()
    heap.pop_back()
    size = heap.size()
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and earlier(&heap[0][child + 1], &heap[0][child]):
            child += 1
        if not earlier(&heap[0][child], &heap[0][i]):
            break
        swapped = heap[0][i]
        heap[0][i] = heap[0][child]
        heap[0][child] = swapped
        i = child
    return top
