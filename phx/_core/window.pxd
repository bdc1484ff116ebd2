"""The ring of open instances of a group, small rings of words, and a heap of timers.

Slot i of the window is instance chosen_through + 1 + i. A slot is freed when its instance is chosen
and handed on. Memory is taken at first use, so that a silent group costs nothing here.
"""

from phx._core.native cimport *

cdef enum SlotFlag:
    SLOT_CHOSEN = 1          # learned as chosen; `ballot` is still the accepted ballot (0: none)

cdef struct Slot:
    u64 ballot               # ballot in which this node accepted `value`; 0: nothing accepted
    u64 lsn                  # position of the record that holds `value`
    Block* value             # NULL: empty slot
    u32 flags
    u32 pad

cdef struct Window:
    Slot* slots
    u32 capacity             # power of two, or 0
    u32 head                 # index of the first slot
    u64 base                 # instance of the first slot

cdef struct Ring:            # of u64 words, first in, first out
    u64* items
    u32 capacity             # power of two, or 0
    u32 head
    u32 size

cdef struct Timer:
    u64 at_us
    u32 index                # whose
    u32 kind

cdef void window_init(Window* w, u64 base) noexcept nogil
cdef void window_free(Window* w) noexcept nogil
# The slot of `instance` (>= base), growing the ring to hold it.
cdef Slot* window_slot(Window* w, u64 instance) noexcept nogil
# The filled slot of `instance`, or NULL.
cdef Slot* window_find(Window* w, u64 instance) noexcept nogil
# Forget the first slot (its value must have been taken) and move the base up by one.
cdef void window_advance(Window* w) noexcept nogil
# Forget all slots below `base`, whatever they hold, and move the base there (not down). Its time
# depends on the slots that there are, not on how far it goes.
cdef void window_jump(Window* w, u64 base) noexcept nogil

# Forget the slots above `instance` that were accepted in `ballot` or a lower one, and are not known
# to be chosen. The highest instance that is left; 0: none is.
cdef u64 window_cut(Window* w, u64 instance, u64 ballot) noexcept nogil

cdef void ring_push(Ring* r, u64 item) noexcept nogil
cdef u64 ring_pop(Ring* r) noexcept nogil
cdef void ring_free(Ring* r) noexcept nogil
# Takes out every word that is `item`; the others stay in order.
cdef void ring_purge(Ring* r, u64 item) noexcept nogil
cdef inline u64 ring_at(Ring* r, u32 i) noexcept nogil:
    return r.items[(r.head + i) & (r.capacity - 1)]

cdef void timer_push(vector[Timer]* heap, u64 at_us, u32 index, u32 kind) noexcept nogil
cdef Timer timer_pop(vector[Timer]* heap) noexcept nogil
