# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Groups of a driver that come and go; what is guaranteed stands in group_table.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memset

from phx._core.barrier cimport CHANGE_BUSY, CHANGE_NOT_LEADING, CHANGE_UNDER_WAY
from phx._core.driver cimport Driver
from phx._core.driver_state cimport GroupWanted, Opening
from phx._core.native cimport *
from phx._core.queues cimport ASK_ADD_GROUP, ASK_DROP_GROUP, ASK_END_GROUP, Question

from phx._core import driver as errors
from phx._core.options import DriverError

# what end() says
END_UNDER_WAY = <int>CHANGE_UNDER_WAY
END_NOT_LEADING = <int>CHANGE_NOT_LEADING
END_BUSY = <int>CHANGE_BUSY


cdef class GroupTable:

    def __init__(self, Driver driver not None):
        self.driver = driver

    def add(self, u32 group, *, generation=0, settled=0, floor=1, start=None, members=None):
        cdef Driver d = self.driver
        cdef GroupWanted wanted
        d.check()
        if group in d.index_of:
            raise DriverError(errors.ERROR_OPTION, f"group {group} is there")
        memset(&wanted, 0, sizeof(wanted))
        wanted.opening.generation = generation
        wanted.opening.settled_through = settled
        wanted.opening.floor = floor
        if members is not None:
            version, value, instance, members_floor, active = members
            wanted.version = version
            wanted.members = <const u8*>PyBytes_AS_STRING(<bytes?>value)
            wanted.members_bytes = PyBytes_GET_SIZE(value)
            wanted.instance = instance
            wanted.floor = members_floor
            wanted.active = active
        # From here on it may be delivered.
        d.sessions.add_group(group)
        if floor != 1:
            d.floors[group] = floor
        try:
            self.put(group, &wanted, start)
        except BaseException:
            d.sessions.drop_group(group)
            d.floors.pop(group, None)
            d.paused.pop(group, None)
            raise

    cdef int put(self, u32 group, GroupWanted* wanted, object start) except -1:
        cdef Driver d = self.driver
        cdef Question question
        cdef Opening opening
        cdef u64 first = 1
        wanted.opening.start = d.start_of(group, 0 if start is None else start,
                                          wanted.opening.settled_through)
        wanted.opening.paused = start is not None
        question.kind = ASK_ADD_GROUP
        question.group = group
        question.status = wanted
        d.ask(&question)
        if question.verdict != 0:
            raise DriverError(errors.ERROR_OPTION, f"group {group}, generation "
                              f"{wanted.opening.generation}: it cannot be, or was here before")
        opening = wanted.opening
        while d.openings.size() <= wanted.index:
            d.openings.push_back(opening)
            d.next_seq.push_back(first)
        d.openings[wanted.index] = opening
        d.next_seq[wanted.index] = 1
        if start is not None:
            d.paused[group] = start
        d.points.index_of[group] = wanted.index
        d.index_of[group] = wanted.index
        return 0

    def drop(self, u32 group):
        cdef Driver d = self.driver
        cdef Question question
        d.hosted(group)
        # Nothing new of it is queued from here on; what is queued goes with it.
        index = d.index_of.pop(group)
        point = d.points.index_of.pop(group, None)
        question.kind = ASK_DROP_GROUP
        question.group = group
        try:
            d.ask(&question)
        except DriverError as error:
            if error.code == errors.ERROR_OVERLOADED:  # it was not asked: it is as it was
                d.index_of[group] = index
                if point is not None:
                    d.points.index_of[group] = point
            raise
        d.paused.pop(group, None)
        d.floors.pop(group, None)
        d.sessions.drop_group(group)

    def end(self, u32 group):
        cdef Question question
        self.driver.hosted(group)
        question.kind = ASK_END_GROUP
        question.group = group
        self.driver.ask(&question)
        return question.verdict

    def groups(self):
        return sorted(self.driver.index_of)
