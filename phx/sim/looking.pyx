# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Lease reads at a simulated host; see looking.pxd and looking.pyi."""

from phx._core.native cimport *
from phx._core.published cimport POINT_NOT_LED, POINT_OK, published_look, published_point
from phx.sim.clock cimport Clock, clock_shows
from phx.sim.host cimport Host, LogFlow, find_flow
from phx.sim.watch_odd cimport watch_answers
from phx.sim.watch_reads cimport watch_read_point
from phx.sim.world cimport World

cdef u64 AGAIN_US = 700
cdef int TRIES_MAX = 2000


cdef struct Shown:
    const Clock* clock
    u64 now_us


cdef u64 host_clock(void* context) noexcept nogil:
    return clock_shows((<Shown*>context).clock, (<Shown*>context).now_us)


cdef class LeaseRead:
    def __init__(self, World world, node, u32 group, key, u64 pause_us, done):
        self.host = world.host_of(node)
        self.group = group
        self.key = key
        self.pause_us = pause_us
        self.done = done
        if self.host.engine != NULL:
            self.host.soon(1, self.begin)

    # Leases are claimed for clocks within their bounds only (U11).
    cdef bint claimed(self):
        return (not self.host.watch.leases_void
                and self.host.watch.now_us >= self.host.watch.leases_from_us)

    def begin(self):
        cdef int verdict
        cdef Shown shown
        if not self.claimed():
            return
        self.called_us = self.host.agenda.now_us
        self.known = self.host.watch.announced[self.group]
        if self.pause_us:
            verdict = published_look(self.host.published, self.group, &self.point, &self.until_us)
            if verdict != POINT_NOT_LED:
                self.host.soon(self.pause_us, self.judge)
            return
        shown.clock = &self.host.clock
        shown.now_us = self.called_us
        verdict = published_point(self.host.published, self.group, host_clock, &shown,
                                  &self.point)
        if verdict == POINT_OK:
            self.found()

    def judge(self):
        if self.until_us > clock_shows(&self.host.clock, self.host.agenda.now_us):
            self.found()

    def found(self):
        if not self.claimed():
            return
        watch_read_point(self.host.watch, self.host.node, self.group, self.known, self.point)
        self.answer()

    def answer(self):
        cdef LogFlow* flow = find_flow(self.host, self.group)
        if flow.stopped or flow.paused:
            return
        if flow.applied >= self.point:
            if watch_answers(self.host.watch, self.host.node, self.group):
                return               # what it says stands in no history
            self.done(self, self.host.machine[self.group].query(self.key),
                      self.host.agenda.now_us)
        elif self.tries < TRIES_MAX:
            self.tries += 1
            self.host.soon(AGAIN_US, self.answer)
