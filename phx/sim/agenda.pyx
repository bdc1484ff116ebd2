# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""What is to happen, in the order of time; see agenda.pxd."""

from phx._core.native cimport *

cdef extern from * nogil:
    int trailing_zeros "__builtin_ctzll" (unsigned long long word)   # of what is not 0


cdef enum:
    ARITY = 4                  # of a heap: the entries below one are next to each other
    SLOT_BITS = 20
    SPAN_BITS = 8              # of the time of a heap, in microseconds


# Without branches: which of two comes first is what no processor can guess.
cdef inline size_t before(const Due* x, const Due* y) noexcept nogil:
    return <size_t>(x.at_us < y.at_us) | (<size_t>(x.at_us == y.at_us)
                                          & <size_t>(x.order < y.order))


cdef inline u64 slot_of(const Due* due) noexcept nogil:
    return due.order & ((<u64>1 << SLOT_BITS) - 1)


cdef void sift_up(Due* heap, size_t at) noexcept nogil:
    cdef Due moved = heap[at]
    cdef size_t above
    while at:
        above = (at - 1) // ARITY
        if not before(&moved, &heap[above]):
            break
        heap[at] = heap[above]
        at = above
    heap[at] = moved


cdef inline size_t first_of_four(const Due* heap, size_t at) noexcept nogil:
    cdef size_t left = at + before(&heap[at + 1], &heap[at])
    cdef size_t right = at + 2 + before(&heap[at + 3], &heap[at + 2])
    return right if before(&heap[right], &heap[left]) else left


cdef void sift_down(Due* heap, size_t count) noexcept nogil:
    cdef Due moved = heap[0]
    cdef size_t at = 0, below = 1, other
    while below < count:
        if below + ARITY <= count:
            below = first_of_four(heap, below)
        else:
            for other in range(below + 1, count):
                if before(&heap[other], &heap[below]):
                    below = other
        if not before(&heap[below], &moved):
            break
        heap[at] = heap[below]
        at = below
        below = ARITY * at + 1
    heap[at] = moved


cdef inline void heap_push(vector[Due]* heap, const Due* due) noexcept nogil:
    heap.push_back(due[0])
    sift_up(heap.data(), heap.size() - 1)


cdef inline void heap_pop(vector[Due]* heap) noexcept nogil:
    heap[0][0] = heap.back()
    heap.pop_back()
    if not heap.empty():
        sift_down(heap.data(), heap.size())


# --- what is near lies in many small heaps, each for one span of time; what is not, in a large one

cdef void spread(Agenda agenda, const Due* due) noexcept:
    cdef u64 span = due.at_us >> SPAN_BITS
    cdef u64 at = span & (NEAR - 1)
    if span >= agenda.first_span + NEAR:
        heap_push(&agenda.far, due)
        return
    heap_push(&agenda.near[at], due)
    agenda.some[at >> 6] |= <u64>1 << (at & 63)


# The heap with what comes next, or NULL.
cdef vector[Due]* first_heap(Agenda agenda) noexcept:
    cdef u64 start = agenda.first_span & (NEAR - 1)
    cdef u64 at = start >> 6
    cdef u64 word = agenda.some[at] & (~<u64>0 << (start & 63))
    cdef int i
    for i in range(WORDS + 1):
        if word:
            return &agenda.near[at << 6 | <u64>trailing_zeros(word)]
        at = (at + 1) & (WORDS - 1)
        word = agenda.some[at]
    if agenda.far.empty():
        return NULL
    return &agenda.far


# Time goes on to a span: what was far may be near now.
cdef void move_on(Agenda agenda, u64 span) noexcept:
    cdef Due due
    agenda.first_span = span
    while not agenda.far.empty() and agenda.far.front().at_us >> SPAN_BITS < span + NEAR:
        due = agenda.far.front()
        heap_pop(&agenda.far)
        spread(agenda, &due)


cdef class Agenda:
    def __cinit__(self):
        self.near.resize(NEAR)

    def __dealloc__(self):
        self.clear()

    cdef void forget(self, vector[Due]* heap) noexcept:
        cdef size_t i
        for i in range(heap.size()):
            block_unref(self.slots[slot_of(&heap[0][i])].block)
        heap.clear()

    cpdef void clear(self):
        """Nothing is going to happen."""
        cdef size_t i
        for i in range(NEAR):
            self.forget(&self.near[i])
        for i in range(WORDS):
            self.some[i] = 0
        self.forget(&self.far)
        self.slots.clear()
        self.free.clear()

    cdef void push(self, u64 at_us, u32 kind, u32 host, u64 life, u64 a, u64 b,
                   Block* block) noexcept:
        cdef Happening* what
        cdef Happening made
        cdef Due due
        cdef u64 slot
        if self.free.empty():
            slot = self.slots.size()
            if slot >> SLOT_BITS:
                phx_fatal(b"the agenda of the simulator is full")
            self.slots.push_back(made)
        else:
            slot = self.free.back()
            self.free.pop_back()
        due.at_us = at_us if at_us > self.now_us else self.now_us
        due.order = self.number << SLOT_BITS | slot
        self.number += 1
        what = &self.slots[slot]
        what.at_us = due.at_us
        what.kind = kind
        what.host = host
        what.life = life
        what.a = a
        what.b = b
        what.block = block
        spread(self, &due)

    cdef void postpone(self, const Happening* what, u64 at_us) noexcept:
        self.push(at_us, what.kind, what.host, what.life, what.a, what.b, what.block)

    cdef bint pop(self, u64 until_us, Happening* out) noexcept:
        cdef vector[Due]* heap = first_heap(self)
        cdef u64 slot, span, at
        if heap == NULL or heap.front().at_us > until_us:
            return False
        slot = slot_of(&heap.front())
        out[0] = self.slots[slot]
        self.free.push_back(slot)
        heap_pop(heap)
        span = out.at_us >> SPAN_BITS
        at = span & (NEAR - 1)
        if self.near[at].empty():
            self.some[at >> 6] &= ~(<u64>1 << (at & 63))
        if span != self.first_span:
            move_on(self, span)
        self.now_us = out.at_us
        self.steps += 1
        return True
