# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Python's door to read points; what it guarantees stands in read_tickets.pyi."""

from phx._core.driver cimport Driver
from phx._core.native cimport *
from phx._core.queues cimport ReadWanted, inbox_read, outbox_take_points
from phx._core.reads cimport READ_QUORUM, READS_MAX
from phx._core.state cimport ReadPoint

from phx._core import driver as errors
from phx._core.options import DriverError

TICKETS_MAX = READS_MAX


cdef class ReadTickets:
    cdef Driver driver

    def __init__(self, Driver driver not None):
        self.driver = driver

    def ask(self, u32 group, u64 ticket, u64 deadline_us, bint quorum=False):
        cdef ReadWanted wanted
        cdef int verdict
        self.driver.hosted(group)
        wanted.group = group
        wanted.flags = READ_QUORUM if quorum else 0
        wanted.ticket = ticket
        wanted.deadline_us = deadline_us
        verdict = inbox_read(&self.driver.s.inbox, &wanted)
        if verdict == 1:
            raise DriverError(errors.ERROR_OVERLOADED, f"{READS_MAX} reads wait for their points")
        if verdict:
            raise DriverError(errors.ERROR_CLOSED, "the driver does not run")

    def take(self):
        cdef vector[ReadPoint] points
        cdef size_t i
        self.driver.check()
        outbox_take_points(&self.driver.s.outbox, &self.driver.s.inbox, &points)
        return [(points[i].group, points[i].ticket, points[i].instance, points[i].verdict)
                for i in range(points.size())]
