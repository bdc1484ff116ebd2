# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""A heap of what is to happen; see agenda.pxd."""

from phx._core.native cimport *


cdef enum:
    ARITY = 4                  # of the heap: the entries below one are next to each other
    SLOT_BITS = 20


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


cdef class Agenda:
    def __dealloc__(self):
        self.clear()

    cpdef void clear(self):
        """Nothing is going to happen."""
        cdef size_t i
        for i in range(self.heap.size()):
            block_unref(self.slots[slot_of(&self.heap[i])].block)
        self.heap.clear()
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
        self.heap.push_back(due)
        sift_up(self.heap.data(), self.heap.size() - 1)

    cdef void postpone(self, const Happening* what, u64 at_us) noexcept:
        self.push(at_us, what.kind, what.host, what.life, what.a, what.b, what.block)

    cdef bint pop(self, u64 until_us, Happening* out) noexcept:
        cdef u64 slot
        if self.heap.empty() or self.heap.front().at_us > until_us:
            return False
        slot = slot_of(&self.heap.front())
        out[0] = self.slots[slot]
        self.free.push_back(slot)
        self.heap[0] = self.heap.back()
        self.heap.pop_back()
        if not self.heap.empty():
            sift_down(self.heap.data(), self.heap.size())
        self.now_us = out.at_us
        self.steps += 1
        return True
