# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Settle plans: see plan.pxd."""

from phx._core.native cimport i64, phx_add, phx_delete, phx_new, u64, vector
from phx._core.state cimport SettleItem
from phx._core.journal cimport Journal, journal_close


cdef JournalHold* hold_new(Journal* journal, bint owned) noexcept nogil:
    cdef JournalHold* hold = phx_new[JournalHold]()
    hold.refs = 1
    hold.journal = journal
    hold.owned = owned
    return hold


cdef JournalHold* hold_ref(JournalHold* hold) noexcept nogil:
    phx_add(&hold.refs, 1)
    return hold


cdef void hold_unref(JournalHold* hold) noexcept nogil:
    if hold == NULL or phx_add(&hold.refs, -1) != 0:
        return
    if hold.owned:
        journal_close(hold.journal)
    phx_delete(hold)


cdef class SettlePlan:
    def __init__(self, items=(), upto_lsn=0):
        cdef SettleItem item
        item.pad = 0
        self.upto_lsn = upto_lsn
        for group, instance, lsn in items:
            item.group = group
            item.instance = instance
            item.lsn = lsn
            self.items.push_back(item)

    def __dealloc__(self):
        hold_unref(self.hold)

    def __len__(self):
        return self.items.size()

    def entries(self):
        cdef size_t at
        cdef SettleItem* item
        found = []
        for at in range(self.items.size()):
            item = &self.items[at]
            found.append((item.group, item.instance, item.lsn))
        return found

    def through(self):
        cdef size_t at
        found = {}
        for at in range(self.items.size()):
            found[self.items[at].group] = self.items[at].instance
        return found
