# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""A binary heap of what is to happen; see agenda.pxd."""

from phx._core.native cimport *


# Without branches: which of two comes first is what no processor can guess.
cdef inline size_t before(const Due* x, const Due* y) noexcept nogil:
    return <size_t>(x.at_us < y.at_us) | (<size_t>(x.at_us == y.at_us)
                                          & <size_t>(x.number < y.number))


cdef void sift_up(vector[Due]* heap, size_t at) noexcept nogil:
    cdef Due moved = heap[0][at]
    cdef size_t above
    while at:
        above = (at - 1) >> 1
        if not before(&moved, &heap[0][above]):
            break
        heap[0][at] = heap[0][above]
        at = above
    heap[0][at] = moved


cdef void sift_down(vector[Due]* heap) noexcept nogil:
    cdef Due moved = heap[0][0]
    cdef size_t at = 0, below, count = heap.size()
    while True:
        below = 2 * at + 1
        if below >= count:
            break
        if below + 1 < count and before(&heap[0][below + 1], &heap[0][below]):
            below += 1
        if not before(&heap[0][below], &moved):
            break
        heap[0][at] = heap[0][below]
        at = below
    heap[0][at] = moved


cdef class Agenda:
    def __dealloc__(self):
        self.clear()

    cpdef void clear(self):
        """Nothing is going to happen."""
        cdef size_t i
        for i in range(self.heap.size()):
            block_unref(self.slots[self.heap[i].slot].block)
        self.heap.clear()
        self.slots.clear()
        self.free.clear()

    cdef void push(self, u64 at_us, u32 kind, u32 host, u64 life, u64 a, u64 b,
                   Block* block) noexcept:
        cdef Happening* what
        cdef Happening made
        cdef Due due
        if self.free.empty():
            due.slot = self.slots.size()
            self.slots.push_back(made)
        else:
            due.slot = self.free.back()
            self.free.pop_back()
        due.at_us = at_us if at_us > self.now_us else self.now_us
        due.number = self.number
        self.number += 1
        what = &self.slots[due.slot]
        what.at_us = due.at_us
        what.kind = kind
        what.host = host
        what.life = life
        what.a = a
        what.b = b
        what.block = block
        self.heap.push_back(due)
        sift_up(&self.heap, self.heap.size() - 1)

    cdef void postpone(self, const Happening* what, u64 at_us) noexcept:
        self.push(at_us, what.kind, what.host, what.life, what.a, what.b, what.block)

    cdef bint pop(self, u64 until_us, Happening* out) noexcept:
        cdef u64 slot
        if self.heap.empty() or self.heap.front().at_us > until_us:
            return False
        slot = self.heap.front().slot
        out[0] = self.slots[slot]
        self.free.push_back(slot)
        self.heap[0] = self.heap.back()
        self.heap.pop_back()
        if not self.heap.empty():
            sift_down(&self.heap)
        self.now_us = out.at_us
        self.steps += 1
        return True
